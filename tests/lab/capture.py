"""Records what a real llama-server and real rpc-servers say to each other.

A relay between them keeps every byte of every connection in the order in which it travelled.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cluster import engine_headers, eventually

from agents import ports
from agents.command import rpc_server_argv
from agents.contract import EngineFacts
from agents.rpc_commands import Limits
from agents.rpc_events import Request, RequestBegin, RequestEvent, ResponseEvent
from agents.rpc_framing import Conversation
from agents.rpc_protocol import Outcome, probe
from supervisor.core.commands import chosen_flags, known_flags

CHUNK_BYTES = 1 << 18
PROMPT = "tell me how the water of the river came home and what the family was like " * 8


@dataclass
class Recorded:
    """One connection: what came, from the client (true) or the server, in order."""

    chunks: list[tuple[bool, bytes]] = field(default_factory=list)

    def said(self, *, by_client: bool) -> bytes:
        return b"".join(data for is_client, data in self.chunks if is_client == by_client)


@dataclass
class Recorder:
    """A relay in front of one rpc-server."""

    port: int = 0
    connections: list[Recorded] = field(default_factory=list)
    open_connections: int = 0


@contextlib.asynccontextmanager
async def recorder(server_port: int) -> AsyncIterator[Recorder]:
    made, tasks = Recorder(), set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        record = Recorded()
        made.connections.append(record)
        made.open_connections += 1
        upstream = await asyncio.open_connection("127.0.0.1", server_port, limit=CHUNK_BYTES)
        try:
            await asyncio.gather(
                pump(reader, upstream[1], record, is_client=True),
                pump(upstream[0], writer, record, is_client=False),
            )
        finally:
            made.open_connections -= 1
            for end in (upstream[1], writer):
                end.close()
                with contextlib.suppress(ConnectionError):
                    await end.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=CHUNK_BYTES)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)
    finally:
        server.close()
        for task in tasks:
            task.cancel()


async def pump(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, record: Recorded, *, is_client: bool
) -> None:
    # A reset is how a connection may end, too; what came before it counts.
    with contextlib.suppress(ConnectionError):
        while data := await source.read(CHUNK_BYTES):
            record.chunks.append((is_client, data))
            sink.write(data)
            await sink.drain()
        sink.write_eof()


@contextlib.contextmanager
def child(argv: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            restore_signals=False,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def rpc_server(engine: EngineFacts, log: Path) -> AsyncIterator[int]:
    """An rpc-server of one thread that is ready; gives its port."""
    reservation = ports.reserve("127.0.0.1")
    port = reservation.port
    with child(rpc_server_argv(engine.rpc_server, "127.0.0.1", port, 1, ["CPU"]), log):

        async def is_ready() -> bool:
            return (await probe("127.0.0.1", port, deadline_s=1)).outcome is Outcome.READY

        await eventually(is_ready, within_s=10, what="the rpc-server answers")
        yield port
    reservation.release()


@contextlib.asynccontextmanager
async def recorded_worker(engine: EngineFacts, log: Path) -> AsyncIterator[Recorder]:
    """The same behind a relay."""
    async with rpc_server(engine, log) as port, recorder(port) as made:
        yield made


@dataclass(frozen=True)
class Serving:
    """A llama-server that is up."""

    http: httpx.AsyncClient
    started_s: float
    """When, by the monotonic clock."""

    async def complete(self, prompt: str, tokens: int) -> str:
        """Greedy, and computed anew."""
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False}
        answer = await self.http.post("/completion", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["content"])


@contextlib.asynccontextmanager
async def llama_server(
    engine: EngineFacts, model: Path, rpc_ports: Sequence[int], flags: Sequence[str], log: Path
) -> AsyncIterator[Serving]:
    """The whole model on workers; ends in order when the block is left."""
    reservation = ports.reserve("127.0.0.1")
    endpoints = ",".join(f"127.0.0.1:{port}" for port in rpc_ports)
    devices = ",".join(f"RPC{index}" for index in range(len(rpc_ports)))
    argv = [engine.llama_server, "--model", str(model), "--port", str(reservation.port)]
    argv += ["--rpc", endpoints, "--device", devices, "-ngl", "99", "-c", "1024", "-np", "1"]
    async with serving([*argv, *flags], reservation.port, log) as made:
        yield made
    reservation.release()


@contextlib.asynccontextmanager
async def serving(argv: list[str], port: int, log: Path) -> AsyncIterator[Serving]:
    """What ``argv`` starts, once it is healthy; it is ended in order, and that has to succeed."""
    started_s = time.monotonic()
    with child(argv, log) as process:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(
            base_url=url, headers=engine_headers(argv), trust_env=False, timeout=60
        ) as http:

            async def is_up() -> bool:
                assert process.poll() is None, log.read_text(errors="replace")[-2000:]
                with contextlib.suppress(httpx.TransportError):
                    return (await http.get("/health")).status_code == 200
                return False

            await eventually(is_up, within_s=60, what=f"llama-server is up ({log})")
            yield Serving(http, started_s)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0, log.read_text()[-2000:]


async def session(
    engine: EngineFacts, model: Path, workers: list[Recorder], flags: list[str], log: Path
) -> None:
    """Load, answer two prompts, end in order."""
    rpc_ports = [worker.port for worker in workers]
    async with llama_server(engine, model, rpc_ports, flags, log) as made:
        for prompt in (PROMPT, "and now"):
            await made.complete(prompt, 12)

    async def are_all_closed() -> bool:
        return not any(worker.open_connections for worker in workers)

    await eventually(are_all_closed, within_s=10, what="every connection is closed")


async def captured(
    engine: EngineFacts, model: Path, folder: Path, *, workers: int, flags: list[str]
) -> list[Recorder]:
    """What was said to each worker."""
    async with contextlib.AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(recorded_worker(engine, folder / f"worker{number}.log"))
            for number in range(workers)
        ]
        await session(engine, model, made, flags, folder / "llama-server.log")
    return made


@dataclass
class Reading:
    """What a parser made of one connection."""

    requests: list[RequestEvent]
    responses: list[ResponseEvent]
    conversation: Conversation

    @property
    def commands(self) -> Counter[int]:
        begun = (e for e in self.requests if isinstance(e, (Request, RequestBegin)))
        return Counter(event.command for event in begun)


def read(recorded: Recorded, limits: Limits, piece_bytes: int) -> Reading:
    reading = Reading([], [], Conversation(limits))
    for is_client, chunk in recorded.chunks:
        for start in range(0, len(chunk), piece_bytes):
            piece = memoryview(chunk)[start : start + piece_bytes]
            if is_client:
                reading.requests += reading.conversation.feed_requests(piece)
            else:
                reading.responses += reading.conversation.feed_responses(piece)
    return reading


def our_flags(engine: EngineFacts) -> list[str]:
    argv = [engine.llama_server, "--help"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return chosen_flags(known_flags(text))
