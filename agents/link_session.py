"""One link at the far end, from its HELLO to its end: requests, chunks, seeds."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

from agents.chunk_ledger import Pin
from agents.chunk_store import ChunkStore, PutResult
from agents.chunks import ChunkName, ChunkSource
from agents.contract import read
from agents.errors import LinkFraming, LinkLost, LinkRefused, ProjectError
from agents.link_frames import (
    LINK_PROTOCOL,
    MEASURING,
    Frame,
    Hello,
    Kind,
    Refused,
    Welcome,
    pack_base,
    pack_json,
    pack_need,
    pack_number,
    pack_shut,
    pack_stored,
    read_json,
    read_numbered,
    read_offer,
    read_open,
    read_ref,
    read_seed,
    read_shut,
)
from agents.link_stream import LinkStream
from agents.link_upstream import MOST_QUEUED_BYTES, Chunk, Upstream, connect
from agents.rpc_protocol import Triple

log = logging.getLogger(__name__)

_CONNECT_S: Final = 10.0
MOST_WINDOW_BYTES: Final = 256 << 20
_WINDOW_SLACK_BYTES: Final = 16 << 20
_LEAST_SILENCE_S: Final = 0.2
_MOST_SILENCE_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Stock:
    """Where chunks are kept and read; ``threads`` do the blocking work."""

    store: ChunkStore
    sources: tuple[ChunkSource, ...]
    threads: ThreadPoolExecutor

    def read(self, name: ChunkName) -> bytes | None:
        """The verified chunk from wherever it is; blocks."""
        for source in (self.store, *self.sources):
            if (data := source.get(name)) is not None:
                return data
        return None

    def is_held(self, name: ChunkName) -> bool:
        return any(source.has((name,)) for source in self.sources)


@dataclass(frozen=True, slots=True)
class Admission:
    """What an admitted launch gets: the rpc-server's port, and how it is described."""

    port: int
    welcome: Welcome


Admit = Callable[[Hello, "Session"], Awaitable[Admission]]
"""Raises ``ProjectError`` with the reason for a refusal."""


class Session:
    """One admitted link. ``ended`` is set when nothing of it is left."""

    def __init__(self, stock: Stock, admit: Admit, on_end: Callable[["Session"], None]) -> None:
        self._stock = stock
        self._admit = admit
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self.link = LinkStream(self._on_frame, self._ended, self._on_link_room)
        self.hello: Hello | None = None
        self._admission: Admission | None = None
        self._upstream: Upstream | None = None
        self._channel = 0
        self._serial = 0
        self._chunks: dict[int, Chunk] = {}
        self._asked: dict[int, ChunkName] = {}
        self._wanted: dict[ChunkName, list[Chunk]] = {}
        self._storing: dict[ChunkName, bytes] = {}
        self._window_bytes = 0
        self._finished: set[int] = set()
        self._done = 0
        self._tasks: set[asyncio.Task[object]] = set()
        self._pins = contextlib.ExitStack()
        self._pin: Pin = self._pins.enter_context(stock.store.pin())
        self.error: ProjectError | None = None

    def close(self, error: ProjectError) -> None:
        """End the link for a reason of ours."""
        self.link.end(error)

    def _ended(self, error: ProjectError) -> None:
        self.error = error
        for task in self._tasks:
            task.cancel()
        if self._upstream is not None:
            self._upstream.abort()
        self._pins.close()
        for each in (self._chunks, self._wanted, self._storing):
            each.clear()
        self._on_end(self)

    # -- frames ----------------------------------------------------------------------------

    def _on_frame(self, frame: Frame) -> None:
        if self.hello is None:
            self._hear_hello(frame)
            return
        if self._admission is None:
            raise LinkFraming(f"{frame.kind.name} came before WELCOME was sent")
        match frame.kind:
            case Kind.DATA:
                self._upstream_or_raise().write(frame.body)
                self._bound_queue()
            case Kind.REF:
                self._on_ref(*read_ref(frame.body))
            case Kind.BODY:
                self._on_body(*read_numbered(frame.body, frame.kind))
            case Kind.OPEN:
                self._open(*read_open(frame.body))
            case Kind.SHUT:
                channel, _ = read_shut(frame.body)
                if channel == self._channel:
                    self._end_requests()
            case Kind.OFFER:
                self._on_offer(read_offer(frame.body))
            case Kind.SEED:
                self._on_seed(*read_seed(frame.body))
            case Kind.ECHO if self.hello.launch == MEASURING:
                number, _ = read_numbered(frame.body, frame.kind)
                self.link.send(Kind.ECHO, pack_number(number))
            case _:
                raise LinkFraming(f"{frame.kind.name} is not for a far end")

    def _hear_hello(self, frame: Frame) -> None:
        if frame.kind is not Kind.HELLO:
            raise LinkFraming(f"{frame.kind.name} came first, where only HELLO may")
        hello = self.hello = read(Hello, read_json(frame.body))
        if hello.protocol != LINK_PROTOCOL:
            self._refuse(
                LinkRefused(
                    f"the main host speaks link protocol {hello.protocol}, this agent "
                    f"{LINK_PROTOCOL}; update the older one"
                )
            )
            return
        if not _LEAST_SILENCE_S <= hello.silence_s <= _MOST_SILENCE_S:
            raise LinkFraming(f"silence_s = {hello.silence_s} is impossible")
        if not 0 < hello.window_bytes <= MOST_WINDOW_BYTES:
            raise LinkFraming(f"window_bytes = {hello.window_bytes} is impossible")
        self.link.start_beating(hello.silence_s)
        self._spawn(self._admit_it(hello))

    async def _admit_it(self, hello: Hello) -> None:
        try:
            self._admission = await self._admit(hello, self)
        except ProjectError as exc:
            self._refuse(exc)
            return
        self.link.send(Kind.WELCOME, pack_json(asdict(self._admission.welcome)))

    def _refuse(self, error: ProjectError) -> None:
        self.link.send(Kind.REFUSED, pack_json(asdict(Refused(error.code, str(error)))))
        self.link.finish(error)

    # -- the rpc-server --------------------------------------------------------------------

    def _open(self, channel: int, greets: bool) -> None:
        assert self._admission is not None
        if not self._admission.port:
            raise LinkFraming("OPEN on a link that is only for seeds")
        if self._upstream is not None:
            raise LinkFraming(f"OPEN of channel {channel} while {self._channel} is open")
        self._channel = channel
        text = self._admission.welcome.rpc_protocol
        upstream = self._upstream = Upstream(self, Triple.parse(text), greets=greets)
        self._spawn(self._connect(self._admission.port, upstream))

    def _end_requests(self) -> None:
        upstream = self._upstream
        if upstream is None:
            return
        if upstream.waits_for_chunk:
            # Its client left in the middle of a tensor; the rest would only cost time.
            upstream.abort()
            self.on_upstream_end("the client left in the middle of a tensor")
        else:
            upstream.end_writing()

    async def _connect(self, port: int, upstream: Upstream) -> None:
        try:
            await connect(port, lambda: upstream, _CONNECT_S)
        except LinkLost as exc:
            self.on_upstream_end(str(exc))

    def on_answer(self, data: memoryview, took_s: float) -> None:
        """The rpc-server answers."""
        self.link.send(Kind.ANSWER, data, head=pack_number(min(int(took_s * 1e6), 2**32 - 1)))
        if self.link.is_full and self._upstream is not None:
            self._upstream.pause_answers()

    def on_base(self, handle: int, base: int) -> None:
        """Known before it is asked for, which saves a round trip per buffer."""
        self.link.send(Kind.BASE, pack_base(handle, base))

    def _on_link_room(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_answers()

    def on_upstream_end(self, reason: str) -> None:
        """The rpc-server has hung up, or was never reached."""
        self._upstream = None
        self.link.send(Kind.SHUT, pack_shut(self._channel, reason))
        self._drop_chunks()
        self.link.resume_reading()

    def _drop_chunks(self) -> None:
        """Chunks that nobody waits for any more count as done, so that the window opens."""
        chunks, self._chunks = self._chunks, {}
        for chunk in chunks.values():
            self._finish(chunk)

    def _upstream_or_raise(self) -> "Upstream | _Nowhere":
        return self._upstream or _NOWHERE

    def _bound_queue(self) -> None:
        upstream = self._upstream
        if upstream is None or upstream.queued_bytes <= MOST_QUEUED_BYTES:
            return
        if not upstream.waits_for_chunk:
            self.link.pause_reading()
        elif upstream.queued_bytes > MOST_WINDOW_BYTES:
            raise LinkFraming(f"{upstream.queued_bytes} bytes sent behind a chunk that is missing")

    # -- chunks in place of data -----------------------------------------------------------

    def _on_ref(self, name: ChunkName, size_bytes: int) -> None:
        self._take_window(size_bytes)
        chunk = Chunk(self._serial, name, size_bytes)
        self._serial += 1
        if self._upstream is None:
            self._finish(chunk)
            return
        self._chunks[chunk.serial] = chunk
        if (data := self._storing.get(name)) is not None:
            chunk.data, chunk.is_safe = data, True
        self._upstream.write(chunk)
        if data is not None:
            return
        if self._pin.hold((name,)) or self._stock.is_held(name):
            self._spawn(self._fetch(chunk))
        else:
            self._need(chunk)

    async def _fetch(self, chunk: Chunk) -> None:
        """From our own stock; what is damaged there is asked for."""
        threads, take = self._stock.threads, self._stock.read
        data = await self._loop.run_in_executor(threads, take, chunk.name)
        if data is None or len(data) != chunk.size_bytes:
            self._need(chunk)
            return
        chunk.is_safe = True
        self._arrived(chunk, data)

    def _need(self, chunk: Chunk) -> None:
        if chunk.serial not in self._chunks:
            return  # the rpc-server hung up meanwhile
        wanted = self._wanted.setdefault(chunk.name, [])
        wanted.append(chunk)
        if len(wanted) == 1:
            self.link.send(Kind.NEED, pack_need((chunk.serial,)))
            self._asked[chunk.serial] = chunk.name

    def _on_body(self, serial: int, body: memoryview) -> None:
        name = self._asked.pop(serial, None)
        if name is None:
            raise LinkFraming(f"a chunk for reference {serial}, which was not asked for")
        wanted = self._wanted.pop(name)
        if len(body) != wanted[0].size_bytes:
            raise LinkFraming(f"a chunk of {len(body)} bytes in place of {wanted[0].size_bytes}")
        data = bytes(body)
        for chunk in wanted:
            self._arrived(chunk, data)
        self._storing[name] = data
        self._spawn(self._store(name, data, wanted))

    async def _store(self, name: ChunkName, data: bytes, chunks: Sequence[Chunk]) -> PutResult:
        """Keep a chunk that has come; the rpc-server did not wait for that."""
        put = self._stock.store.put
        result = await self._loop.run_in_executor(self._stock.threads, put, name, data)
        self._storing.pop(name, None)
        if result is PutResult.DAMAGED:
            self.link.end(LinkLost("a chunk arrived that is not what its name says"))
        for chunk in chunks:
            chunk.is_safe = True
            self._settle(chunk)
        return result

    def _arrived(self, chunk: Chunk, data: bytes) -> None:
        chunk.data = data
        if self._upstream is not None:
            self._upstream.advance()

    def on_chunk_written(self, chunk: Chunk) -> None:
        """The rpc-server has it, or its socket does."""
        self._settle(chunk)

    def on_moved(self) -> None:
        """Less waits for the rpc-server."""
        upstream = self._upstream
        if upstream is None:
            return
        # A chunk that is next comes over the link, however much waits behind it.
        if upstream.waits_for_chunk or upstream.queued_bytes < MOST_QUEUED_BYTES // 2:
            self.link.resume_reading()

    def _settle(self, chunk: Chunk) -> None:
        is_over = chunk.is_written and chunk.is_safe
        if is_over and self._chunks.pop(chunk.serial, None) is not None:
            self._finish(chunk)

    def _finish(self, chunk: Chunk) -> None:
        """Give its room back, in the order in which room was taken."""
        self._window_bytes -= chunk.size_bytes
        self._finished.add(chunk.serial)
        before = self._done
        while self._done in self._finished:
            self._finished.remove(self._done)
            self._done += 1
        if self._done > before:
            self.link.send(Kind.DONE, pack_number(self._done))

    def _take_window(self, size_bytes: int) -> None:
        assert self.hello is not None
        self._window_bytes += size_bytes
        if self._window_bytes > self.hello.window_bytes + _WINDOW_SLACK_BYTES:
            raise LinkFraming(f"{self._window_bytes} bytes of chunks at once; see window_bytes")

    # -- seeds -----------------------------------------------------------------------------

    def _on_offer(self, names: list[ChunkName]) -> None:
        held = self._pin.hold(names)
        flags = bytes(name in held or self._stock.is_held(name) for name in names)
        self.link.send(Kind.HELD, flags)

    def _on_seed(self, name: ChunkName, body: memoryview) -> None:
        self._take_window(len(body))
        data = self._storing[name] = bytes(body)
        self._spawn(self._store_seed(name, data))

    async def _store_seed(self, name: ChunkName, data: bytes) -> None:
        result = await self._store(name, data, ())
        self._window_bytes -= len(data)
        self.link.send(Kind.STORED, pack_stored(name, is_stored=result is PutResult.STORED))

    # -- tasks -----------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: "asyncio.Task[object]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("link.bug", exc_info=error)
            self.link.end(LinkLost(f"internal error: {error!r}; please report it"))


class _Nowhere:
    """Takes what was on its way when the rpc-server hung up."""

    def write(self, item: bytes | memoryview | Chunk) -> None:
        pass


_NOWHERE: Final = _Nowhere()
