"""How a load is watched: polls back off, never overlap, and the log wakes them."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agents.contract import RpcServerStatus, WorkerState
from supervisor.core.entities import AgentId
from supervisor.errors import ConnectStalled, LoadStalled
from supervisor.ports import Answer, Generated, Health
from supervisor.service.loading import EngineEnded, LoadWatch
from supervisor.settings import Settings, load


def settings(**values: object) -> Settings:
    text = "\n".join(f"{name} = {value}" for name, value in values.items())
    return load(text, {}, default_folder=Path("unused"))


@dataclass
class Server:
    """A llama-server as seen from outside: health over time, log, exit."""

    log_path: Path
    answers: list[Health] = field(default_factory=list)
    asked_at_s: list[float] = field(default_factory=list)
    open_requests: int = 0
    most_open: int = 0
    takes_s: float = 0.0
    health_now: Health = Health.DOWN
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    pid: int = 1
    exit_status: int | None = None
    argv: list[str] = field(default_factory=list)
    is_alive: bool = True

    async def health(self, timeout_s: float) -> Health:
        self.asked_at_s.append(time.monotonic())
        self.open_requests += 1
        self.most_open = max(self.most_open, self.open_requests)
        await asyncio.sleep(self.takes_s)
        self.open_requests -= 1
        return self.health_now

    async def wait(self) -> int:
        await self.ended.wait()
        return 1

    async def stop(self, *, grace_s: float) -> int:
        return 0

    async def close(self) -> None: ...

    async def refuses_us(self, timeout_s: float) -> bool:
        raise AssertionError("nobody asks while it loads")

    async def first_completion(self, timeout_s: float) -> Answer:
        return Answer(1, None)

    async def generated(self) -> Generated | None:
        return None

    async def slots(self, timeout_s: float) -> None:
        return None

    def say(self, line: str) -> None:
        with self.log_path.open("a") as file:
            file.write(line + "\n")


@pytest.fixture
def server(tmp_path: Path) -> Server:
    made = Server(tmp_path / "llama-server-1.log")
    made.log_path.touch()
    return made


def watch(server: Server, chosen: Settings, phases: list[str] | None = None) -> LoadWatch:
    heard = phases if phases is not None else []
    return LoadWatch(
        chosen, server, server, {}, {}, on_phase=heard.append, on_loaded=lambda _: None
    )


async def test_polls_begin_fast_grow_and_never_overlap(server: Server) -> None:
    server.takes_s = 0.02
    chosen = settings(health_first_s=0.05, health_longest_s=0.4)
    watching = asyncio.create_task(watch(server, chosen).until_listening())
    await asyncio.sleep(2.0)
    server.health_now = Health.READY
    await asyncio.wait_for(watching, 5)
    gaps = [b - a for a, b in zip(server.asked_at_s, server.asked_at_s[1:], strict=False)]
    assert server.most_open == 1
    assert gaps[0] < 0.2
    assert max(gaps) < 0.4 + 0.3
    assert gaps[2] > gaps[0]
    assert len(gaps) <= 10, "0.05, 0.1, 0.2, 0.4, 0.4 ...: about seven polls in two seconds"


async def test_the_listening_line_wakes_a_poller_that_sleeps_long(server: Server) -> None:
    chosen = settings(health_first_s=30.0, health_longest_s=30.0)
    watching = asyncio.create_task(watch(server, chosen).until_listening())
    await asyncio.sleep(0.1)
    assert len(server.asked_at_s) == 1
    server.say("0.01 I loading model 'x'")
    server.health_now = Health.READY
    said_at_s = time.monotonic()
    server.say("0.02 I listening on http://127.0.0.1:1")
    await asyncio.wait_for(watching, 5)
    assert time.monotonic() - said_at_s < 0.5


async def test_a_server_that_ends_is_noticed_at_once(server: Server) -> None:
    watching = asyncio.create_task(watch(server, settings(health_first_s=30.0)).until_listening())
    await asyncio.sleep(0.05)
    server.ended.set()
    with pytest.raises(EngineEnded):
        await asyncio.wait_for(watching, 1)


async def test_a_port_that_never_opens_is_a_connect_stall(server: Server) -> None:
    with pytest.raises(ConnectStalled, match="phase: connect; it has no workers"):
        await asyncio.wait_for(watch(server, settings(connect_s=0.3)).until_listening(), 5)


async def test_every_log_line_restarts_the_stall_timer(server: Server) -> None:
    phases: list[str] = []
    chosen = settings(stall_s=0.4, connect_s=5.0)
    watching = asyncio.create_task(watch(server, chosen, phases).until_listening())
    server.say("loading model 'x'")
    for _ in range(6):
        await asyncio.sleep(0.2)
        server.say("load_tensors: something")
        assert not watching.done(), "1.2 s of progress under a stall timer of 0.4 s"
    with pytest.raises(LoadStalled, match="no progress"):
        await asyncio.wait_for(watching, 5)
    assert phases == ["load"]


async def test_a_worker_that_receives_weights_restarts_the_stall_timer(server: Server) -> None:
    class Agent:
        resident = 0

        async def rpc_server(self, *, wait_s: float = 0.0) -> RpcServerStatus:
            Agent.resident += 1
            return RpcServerStatus(WorkerState.READY, resident_bytes=Agent.resident)

    loaded: list[int] = []
    heard: list[Mapping[AgentId, RpcServerStatus]] = []
    watched = LoadWatch(
        settings(stall_s=1.5, connect_s=5.0),
        server,
        server,
        {AgentId("id"): ("one", Agent())},  # type: ignore[dict-item]
        {},
        on_phase=lambda _: None,
        on_loaded=lambda bytes_: loaded.extend(bytes_.values()),
        on_statuses=heard.append,
    )
    watching = asyncio.create_task(watched.until_listening())
    server.say("loading model 'x'")
    await asyncio.sleep(3.5)
    assert not watching.done(), "it grew every second"
    assert loaded
    assert [status.resident_bytes for statuses in heard for status in statuses.values()][:2] == [
        1,
        2,
    ], "every answer is handed on, so that nobody else has to ask"
    server.health_now = Health.READY
    server.say("listening on http://127.0.0.1:1")
    await asyncio.wait_for(watching, 5)
