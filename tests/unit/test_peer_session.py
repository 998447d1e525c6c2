"""A session between two devices: whatever they do, what was lent comes back to the main host."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest

from agents.chunks import CHUNK_BYTES, ChunkName
from agents.errors import LinkLost, PeerUnsupported, ProjectError
from agents.peer_messages import FetchOrder, FetchStatus, PeerGrant
from supervisor.core.entities import AgentId, Device
from supervisor.core.spreading import Spreading
from supervisor.errors import AgentRefused
from supervisor.service import peer_session
from supervisor.service.peer_session import End, PeerSession

NAMES = [ChunkName(bytes([number]) * 32) for number in range(30)]
SIZES = dict.fromkeys(NAMES, CHUNK_BYTES)


class Agent:
    """One that answers what it is told to, or never."""

    def __init__(self) -> None:
        self.asleep: set[str] = set()
        self.status = FetchStatus("f")
        self.refuses: ProjectError | None = None
        self.heard: list[str] = []

    async def _hear(self, what: str) -> None:
        self.heard.append(what)
        if what in self.asleep:
            await asyncio.Event().wait()
        if self.refuses is not None:
            raise self.refuses

    async def grant(self, grant: PeerGrant) -> None:
        await self._hear("grant" if grant.seconds else "forbid")

    async def fetch(self, order: FetchOrder) -> FetchStatus:
        await self._hear("fetch")
        return self.status

    async def fetch_status(self, fetch_id: str) -> FetchStatus:
        await self._hear("status")
        return self.status

    async def end_fetch(self, fetch_id: str) -> FetchStatus:
        await self._hear("end")
        return self.status


class Lending:
    """A push that lends everything."""

    def __init__(self) -> None:
        self.away: set[ChunkName] = set()

    async def lend(self, agent_id: AgentId, names: Sequence[ChunkName]) -> tuple[ChunkName, ...]:
        self.away.update(names)
        return tuple(names)

    def settle(
        self, agent_id: AgentId, arrived: Mapping[ChunkName, int], back: Iterable[ChunkName]
    ) -> None:
        self.away -= {*arrived, *back}

    def stored(self) -> Mapping[AgentId, Sequence[ChunkName]]:
        return {}

    def limit(self, bytes_per_s: int) -> None: ...

    def leave(self, agent_id: AgentId, reason: str) -> None: ...


class World:
    def __init__(self) -> None:
        self.source, self.receiver, self.links = Agent(), Agent(), Lending()
        needs = {"receiver": list(SIZES.items())}
        self.spreading = Spreading(needs, {"source": NAMES}, {})
        ends = [
            End(_device(name), agent, "ab")
            for name, agent in (("source", self.source), ("receiver", self.receiver))
        ]
        self.session = PeerSession(ends[0], ends[1], self.spreading, self.links, SIZES)

    async def run(self) -> None:
        async with asyncio.timeout(20):
            await self.session.run(self.spreading.next_batch("source", "receiver"))


def _device(name: str) -> Device:
    return Device.model_validate(
        {
            "id": name,
            "name": name,
            "address": "10.0.0.2",
            "rest_port": 8102,
            "link_port": 8103,
            "state": "ready",
            "silent_s": 0,
            "facts": None,
            "rpc_server": None,
        }
    )


def _sleep(end: str, what: str) -> Callable[[World], None]:
    return lambda world: getattr(world, end).asleep.update((what, "end", "forbid"))


@pytest.mark.parametrize(
    "disturb",
    [_sleep("source", "grant"), _sleep("receiver", "fetch"), _sleep("receiver", "status")],
    ids=["the giver sleeps", "the receiver sleeps", "it falls asleep"],
)
async def test_a_device_that_sleeps_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, disturb: Callable[[World], None]
) -> None:
    monkeypatch.setattr(peer_session, "_CALL_S", 0.1)
    monkeypatch.setattr(peer_session, "_GOODBYE_S", 0.1)
    world = World()
    disturb(world)
    with pytest.raises(LinkLost, match="did not answer"):
        await world.run()
    assert not world.links.away
    assert world.spreading.queued_bytes("source") == 0
    assert "forbid" in world.source.heard, "a grant may have been heard all the same"


async def test_who_is_too_old_is_told_apart() -> None:
    world = World()
    world.receiver.status = FetchStatus(
        "f", is_over=True, error_code=PeerUnsupported.code, detail="speaks link protocol 9"
    )
    with pytest.raises(LinkLost, match=r"receiver gets nothing from source: .* protocol 9") as told:
        await world.run()
    assert told.value.code == PeerUnsupported.code
    world = World()
    world.source.refuses = AgentRefused("too old", PeerUnsupported.code)
    with pytest.raises(AgentRefused) as refused:
        await world.run()
    assert refused.value.code == PeerUnsupported.code
    assert not world.links.away


async def test_a_session_that_is_cancelled_gives_everything_back() -> None:
    world = World()
    running = asyncio.create_task(world.run())
    while "status" not in world.receiver.heard:
        await asyncio.sleep(0.01)
    assert world.links.away
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert not world.links.away
    assert "end" in world.receiver.heard
    assert "forbid" in world.source.heard
