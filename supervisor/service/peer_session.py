"""One device gets chunks from another one, as long as there is something to get."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from agents.chunks import ChunkName
from agents.errors import LinkLost, ProjectError
from agents.peer_messages import FetchOrder, FetchStatus, PeerGrant
from supervisor.core.entities import AgentId, Device
from supervisor.core.spreading import Spreading
from supervisor.core.wires import control_way, pairs
from supervisor.ports import LendingLinks, PeerPort

log = logging.getLogger(__name__)

R = TypeVar("R")

_GRANT_S: Final = 120.0
_RENEW_S: Final = 60.0
_LOOK_S: Final = 0.25
_IDLE_S: Final = 2.0
"""Without work for so long, a fetch is ended; the next batch begins another one."""
_CALL_S: Final = 8.0
"""For an agent to answer; meanwhile the main host leaves out what it was to bring."""
_GOODBYE_S: Final = 1.5
_MOST_PLACES: Final = 6
_FASTEST_FIRST: Final = ("thunderbolt", "ethernet", "bridge", "usb", "wifi", "vpn", "cellular", "")


@dataclass(frozen=True, slots=True)
class End:
    """One end of a fetch: a device, its agent, and its certificate's serial number."""

    device: Device
    agent: PeerPort
    serial: str


def places(source: Device, receiver: Device) -> list[str]:
    """Where the far end of ``source`` may be reached from ``receiver``, the best first."""
    steady = control_way(source)
    found: list[str] = []
    if steady.far == source.address and source.facts and receiver.facts:
        direct = pairs(receiver.facts.addresses, source.facts.addresses)
        ranked = sorted(direct, key=lambda pair: _FASTEST_FIRST.index(pair.kind))
        found = [_place(pair.far, pair.port) for pair in ranked]
    return list(dict.fromkeys([*found, _place(steady.far, steady.port)]))[:_MOST_PLACES]


def _place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass
class PeerSession:
    """A fetch from its grant to its end; whatever has not come goes back to the main host."""

    source: End
    receiver: End
    spreading: Spreading
    links: LendingLinks
    sizes: Mapping[ChunkName, int]
    limit_bytes_per_s: int = 0
    is_slow: bool = False
    """Somebody else will be faster; end it soon."""
    _names: list[ChunkName] = field(default_factory=list)
    _settled: int = 0
    _id: str = field(default_factory=lambda: secrets.token_hex(8))
    _seen_bytes: int = 0

    async def run(self, first: tuple[ChunkName, ...]) -> None:
        """Bring ``first``, and more as long as there is more.

        Raises:
            ProjectError: The source or the receiver does not do it, or not any more.
        """
        with self._giving_back():
            try:
                await _in_time(self._grant(_GRANT_S))
                await self._order(first)
                await self._follow()
            finally:
                await self._end()

    @property
    def _key(self) -> tuple[str, str]:
        return self.source.device.id, self.receiver.device.id

    async def _follow(self) -> None:
        granted_s = at_s = worked_s = time.monotonic()
        while not self.is_slow:
            await asyncio.sleep(_LOOK_S)
            status = await _in_time(self.receiver.agent.fetch_status(self._id))
            was_busy = self._settled < len(self._names)
            now_s, before_s = time.monotonic(), at_s
            at_s = now_s
            self._account(status, now_s - before_s if was_busy else 0.0)
            if status.is_over:
                ends = f"{self.receiver.device.name} gets nothing from {self.source.device.name}"
                lost = LinkLost(f"{ends}: {status.detail}")
                lost.code = status.error_code or LinkLost.code
                raise lost
            while batch := self.spreading.next_batch(*self._key):
                await self._order(batch)
            if self._settled < len(self._names):
                worked_s = now_s
            elif now_s - worked_s > _IDLE_S:
                return
            if now_s - granted_s > _RENEW_S:
                await _in_time(self._grant(_GRANT_S))
                granted_s = now_s

    async def _order(self, batch: tuple[ChunkName, ...]) -> None:
        """Have the main host leave them out first, so that nothing is sent twice."""
        receiver = self.receiver.device
        lent = await self.links.lend(AgentId(receiver.id), batch)
        self.spreading.refused(receiver.id, set(batch) - set(lent))
        if not lent:
            return
        start = len(self._names)
        self._names += lent
        order = FetchOrder(
            id=self._id,
            agent_id=self.source.device.id,
            serial=self.source.serial,
            places=places(self.source.device, receiver),
            names=[name.hex() for name in lent],
            start=start,
            limit_bytes_per_s=self.limit_bytes_per_s,
        )
        await _in_time(self.receiver.agent.fetch(order))

    def _account(self, status: FetchStatus, busy_s: float) -> None:
        """Tell everybody what has come and what will not."""
        source, receiver = self._key
        lacking = set(status.lacking)
        done = range(self._settled, min(status.done_chunks, len(self._names)))
        came = {self._names[i]: self.sizes[self._names[i]] for i in done if i not in lacking}
        gone = [self._names[i] for i in done if i in lacking]
        self._settled = max(self._settled, done.stop)
        if came or gone:
            self.links.settle(AgentId(receiver), came, gone)
        self.spreading.arrived(receiver, came)
        self.spreading.lacks(source, receiver, gone)
        new_bytes, self._seen_bytes = status.done_bytes - self._seen_bytes, status.done_bytes
        self.spreading.carried(source, receiver, max(new_bytes, 0), busy_s)

    async def _grant(self, seconds: float) -> None:
        receiver = self.receiver
        grant = PeerGrant(receiver.device.id, receiver.serial, seconds, self.limit_bytes_per_s)
        await self.source.agent.grant(grant)

    async def _end(self) -> None:
        """Say goodbye to both, for a moment only: what they do not hear they find out."""

        async def forbid() -> None:
            with contextlib.suppress(ProjectError, TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await self._grant(0)

        forbidding = asyncio.create_task(forbid())
        with contextlib.suppress(ProjectError, TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                self._account(await self.receiver.agent.end_fetch(self._id), 0.0)
        await forbidding

    @contextlib.contextmanager
    def _giving_back(self) -> Iterator[None]:
        try:
            yield
        finally:
            back = self.spreading.given_back(*self._key)
            if back:
                self.links.settle(AgentId(self.receiver.device.id), {}, back)
            log.info(
                "peer.session_ended",
                extra={
                    "source": self.source.device.name,
                    "receiver": self.receiver.device.name,
                    "bytes": self._seen_bytes,
                    "given_back": len(back),
                },
            )


async def _in_time(call: Awaitable[R]) -> R:
    """Raises ``LinkLost`` if the agent does not answer within ``_CALL_S`` seconds."""
    try:
        async with asyncio.timeout(_CALL_S):
            return await call
    except TimeoutError:
        raise LinkLost(f"an agent did not answer within {_CALL_S:g} s") from None
