"""What an agent tells of its rpc-server, and what it does without its main host: real programs."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest
from cluster import engine_pids, eventually
from lab.joined import LOOPBACK, JoinedHost
from lab.linked import FarSide, Lab, Served
from lab.links import emulated_link
from lab.memory_group import ENTER, memory_group

from agents import join
from agents.contract import (
    DeviceFacts,
    EngineFacts,
    Heartbeat,
    RpcServerSpec,
    RpcServerStatus,
    WorkerState,
)
from agents.join import Identity, MainHost, keep_alive
from agents.rpc_client import connected
from supervisor.core.entities import Device
from supervisor.errors import AgentRefused
from supervisor.link.job import LOST, WorkerJob

MIB = 1 << 20
SOON_S = 0.3
"""In which the main host knows of the end of an rpc-server on this host."""
BACK_S = 3.0
"""In which a main host that is back hears its devices."""


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[JoinedHost]:
    made = JoinedHost(tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.close()
        assert not engine_pids()


async def changed(
    host: JoinedHost, is_so: Callable[[RpcServerStatus], bool], *, within_s: float, what: str
) -> RpcServerStatus:
    async def status() -> RpcServerStatus | None:
        found = host.device("one").rpc_server
        return found if found is not None and is_so(found) else None

    return cast(RpcServerStatus, await eventually(status, within_s=within_s, what=what))


def is_alive(pid: int | None) -> bool:
    return pid in engine_pids()


def link_to(host: JoinedHost, device: Device) -> FarSide:
    """The far end of a real agent, as a near end is told of it."""
    worker = WorkerJob(
        agent_id=device.id,
        name=device.name,
        address=LOOPBACK,
        link_port=device.link_port,
        serial=host.registry.serial(device.id),
        answers_file=str(host.folder / "answers"),
    )
    return FarSide(worker, Served(0, "", ()))


# -- what happens to the rpc-server ------------------------------------------------------------


async def test_the_end_of_an_rpc_server_is_known_at_once(host: JoinedHost) -> None:
    await host.agent("one")
    delays_s = []
    for generation in range(1, 6):
        status = await host.serve("one", generation)
        await host.told("one", WorkerState.READY, within_s=1)
        assert status.pid is not None
        began_s = time.monotonic()
        os.kill(status.pid, signal.SIGKILL)
        while (failed := host.device("one").rpc_server) is None or failed.state != "failed":
            assert time.monotonic() - began_s < 5
            await asyncio.sleep(0.001)
        delays_s.append(time.monotonic() - began_s)
        assert (failed.generation, failed.exit_status) == (generation, -signal.SIGKILL)
        assert failed.oom_kills == 0, "somebody else did it"
        assert "was killed by SIGKILL" in failed.detail
    assert max(delays_s) < SOON_S, delays_s


async def test_an_rpc_server_that_was_stopped_is_told_from_a_slow_one(host: JoinedHost) -> None:
    await host.agent("one")
    status = await host.serve("one")
    assert status.process_state in ("R", "S", "D")
    assert status.pid is not None
    os.kill(status.pid, signal.SIGSTOP)
    stopped = await changed(
        host, lambda s: s.process_state == "T", within_s=2.5, what="it is said to be stopped"
    )
    assert (stopped.state, stopped.error_code) == (WorkerState.READY, "")
    os.kill(status.pid, signal.SIGCONT)
    await changed(
        host, lambda s: s.process_state in ("R", "S"), within_s=2.5, what="it is said to go on"
    )
    assert host.agents[0].said().count("rpc_server.frozen") == 1


async def test_an_rpc_server_that_was_stopped_is_ended_without_grace(host: JoinedHost) -> None:
    await host.agent("one")
    status = await host.serve("one")
    assert status.pid is not None
    os.kill(status.pid, signal.SIGSTOP)
    began_s = time.monotonic()
    assert (await host.client("one").stop_rpc_server(1)).state is WorkerState.STOPPED
    assert time.monotonic() - began_s < 1
    assert not is_alive(status.pid)


@pytest.mark.parametrize("limits", ["all of the device", "the child, later", "the child, just now"])
async def test_an_rpc_server_that_the_kernel_killed_for_want_of_memory(
    host: JoinedHost, limits: str
) -> None:
    is_device = limits == "all of the device"
    with memory_group(f"watch-{os.getpid()}", (400 if is_device else 64) * MIB) as group:
        await host.agent("one", enter=(*ENTER, str(group)) if is_device else ())
        status = await host.serve("one")
        assert status.oom_kills == 0
        if not is_device:
            (group / "cgroup.procs").write_text(str(status.pid))
        if limits == "the child, later":
            await asyncio.sleep(1.2)  # the agent looks once a second
        async with connected(LOOPBACK, status.port, deadline_s=5) as client:
            buffer = await client.allocate(600 * MIB)
            assert buffer is not None
            await client.clear(buffer, 1)
            killed = await host.told("one", WorkerState.FAILED, within_s=10)
        assert killed.exit_status == -signal.SIGKILL
        assert killed.oom_kills == 1
        again = await host.serve("one", 2)
        assert again.oom_kills == 0, "counted from its own start"
        await host.close()


# -- without a main host -----------------------------------------------------------------------


async def test_a_lease_that_ran_out_gives_the_memory_back(host: JoinedHost) -> None:
    host.settings = host.settings.model_copy(update={"heartbeat_s": 0.5, "lease_s": 2.0})
    await host.stop()
    await host.start()
    agent = await host.agent("one")
    status = await host.serve("one")
    async with Lab(host.folder).near_ends(link_to(host, host.device("one"))) as [near_end]:
        await host.stop()
        silent_since_s = time.monotonic()
        await asyncio.sleep(1.5)
        assert is_alive(status.pid), "a main host may restart"

        async def has_ended() -> bool:
            return not is_alive(status.pid) and near_end.stats().state == LOST

        await eventually(has_ended, within_s=5, what="the rpc-server is stopped, its link cut")
        assert time.monotonic() - silent_since_s > 1.5
    await asyncio.sleep(2)
    said = [line for line in agent.said().splitlines() if "the supervisor was not heard" in line]
    assert len(said) == 2, said
    assert "rpc_server.state_changed from=ready to=stopped" in said[0]
    assert "link.ended" in said[1]

    await host.start()
    await host.heard("one", within_s=BACK_S)
    told = host.device("one").rpc_server
    assert told is not None
    assert (told.state, told.generation, told.pid) == (WorkerState.STOPPED, 1, None)
    assert told.detail.startswith("the supervisor was not heard for ")
    assert told.detail.endswith(" s (lease 2 s)")
    with pytest.raises(AgentRefused, match="generation 1 was stopped before"):
        await host.serve("one")
    await host.serve("one", 2)


@pytest.mark.parametrize("down_s", [0.0, 0.5, 4.0])
async def test_a_main_host_that_restarts_hears_its_devices_soon(
    host: JoinedHost, down_s: float
) -> None:
    await asyncio.gather(*(host.agent(name) for name in ("one", "two", "three")))
    status = await host.serve("one")
    await host.stop()
    await asyncio.sleep(down_s)
    await host.start()
    began_s = time.monotonic()
    await asyncio.gather(*(host.heard(n, within_s=BACK_S) for n in ("one", "two", "three")))
    assert time.monotonic() - began_s < BACK_S
    told = host.device("one").rpc_server
    assert told is not None
    assert (told.state, told.pid) == (WorkerState.READY, status.pid), "it went on meanwhile"


async def test_heartbeats_come_no_more_often_than_they_are_due(host: JoinedHost) -> None:
    """The agent looks at the connection every second, and it is in order."""
    host.settings = host.settings.model_copy(update={"heartbeat_s": 2.0})
    await host.stop()
    await host.start()
    beats, hear = [], host.registry.heard

    async def count(*arguments: object) -> None:
        beats.append(time.monotonic())
        await hear(*arguments)  # type: ignore[arg-type]

    host.registry.heard = count  # type: ignore[method-assign, assignment]
    await host.agent("one")

    async def third() -> bool:
        return len(beats) == 3

    await eventually(third, within_s=10, what="the third heartbeat")
    assert beats[2] - beats[0] > 3.5, beats


async def test_a_main_host_that_was_stopped_and_goes_on_hears_its_devices_soon(
    host: JoinedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay is stopped in its place: connections are taken, and nothing is said."""
    monkeypatch.setattr(join, "_CONNECT_S", 0.4)
    monkeypatch.setattr(join, "_REQUEST_S", 1.0)
    host.settings = host.settings.model_copy(update={"heartbeat_s": 0.3})
    await host.stop()
    await host.start()
    expired: list[str] = []

    async def expire(reason: str) -> None:
        expired.append(reason)

    async def compose() -> Heartbeat:
        stopped = RpcServerStatus(WorkerState.STOPPED)
        return Heartbeat(DeviceFacts("id-in", "inside", "linux"), stopped, rest_port=1)

    async with emulated_link(host.port) as relay:
        main_host = MainHost(host.code(relay.port), Identity(host.folder / "inside"))
        await main_host.join("id-in", "inside")
        beating = asyncio.create_task(keep_alive(main_host, compose, asyncio.Event(), expire))
        try:
            for down_s in (0.5, 3.0):
                await host.heard("inside", within_s=5)
                open_files = len(os.listdir("/proc/self/fd"))
                os.kill(relay.pid, signal.SIGSTOP)
                await asyncio.sleep(down_s)
                before_s = host.device("inside").silent_s
                os.kill(relay.pid, signal.SIGCONT)

                async def is_heard(before_s: float = before_s) -> bool:
                    return host.device("inside").silent_s < before_s

                await eventually(is_heard, within_s=BACK_S, what="it is heard again")
                assert len(os.listdir("/proc/self/fd")) <= open_files + 2
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            await main_host.close()
    assert expired == []


# -- signals to the agent ----------------------------------------------------------------------


@pytest.fixture
def deaf(tmp_path: Path, engine: EngineFacts) -> str:
    """An engine whose rpc-server does not hear SIGTERM, so that its end takes an agent seconds."""
    folder = tmp_path / "deaf"
    folder.mkdir()
    program = folder / "ggml-rpc-server"
    program.write_text(f"#!/bin/sh\ntrap '' TERM\nexec {engine.rpc_server} \"$@\"\n")
    program.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_an_agent_that_takes_its_time(
    host: JoinedHost, deaf: str, second: signal.Signals
) -> None:
    agent = await host.agent("one", "--engine", deaf)
    status = await host.serve("one")
    agent.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.5)
    assert agent.process.poll() is None, "it waits for its rpc-server"
    assert is_alive(status.pid)
    began_s = time.monotonic()
    agent.process.send_signal(second)
    assert await asyncio.to_thread(agent.process.wait, 5) == 128 + second
    assert time.monotonic() - began_s < 1

    async def has_ended() -> bool:
        return not is_alive(status.pid)

    await eventually(has_ended, within_s=1, what="the rpc-server ends with it")


async def test_a_hangup_after_a_first_signal_changes_nothing(host: JoinedHost, deaf: str) -> None:
    """A closed terminal sends both."""
    agent = await host.agent("one", "--engine", deaf)
    status = await host.serve("one")
    agent.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.5)
    agent.process.send_signal(signal.SIGHUP)
    assert await asyncio.to_thread(agent.process.wait, 15) == 0
    assert not is_alive(status.pid)
    told = host.device("one").rpc_server
    assert told is not None
    assert told.state is WorkerState.STOPPED, "it said goodbye"


# -- an agent that was stopped -----------------------------------------------------------------


async def test_an_agent_that_was_stopped_for_a_while_is_as_good_as_new(host: JoinedHost) -> None:
    """The link whose other end gave up is cut, and the next launch is served."""
    agent = await host.agent("one")
    status = await host.serve("one")
    lab = Lab(host.folder)
    side = link_to(host, host.device("one"))
    async with lab.near_ends(side, silence_s=0.5) as [near_end]:
        agent.process.send_signal(signal.SIGSTOP)

        async def is_lost() -> bool:
            return near_end.stats().state == LOST

        await eventually(is_lost, within_s=5, what="the near end gives up")
    late = asyncio.create_task(
        host.client("one").start_rpc_server(RpcServerSpec(1, LOOPBACK), wait_s=0)
    )
    await asyncio.sleep(2.5)
    agent.process.send_signal(signal.SIGCONT)

    async def has_ended() -> bool:
        return "link.ended" in agent.said()

    await eventually(has_ended, within_s=2, what="the far end cuts the link")
    assert (await late).pid == status.pid, "what waited meanwhile is answered"
    heard_s = host.device("one").silent_s
    assert heard_s < 10
    await host.serve("one", 2)
    async with lab.near_ends(side, silence_s=0.5) as [near_end]:
        assert near_end.stats().rpc_protocol == status.rpc_protocol
    assert is_alive(host.device("one").rpc_server.pid)  # type: ignore[union-attr]


async def test_an_agent_that_was_stopped_beyond_its_lease_asks_before_it_gives_up(
    host: JoinedHost,
) -> None:
    host.settings = host.settings.model_copy(update={"heartbeat_s": 0.5, "lease_s": 1.0})
    await host.stop()
    await host.start()
    agent = await host.agent("one")
    status = await host.serve("one")
    for _ in range(2):
        agent.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.5)  # longer than the lease
        agent.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.7)  # a heartbeat
    assert is_alive(status.pid)
    assert "the supervisor was not heard" not in agent.said()
    assert host.device("one").silent_s < 1
