"""Wire codec of the llama.cpp RPC protocol, and the probe that proves a server ready.

Framing, all versions since 1.0, little-endian: a request is ``u8 command, u64 length, body``; a
response is ``u64 length, body``. Source: llama.cpp ``ggml/src/ggml-rpc/ggml-rpc.cpp``.

The probe is careful because servers are fragile: they serve one client at a time, some die of
SIGPIPE when a client leaves with an answer unread, and an idle connection blocks all others. So it
sends nothing that it does not read the answer of, closes in order, and is never used on a server
that a llama-server is attached to.
"""

import asyncio
import contextlib
import struct
import time
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import Self


class Command(IntEnum):
    """Commands that we send ourselves; a number never changed since protocol 1.0."""

    ALLOC_BUFFER = 0
    GET_ALIGNMENT = 1
    GET_MAX_SIZE = 2
    BUFFER_GET_BASE = 3
    FREE_BUFFER = 4
    BUFFER_CLEAR = 5
    SET_TENSOR = 6
    GET_TENSOR = 8
    COPY_TENSOR = 9
    GRAPH_COMPUTE = 10
    GET_DEVICE_MEMORY = 11
    GET_ALLOC_SIZE = 13
    HELLO = 14
    DEVICE_COUNT = 15
    GRAPH_RECOMPUTE = 16


CAPABILITIES_BYTES = 24
"""Connection capabilities in a HELLO since 4.0; all zero is "TCP only", the rest invites RDMA."""

HELLO_REPLY_BYTES = 4 + CAPABILITIES_BYTES
OLD_HELLO_REPLY_BYTES = 3
MAX_DEVICES = 64
"""Far above llama.cpp's own limit of 16; a larger count is not an answer of an rpc-server."""

_DRAIN_S = 1.0
"""For the server's side of an orderly end; it has answered everything by then."""

_LENGTH = struct.Struct("<Q")
_REQUEST = struct.Struct("<BQ")
_DEVICE = struct.Struct("<I")
_MEMORY = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True, order=True)
class Triple:
    """RPC protocol version. Compared as one opaque value: the patch number guards the op enum."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"7.0.0"``.

        Raises:
            ValueError: ``text`` is not three numbers.
        """
        major, minor, patch = (int(part) for part in text.split("."))
        return cls(major, minor, patch)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What a server reports of one device. A CPU device reports all its memory as free."""

    free_bytes: int
    total_bytes: int
    alignment: int = 0
    """Bytes that tensor addresses must be a multiple of; 0: not asked."""
    max_buffer_bytes: int = 0


class Outcome(StrEnum):
    """Every way in which a probe can end; none of them is an exception."""

    READY = "ready"
    BUSY = "busy"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    NOT_RPC_SERVER = "not_rpc_server"
    INCOMPATIBLE = "incompatible"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Answer of one probe. ``round_trip_s`` is that of the HELLO alone."""

    outcome: Outcome
    triple: Triple | None = None
    devices: tuple[DeviceMemory, ...] = field(default=())
    round_trip_s: float = 0.0
    detail: str = ""


class NotRpcServer(Exception):
    """The peer's bytes cannot be those of an rpc-server."""


def encode_request(command: Command, body: bytes = b"") -> bytes:
    """One request as it travels."""
    return _REQUEST.pack(command, len(body)) + body


def hello_request() -> bytes:
    """HELLO of protocols 4.0 to 7.0 with all-zero capabilities (33 bytes)."""
    return encode_request(Command.HELLO, bytes(CAPABILITIES_BYTES))


def old_hello_request() -> bytes:
    """HELLO of protocols 1.0 to 3.x (9 bytes)."""
    return encode_request(Command.HELLO)


def decode_hello_reply(body: bytes) -> Triple:
    """Read the body of a HELLO answer, of 28 bytes (4.0 and later) or 3.

    Raises:
        NotRpcServer: any other length.
    """
    if len(body) not in (HELLO_REPLY_BYTES, OLD_HELLO_REPLY_BYTES):
        raise NotRpcServer(f"HELLO answer of {len(body)} bytes")
    return Triple(*body[:3])


async def probe(
    host: str,
    port: int,
    *,
    deadline_s: float,
    expected: Triple | None = None,
    asks_sizes: bool = False,
) -> ProbeResult:
    """Ask an idle rpc-server who it is: HELLO, DEVICE_COUNT, GET_DEVICE_MEMORY of each device.

    Args:
        host: IPv4 address or name.
        port: TCP port.
        deadline_s: For everything together, both HELLO forms included.
        expected: When given, any other version is ``INCOMPATIBLE``.
        asks_sizes: GET_ALIGNMENT and GET_MAX_SIZE of each device, too.

    Returns:
        The outcome; ``BUSY`` means that the connection was accepted (by the kernel) and nobody
        answered, which is what a server with another client looks like.
    """
    deadline = asyncio.get_running_loop().time() + deadline_s
    forms = ((hello_request(), HELLO_REPLY_BYTES), (old_hello_request(), OLD_HELLO_REPLY_BYTES))
    try:
        for hello, reply_bytes in forms:
            # Servers of 1.x to 3.x close on the long form; the short one needs a new connection.
            result = await _probe_once(host, port, deadline, hello, reply_bytes, asks_sizes)
            if result is not None:
                return _compared(result, expected)
    except TimeoutError:
        return ProbeResult(Outcome.UNREACHABLE, detail=f"no connection within {deadline_s:g} s")
    except ConnectionRefusedError:
        return ProbeResult(Outcome.REFUSED, detail="connection refused: nothing listens there")
    except OSError as exc:
        return ProbeResult(Outcome.UNREACHABLE, detail=str(exc))
    return ProbeResult(Outcome.NOT_RPC_SERVER, detail="it closes every HELLO unanswered")


def _compared(result: ProbeResult, expected: Triple | None) -> ProbeResult:
    if result.triple is None or expected is None or result.triple == expected:
        return result
    detail = f"it speaks RPC {result.triple}, wanted {expected}"
    return replace(result, outcome=Outcome.INCOMPATIBLE, detail=detail)


async def _probe_once(
    host: str, port: int, deadline: float, hello: bytes, reply_bytes: int, asks_sizes: bool
) -> ProbeResult | None:
    """One connection with one form of HELLO; ``None`` when the peer closed instead of answering.

    Raises:
        TimeoutError: The connection itself was not made before the deadline.
        OSError: It could not be made.
    """
    async with asyncio.timeout_at(deadline):
        reader, writer = await asyncio.open_connection(host, port)
    try:
        async with asyncio.timeout_at(deadline):
            return await _dialogue(reader, writer, hello, reply_bytes, asks_sizes)
    except TimeoutError:
        return ProbeResult(Outcome.BUSY, detail="connected, but nobody answers HELLO")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except NotRpcServer as exc:
        return ProbeResult(Outcome.NOT_RPC_SERVER, detail=str(exc))
    finally:
        writer.close()


async def _dialogue(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    hello: bytes,
    reply_bytes: int,
    asks_sizes: bool,
) -> ProbeResult:
    started = time.monotonic()
    writer.write(hello)
    triple = decode_hello_reply(await _read_response(reader, reply_bytes))
    round_trip_s = time.monotonic() - started
    devices = await _read_devices(reader, writer, triple, asks_sizes)
    # Half-close and read to the end: the server sees an orderly end and nothing is left unread.
    # Everything was answered by now, so a peer that is gone already changes nothing.
    with contextlib.suppress(OSError, TimeoutError):
        writer.write_eof()
        async with asyncio.timeout(_DRAIN_S):
            while await reader.read(4096):
                pass
    return ProbeResult(Outcome.READY, triple, devices, round_trip_s)


async def _read_devices(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, triple: Triple, asks_sizes: bool
) -> tuple[DeviceMemory, ...]:
    has_device_index = triple.major >= 3
    count = 1
    if has_device_index:
        writer.write(encode_request(Command.DEVICE_COUNT))
        (count,) = _DEVICE.unpack(await _read_response(reader, _DEVICE.size))
    if count > MAX_DEVICES:
        raise NotRpcServer(f"it claims {count} devices")
    devices = []
    for index in range(count):
        body = _DEVICE.pack(index) if has_device_index else b""
        writer.write(encode_request(Command.GET_DEVICE_MEMORY, body))
        free, total = _MEMORY.unpack(await _read_response(reader, _MEMORY.size))
        sizes: list[int] = []
        for command in (Command.GET_ALIGNMENT, Command.GET_MAX_SIZE) if asks_sizes else ():
            writer.write(encode_request(command, body))
            sizes.append(*_LENGTH.unpack(await _read_response(reader, _LENGTH.size)))
        devices.append(DeviceMemory(free, total, *sizes))
    return tuple(devices)


async def _read_response(reader: asyncio.StreamReader, expected_bytes: int) -> bytes:
    """Read one response of a known size; the length is checked before anything is allocated."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length != expected_bytes:
        raise NotRpcServer(f"it answers with a length of {length}, not {expected_bytes}")
    return await reader.readexactly(expected_bytes)
