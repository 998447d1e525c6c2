"""Which Python ``agents/join.sh`` takes, how it gets one, and what it never touches."""

from pathlib import Path

import pytest
from lab.computer import NEW, OLD, Computer, fresh_computer
from lab.phone import WRONG_PIN, assert_one_error

from supervisor import files

CODE = "127.0.0.1:1/token/print"
UV_LINE = "curl -LsSf https://astral.sh/uv/install.sh | sh"
PLACES = (
    "/opt/homebrew/bin",
    "/usr/local/bin",
    "/home/linuxbrew/.linuxbrew/bin",
    "/Library/Frameworks/Python.framework/Versions/Current/bin",
)
WHERE = 'printf "used %s\\n" "$0" >>"$CALLS"\n'
"""Has a stub record its whole path, too."""

BRING = 'cp "$SHOP/new-python" "$BIN/python3.13"'
MANAGERS = {
    "apt-get": "apt-get install -y -q python3",
    "dnf": "dnf install -y python3",
    "pacman": "pacman -S --noconfirm --needed python",
    "zypper": "zypper --non-interactive install python3",
    "apk": "apk add python3",
}


@pytest.fixture
def computer(tmp_path: Path) -> Computer:
    return fresh_computer(tmp_path)


def script(computer: Computer) -> Path:
    """``join.sh`` with the places of the whole machine moved below the fake one's folder."""
    text = files.join_script().read_text()
    for place in (*PLACES, "/usr/bin/"):
        assert place in text
        text = text.replace(place, f"{computer.folder}{place}")
    path = computer.folder / "join.sh"
    path.write_text(text)
    return path


async def stopped_at_the_fetch(computer: Computer) -> str:
    """Its output, when it has found a Python and then no main host."""
    done = await computer.run(CODE, WRONG_PIN, script=script(computer))
    assert_one_error(done, "cannot fetch agent.pyz")
    return done.stdout


def used(computer: Computer) -> str:
    return computer.calls("used")[-1].removeprefix("used ")


async def test_the_first_that_is_new_enough_is_taken(computer: Computer) -> None:
    computer.command("python3", OLD)
    computer.command("python3.14", WHERE + OLD)
    computer.command("python3.12", WHERE + NEW)
    assert await stopped_at_the_fetch(computer) == ""
    assert used(computer) == f"{computer.bin}/python3.12"


@pytest.mark.parametrize("place", [*PLACES, "/home/.local/bin", "/home/.pyenv/versions/3.12.1/bin"])
async def test_usual_places_outside_of_path_are_looked_at(computer: Computer, place: str) -> None:
    computer.command("python3", OLD)
    folder = computer.folder / place[1:]
    computer.command("python3", WHERE + NEW, folder=folder)
    assert await stopped_at_the_fetch(computer) == ""
    assert used(computer) == f"{folder}/python3"


async def test_uv_is_asked_for_its_own(computer: Computer) -> None:
    computer.command("python3", OLD)
    computer.command("python3.13", WHERE + NEW, folder=computer.folder / "uv")
    computer.command(
        "uv", f'case $1$2 in pythonfind) echo "{computer.folder}/uv/python3.13" ;; esac'
    )
    assert await stopped_at_the_fetch(computer) == ""
    assert used(computer) == f"{computer.folder}/uv/python3.13"
    assert not [call for call in computer.calls("uv") if "install" in call]


@pytest.mark.parametrize("is_link", [False, True])
async def test_the_python_of_macos_is_never_called(computer: Computer, is_link: bool) -> None:
    """It would ask whether to install the developer tools."""
    computer.environment["SYSTEM"] = "Darwin"
    apple = computer.folder / "usr/bin"
    computer.command("python3", WHERE + NEW, folder=apple)
    if is_link:
        (computer.bin / "python3").symlink_to(apple / "python3")
    else:
        computer.environment["PATH"] += f":{apple}"
    done = await computer.run(CODE, WRONG_PIN, script=script(computer))
    assert_one_error(done, "no Python 3.11", UV_LINE)
    assert computer.calls("used", "python3") == []
    # Elsewhere the same folder has an ordinary one.
    computer.environment["SYSTEM"] = "Linux"
    await stopped_at_the_fetch(computer)
    assert computer.calls("used") != []


@pytest.mark.parametrize("manager", MANAGERS)
@pytest.mark.parametrize("is_root", [False, True])
async def test_packages_are_installed_where_that_needs_no_question(
    computer: Computer, manager: str, is_root: bool
) -> None:
    computer.command(manager, f'case "$*" in *update*) ;; *) {BRING} ;; esac')
    if is_root:
        computer.environment["USER_NUMBER"] = "0"
    else:
        computer.command("sudo", '[ "$1" = -n ] || exit 1; shift; exec "$@"')
    assert "installing one" in await stopped_at_the_fetch(computer)
    assert MANAGERS[manager] in computer.calls(manager)
    assert bool(computer.calls("sudo")) != is_root


async def test_where_the_usual_package_is_too_old_a_newer_one_is_tried(computer: Computer) -> None:
    computer.environment["USER_NUMBER"] = "0"
    computer.command(
        "apt-get",
        'case "$*" in *python3.12) ' + BRING + " ;; *python3) ;; *update*) ;; *) exit 100 ;; esac",
    )
    computer.command("python3", OLD)
    await stopped_at_the_fetch(computer)
    installs = [call for call in computer.calls("apt-get") if "install" in call]
    assert [call.split()[-1] for call in installs] == [
        *("python3", "python3.14", "python3.13", "python3.12"),
    ]


@pytest.mark.parametrize(
    ("manager", "has_old", "words"),
    [
        ("apt-get", False, "type 'sudo apt-get install python3', or without root"),
        ("apt-get", True, "type 'sudo apt-get install python3.11', or without root"),
        ("dnf", True, "type 'sudo dnf install python3.11', or without root"),
        ("zypper", True, "type 'sudo zypper install python311', or without root"),
        ("pacman", True, "type 'sudo pacman -S python', or without root"),
        ("apk", False, "type 'apk add python3' as root, or without root"),
        ("", True, f"type '{UV_LINE}'"),
    ],
)
async def test_sudo_that_asks_is_not_used_and_the_command_is_told(
    computer: Computer, manager: str, has_old: bool, words: str
) -> None:
    computer.command("sudo", "echo 'sudo: a password is required' >&2; exit 1")
    if manager:
        computer.command(manager)
    if has_old:
        computer.command("python3", OLD)
    done = await computer.run(CODE, WRONG_PIN, script=script(computer))
    assert_one_error(done, "no Python 3.11", words, UV_LINE, "then this line again")
    assert set(computer.calls("sudo")) <= {"sudo -n true"}
    assert computer.calls(*MANAGERS, "curl") == []
    assert not computer.data.exists()


@pytest.mark.parametrize("system", ["Darwin", "Linux"])
async def test_homebrew_brings_one(computer: Computer, system: str) -> None:
    computer.environment["SYSTEM"] = system
    computer.command("brew", BRING, folder=computer.folder / "opt/homebrew/bin")
    await stopped_at_the_fetch(computer)
    assert computer.calls("brew") == ["brew install python3"]


async def test_homebrew_is_not_for_root(computer: Computer) -> None:
    computer.environment.update(SYSTEM="Darwin", USER_NUMBER="0")
    computer.command("brew", BRING)
    done = await computer.run(CODE, WRONG_PIN, script=script(computer))
    assert_one_error(done, UV_LINE)
    assert computer.calls("brew") == []


async def test_uv_comes_before_what_changes_the_system(computer: Computer) -> None:
    computer.command("uv", f"case $2 in install) {BRING} ;; *) exit 2 ;; esac")
    for name in ("sudo", "brew", "apt-get"):
        computer.command(name)
    await stopped_at_the_fetch(computer)
    assert "uv python install 3.13" in computer.calls("uv")
    assert computer.calls("sudo", "brew", "apt-get") == []


async def test_when_uv_fails_the_others_are_tried(computer: Computer) -> None:
    computer.command("uv", "exit 2", folder=computer.home / ".local/bin")
    computer.command("brew", "exit 1")
    computer.command("sudo", 'shift; exec "$@"')
    computer.command("apt-get", f'case "$*" in *install*) {BRING} ;; *) exit 1 ;; esac')
    await stopped_at_the_fetch(computer)
    order = [
        call.split()[0] for call in computer.calls("uv", "brew", "apt-get") if "install" in call
    ]
    assert order == ["uv", "brew", "apt-get"]
