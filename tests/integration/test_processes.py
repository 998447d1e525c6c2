"""Nothing outlives what started it: every program, every signal."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from cluster import Cluster, engine_pids, eventually, link_pids

from agents import ports

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


async def no_engines(within_s: float = 10.0) -> None:
    async def none_left() -> bool:
        return not engine_pids()

    await eventually(none_left, within_s=within_s, what="no engine process is left")


def engine_names() -> set[str]:
    return {Path(f"/proc/{pid}/exe").resolve().name for pid in engine_pids()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_supervisor_that_ends_takes_everything_along(
    pair: Cluster, demo_model: Path, number: signal.Signals
) -> None:
    await pair.launch(demo_model)
    await pair.settled()
    supervisor = pair.programs[0]
    assert await asyncio.to_thread(supervisor.stop, number) == 0, supervisor.said()
    assert not engine_pids(), "neither llama-server nor a worker"
    assert not link_pids(), "neither the one of the launch nor the spare one"


async def test_a_supervisor_that_is_killed_leaves_its_launch_for_the_next(
    pair: Cluster, demo_model: Path
) -> None:
    """tests/integration/test_adoption.py has the next. The spare link process is nobody's."""
    await pair.launch(demo_model)
    await pair.settled()
    assert await asyncio.to_thread(pair.programs[0].stop, signal.SIGKILL) == -9

    async def only_the_launch_is_left() -> bool:
        return len(link_pids()) == 1

    await eventually(only_the_launch_is_left, within_s=20, what="the spare link process ends")
    assert engine_names() == {"llama-server", "ggml-rpc-server"}
    for pid in engine_pids():
        if Path(f"/proc/{pid}/exe").resolve().name == "llama-server":
            os.kill(pid, signal.SIGKILL)

    async def none_left() -> bool:
        return not link_pids()

    await eventually(none_left, within_s=20, what="a link without supervisor and engine ends")


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP])
async def test_an_agent_that_ends_takes_its_rpc_server_along(
    pair: Cluster, demo_model: Path, number: signal.Signals
) -> None:
    await pair.launch(demo_model, devices=["two"])
    await pair.settled()
    agent = next(p for p in pair.programs if p.name == "two")
    status = await asyncio.to_thread(agent.stop, number)
    assert status == (-9 if number is signal.SIGKILL else 0), agent.said()

    async def has_no_worker() -> bool:
        return "ggml-rpc-server" not in engine_names()

    await eventually(has_no_worker, within_s=5, what="the rpc-server ends with its agent")
    if number is not signal.SIGKILL:
        # An agent that ends in order says so; one that was killed is missed after 30 s.
        await no_engines(within_s=10)


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_demo_that_ends_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "demo.log"
    with log.open("wb") as file:
        demo = subprocess.Popen(
            [sys.executable, "-m", "supervisor", "demo"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    async def is_up() -> bool:
        assert demo.poll() is None, log.read_text()
        return "Ctrl-C stops everything" in log.read_text()

    await eventually(is_up, within_s=60, what="the demo is up")
    assert len(engine_pids()) == 3
    demo.send_signal(number)
    await asyncio.to_thread(demo.wait, 20)
    if number is not signal.SIGKILL:
        assert not _children_of_session(demo.pid), "it waits for what it started"
    await no_engines(within_s=20)

    async def no_programs() -> bool:
        return not _children_of_session(demo.pid)

    await eventually(no_programs, within_s=10, what="supervisor and agents end with the demo")


def _children_of_session(pid: int) -> list[str]:
    """Command lines of processes that the demo started and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if fields[3] == str(pid) and fields[0] != "Z" and entry.name != str(pid):
            found.append(command)
    return found


async def test_an_orphan_of_a_killed_agent_is_swept_at_its_next_start(cluster: Cluster) -> None:
    """Where the kernel cannot tell a child that its parent died (macOS), the ledger can."""
    await cluster.supervisor()
    agent = await cluster.agent("one")
    await asyncio.to_thread(agent.stop)
    stray = subprocess.Popen(["sleep", "300"], start_new_session=True)
    mark = Path(f"/proc/{stray.pid}/stat").read_text().rpartition(")")[2].split()[19]
    record = {"name": "rpc-server", "pid": stray.pid, "start_mark": mark, "argv": ["sleep"]}
    (cluster.folder / "one" / "children.json").write_text(json.dumps([record]))
    await cluster.agent("one")
    assert await asyncio.to_thread(stray.wait, 5) == -9


async def test_the_same_folder_has_one_supervisor(cluster: Cluster) -> None:
    await cluster.supervisor()
    second = subprocess.run(
        [sys.executable, "-m", "supervisor", "up", "--data", str(cluster.folder / "supervisor"),
         "--no-agent", "--port", "0", "--join-host", "127.0.0.1", "--join-port", "0"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert "another supervisor" in second.stderr


async def test_the_main_hosts_own_agent_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    """Its rpc-server may serve a launch; the next supervisor finds it, and ends it with itself."""
    cluster = Cluster(tmp_path)
    data = tmp_path / "supervisor"
    reserved = ports.reserve("127.0.0.1", from_top=True)
    up = ["supervisor", "up", "--data", str(data), "--port", "0"]
    up += ["--join-host", "127.0.0.1", "--join-port", str(reserved.port)]

    async def is_heard() -> bool:
        try:
            url = json.loads((data / "run.json").read_text())["url"]
            devices = (await cluster.http.get(f"{url}/api/devices")).json()
        except (OSError, ValueError, httpx.HTTPError):
            return False
        return any(device["state"] == "ready" for device in devices)

    try:
        first = cluster.run("supervisor", *up)
        await eventually(is_heard, within_s=30, what="the local device is ready")
        agents = _agent_pids(data)
        assert len(agents) == 1
        await asyncio.to_thread(first.stop, signal.SIGKILL)
        (data / "run.json").unlink()
        assert _agent_pids(data) == agents
        second = cluster.run("supervisor", *up)
        await eventually(is_heard, within_s=30, what="it is heard again")
        assert _agent_pids(data) == agents, "neither ended nor doubled"
        assert await asyncio.to_thread(second.stop) == 0
        assert not _agent_pids(data)
    finally:
        await cluster.close()
        reserved.release()


async def test_the_main_hosts_own_agent_is_started_and_restarted(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    try:
        data = tmp_path / "supervisor"
        cluster.run(
            "supervisor", "supervisor", "up", "--data", str(data), "--port", "0",
            "--join-host", "127.0.0.1", "--join-port", "0",
        )  # fmt: skip

        async def device() -> dict[str, object] | None:
            try:
                cluster.url = json.loads((data / "run.json").read_text())["url"]
                answer = (await cluster.http.get(f"{cluster.url}/api/devices")).json()
            except (OSError, ValueError, KeyError):
                return None
            return next((d for d in answer if d["state"] == "ready"), None)

        first = await eventually(device, within_s=30, what="the local device is ready")
        assert first["address"] == "127.0.0.1", "its rpc-server is not for the network"
        agents = _agent_pids(data)
        assert len(agents) == 1
        os.kill(agents[0], 9)
        deadline_s = time.monotonic() + 20

        async def is_new() -> bool:
            now = _agent_pids(data)
            return bool(now) and now != agents and time.monotonic() < deadline_s

        await eventually(is_new, within_s=20, what="a new agent")
        again = await eventually(device, within_s=30, what="the same device is back")
        assert again["id"] == first["id"]
    finally:
        await cluster.close()
    assert not _agent_pids(data)


def _agent_pids(data: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode()
            except OSError:
                continue
            if "\0agents\0join" in command and str(data) in command:
                found.append(int(entry.name))
    return found
