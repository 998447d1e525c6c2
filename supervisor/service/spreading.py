"""Has devices give each other weights that they hold, beside what the main host sends.

It never holds a push up: whatever goes wrong between devices, the main host sends what is missing.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agents.chunks import ChunkName
from agents.errors import PeerUnsupported, ProjectError
from supervisor.core.entities import AgentId, Device, Plan
from supervisor.core.membership import DeviceCondition
from supervisor.core.seeding import FileTensor
from supervisor.core.spreading import Pair, Spreading
from supervisor.link.job import LOST, SERVING
from supervisor.ports import LendingLinks, Links, PeerPort
from supervisor.service.links import question_job, shares
from supervisor.service.naming import ChunkNamer, Chunks, Listener, known_chunks
from supervisor.service.peer_session import End, PeerSession
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.5
_AGAIN_S: Final = 2.0
"""After a failure of a pair."""
_QUESTION_S: Final = 20.0
"""For all devices to say what they hold."""
_CALL_S: Final = 5.0
_MOST_SESSIONS: Final = 3
"""Of one source at once."""
_STILL: Final = (DeviceCondition.READY, DeviceCondition.PARKED)


@dataclass(frozen=True, slots=True)
class Spread:
    """What a push knows before it begins; ``spreading`` decides, and changes."""

    spreading: Spreading
    sizes: Mapping[ChunkName, int]


class Spreader:
    """Finds out who holds what, and lets devices help each other while a push runs."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._folder = tools.main_host.folder / "link" / "models"
        self._namer = ChunkNamer(self._folder)

    # -- who holds what --------------------------------------------------------------------

    async def named(
        self, shares: Mapping[str, Sequence[FileTensor]], tell: Listener
    ) -> dict[str, Chunks]:
        """The chunks of shares of a model; see ``ChunkNamer``."""
        return await self._namer.named(shares, tell)

    def devices(self) -> list[Device]:
        """Those that can be asked."""
        found = self._tools.registry.devices()
        return [each for each in found if each.link_port and each.state in _STILL]

    async def holdings(
        self, devices: Sequence[Device], chunks: Chunks
    ) -> dict[str, set[ChunkName]]:
        """Which of ``chunks`` each device holds; one that does not answer is left out."""
        asked = await asyncio.gather(*(self._holding(each, chunks) for each in devices))
        pairs = zip(devices, asked, strict=True)
        return {device.id: names for device, names in pairs if names is not None}

    async def _holding(self, device: Device, chunks: Chunks) -> set[ChunkName] | None:
        try:
            if self._tools.held is None:
                return None
            job = question_job(self._tools, device)
            async with asyncio.timeout(_QUESTION_S):
                return await self._tools.held(
                    replace(job, connect_s=_CALL_S), job.workers[0], chunks
                )
        except (ProjectError, TimeoutError) as exc:
            log.info("spreading.not_told", extra={"device": device.name, "reason": str(exc)})
            return None

    async def prepare(
        self, shares: Mapping[AgentId, Sequence[FileTensor]], tell: Listener
    ) -> Spread | None:
        """Look whether devices can help each other with ``shares``; None: they cannot."""
        devices = self.devices()
        is_wanted = self._tools.settings.spread_peers
        if not is_wanted or len({device.id for device in devices} | set(shares)) < 2:
            return None
        needs = await self._namer.named({str(a): share for a, share in shares.items()}, tell)
        sizes = {name: size for chunks in needs.values() for name, size in chunks}
        holds = await self.holdings(devices, tuple(sizes.items()))
        spreading = await asyncio.to_thread(Spreading, needs, holds, _rates(devices))
        is_worth_it = await asyncio.to_thread(spreading.is_worth_it)
        return Spread(spreading, sizes) if is_worth_it else None

    async def _prepare_launch(self, plan: Plan) -> Spread | None:
        """What idle devices hold of a plan's shares: its workers have other things to do now.

        Nothing is hashed for it. What the workers hold they say when it is lent or fetched.
        """
        workers = set(plan.agent_ids)
        devices = self.devices()
        idle = [each for each in devices if each.id not in workers and not each.used_by]
        if not idle:
            return None
        tensors = {str(a): t for a, t in (await shares(self._tools, plan)).items()}
        # The link process has looked at the same files by now, so the cache of names is begun.
        needs = await asyncio.to_thread(known_chunks, self._folder, tensors)
        if not needs:
            return None
        sizes = {name: size for chunks in needs.values() for name, size in chunks}
        holds = await self.holdings(idle, tuple(sizes.items()))
        spreading = await asyncio.to_thread(Spreading, needs, holds, _rates(devices))
        return Spread(spreading, sizes) if any(holds.values()) else None

    # -- beside a push or a launch ---------------------------------------------------------

    @contextlib.asynccontextmanager
    async def helping(self, plan: Plan, links: Links | None) -> AsyncIterator[None]:
        """Until the block is left, idle devices give a launch's workers what these lack."""
        if links is None or not self._tools.settings.spread_peers:
            yield
            return
        task = asyncio.create_task(self._help(plan, links))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _help(self, plan: Plan, links: Links) -> None:
        try:
            spread = await self._prepare_launch(plan)
            if spread is None:
                return
            async with self.working(spread, links):
                await asyncio.Event().wait()  # until cancelled
        except (ProjectError, OSError) as exc:
            log.info("spreading.no_help", extra={"reason": str(exc)})

    @contextlib.asynccontextmanager
    async def working(
        self, spread: Spread | None, links: Links
    ) -> AsyncIterator[Mapping[str, Sequence[str]]]:
        """Devices help each other until the block is left; then nothing of that goes on.

        Yields why others do not help, by the receiver's agent id, as that is found out.
        """
        if spread is None or not isinstance(links, LendingLinks):
            yield {}
            return
        work = _Work(self._tools, spread, links, links)
        task = asyncio.create_task(work.run())
        try:
            yield work.notes
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _rates(devices: Sequence[Device]) -> dict[str, float]:
    """Bytes per second from here to each, as measured."""
    return {str(d.id): d.speed.up_bytes_per_s for d in devices if d.speed is not None}


class _Work:
    """All sessions of one push."""

    def __init__(self, tools: Tools, spread: Spread, links: Links, lending: LendingLinks) -> None:
        self._tools = tools
        self._spreading = spread.spreading
        self._sizes = spread.sizes
        self._links = links
        self._lending = lending
        self._sessions: dict[Pair, PeerSession] = {}
        self._seats: dict[str, asyncio.Semaphore] = {}
        self._sent: dict[str, tuple[float, int]] = {}
        self.notes: dict[str, list[str]] = {}

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for source, receiver in self._spreading.pairs():
                    group.create_task(self._pair(source, receiver))
                group.create_task(self._watch())
        except* Exception as failures:
            # The main host sends everything by itself; that must not end for a bug here.
            log.exception("spreading.bug", exc_info=failures)

    async def _watch(self) -> None:
        while True:
            for agent_id, names in self._lending.stored().items():
                self._spreading.arrived(agent_id, names)
            for agent_id, stats in self._links.stats().items():
                if stats.state == LOST:
                    self._spreading.leave(agent_id)
            self._learn_rates()
            for pair in self._spreading.stragglers():
                if (session := self._sessions.get(pair)) is not None:
                    session.is_slow = True
                    self._spreading.drop(*pair)
            await asyncio.sleep(_LOOK_S)

    def _learn_rates(self) -> None:
        now_s = time.monotonic()
        for agent_id, stats in self._links.stats().items():
            at_s, before_bytes = self._sent.get(agent_id, (now_s, 0))
            elapsed_s = now_s - at_s
            if agent_id not in self._sent or elapsed_s >= 1.0:
                self._sent[agent_id] = now_s, stats.seeded_bytes
                if before_bytes and stats.seeded_bytes > before_bytes and elapsed_s:
                    rate = (stats.seeded_bytes - before_bytes) / elapsed_s
                    self._spreading.main_sends(agent_id, rate)

    async def _pair(self, source: str, receiver: str) -> None:
        seat = self._seats.setdefault(source, asyncio.Semaphore(_MOST_SESSIONS))
        while not self._spreading.is_done(receiver):
            pause_s = _LOOK_S
            if not self._is_serving(receiver):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._links.changed()
                pause_s = 0.0
            else:
                async with seat:
                    batch = self._spreading.next_batch(source, receiver)
                    if batch and not await self._session(source, receiver, batch):
                        pause_s = _AGAIN_S
            await asyncio.sleep(pause_s)

    def _is_serving(self, receiver: str) -> bool:
        stats = self._links.stats().get(AgentId(receiver))
        return stats is not None and stats.state == SERVING and stats.seed_total_bytes > 0

    async def _session(self, source: str, receiver: str, batch: tuple[ChunkName, ...]) -> bool:
        """Whether nothing went wrong."""
        try:
            session = PeerSession(
                self._end(source),
                self._end(receiver),
                self._spreading,
                self._lending,
                self._sizes,
                round(self._tools.settings.spread_limit_mib_s * (1 << 20)),
            )
        except ProjectError as exc:
            self._spreading.given_back(source, receiver)  # nothing was lent yet
            self._failed(source, receiver, exc)
            return False
        self._sessions[source, receiver] = session
        try:
            await session.run(batch)
        except ProjectError as exc:
            self._failed(source, receiver, exc)
            return False
        finally:
            del self._sessions[source, receiver]
        return True

    def _end(self, agent_id: str) -> End:
        registry = self._tools.registry
        found = AgentId(agent_id)
        agent = registry.agent(found)
        if not isinstance(agent, PeerPort):
            raise TypeError(f"{type(agent).__name__} gives no chunks to other devices")
        return End(registry.device(found), agent, registry.serial(found))

    def _failed(self, source: str, receiver: str, exc: ProjectError) -> None:
        if exc.code == PeerUnsupported.code:
            self._spreading.drop(source, receiver)
            notes = self.notes.setdefault(receiver, [])
            notes += [] if str(exc) in notes else [str(exc)]
        else:
            self._spreading.failed(source, receiver)
        log.warning(
            "spreading.pair_failed",
            extra={"source": source, "receiver": receiver, "reason": str(exc)},
        )
