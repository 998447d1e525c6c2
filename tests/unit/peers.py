"""Fake peers of a probe: small asyncio servers that remember what they read and how it ended."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field


@dataclass
class Peer:
    """A listening peer; per connection, what it read and how that ended."""

    port: int = 0
    received: list[bytes] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytearray], Awaitable[None]]


@contextlib.asynccontextmanager
async def peer(*talks: Talk) -> AsyncIterator[Peer]:
    """Serve one talk per connection (the last one for all further ones), and see its end."""
    made, open_connections = Peer(), set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_connections.add(task)
        got, talk = bytearray(), talks[min(len(made.ends), len(talks) - 1)]
        made.ends.append("open")
        number = len(made.ends) - 1
        try:
            await talk(reader, writer, got)
            got += await reader.read()
            made.ends[number] = "eof"
        except ConnectionError:
            made.ends[number] = "reset"
        except asyncio.IncompleteReadError as exc:
            got += exc.partial
            made.ends[number] = "eof"
        made.received.append(bytes(got))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
        async with asyncio.timeout(5):
            await asyncio.gather(*open_connections)
    finally:
        server.close()


def script(*replies: bytes, chunk: int = 0, hello_bytes: int = 33) -> Talk:
    """Answers one request with one reply; the last one is followed by reading to the end."""

    async def talk(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, got: bytearray
    ) -> None:
        for number, text in enumerate(replies):
            header = await reader.readexactly(9)
            got += header
            got += await reader.readexactly(struct.unpack("<Q", header[1:])[0])
            if number == 0:
                assert len(got) == hello_bytes
            for start in range(0, len(text), chunk or len(text)):
                writer.write(text[start : start + (chunk or len(text))])
                await writer.drain()
                await asyncio.sleep(0)

    return talk


async def hang_up(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, got: bytearray
) -> None:
    got += await reader.read(100)
    writer.close()


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, got: bytearray) -> None:
    """What a 3.x server's close with unread bytes looks like: an RST."""
    got += await reader.read(100)
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def says(text: bytes, *, at_once: bool = False) -> Talk:
    async def talk(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, got: bytearray
    ) -> None:
        if not at_once:
            got += await reader.read(100)
        writer.write(text)
        await writer.drain()

    return talk
