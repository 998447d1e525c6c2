"""Parts of links for the tests of them: wires, peers that speak raw frames, an rpc-server."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from rpc_talk import ASKED, SEVEN, VERSIONS, hello_reply_of, pattern, reply

from agents.errors import ProjectError
from agents.link_frames import HEADER_BYTES, Frame, Kind, header, read_frame
from agents.link_stream import LinkStream
from agents.rpc_protocol import Triple

Spoken = tuple[Kind, bytes]


class Wire(asyncio.Transport):
    """A transport that keeps what is written; full when told so."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_aborted = self.is_closed = self.is_read_paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        self.is_read_paused = True

    def resume_reading(self) -> None:
        self.is_read_paused = False

    def reads(self) -> bool:
        return not self.is_read_paused

    def spoken(self) -> list[Spoken]:
        """The frames that were written since the last call, without heartbeats."""
        found = [each for each in frames_in(bytes(self.written)) if each[0] is not Kind.BEAT]
        self.written.clear()
        return found


def frames_in(data: bytes) -> list[Spoken]:
    """All frames of a stream, which must end with one."""
    found, rest = [], memoryview(data)
    while rest:
        frame = read_frame(rest)
        assert frame is not None, "the stream ends in the middle of a frame"
        found.append((frame.kind, bytes(frame.body)))
        rest = rest[HEADER_BYTES + len(frame.body) :]
    return found


def framed(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("<BI", kind, len(body)) + body


def spoken(kind: Kind, body: bytes = b"") -> bytes:
    return header(kind, len(body)) + body


@dataclass
class Heard:
    """What the owner of a stream was told."""

    frames: list[Spoken] = field(default_factory=list)
    ends: list[ProjectError] = field(default_factory=list)
    rooms: int = 0
    is_made: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def on_frame(self, frame: Frame) -> None:
        self.frames.append((frame.kind, bytes(frame.body)))

    def on_end(self, error: ProjectError) -> None:
        self.ends.append(error)
        self.ended.set()

    def on_room(self) -> None:
        self.rooms += 1

    def on_made(self) -> None:
        self.is_made = True

    def stream(self) -> LinkStream:
        return LinkStream(self.on_frame, self.on_end, self.on_room, self.on_made)


def wired(heard: Heard) -> tuple[LinkStream, Wire]:
    """A stream on a wire of its own."""
    stream, wire = heard.stream(), Wire()
    stream.connection_made(wire)
    return stream, wire


def feed(stream: LinkStream, pieces: Iterable[bytes]) -> None:
    """Give a stream what a socket would give it."""
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            room = stream.get_buffer(-1)
            assert room, "a stream always has room for more"
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            stream.buffer_updated(count)
            rest = rest[count:]


async def until(check: Callable[[], object], within_s: float = 5.0) -> None:
    """Wait for a condition of this process."""
    async with asyncio.timeout(within_s):
        while not check():
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def plain_peer() -> AsyncIterator[tuple[LinkStream, Heard, socket.socket]]:
    """A stream, and the bare socket at its other end, which does nothing by itself."""
    loop, heard = asyncio.get_running_loop(), Heard()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        _, stream = await loop.create_connection(heard.stream, "127.0.0.1", port)
        other, _ = listener.accept()
    try:
        with other:
            other.setblocking(False)
            yield stream, heard, other
    finally:
        stream.end(ProjectError("the test is over"))
        await asyncio.sleep(0)


@dataclass
class RpcStandIn:
    """Serves one client like an rpc-server; ``reads`` cleared makes it stop reading."""

    triple: Triple = SEVEN
    port: int = 0
    received: list[bytearray] = field(default_factory=list)
    """Of each connection, from its HELLO on, as much as is kept."""
    most_kept_bytes: int = 1 << 40
    open: int = 0
    is_dumb: bool = False
    """It never answers anything."""
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = bytearray()
        self.received.append(got)
        self.writers.append(writer)
        self.open += 1
        try:
            await self._talk(reader, writer, got)
        except (ConnectionError, asyncio.IncompleteReadError, KeyError):
            pass  # as a real one: whoever says what it does not know is hung up on
        finally:
            self.open -= 1
            writer.close()

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, got: bytearray
    ) -> None:
        def keep(piece: bytes) -> None:
            nonlocal got
            got += piece[: max(self.most_kept_bytes - len(got), 0)]

        while True:
            await self.reads.wait()
            head = await reader.readexactly(9)
            keep(head)
            command, left = struct.unpack("<BQ", head)
            body = bytearray()
            while left:
                await self.reads.wait()
                piece = await reader.read(min(left, 64 << 10))
                if not piece:
                    return
                keep(piece)
                left -= len(piece)
                body += piece if len(body) < 4096 else b""
            if not self.is_dumb:
                writer.write(self._answer(command, bytes(body)))
                await writer.drain()

    def _answer(self, command: int, body: bytes) -> bytes:
        if command == 14:
            return hello_reply_of(self.triple)
        _, reply_bytes = VERSIONS[SEVEN][command]
        if reply_bytes == ASKED:
            (reply_bytes,) = struct.unpack_from("<Q", body, 304)
        if reply_bytes is None:
            return b""
        return reply((pattern(256, command) * (reply_bytes // 256 + 1))[:reply_bytes])


@contextlib.asynccontextmanager
async def rpc_stand_in(
    triple: Triple = SEVEN, *, is_dumb: bool = False, most_kept_bytes: int = 1 << 40
) -> AsyncIterator[RpcStandIn]:
    made = RpcStandIn(triple, is_dumb=is_dumb, most_kept_bytes=most_kept_bytes)
    made.reads.set()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=64 << 10)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.reads.set()
        for writer in made.writers:
            writer.transport.abort()
        await until(lambda: not made.open)
