"""The far end's connection to the rpc-server: requests in order, chunks in place of their names.

What the near end sends is written in the order in which it came. A chunk that is not here yet
holds up what is behind it, and nothing else: those behind it are already looked for.
"""

import asyncio
import logging
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agents.chunks import ChunkName
from agents.errors import LinkLost, ProjectError
from agents.link_frames import DATA_BYTES
from agents.rpc_commands import HELLO_REPLY_OF, command_name, generation_of
from agents.rpc_events import Request, RequestBegin, Response, ResponseEvent
from agents.rpc_framing import Conversation
from agents.rpc_protocol import (
    Command,
    Triple,
    encode_request,
    hello_request,
    old_hello_request,
)

log = logging.getLogger(__name__)

_READ_BYTES: Final = 256 << 10
MOST_QUEUED_BYTES: Final = 8 << 20
"""RPC bytes that wait for the rpc-server, without chunks; beyond that the link is not read."""
_LENGTH: Final = struct.Struct("<Q")
_PAIR: Final = struct.Struct("<QQ")
_LENGTH_BYTES: Final = _LENGTH.size
_ALLOCATED_BYTES: Final = _LENGTH.size + _PAIR.size
_GREETING_S: Final = 10.0
"""For the answer to our HELLO; an rpc-server with another client gives none."""


@dataclass(slots=True, eq=False)
class Chunk:
    """A chunk in the stream of requests. ``data`` is there from its arrival until it is written."""

    serial: int
    name: ChunkName
    size_bytes: int
    data: bytes | None = None
    is_written: bool = False
    is_safe: bool = False
    """It is stored, or never will be; either way nobody waits for that any more."""


class Owner(Protocol):
    """The session that an upstream belongs to."""

    def on_answer(self, data: memoryview, took_s: float) -> None:
        """Bytes of answers; ``took_s`` since the question, on the first ones of each."""

    def on_base(self, handle: int, base: int) -> None:
        """Base address of a buffer whose handle the next answer tells."""

    def on_chunk_written(self, chunk: Chunk) -> None: ...

    def on_moved(self) -> None:
        """Fewer bytes wait than before."""

    def on_upstream_end(self, reason: str) -> None: ...


class Upstream(asyncio.BufferedProtocol):
    """One connection to the rpc-server on this host."""

    def __init__(self, owner: Owner, triple: Triple | None, *, greets: bool) -> None:
        """``greets``: say HELLO ourselves, of that version; else everything is passed through."""
        self._owner = owner
        self._triple = triple
        self._greets = greets
        self._talk: Conversation | None = None
        self._greeting = bytearray()
        self._begun = bytearray()
        self._allocated: tuple[int, bytes] | None = None
        """A handle and the answer that tells it, held back until its base is known."""
        self._queue: deque[bytes | memoryview | Chunk] = deque()
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._is_open = self._is_full = self._is_over = self._is_ending = False
        self._asked_at_s = 0.0
        self.queued_bytes = 0
        self.last_command = ""

    # -- towards the rpc-server ------------------------------------------------------------

    def write(self, item: bytes | memoryview | Chunk) -> None:
        """Write now or when it is its turn. A view is copied if it has to wait."""
        if not self._queue and self._can_write and self._write_now(item):
            return
        if not isinstance(item, Chunk):
            item = bytes(item)
            self.queued_bytes += len(item)
        self._queue.append(item)

    def advance(self) -> None:
        """Write what can be written: a chunk has come, or there is room."""
        try:
            self._write_queued()
        except ProjectError as exc:  # asyncio's callbacks swallow it, and the client would wait
            self._finish(str(exc))
            return
        self._owner.on_moved()
        if self._is_ending and not self._queue and self._transport is not None:
            self._transport.write_eof()
            self._is_ending = False

    def _write_queued(self) -> None:
        while self._queue and self._can_write and self._write_now(self._queue[0]):
            item = self._queue.popleft()
            if not isinstance(item, Chunk):
                self.queued_bytes -= len(item)

    @property
    def waits_for_chunk(self) -> bool:
        """What is next has not come over the link yet."""
        first = self._queue[0] if self._queue else None
        return isinstance(first, Chunk) and first.data is None

    def end_writing(self) -> None:
        """The client has hung up: the rpc-server may when it has read everything."""
        self._is_ending = True
        self.advance()

    def abort(self) -> None:
        """Cut the connection; the owner is not told."""
        self._is_over = True
        self._queue.clear()
        self._buffer = memoryview(b"")  # timers may keep us for a while
        if self._transport is not None:
            self._transport.abort()

    @property
    def _can_write(self) -> bool:
        return self._is_open and not self._is_full and not self._is_over

    def _write_now(self, item: bytes | memoryview | Chunk) -> bool:
        assert self._transport is not None
        data = item.data if isinstance(item, Chunk) else item
        if data is None:
            return False
        self._note_requests(data)
        # Copied, since asyncio may keep what it cannot send yet, and views are reused.
        self._transport.write(bytes(data))
        if isinstance(item, Chunk):
            item.data, item.is_written = None, True
            self._owner.on_chunk_written(item)
        return True

    def _note_requests(self, data: bytes | memoryview) -> None:
        """Check what the near end wants of the rpc-server before it gets it."""
        if self._talk is None:
            return
        for event in self._talk.feed_requests(data):
            if isinstance(event, (Request, RequestBegin)):
                self.last_command = command_name(event.command)
                if event.reply_bytes is not None:
                    self._asked_at_s = time.perf_counter()

    # -- from the rpc-server ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._is_over:
            transport.abort()
        elif self._greets:
            assert self._triple is not None
            transport.write(hello_request() if self._triple.major >= 4 else old_hello_request())
            asyncio.get_running_loop().call_later(_GREETING_S, self._expect_greeting)
        else:
            self._open()

    def _expect_greeting(self) -> None:
        if not self._is_open:
            self._finish(
                f"the rpc-server did not answer HELLO in {_GREETING_S:g} s: another client on "
                "that device has it; close that"
            )

    def _open(self) -> None:
        self._is_open = True
        self.advance()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        try:
            self._take(self._buffer[:count])
        except ProjectError as exc:
            self._finish(str(exc))

    def _take(self, data: memoryview) -> None:
        if self._greets and not self._is_open:
            data = self._take_greeting(data)
        if not data:
            return
        took_s = 0.0
        if self._talk is not None:
            events = self._talk.feed_responses(data)
            if self._has_only_begun(data):
                return
            if self._asked_at_s:
                took_s, self._asked_at_s = time.perf_counter() - self._asked_at_s, 0.0
            if self._begun:
                data = memoryview(bytes(self._begun) + data)
                self._begun.clear()
            if self._is_about_base(events, data):
                return
        for start in range(0, len(data), DATA_BYTES):
            self._owner.on_answer(data[start : start + DATA_BYTES], took_s if not start else 0.0)

    def _is_about_base(self, events: Sequence[ResponseEvent], data: memoryview) -> bool:
        """Ask for the base of a buffer that was just made, which the client does next anyway.

        The client waits for the handle meanwhile, so nothing comes between.
        """
        event = events[0] if len(events) == 1 else None
        if not isinstance(event, Response):
            return False
        if event.command == Command.ALLOC_BUFFER and len(data) == _ALLOCATED_BYTES:
            handle, _ = _PAIR.unpack(event.body)
            is_free = self._talk is not None and self._talk.requests.is_between_messages
            if handle and is_free and not self._queue and self._can_write:
                self._allocated = (handle, bytes(data))
                body = _LENGTH.pack(handle)
                self._write_now(encode_request(Command.BUFFER_GET_BASE, body))
                return True
        elif event.command == Command.BUFFER_GET_BASE and self._allocated is not None:
            (handle, answer), self._allocated = self._allocated, None
            self._owner.on_base(handle, *_LENGTH.unpack(event.body))
            self._owner.on_answer(memoryview(answer), 0.0)
            return True
        return False

    def _has_only_begun(self, data: memoryview) -> bool:
        """Keep the length of an answer until the rest is here: a server sends them apart."""
        assert self._talk is not None
        if (
            len(self._begun) + len(data) > _LENGTH_BYTES
            or self._talk.passthrough is not None
            or self._talk.responses.is_between_messages
        ):
            return False
        self._begun += data
        return True

    def _take_greeting(self, data: memoryview) -> memoryview:
        """The answer to our own HELLO, which nobody else is to see; returns what follows it."""
        assert self._triple is not None
        hello_bytes = 24 if self._triple.major >= 4 else 0
        missing = _LENGTH_BYTES + HELLO_REPLY_OF[hello_bytes] - len(self._greeting)
        self._greeting += data[:missing]
        if len(data) < missing:
            return data[:0]
        seen = Triple(*self._greeting[_LENGTH_BYTES : _LENGTH_BYTES + 3])
        if seen != self._triple:
            raise LinkLost(
                f"the rpc-server speaks RPC {seen} now, {self._triple} when it started; "
                "see whether somebody replaced it"
            )
        if generation_of(seen, hello_bytes) is not None:
            self._talk = Conversation()
            self._talk.requests.learn(seen)
            self._talk.responses.triple = seen
        self._open()
        return data[missing:]

    def pause_answers(self) -> None:
        if self._transport is not None and not self._is_over:
            self._transport.pause_reading()

    def resume_answers(self) -> None:
        if self._transport is not None and not self._is_over:
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self.advance()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(f"the rpc-server closed the connection{f' ({exc})' if exc else ''}")

    def _finish(self, reason: str) -> None:
        if self._is_over:
            return
        self.abort()
        self._owner.on_upstream_end(reason)


async def connect(port: int, make: Callable[[], Upstream], deadline_s: float) -> None:
    """Connect to the rpc-server; the upstream tells its owner how that ends.

    Raises:
        LinkLost: Nobody took the connection in time.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(deadline_s):
            await loop.create_connection(make, "127.0.0.1", port)
    except (OSError, TimeoutError) as exc:
        reason = str(exc) or f"no connection within {deadline_s:g} s"
        raise LinkLost(f"the rpc-server does not take a connection: {reason}") from exc
