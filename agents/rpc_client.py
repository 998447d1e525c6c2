"""A careful client of one idle rpc-server, with the few commands that a measurement needs.

Never use it on a server that a llama-server is attached to: servers have one client at a time.
Only the protocol versions in ``rpc_tensors.LAYOUTS`` are spoken to.

Source:
    llama.cpp ``ggml/src/ggml-rpc/ggml-rpc.cpp`` (structs, ``rpc_serve_client``), as vendored by
    llama-cpp-python 0.3.36.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Self

from agents.errors import MeasurementFailed, MeasurementUnsupported
from agents.rpc_protocol import (
    HELLO_REPLY_BYTES,
    Command,
    DeviceMemory,
    NotRpcServer,
    Triple,
    decode_hello_reply,
    encode_request,
    hello_request,
)
from agents.rpc_tensors import LAYOUTS, Layout, RemoteTensor, pack_graph, pack_tensor

_HELLO_S = 5.0
_DRAIN_S = 1.0
_STREAM_BYTES = 4 << 20

_LENGTH = struct.Struct("<Q")
_DEVICE = struct.Struct("<I")
_PAIR = struct.Struct("<QQ")
_ALLOCATE = struct.Struct("<IQ")
_CLEAR = struct.Struct("<QB")
_RESULT = struct.Struct("<B")


class RpcClient:
    """One connection after its HELLO. Commands without an answer return once they are sent."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        triple: Triple,
        layout: Layout,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.triple = triple
        self.layout = layout

    @classmethod
    async def greet(cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Self:
        """Say HELLO; refuse a version that is not in ``LAYOUTS``.

        Raises:
            MeasurementUnsupported: Another version, or no rpc-server at all.
        """
        writer.write(hello_request())
        try:
            reply = await _read_reply(reader, HELLO_REPLY_BYTES)
        except (NotRpcServer, asyncio.IncompleteReadError, ConnectionError) as exc:
            raise MeasurementUnsupported(
                f"it does not answer HELLO as rpc-servers since RPC 4.0 do ({exc}); "
                "use the engine of the main host on this device"
            ) from exc
        triple = decode_hello_reply(reply)
        layout = LAYOUTS.get(triple)
        if layout is None:
            known = ", ".join(map(str, LAYOUTS))
            raise MeasurementUnsupported(
                f"it speaks RPC {triple}, measurements know {known}; the planner guesses instead"
            )
        return cls(reader, writer, triple, layout)

    async def memory(self, device: int = 0) -> DeviceMemory:
        """Free and total memory as the server reports it; also the ping of a measurement."""
        reply = await self._ask(Command.GET_DEVICE_MEMORY, _DEVICE.pack(device), _PAIR.size)
        return DeviceMemory(*_PAIR.unpack(reply))

    async def device_count(self) -> int:
        reply = await self._ask(Command.DEVICE_COUNT, b"", _DEVICE.size)
        return int(_DEVICE.unpack(reply)[0])

    async def alignment(self, device: int = 0) -> int:
        """Bytes that tensor addresses must be a multiple of."""
        reply = await self._ask(Command.GET_ALIGNMENT, _DEVICE.pack(device), _LENGTH.size)
        return int(_LENGTH.unpack(reply)[0])

    async def max_buffer_bytes(self, device: int = 0) -> int:
        reply = await self._ask(Command.GET_MAX_SIZE, _DEVICE.pack(device), _LENGTH.size)
        return int(_LENGTH.unpack(reply)[0])

    async def allocate(self, size_bytes: int, device: int = 0) -> int | None:
        """Handle of a new buffer, ``None`` if the server has no memory for it."""
        body = _ALLOCATE.pack(device, size_bytes)
        handle, size = _PAIR.unpack(await self._ask(Command.ALLOC_BUFFER, body, _PAIR.size))
        return handle if handle and size >= size_bytes else None

    async def base(self, buffer: int) -> int:
        """Address of a buffer's first byte, in the server's own terms."""
        reply = await self._ask(Command.BUFFER_GET_BASE, _LENGTH.pack(buffer), _LENGTH.size)
        return int(_LENGTH.unpack(reply)[0])

    async def free(self, buffer: int) -> None:
        await self._tell(Command.FREE_BUFFER, _LENGTH.pack(buffer))

    async def clear(self, buffer: int, value: int) -> None:
        """Set every byte of a buffer without sending any."""
        await self._tell(Command.BUFFER_CLEAR, _CLEAR.pack(buffer, value))

    async def set_tensor(self, tensor: RemoteTensor, data: bytes, offset_bytes: int = 0) -> None:
        """Send data; never answered, so ``get_tensor`` tells when it has arrived."""
        flag = b"\0" if self.layout.has_cache_flag else b""
        head = pack_tensor(tensor, self.layout) + flag + _LENGTH.pack(offset_bytes)
        self._writer.write(struct.pack("<BQ", Command.SET_TENSOR, len(head) + len(data)) + head)
        self._writer.write(data)
        await self._drain()

    async def get_tensor(
        self, tensor: RemoteTensor, size_bytes: int, offset_bytes: int = 0
    ) -> bytes:
        """Fetch data; the server answers after everything sent before is done."""
        body = pack_tensor(tensor, self.layout) + _PAIR.pack(offset_bytes, size_bytes)
        return await self._ask(Command.GET_TENSOR, body, size_bytes)

    async def copy(self, source: RemoteTensor, target: RemoteTensor) -> bool:
        """Copy within the server; false if its backend cannot."""
        body = pack_tensor(source, self.layout) + pack_tensor(target, self.layout)
        reply = await self._ask(Command.COPY_TENSOR, body, _RESULT.size)
        return bool(_RESULT.unpack(reply)[0])

    async def compute(
        self, nodes: Sequence[int], tensors: Sequence[RemoteTensor], device: int = 0
    ) -> None:
        """Compute a graph and let the server keep it; never answered."""
        body = pack_graph(device, nodes, tensors, self.layout)
        self._writer.write(encode_request(Command.GRAPH_COMPUTE, body))
        await self._drain()

    async def recompute(self, device: int = 0) -> None:
        """Compute the kept graph again. FREE_BUFFER makes the server forget it."""
        self._writer.write(encode_request(Command.GRAPH_RECOMPUTE, _DEVICE.pack(device)))
        await self._drain()

    async def _ask(self, command: Command, body: bytes, reply_bytes: int) -> bytes:
        self._writer.write(encode_request(command, body))
        try:
            return await _read_reply(self._reader, reply_bytes)
        except NotRpcServer as exc:
            raise MeasurementFailed(f"{command.name}: {exc}; restart the rpc-server") from exc

    async def _tell(self, command: Command, body: bytes) -> None:
        if self.layout.has_empty_replies:
            await self._ask(command, body, 0)
        else:
            self._writer.write(encode_request(command, body))
            await self._drain()

    async def _drain(self) -> None:
        await self._writer.drain()


@contextlib.asynccontextmanager
async def connected(host: str, port: int, *, deadline_s: float) -> AsyncIterator[RpcClient]:
    """A greeted client; the deadline is for the whole block, its end is orderly.

    Closing frees every buffer on the server. A block that is left while the server computes ends
    with an answer that nobody reads, which kills a server that does not ignore SIGPIPE; agents
    start theirs so that it does.

    Raises:
        MeasurementUnsupported: See ``RpcClient.greet``.
        MeasurementFailed: No connection, somebody else's turn, a lost connection, or too slow.
    """
    where = f"rpc-server {host}:{port}"
    try:
        async with asyncio.timeout(deadline_s):
            reader, writer = await asyncio.open_connection(host, port, limit=_STREAM_BYTES)
            try:
                yield await _greeted(reader, writer, where)
            finally:
                await _end(reader, writer)
    except TimeoutError as exc:
        raise MeasurementFailed(
            f"{where}: not measured within {deadline_s:g} s; try again when it is idle"
        ) from exc
    except (OSError, asyncio.IncompleteReadError) as exc:
        raise MeasurementFailed(
            f"{where}: connection lost ({exc}); see the log of the rpc-server"
        ) from exc


async def _greeted(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str
) -> RpcClient:
    try:
        async with asyncio.timeout(_HELLO_S):
            return await RpcClient.greet(reader, writer)
    except TimeoutError as exc:
        raise MeasurementFailed(
            f"{where}: connected, but HELLO is not answered: another client has it; stop that first"
        ) from exc
    except MeasurementUnsupported as exc:
        raise MeasurementUnsupported(f"{where}: {exc}") from exc


async def _end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Half-close and read to the end, so that the server leaves nothing unsent."""
    try:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                writer.write_eof()
                while await reader.read(_STREAM_BYTES):
                    pass
    finally:
        writer.close()


async def _read_reply(reader: asyncio.StreamReader, expected_bytes: int) -> bytes:
    """One answer of a known size; its length is checked before anything is allocated."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length != expected_bytes:
        raise NotRpcServer(f"an answer of {length} bytes where {expected_bytes} belong")
    return await reader.readexactly(expected_bytes)
