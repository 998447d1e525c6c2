"""Callers without any right to a link, many and of many kinds, as a program of their own.

    python tests/lab/siege.py PLAN.json

It says ``ready`` once the first wave calls, goes on until its stdin ends, and then says, as JSON,
how often each kind called, was thrown out, and was not let in at all.
"""

import asyncio
import contextlib
import json
import os
import random
import resource
import socket
import ssl
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from agents import tls
from agents.link_frames import Kind, header
from agents.rpc_protocol import Command, hello_request

LOOPBACK = "127.0.0.1"
DESCRIPTORS = 4096
START_S = 30.0
GARBAGE_BYTES = 4096
OVERSIZED_FRAME_BYTES = 2**32 - 1
OVERSIZED_REQUEST_BYTES = 2**62
BYTE_EVERY_S = 0.02
HANG_UP_S = 0.05
"""From the first words of a caller to its hanging up."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Deed = Callable[[int, random.Random], Awaitable[None]]
"""One call at a port; returns when thrown out, or when it hung up by itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Who calls where. A client whose call is over calls again after ``pause_s``."""

    far_clients: int
    far_port: int
    near_clients: int = 0
    near_ports: list[int] = field(default_factory=list)
    foreign: tuple[str, str] = ("", "")
    """Certificate and key of another authority."""
    agent: tuple[str, str] = ("", "")
    """Those of an agent of this cluster."""
    waves: int = 10
    wave_s: float = 0.2
    pause_s: float = 2.0


def client_hello() -> bytes:
    """What a TLS client says first."""
    out = ssl.MemoryBIO()
    caller = tls.unverified_context().wrap_bio(ssl.MemoryBIO(), out)
    with contextlib.suppress(ssl.SSLWantReadError):
        caller.do_handshake()
    return out.read()


@asynccontextmanager
async def call(port: int, context: ssl.SSLContext | None = None) -> AsyncIterator[Streams]:
    name = "agent-unknown" if context else None
    reader, writer = await asyncio.open_connection(
        LOOPBACK, port, ssl=context, server_hostname=name
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def stay(reader: asyncio.StreamReader) -> None:
    """Until thrown out."""
    while await reader.read(4096):
        pass


async def idle(port: int, _: random.Random) -> None:
    async with call(port) as (reader, _writer):
        await stay(reader)


async def garbage(port: int, dice: random.Random) -> None:
    await say(port, dice.randbytes(GARBAGE_BYTES))


async def say(port: int, words: bytes, context: ssl.SSLContext | None = None) -> None:
    """``words``, and then nothing."""
    async with call(port, context) as (reader, writer):
        writer.write(words)
        await stay(reader)


async def slow_hello(port: int, _: random.Random) -> None:
    async with call(port) as (reader, writer):
        is_over = asyncio.create_task(stay(reader))
        for byte in client_hello():
            writer.write(bytes((byte,)))
            await asyncio.wait([is_over], timeout=BYTE_EVERY_S)
            if is_over.done():
                break
        await is_over


async def never_reads(port: int, _: random.Random) -> None:
    """A whole TLS hello whose answer nobody takes; stays half open until the siege ends."""
    async with call(port) as (_reader, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(client_hello())
        await asyncio.Event().wait()


async def reset(port: int, _: random.Random) -> None:
    """Hangs up in the middle of TLS, with RST."""
    async with call(port) as (_reader, writer):
        caller: socket.socket = writer.get_extra_info("socket")
        writer.write(client_hello())
        await asyncio.sleep(HANG_UP_S)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def hello_and_nothing(port: int, _: random.Random) -> None:
    await say(port, hello_request())


async def oversized_request(port: int, _: random.Random) -> None:
    await say(port, struct.pack("<BQ", Command.SET_TENSOR, OVERSIZED_REQUEST_BYTES))


def certified(files: tuple[str, str], words: bytes) -> Deed:
    """TLS with a certificate, then ``words``."""
    context = tls.unverified_context()
    context.load_cert_chain(*files)

    async def deed(port: int, _: random.Random) -> None:
        await say(port, words, context)

    return deed


def far_kinds(plan: Plan) -> dict[str, Deed]:
    """Who calls an agent."""
    oversized = header(Kind.HELLO, OVERSIZED_FRAME_BYTES)
    return {
        "idle": idle,
        "slow hello": slow_hello,
        "garbage": garbage,
        "never reads": never_reads,
        "reset": reset,
        "foreign certificate": certified(plan.foreign, b""),
        "agent, oversized frame": certified(plan.agent, oversized),
    }


NEAR_KINDS: Mapping[str, Deed] = {
    "near idle": idle,
    "near garbage": garbage,
    "near oversized request": oversized_request,
    "near hello and nothing": hello_and_nothing,
    "near reset": reset,
}
"""Who calls the loopback port that llama-server uses."""


class Siege:
    """All clients of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._counts: dict[str, Counter[str]] = {}

    async def run(self) -> dict[str, dict[str, int]]:
        """Until stdin ends; returns what happened, by kind."""
        plan = self._plan
        calls = [
            *self._calls(far_kinds(plan), [plan.far_port], plan.far_clients),
            *self._calls(NEAR_KINDS, plan.near_ports, plan.near_clients),
        ]
        random.Random(1).shuffle(calls)
        tasks = [
            asyncio.create_task(self._come(*each, number)) for number, each in enumerate(calls)
        ]
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        bugs = [
            end
            for end in await asyncio.gather(*tasks, return_exceptions=True)
            if not isinstance(end, asyncio.CancelledError)
        ]
        assert not bugs, bugs
        return {kind: dict(counts) for kind, counts in sorted(self._counts.items())}

    def _calls(
        self, kinds: Mapping[str, Deed], ports: list[int], clients: int
    ) -> list[tuple[str, Deed, int]]:
        names = list(kinds)
        self._counts |= {name: Counter() for name in names if clients}
        return [
            (name, kinds[name], ports[number // len(names) % len(ports)])
            for number, name in ((n, names[n % len(names)]) for n in range(clients))
        ]

    async def _come(self, kind: str, deed: Deed, port: int, number: int) -> None:
        plan, counts, dice = self._plan, self._counts[kind], random.Random(number)
        await asyncio.sleep(number % plan.waves * plan.wave_s)
        while True:
            counts["calls"] += 1
            try:
                await deed(port, dice)
                counts["ended"] += 1
            except OSError:
                counts["cut"] += 1
            await asyncio.sleep(plan.pause_s)


@dataclass(slots=True)
class Besieging:
    """``counts``, by kind, are there at the end."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        return sum(each["calls"] for each in self.counts.values())


@asynccontextmanager
async def siege(plan: Plan, file: Path) -> AsyncIterator[Besieging]:
    """A program that carries out ``plan``, which is written to ``file`` for it."""
    file.write_text(json.dumps(asdict(plan)))
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, str(file)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    found = Besieging()
    try:
        assert running.stdin is not None
        assert running.stdout is not None
        async with asyncio.timeout(START_S):
            assert await running.stdout.readline() == b"ready\n"
        yield found
        assert running.returncode is None, "the siege has ended by itself"
        running.stdin.close()
        async with asyncio.timeout(START_S):
            found.counts = json.loads(await running.stdout.read())
            await running.wait()
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


def main(file: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = DESCRIPTORS if most == resource.RLIM_INFINITY else min(DESCRIPTORS, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (enough, most))
    os.nice(19)
    plan = Plan(**json.loads(file.read_text()))
    print(json.dumps(asyncio.run(Siege(plan).run())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
