"""``agent.pyz``: fetched by the line that users are shown, run by a Python without packages."""

import asyncio
import base64
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from cluster import START_S, Cluster, Program, eventually

from agents.cli import CODE_VARIABLE
from agents.contract import EngineFacts
from agents.join import JoinCode
from supervisor.adapters import agent_archive
from supervisor.demo_model import SENTENCE

MAX_ARCHIVE_BYTES = 3_000_000
COMPILED = (".so", ".pyd", ".dylib", ".pyc")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an interpreter, called python3, without any package."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agent_archive.build(tmp_path_factory.mktemp("archive"))


def environment(bare: Path, home: Path, **more: str) -> dict[str, str]:
    """What a new user's shell has; the mark is how the suite finds orphans."""
    home.mkdir(exist_ok=True)
    mark = {"TMPDIR_MARK_OF_TESTS": os.environ["TMPDIR_MARK_OF_TESTS"]}
    return {"HOME": str(home), "PATH": f"{bare}:/usr/bin:/bin", **mark, **more}


@contextlib.asynccontextmanager
async def shell(line: str, folder: Path, env: dict[str, str]) -> AsyncIterator[Program]:
    """A line typed into a shell in ``folder``, and ended with what it started."""
    log = folder / "shell.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["sh", "-c", line],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Program("shell", process, folder, log)
    finally:
        # The shell waits for its program, so that nothing is left for others to reap.
        if process.poll() is None:
            for child in psutil.Process(process.pid).children():
                child.terminate()
            await asyncio.to_thread(process.wait, 15)


async def run_agent(
    bare: Path, archive: Path, home: Path, code: str
) -> subprocess.CompletedProcess[str]:
    """``agent.pyz join -`` up to its end."""
    return await asyncio.to_thread(
        subprocess.run,
        [str(bare / "python3"), str(archive), "join", "-"],
        env=environment(bare, home, **{CODE_VARIABLE: code}),
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_S,
    )


def assert_one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.parametrize("package", ["pydantic", "psutil", "httpx", "starlette", "agents"])
def test_the_bare_interpreter_is_bare(bare: Path, tmp_path: Path, package: str) -> None:
    done = subprocess.run(
        [bare / "python3", "-c", f"import {package}"],
        env=environment(bare, tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"No module named '{package}'" in done.stderr


async def test_the_line_that_users_are_shown_makes_a_worker_that_serves(
    cluster: Cluster,
    bare: Path,
    engine: EngineFacts,
    demo_model: Path,
    tmp_path: Path,
) -> None:
    await cluster.supervisor()
    command = (await cluster.http.post("/api/join-code")).json()["command"]
    folder = tmp_path / "device"
    folder.mkdir()
    env = environment(bare, tmp_path / "home", LLAMA_CPP_BIN=engine.folder)
    asked_s = time.monotonic()
    async with shell(command, folder, env) as program:

        async def first_device() -> str | None:
            assert program.process.poll() is None, program.said()
            devices = (await cluster.http.get("/api/devices")).json()
            return str(devices[0]["name"]) if devices else None

        name = await eventually(first_device, within_s=START_S, what="the device joins")
        device = await cluster.device_state(name, "ready")
        print(f"from the line to a ready device: {time.monotonic() - asked_s:.2f} s")
        assert device["facts"]["engine"]["folder"] == engine.folder

        assert (await cluster.launch(demo_model)).status_code == 201
        deployment = await cluster.settled()
        assert deployment["state"] == "ready", deployment["reason"]
        assert [s["device"] for s in deployment["plan"]["shards"]] == [name]
        assert (await cluster.complete(tokens=128)).strip() == SENTENCE


async def test_curl_refuses_a_main_host_with_another_key(
    cluster: Cluster, bare: Path, tmp_path: Path
) -> None:
    await cluster.supervisor()
    command = (await cluster.http.post("/api/join-code")).json()["command"]
    other = "sha256//" + base64.b64encode(hashlib.sha256(b"another key").digest()).decode()
    forged = re.sub(r"sha256//[^']+", other, command)
    assert forged != command
    folder = tmp_path / "device"
    folder.mkdir()
    async with shell(forged, folder, environment(bare, tmp_path / "home")) as program:
        status = await asyncio.to_thread(program.process.wait, START_S)
    assert status == 90, program.said()
    assert "public key does not match pinned public key" in program.said()
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []
    assert (await cluster.http.get("/api/devices")).json() == []


def test_the_archive_is_small_and_holds_nothing_compiled(archive: Path) -> None:
    print(f"agent.pyz: {archive.stat().st_size} bytes")
    assert archive.stat().st_size < MAX_ARCHIVE_BYTES
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
    assert "agents/cli.py" in names
    assert [name for name in names if name.endswith(COMPILED)] == []
    assert [name for name in names if name.startswith("supervisor/")] == []
    assert len(names) == len(set(names))


def test_the_same_packages_give_the_same_archive(archive: Path, tmp_path: Path) -> None:
    again = agent_archive.build(tmp_path)
    assert agent_archive.digest(again) == agent_archive.digest(archive)
    with zipfile.ZipFile(again) as opened:
        assert {item.date_time for item in opened.infolist()} == {(1980, 1, 1, 0, 0, 0)}


async def test_many_devices_may_fetch_the_archive_at_once(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.supervisor()
    command = (await cluster.http.post("/api/join-code")).json()["command"]
    fetch = command.partition(" && ")[0].replace("join.sh -o ~/.llama-join.sh", "agent.pyz -O")
    assert fetch.endswith("/files/agent.pyz -O")
    folders = [tmp_path / f"device-{number}" for number in range(8)]

    async def run(folder: Path) -> str:
        folder.mkdir()
        await asyncio.to_thread(subprocess.run, ["sh", "-c", fetch], cwd=folder, check=True)
        with zipfile.ZipFile(folder / "agent.pyz") as opened:
            assert opened.testzip() is None
        return agent_archive.digest(folder / "agent.pyz")

    assert len(set(await asyncio.gather(*map(run, folders)))) == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "ADDRESS:PORT/TOKEN/FINGERPRINT"),
        ("nonsense", "copy the whole line"),
        ("127.0.0.1/token/" + "f" * 43, "is not ADDRESS:PORT"),
        ("127.0.0.1:8101/token/" + "f" * 42, "has 42 characters, not 43"),
    ],
)
async def test_a_code_that_is_none_ends_with_one_sentence(
    bare: Path, archive: Path, tmp_path: Path, code: str, words: str
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert_one_sentence(await run_agent(bare, archive, home, code), words)


async def test_a_code_that_the_main_host_does_not_accept_ends_with_one_sentence(
    cluster: Cluster, bare: Path, archive: Path, tmp_path: Path
) -> None:
    await cluster.supervisor()
    good = JoinCode.parse(await cluster.code())
    # Good for 36 milliseconds, which starting the agent takes longer than.
    expired = await cluster.code(hours=0.00001)
    cases = [
        (expired, ["expired", "supervisor invite"]),
        (str(JoinCode(good.endpoints, "wrong", good.fingerprint)), ["token", "supervisor invite"]),
        (str(JoinCode(good.endpoints, good.token, "f" * 43)), ["fingerprint", "new join code"]),
    ]
    home = tmp_path / "home"
    home.mkdir()
    for code, words in cases:
        assert_one_sentence(await run_agent(bare, archive, home, code), *words)
    assert (await cluster.http.get("/api/devices")).json() == []


async def test_a_removed_device_ends_and_joins_again_with_a_new_code(cluster: Cluster) -> None:
    await cluster.supervisor(heartbeat_s=0.2)
    first = await cluster.agent("one")
    assert (await cluster.http.delete("/api/devices/one")).status_code == 204
    assert await asyncio.to_thread(first.process.wait, START_S) == 1
    assert "error: this device was removed" in first.said()
    await cluster.agent("one")


async def test_a_second_agent_in_the_same_folder_is_refused_and_does_no_harm(
    cluster: Cluster, demo_model: Path
) -> None:
    await cluster.supervisor()
    await cluster.agent("one")
    await cluster.launch(demo_model)
    assert (await cluster.settled())["state"] == "ready"
    second = await cluster.agent("one", wait=False)
    assert await asyncio.to_thread(second.process.wait, START_S) == 1
    assert "error: another agent uses" in second.said()
    assert (await cluster.complete(tokens=128)).strip() == SENTENCE
