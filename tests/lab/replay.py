"""Plays a recorded conversation again: its client, or its server, as programs would."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agents.rpc_commands import SET_TENSOR_HASH, Limits, command_name
from agents.rpc_events import (
    End,
    Piece,
    Request,
    RequestBegin,
    RequestEvent,
    Response,
    ResponseBegin,
    ResponseEvent,
    wire_bytes,
)
from agents.rpc_framing import Conversation
from agents.rpc_protocol import Command, DeviceMemory, decode_hello_reply
from lab.capture import CHUNK_BYTES, Recorded, read
from supervisor.link.alloc_sizes import question_key

ANSWER_S: Final = 20.0
LOCAL: Final = {
    Command.HELLO,
    Command.DEVICE_COUNT,
    Command.GET_DEVICE_MEMORY,
    Command.GET_ALIGNMENT,
    Command.GET_MAX_SIZE,
    Command.BUFFER_GET_BASE,
    SET_TENSOR_HASH,
}
"""What a near end answers itself, always; bases it has from the far end, which asks for them."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request as it travels, and its answer; empty: it has none."""

    command: int
    request: bytes
    answer: bytes

    @property
    def body(self) -> bytes:
        return self.request[9:]

    def __str__(self) -> str:
        return f"{command_name(self.command)} of {len(self.request)} bytes"


def exchanges(recorded: Recorded) -> list[Exchange]:
    """A connection, request by request."""
    reading = read(recorded, Limits(), CHUNK_BYTES)
    answers = iter(whole(reading.responses))
    found = []
    begins = (e for e in reading.requests if isinstance(e, (Request, RequestBegin)))
    for begin, (command, request) in zip(begins, whole(reading.requests), strict=True):
        answer = b""
        if begin.reply_bytes is not None:
            answered, answer = next(answers)
            assert answered == command
        found.append(Exchange(command, request, answer))
    assert next(answers, None) is None
    return found


def whole(
    events: Sequence[RequestEvent] | Sequence[ResponseEvent],
) -> list[tuple[int, bytes]]:
    """Messages of one direction as they travel, each with its command."""
    found: list[tuple[int, bytes]] = []
    for event in events:
        match event:
            case (
                Request(command)
                | RequestBegin(command)
                | Response(command)
                | ResponseBegin(command)
            ):
                found.append((command, bytes(wire_bytes(event))))
            case Piece(data):
                command, before = found[-1]
                found[-1] = command, before + data
            case End():
                pass
            case _:
                raise AssertionError(f"{event} in a conversation that is known")
    return found


class Forwarded:
    """What of one client's connections is left for the rpc-server, over several launches."""

    def __init__(self) -> None:
        self._known = set[bytes]()

    def of(self, connections: Iterable[Recorded]) -> list[Exchange]:
        """In the order in which the connections were served; an answer is learned once."""
        found = []
        for recorded in connections:
            generation = read(recorded, Limits(), CHUNK_BYTES).conversation.requests.generation
            assert generation is not None
            for exchange in exchanges(recorded):
                if exchange.command == Command.GET_ALLOC_SIZE:
                    key = question_key(exchange.body, generation)
                    if key in self._known:
                        continue
                    self._known.add(key)
                if exchange.command not in LOCAL:
                    found.append(exchange)
        return found


def bases_of(connections: Iterable[Recorded]) -> dict[bytes, bytes]:
    """Answers about buffers by the question as it travels; the far end asks them when it likes."""
    return {
        exchange.request: exchange.answer
        for recorded in connections
        for exchange in exchanges(recorded)
        if exchange.command == Command.BUFFER_GET_BASE
    }


def described(connections: Iterable[Recorded]) -> tuple[str, DeviceMemory]:
    """The version and the one device of a recorded rpc-server."""
    answers: dict[int, bytes] = {}
    for recorded in connections:
        for exchange in exchanges(recorded):
            answers.setdefault(exchange.command, exchange.answer[8:])
    memory, alignment, most = (
        answers[command]
        for command in (Command.GET_DEVICE_MEMORY, Command.GET_ALIGNMENT, Command.GET_MAX_SIZE)
    )
    numbers = (memory[:8], memory[8:], alignment, most)
    device = DeviceMemory(*(int.from_bytes(number, "little") for number in numbers))
    return str(decode_hello_reply(answers[Command.HELLO])), device


# -- the server ------------------------------------------------------------------------------------


@dataclass
class Script:
    """What a server expects after each HELLO, what it got, and what was wrong with that."""

    hello_answer: bytes
    bases: Mapping[bytes, bytes]
    expected: list[Exchange] = field(default_factory=list)
    connections: int = 0
    got: bytearray = field(default_factory=bytearray)
    problem: str = ""
    at: int = 0

    def expect(self, more: list[Exchange]) -> None:
        """From now on."""
        self.expected, self.at, self.connections = more, 0, 0
        self.got.clear()

    def answer(self, command: int, request: bytes) -> bytes:
        if command == Command.HELLO:
            return self.hello_answer
        if command == Command.BUFFER_GET_BASE:
            return self.bases[request]
        self.got += request
        if self.at == len(self.expected):
            self.problem = self.problem or f"{command_name(command)} after the last request"
            return b""
        expected = self.expected[self.at]
        self.at += 1
        if request != expected.request:
            self.problem = self.problem or (
                f"request {self.at} is {command_name(command)} of {len(request)} bytes, not "
                f"{expected}"
            )
        return expected.answer


@contextlib.asynccontextmanager
async def scripted_server(script: Script) -> AsyncIterator[int]:
    """A server that answers as a recorded one did, whatever it is sent; gives its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script.connections += 1
        talk, events = Conversation(), list[RequestEvent]()
        while data := await reader.read(CHUNK_BYTES):
            for event in talk.feed_requests(data):
                # Pieces are views of what was read, which is not used again.
                events.append(event)
                if isinstance(event, (Request, End)):
                    [(command, request)] = whole(events)
                    events.clear()
                    answer = script.answer(command, request)
                    talk.feed_responses(answer)
                    writer.write(answer)
            await writer.drain()
        writer.close()

    async with serving_on_loopback(serve) as port:
        yield port


# -- the client ------------------------------------------------------------------------------------


async def replayed(recorded: Recorded, port: int) -> bytes:
    """Say what the client of a connection said, when it said it; returns what it is answered.

    An answer that is missing, or too much of it, shows in what is returned.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=CHUNK_BYTES)
    heard = bytearray()
    try:
        with contextlib.suppress(asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                for is_client, data in recorded.chunks:
                    if is_client:
                        writer.write(data)
                        await writer.drain()
                    else:
                        heard += await reader.readexactly(len(data))
                writer.write_eof()
                heard += await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    return bytes(heard)


# -- servers of any kind ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving_on_loopback(
    serve: "asyncio.streams._ClientConnectedCallback",
) -> AsyncIterator[int]:
    """Gives the port; a problem of ``serve`` is raised when the block is left."""
    tasks = set[asyncio.Task[None]]()

    async def noted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError):
                await serve(reader, writer)  # type: ignore[misc]
        finally:
            writer.close()

    server = await asyncio.start_server(noted, "127.0.0.1", 0, limit=CHUNK_BYTES)
    try:
        yield int(server.sockets[0].getsockname()[1])
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)
    finally:
        server.close()
        for task in tasks:
            task.cancel()
