"""``agents/join.sh``, run by dash on fake hosts against a real supervisor."""

import re
import shutil
import socketserver
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from lab.computer import NEW, Computer, fresh_computer
from lab.phone import WRONG_PIN, assert_one_error, invitation

from supervisor import files
from supervisor.adapters.authority import Authority

CODE = "127.0.0.1:1/token/print"
FETCHED = r"curl -fsSk .*--pinnedpubkey sha256//\S+ -o \S+ https://\S+/files/"


@pytest.fixture
def computer(tmp_path: Path) -> Computer:
    return fresh_computer(tmp_path)


async def test_a_host_with_python_gets_the_agent_and_nothing_else(
    cluster: Cluster, computer: Computer
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    computer.command("python3", NEW)
    done = await computer.run(invited.code, invited.pin, "--no-start")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(computer.calls("curl")) == 1
    assert re.match(FETCHED + "agent.pyz$", computer.calls("curl")[0])
    kept = computer.snapshot()
    folder = computer.data.relative_to(computer.home)
    assert set(kept) == {
        f"{folder}/{name}" for name in ("agent.pyz", "join-code", "join.sh", "pin")
    }
    assert {stat.S_IMODE(mode) for mode, _, _ in kept.values()} == {0o600}
    assert (computer.data / "join-code").read_text().strip() == invited.code
    assert (computer.data / "join.sh").read_bytes() == files.join_script().read_bytes()
    assert not [call for call in computer.calls() if invited.code in call]


async def test_a_second_run_changes_nothing(cluster: Cluster, computer: Computer) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    computer.command("python3", NEW)
    await computer.run(invited.code, invited.pin, "--no-start")
    before = computer.snapshot()
    computer.environment["SUPERVISOR_JOIN_CODE"] = invited.code
    for arguments in (["-", invited.pin, "--no-start"], ["--no-start"]):
        done = await computer.run(*arguments)
        assert done.returncode == 0, done.stderr
        assert computer.snapshot() == before
    kept = computer.data / "join.sh"
    assert (await computer.run("--no-start", script=kept)).returncode == 0
    assert computer.snapshot() == before


async def test_what_it_hands_to_the_agent(cluster: Cluster, computer: Computer) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    computer.command(
        "python3",
        'case "$*" in *" join "* | *" service "*) echo "code $SUPERVISOR_JOIN_CODE" ;; '
        f"*) {NEW} ;; esac",
    )
    done = await computer.run(invited.code, invited.pin, "--", "--name", "a b", "--threads", "2")
    assert done.returncode == 0, done.stderr
    agent = f"python3 {computer.data}/agent.pyz"
    assert computer.calls()[-1] == f"{agent} join - --name a b --threads 2"
    assert done.stdout.splitlines()[-1] == f"code {invited.code}"
    assert "the engine comes from the main host by itself" in done.stdout
    assert "--service' has it started at every boot" in done.stdout
    done = await computer.run("--service", "--", "--name", "x")
    assert done.returncode == 0, done.stderr
    assert computer.calls()[-1] == f"{agent} service install - --name x"
    assert done.stdout.splitlines()[-1] == f"code {invited.code}"


async def test_the_fetched_script_goes_and_files_of_others_stay(
    cluster: Cluster, computer: Computer
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    computer.command("python3", NEW)
    download = computer.home / ".llama-join.sh"
    for code, pin, status in ((CODE, invited.pin, 1), (invited.code, invited.pin, 0)):
        shutil.copy(files.join_script(), download)
        done = await computer.run(code, pin, "--no-start", script=download)
        assert done.returncode == status, done.stderr
        assert not download.exists()
    own = computer.folder / "join.sh"
    shutil.copy(files.join_script(), own)
    assert (await computer.run("--no-start", script=own)).returncode == 0
    assert own.exists()


async def test_another_key_fetches_nothing_and_is_no_reason_to_start_what_is_there(
    cluster: Cluster, computer: Computer
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    computer.command("python3", NEW)
    done = await computer.run(invited.code, WRONG_PIN, "--no-start")
    assert_one_error(done, "its key is not the pinned one", "get a new line")
    assert computer.snapshot() == {}
    assert (await computer.run(invited.code, invited.pin, "--no-start")).returncode == 0
    (computer.data / "pin").write_text(WRONG_PIN)
    before = computer.snapshot()
    assert_one_error(await computer.run(), "its key is not the pinned one")
    assert computer.snapshot() == before
    assert not [call for call in computer.calls("python3") if " join " in call]


async def test_without_an_answer_a_later_run_starts_what_is_there(
    cluster: Cluster, computer: Computer
) -> None:
    supervisor = await cluster.supervisor()
    invited = await invitation(cluster)
    computer.command("python3", f'case "$*" in *" join "*) ;; *) {NEW} ;; esac')
    await computer.run(invited.code, invited.pin, "--no-start")
    assert supervisor.stop() == 0
    before = computer.snapshot()
    done = await computer.run()
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: cannot look for a newer agent")
    assert computer.calls()[-1] == f"python3 {computer.data}/agent.pyz join -"
    assert computer.snapshot() == before
    # Whoever gives a new line wants what it names.
    done = await computer.run(invited.code, invited.pin)
    assert_one_error(done, "cannot fetch agent.pyz", "supervisor up")


class _CutShort(socketserver.BaseRequestHandler):
    """Promises more than it sends, then hangs up."""

    def handle(self) -> None:
        self.request.recv(4096)
        self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nPK and the rest is")


@pytest.fixture
def cutting(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Code and pin of a main host whose connection breaks in every download."""
    authority = Authority(tmp_path / "authority")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.supervisor_certificate, authority.supervisor_key)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _CutShort) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}/token/print", authority.server_pin()
        server.shutdown()
        thread.join()


async def test_an_agent_that_was_cut_short_is_not_kept(
    computer: Computer, cutting: tuple[str, str]
) -> None:
    computer.command("python3", NEW)
    done = await computer.run(*cutting)
    assert_one_error(done, "cannot fetch agent.pyz")
    assert computer.snapshot() == {}
    assert not [call for call in computer.calls("python3") if "agent.pyz" in call]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 1, "has not joined yet"),
        (["code"], 2, "usage: sh join.sh"),
        (["code", "pin", "more"], 2, "usage: sh join.sh"),
        (["code", "pin", "--bad"], 2, "usage: sh join.sh"),
        (["nonsense", WRONG_PIN], 1, "is not of the form"),
        (["-", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1:1/to ken/print", WRONG_PIN], 1, "is not of the form"),
        ([CODE, "sha256/short"], 1, "the pin does not begin with"),
    ],
)
async def test_wrong_arguments_end_with_one_sentence(
    computer: Computer, arguments: list[str], status: int, words: str
) -> None:
    done = await computer.run(*arguments)
    assert done.returncode == status, done
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert computer.snapshot() == {}
    assert computer.calls("curl", "python3") == []


@pytest.mark.parametrize(
    ("system", "environment", "words"),
    [
        ("MINGW64_NT-10.0", {}, "WSL2"),
        ("Linux", {"TERMUX_VERSION": "0.118.3"}, "take the line for phones"),
    ],
)
async def test_it_says_where_it_does_not_belong(
    computer: Computer, system: str, environment: dict[str, str], words: str
) -> None:
    computer.environment.update(environment, SYSTEM=system)
    assert_one_error(await computer.run(CODE, WRONG_PIN), words)


async def test_without_curl_it_says_so(computer: Computer) -> None:
    (computer.bin / "curl").unlink()
    assert_one_error(await computer.run(CODE, WRONG_PIN), "curl is missing")


@pytest.mark.parametrize(
    ("system", "more", "expected"),
    [
        ("Linux", {}, "home/.local/share"),
        ("Darwin", {}, "home/Library/Application Support"),
        ("Linux", {"XDG_DATA_HOME": "home/elsewhere"}, "home/elsewhere"),
        ("Darwin", {"XDG_DATA_HOME": "home/elsewhere"}, "home/elsewhere"),
    ],
)
async def test_the_folder_is_the_one_that_the_agent_takes(
    cluster: Cluster, computer: Computer, system: str, more: dict[str, str], expected: str
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    computer.environment["SYSTEM"] = system
    more = {name: str(computer.folder / path) for name, path in more.items()}
    computer.environment.update(more)
    computer.command("python3.11", NEW)
    done = await computer.run(invited.code, invited.pin, "--no-start")
    assert done.returncode == 0, done.stderr
    folder = computer.folder / expected / "llama-rpc-supervisor"
    assert (folder / "agent.pyz").exists()
    # Where the agent has it, by the library that it asks.
    library = "platformdirs.macos.MacOS" if system == "Darwin" else "platformdirs.unix.Unix"
    module = library.rpartition(".")[0]
    code = (
        f"import {module}; print({library}('llama-rpc-supervisor', appauthor=False).user_data_dir)"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(computer.home), **more},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() == str(folder)
