"""A stand-in for an rpc-server: it reports given devices and memories and computes nothing.

The engine can plan against it (``fit_params``) without touching a real worker: planning asks HELLO,
DEVICE_COUNT, GET_DEVICE_MEMORY, GET_ALIGNMENT, GET_MAX_SIZE and GET_ALLOC_SIZE. The answer 0 to the
last one lets the engine use the size of the tensor itself, as for a CPU device; a GPU may pad some
operations. Models with recurrent layers allocate and clear their state even when they only plan
(``llama_memory_recurrent``), so buffers are granted as well; they exist in name only.

It serves many connections at once, which a real one does not: the engine opens several.

Source:
    llama.cpp ``ggml/src/ggml-rpc/ggml-rpc.cpp`` (``rpc_serve_client``,
    ``ggml_backend_rpc_buffer_type_get_alloc_size``).
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agents import ports
from agents.rpc_protocol import CAPABILITIES_BYTES, Command, DeviceMemory, Triple

MAX_REQUEST_BYTES: Final = 64 << 10
"""Above the largest question, GET_ALLOC_SIZE with 3260 bytes; no weights are ever accepted."""

MAX_CONNECTIONS: Final = 32
ALIGNMENT_BYTES: Final = 64
NO_LIMIT: Final = 2**64 - 1
SILENT_SINCE: Final = 6
"""First major version in which FREE_BUFFER and BUFFER_CLEAR are not answered."""

HELLO_SINCE: Final = 4
"""First major version whose HELLO has capabilities; older engines are not stood in for."""

_HEADER: Final = struct.Struct("<BQ")
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_PAIR: Final = struct.Struct("<QQ")
_ALLOCATE: Final = struct.Struct("<IQ")
_BUFFER: Final = 1 << 32
"""Handle and address of every buffer; the engine only hands it back."""


@dataclass(frozen=True, slots=True)
class StandInWorker:
    """Where it listens, and what it says of itself."""

    endpoint: str
    triple: Triple
    devices: tuple[DeviceMemory, ...]


@contextlib.asynccontextmanager
async def stand_in_worker(
    devices: Sequence[DeviceMemory], triple: Triple
) -> AsyncIterator[StandInWorker]:
    """Listen on loopback until the block ends; afterwards no connection is left.

    Raises:
        ValueError: The triple is older than 4.0, or there are no devices.
    """
    if triple.major < HELLO_SINCE or not devices:
        raise ValueError(f"cannot stand in for {len(devices)} devices of RPC {triple}")
    answers = _answers(tuple(devices), triple)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            if len(connections) <= MAX_CONNECTIONS:
                await _serve(reader, writer, answers)
        finally:
            connections.discard(task)
            writer.close()

    listener = ports.listen("127.0.0.1", 0, "a stand-in worker")
    port = int(listener.getsockname()[1])
    server = await asyncio.start_server(serve, sock=listener)
    try:
        yield StandInWorker(f"127.0.0.1:{port}", triple, tuple(devices))
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


Answer = Callable[[bytes], bytes | None]
"""From the body of a request to the answer; ``None`` closes the connection."""


def _answers(devices: tuple[DeviceMemory, ...], triple: Triple) -> dict[int, Answer]:
    hello = bytes([triple.major, triple.minor, triple.patch, 0]) + bytes(CAPABILITIES_BYTES)

    def of_device(answer: Callable[[DeviceMemory], bytes]) -> Answer:
        def asked(body: bytes) -> bytes | None:
            if len(body) < _U32.size:
                return None
            index = _U32.unpack_from(body)[0]
            return answer(devices[index]) if index < len(devices) else None

        return asked

    bodies: dict[int, Answer] = {
        Command.HELLO: lambda _: hello,
        Command.DEVICE_COUNT: lambda _: _U32.pack(len(devices)),
        Command.GET_DEVICE_MEMORY: of_device(lambda d: _PAIR.pack(d.free_bytes, d.total_bytes)),
        Command.GET_ALIGNMENT: of_device(lambda _: _U64.pack(ALIGNMENT_BYTES)),
        Command.GET_MAX_SIZE: of_device(lambda _: _U64.pack(NO_LIMIT)),
        Command.GET_ALLOC_SIZE: of_device(lambda _: _U64.pack(0)),
        Command.ALLOC_BUFFER: _granted,
        Command.BUFFER_GET_BASE: lambda _: _U64.pack(_BUFFER),
    }
    answers = {command: _framed(body) for command, body in bodies.items()}
    silent = b"" if triple.major >= SILENT_SINCE else _U64.pack(0)
    return {
        **answers,
        Command.FREE_BUFFER: lambda _: silent,
        Command.BUFFER_CLEAR: lambda _: silent,
    }


def _granted(body: bytes) -> bytes | None:
    """Promise a buffer of the size that was asked for."""
    if len(body) != _ALLOCATE.size:
        return None
    return _PAIR.pack(_BUFFER, _ALLOCATE.unpack(body)[1])


def _framed(answer: Answer) -> Answer:
    def framed(body: bytes) -> bytes | None:
        reply = answer(body)
        return None if reply is None else _U64.pack(len(reply)) + reply

    return framed


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: dict[int, Answer]
) -> None:
    """Answer until the peer leaves or asks something else, as a real one closes on nonsense."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            command, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
            answer = answers.get(command)
            if answer is None or length > MAX_REQUEST_BYTES:
                return
            reply = answer(await reader.readexactly(length))
            if reply is None:
                return
            writer.write(reply)
            await writer.drain()
