"""What goes to the far end, in order and within bounds: requests, names of chunks, chunks."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agents.chunks import ChunkName
from agents.errors import LinkLost
from agents.link_frames import (
    DATA_BYTES,
    OFFERED_CHUNKS,
    Kind,
    pack_number,
    pack_offer,
    pack_ref,
    pack_shut,
)
from agents.link_stream import LinkStream
from supervisor.link.chunk_refs import Ref, Window

log = logging.getLogger(__name__)


class ChunkReader(Protocol):
    """Where the bytes of a chunk can be read again; blocks."""

    def read(self, name: ChunkName) -> bytes | None: ...


_GONE: Final = (
    "the worker lost weights that it had said it has, and the model file does not hold them any "
    "more; launch again"
)


@dataclass(frozen=True, slots=True)
class Shut:
    """The client of a channel has said everything."""

    channel: int


class Outbox:
    """One link's way out. The stream has one half of the window, seeds have the other."""

    def __init__(
        self,
        link: LinkStream,
        window_bytes: int,
        reader: ChunkReader | None,
        on_room: Callable[[], None],
    ) -> None:
        """``on_room`` is called whenever nothing waits any more."""
        self._link = link
        self._reader = reader
        self._on_room = on_room
        self._queue: deque[bytes | Ref | Shut] = deque()
        self._bodies: deque[tuple[int, bytes | bytearray]] = deque()
        self._window = Window(window_bytes // 2)
        self._seed_window_bytes = window_bytes // 2
        self._seeds: dict[ChunkName, int] = {}
        self._seed_room = asyncio.Event()
        self._offers: deque[tuple[Sequence[ChunkName], asyncio.Future[None]]] = deque()
        self._readings: set[asyncio.Task[None]] = set()
        self.held: set[ChunkName] = set()
        """What the far end has, as far as we know."""
        self.on_their_way: set[ChunkName] = set()
        """What the stream has named; the far end asks for it if need be."""
        self.refuses_seeds = False
        self._keeps_seeds = False
        self.weight_bytes = self.saved_bytes = self.seeded_bytes = 0

    # -- the stream of requests ------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        """Something could not go yet."""
        return bool(self._queue)

    @property
    def has_refs(self) -> bool:
        """Names of chunks wait to be sent."""
        return any(isinstance(item, Ref) for item in self._queue)

    @property
    def waiting_bytes(self) -> int:
        """Of requests that wait to be sent."""
        return sum(len(item) for item in self._queue if isinstance(item, bytes))

    def emit(self, item: bytes | Ref | Shut) -> None:
        """Put something at the end of the stream; ``advance`` sends it."""
        last = self._queue[-1] if self._queue else None
        if (
            isinstance(item, bytes)
            and isinstance(last, bytes)
            and len(last) + len(item) <= DATA_BYTES
        ):
            self._queue[-1] = last + item
        else:
            self._queue.append(item)

    def emit_pieces(self, data: memoryview) -> None:
        for start in range(0, len(data), DATA_BYTES):
            self.emit(bytes(data[start : start + DATA_BYTES]))

    def drop(self) -> None:
        """Nobody wants the stream any more."""
        self._queue.clear()

    def advance(self) -> None:
        """Send what link and window allow."""
        while self._bodies and not self._link.is_full:
            serial, data = self._bodies.popleft()
            self._link.send(Kind.BODY, data, head=pack_number(serial))
        while self._queue and not self._link.is_full:
            item = self._queue[0]
            if isinstance(item, bytes):
                self._link.send(Kind.DATA, item)
            elif isinstance(item, Shut):
                self._link.send(Kind.SHUT, pack_shut(item.channel))
            elif self._window.is_full:
                break
            else:
                self._window.add(item)
                self.on_their_way.add(item.name)
                self._link.send(Kind.REF, pack_ref(item.name, item.size_bytes))
            self._queue.popleft()
        if not self._link.is_full:
            self._seed_room.set()
        if not self._queue:
            self._on_room()

    def on_need(self, serials: Iterable[int]) -> None:
        """The far end lacks chunks that were named.

        Raises:
            LinkLost: One of them was never named, is done, or was asked for before.
        """
        for serial in serials:
            ref = self._window.find(serial)
            if ref is None:
                raise LinkLost(f"the far end asks for chunk {serial} after it was done with it")
            if ref.was_sent:
                raise LinkLost(f"the far end asks twice for chunk {serial}")
            ref.was_sent = True
            self.held.discard(ref.name)
            if ref.data is not None:
                self._bodies.append((serial, ref.data))
            else:
                task = asyncio.create_task(self._read_body(serial, ref.name))
                self._readings.add(task)
                task.add_done_callback(self._readings.discard)
        self.advance()

    async def _read_body(self, serial: int, name: ChunkName) -> None:
        data = await asyncio.to_thread(self._reader.read, name) if self._reader else None
        if data is None:
            self._link.end(LinkLost(_GONE))
            return
        self._bodies.append((serial, data))
        self.advance()

    def on_done(self, count: int) -> None:
        """The rpc-server has everything up to the chunk of that number."""
        for ref in self._window.done(count):
            self.weight_bytes += ref.size_bytes
            self.saved_bytes += 0 if ref.was_sent else ref.size_bytes
            self.on_their_way.discard(ref.name)
            self.held.add(ref.name)
        self.advance()

    # -- chunks ahead of the stream --------------------------------------------------------

    async def ask(self, chunks: Sequence[tuple[ChunkName, int]]) -> None:
        """Learn which of ``chunks`` the far end has; then ``held`` tells."""
        for start in range(0, len(chunks), OFFERED_CHUNKS):
            part = chunks[start : start + OFFERED_CHUNKS]
            answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._offers.append(([name for name, _ in part], answered))
            self._link.send(Kind.OFFER, pack_offer(part))
        if chunks:
            await answered

    def on_held(self, flags: bytes) -> None:
        """The answer to the oldest question.

        Raises:
            LinkLost: Nobody asked, or about another number of chunks.
        """
        if not self._offers or len(self._offers[0][0]) != len(flags):
            raise LinkLost("the far end answers what was not asked; update both ends")
        names, answered = self._offers.popleft()
        self.held.update(name for name, flag in zip(names, flags, strict=True) if flag)
        if not answered.done():
            answered.set_result(None)

    async def seed(self, name: ChunkName, data: bytes) -> None:
        """Send a chunk ahead, when there is room; the first alone, as the store may be full."""
        while self._link.is_full or sum(self._seeds.values()) >= self._most_seed_bytes:
            self._seed_room.clear()
            await self._seed_room.wait()
        if self.refuses_seeds or name in self.held or name in self.on_their_way:
            return
        self._seeds[name] = len(data)
        # What follows by name finds it there: the far end reads in order.
        self.held.add(name)
        self.seeded_bytes += len(data)
        self._link.send(Kind.SEED, data, head=name)

    @property
    def _most_seed_bytes(self) -> int:
        return self._seed_window_bytes if self._keeps_seeds else 1

    def on_stored(self, name: ChunkName, *, is_stored: bool) -> None:
        """The far end has put a seed away, or could not."""
        self._seeds.pop(name, None)
        if is_stored:
            self._keeps_seeds = True
        else:
            self.refuses_seeds = True
            self.held.discard(name)
        self._seed_room.set()

    async def seeds_settled(self) -> None:
        """Wait until the far end has answered for every seed."""
        while self._seeds and not self._link.is_over:
            self._seed_room.clear()
            await self._seed_room.wait()

    def close(self) -> None:
        """Nobody waits any more."""
        for task in self._readings:
            task.cancel()
        for _, answered in self._offers:
            answered.cancel()
