"""Gives other devices of the cluster the chunks that they ask for by name, while they may.

Only who holds a grant of the supervisor gets in, by the serial number of its certificate, and only
until the grant ends. It can ask for chunks by their names and for nothing else; what it does not
know the name of it does not get. The traffic of a launch goes first.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from agents import tls
from agents.chunks import ChunkName
from agents.errors import BadMessage, LinkFraming, LinkLost, ProjectError
from agents.link_frames import (
    WANTED_CHUNKS,
    Frame,
    Kind,
    Welcome,
    pack_json,
    read_names,
)
from agents.link_session import Session, Stock
from agents.link_stream import LinkStream
from agents.pacing import Pace
from agents.peer_messages import PeerGrant

log = logging.getLogger(__name__)

PEER_SILENCE_S: Final = 10.0
"""Both ends of a link between devices give the other one up after so long."""
MOST_GRANTS: Final = 64
MOST_PEERS: Final = 4
"""At once; each may have one chunk in memory and one on its way."""
LONGEST_GRANT_S: Final = 600.0
BUSY_BYTES_PER_S: Final = 2 << 20
"""For all peers together while a launch has this device."""
_ROOM_S: Final = 60.0
"""A peer that takes nothing for so long is left."""


@dataclass(frozen=True, slots=True)
class _Grant:
    agent_id: str
    until_s: float


class PeerChunks:
    """Who may read chunks, and those that do."""

    def __init__(
        self,
        stock: Stock,
        is_serving: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``is_serving``: whether a launch has this device now."""
        self._stock = stock
        self._is_serving = is_serving
        self._clock = clock
        self._grants: dict[int, _Grant] = {}
        self._readings: dict[_Reading, int] = {}
        self._pace = Pace(clock=clock)
        self._busy_pace = Pace(BUSY_BYTES_PER_S, clock)

    def allow(self, grant: PeerGrant) -> None:
        """Let one peer in from now on; the limit is for all peers together, the last one counts.

        Raises:
            BadMessage: It is no serial number, or no possible time.
        """
        serial = _number(grant.serial)
        if not 0 <= grant.seconds <= LONGEST_GRANT_S or grant.limit_bytes_per_s < 0:
            raise BadMessage(
                f"a grant of {grant.seconds:g} s with {grant.limit_bytes_per_s} bytes/s; at most "
                f"{LONGEST_GRANT_S:g} s are possible, and no negative limit"
            )
        now_s = self._clock()
        self._grants = {s: each for s, each in self._grants.items() if each.until_s > now_s}
        if grant.seconds == 0:
            self._grants.pop(serial, None)
            self._end(serial, "the supervisor took the grant back")
            return
        if len(self._grants) >= MOST_GRANTS and serial not in self._grants:
            raise BadMessage(f"{MOST_GRANTS} peers may read here already; end some fetches first")
        self._grants[serial] = _Grant(grant.agent_id, now_s + grant.seconds)
        self._pace.bytes_per_s = grant.limit_bytes_per_s

    def takes(self, session: Session, common_name: str, serial: str) -> bool:
        """Serve a caller that has proved its name, if it has a grant; ``False``: it has none."""
        try:
            number = _number(serial)
        except BadMessage:
            return False
        grant = self._grants.get(number)
        if grant is None or common_name != tls.agent_name(grant.agent_id):
            return False
        if grant.until_s <= self._clock() or len(self._readings) >= MOST_PEERS:
            return False
        if session.hello is not None or session.link.is_over:
            return False  # it spoke first, which no fetching device does
        reading = _Reading(self, session)
        self._readings[reading] = number
        reading.start()
        log.info("peer.admitted", extra={"device": grant.agent_id})
        return True

    def close(self) -> None:
        """End all readings."""
        for reading in list(self._readings):
            reading.link.end(LinkLost("the agent ends"))

    # -- for readings ----------------------------------------------------------------------

    def is_allowed(self, reading: "_Reading") -> bool:
        grant = self._grants.get(self._readings.get(reading, -1))
        return grant is not None and grant.until_s > self._clock()

    def forget(self, reading: "_Reading") -> None:
        self._readings.pop(reading, None)

    def wait_s(self, size_bytes: int) -> float:
        """Until so much may go to peers."""
        wait_s = self._pace.wait_s(size_bytes)
        if self._is_serving():
            wait_s = max(wait_s, self._busy_pace.wait_s(size_bytes))
        return wait_s

    async def read(self, name: ChunkName) -> bytes | None:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._stock.threads, self._stock.read, name)

    def _end(self, serial: int, reason: str) -> None:
        for reading in [each for each, number in self._readings.items() if number == serial]:
            reading.link.end(LinkLost(reason))


class _Reading:
    """One peer: it says which chunks it wants, and gets them in that order."""

    def __init__(self, peers: PeerChunks, session: Session) -> None:
        self._peers = peers
        self._wanted: deque[ChunkName] = deque()
        self._news = asyncio.Event()
        self._giving: asyncio.Task[None] | None = None
        # Nothing was said on it yet, so that nothing of the session is left behind.
        self.link: LinkStream = session.link
        self.link.belong_to(self._on_frame, self._on_end, self._news.set)

    def start(self) -> None:
        self.link.send(Kind.WELCOME, pack_json(asdict(Welcome())))
        self.link.start_beating(PEER_SILENCE_S)
        self._giving = asyncio.create_task(self._give())

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind is not Kind.WANT:
            raise LinkFraming(f"{frame.kind.name} is not for a device that gives chunks")
        self._wanted.extend(read_names(frame.body))
        if len(self._wanted) > WANTED_CHUNKS:
            raise LinkFraming(f"{len(self._wanted)} chunks at once; at most {WANTED_CHUNKS}")
        self._news.set()

    def _on_end(self, error: ProjectError) -> None:
        if self._giving is not None:
            self._giving.cancel()
        self._wanted.clear()
        self._peers.forget(self)
        log.info("peer.ended", extra={"reason": str(error)})

    async def _give(self) -> None:
        try:
            while not self.link.is_over:
                if self._wanted:
                    await self._give_one(self._wanted.popleft())
                else:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            self.link.end(LinkLost(f"it took nothing for {_ROOM_S:g} s"))

    async def _give_one(self, name: ChunkName) -> None:
        data = await self._peers.read(name)
        wait_s = self._peers.wait_s(len(data or b""))
        if wait_s:
            await asyncio.sleep(wait_s)
        if not self._peers.is_allowed(self):
            self.link.end(LinkLost("its grant is over"))
            return
        async with asyncio.timeout(_ROOM_S):
            while self.link.is_full and not self.link.is_over:
                self._news.clear()
                await self._news.wait()
        if data is None:
            self.link.send(Kind.LACKS, name)
        else:
            self.link.send(Kind.CHUNK, data, head=name)


def _number(serial: str) -> int:
    try:
        return int(serial, 16)
    except ValueError as exc:
        raise BadMessage(f"{serial!r} is no serial number of a certificate") from exc
