"""A Mac is kept awake by one caffeinate per process, which ends with it."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest
from cluster import eventually

from agents import facts
from agents.awake import Awake
from agents.contract import EngineFacts, RpcServerSpec, WorkerState
from agents.current_engine import CurrentEngine
from agents.rpc_server import RpcServer
from supervisor.adapters.llama_server import LlamaServers

CAFFEINATE = """#!/bin/sh
echo "$$ $*" >>"$CALLS"
[ "$1 $2 $3" = "-i -s -w" ] || exit 64
while kill -0 "$4" 2>/dev/null; do sleep 0.05; done
"""
STUBBORN = f"""#!{sys.executable}
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(os.environ["CALLS"], "a").write(f"{{os.getpid()}} {{' '.join(sys.argv[1:])}}\\n")
time.sleep(60)
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(tmp_path, CAFFEINATE)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def install(folder: Path, text: str) -> None:
    program = folder / "caffeinate"
    program.write_text(text)
    program.chmod(0o755)


def lines(calls: Path) -> list[str]:
    return calls.read_text().splitlines() if calls.exists() else []


def is_there(pid: int) -> bool:
    """Also as a zombie: whoever is not reaped is still there."""
    return Path(f"/proc/{pid}").exists()


async def sleeper() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec("sleep", "60")


async def begun(calls: Path, count: int = 1) -> int:
    """Number of the last caffeinate."""

    async def is_told() -> bool:
        return len(lines(calls)) == count

    await eventually(is_told, within_s=20, what="caffeinate runs")
    return int(lines(calls)[-1].split()[0])


async def test_it_watches_the_process_and_is_reaped_when_that_ends(calls: Path) -> None:
    watched, awake = await sleeper(), Awake("macos")
    await awake.hold(watched.pid)
    pid = await begun(calls)
    assert lines(calls)[0].split()[1:] == ["-i", "-s", "-w", str(watched.pid)]
    assert awake.is_held is True
    watched.kill()
    await watched.wait()

    async def is_reaped() -> bool:
        return not is_there(pid) and not awake.is_held

    await eventually(is_reaped, within_s=20, what="it is reaped")
    await awake.release()


async def test_there_is_never_more_than_one(calls: Path) -> None:
    watched, awake = await sleeper(), Awake("macos")
    await awake.hold(watched.pid)
    first = await begun(calls)
    await awake.hold(watched.pid)
    second = await begun(calls, 2)
    assert not is_there(first)
    await awake.release()
    assert not is_there(second)
    watched.kill()
    await watched.wait()


async def test_one_that_ignores_sigterm_is_killed(calls: Path) -> None:
    install(calls.parent, STUBBORN)
    awake = Awake("macos")
    await awake.hold(os.getpid())
    pid = await begun(calls)
    await awake.release()
    assert not is_there(pid)


@pytest.mark.parametrize("platform", ["linux", "android"])
async def test_elsewhere_nothing_is_started(calls: Path, platform: str) -> None:
    awake = Awake(platform)
    await awake.hold(os.getpid())
    assert not awake.is_held
    assert lines(calls) == []


async def test_a_mac_without_it_serves_all_the_same(calls: Path) -> None:
    (calls.parent / "caffeinate").write_text("no program")
    (calls.parent / "caffeinate").chmod(0o755)
    awake = Awake("macos")
    await awake.hold(os.getpid())
    assert not awake.is_held
    await awake.release()


async def test_it_runs_while_an_rpc_server_serves_and_no_longer(
    calls: Path, tmp_path: Path, engine: EngineFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "platform_name", lambda: "macos")
    server = RpcServer(CurrentEngine(engine), tmp_path / "agent", dict(os.environ))
    (tmp_path / "agent").mkdir()
    try:
        await server.apply(RpcServerSpec(1, "127.0.0.1"))
        status = await server.wait_while_starting(60)
        assert status.state is WorkerState.READY, status.detail
        pid = await begun(calls)
        assert lines(calls)[0].split()[-1] == str(status.pid)
        await server.remove(1)
        assert not is_there(pid)
    finally:
        await server.close()


async def test_it_runs_beside_a_llama_server_of_a_mac(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "platform_name", lambda: "macos")
    sleep = shutil.which("sleep")
    assert sleep
    servers = LlamaServers(tmp_path / "children.json", "")
    child = await servers.start([sleep, "60"], dict(os.environ), tmp_path / "llama-server-1.log")
    pid = await begun(calls)
    assert lines(calls)[0].split()[-1] == str(child.pid)
    await child.stop(grace_s=5)

    async def is_reaped() -> bool:
        return not is_there(pid)

    await eventually(is_reaped, within_s=20, what="it ends with llama-server")
