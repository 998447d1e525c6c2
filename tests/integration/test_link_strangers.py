"""Peers that say anything at all to both ends of a link, while others go on using them.

Callers without any right, by the hundred, are in ``test_link_siege``; these here got in.
"""

import asyncio
import contextlib
import gc
import logging
import os
import random
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from lab.linked import FarSide, Lab, Served
from link_world import Heard, RpcStandIn, framed, rpc_stand_in, until
from made_chunks import made
from rpc_talk import SEVEN, THREE, T, get_tensor, graph, hello_of, hello_reply_of, pattern, reply
from rpc_talk import framed as request

from agents import tls
from agents.chunks import CHUNK_BYTES
from agents.errors import LinkLost
from agents.far_end import MOST_SESSIONS, server_context
from agents.link_frames import (
    Hello,
    Kind,
    Welcome,
    pack_json,
    pack_number,
    pack_offer,
    pack_open,
    pack_ref,
    pack_shut,
)
from agents.link_stream import LinkStream
from agents.rpc_protocol import Command, DeviceMemory
from supervisor.link.job import LOST, SERVING
from supervisor.link.near_end import NearEnd
from supervisor.link.reception import MOST_CLIENTS

MIB = 1 << 20
MOST_GROWTH_BYTES = 24 * MIB
DEVICE = DeviceMemory(1 << 30, 1 << 30, alignment=32, max_buffer_bytes=1 << 30)
LAST_KIND = max(Kind)


def resident_bytes() -> int:
    """Of this process, which is both ends and all callers, without what only waits for Python."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
async def _no_bugs(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Nothing may end in the event loop's hands, or be called a bug of ours."""
    unhandled: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    caplog.set_level(logging.INFO)
    yield
    assert not unhandled, unhandled
    assert "bug" not in caplog.text


def served(port: int, launch: int = 1) -> Served:
    return Served(port, str(SEVEN), (DEVICE,), launch)


# -- a client that behaves ----------------------------------------------------------------------


@dataclass
class Honest:
    """What llama-server does, in short: weights, a graph, a question; over and over."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rounds: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(5))

    async def ask(self, command: int, body: bytes, answer: bytes) -> None:
        self.writer.write(request(command, body))
        async with asyncio.timeout(10):
            assert await self.reader.readexactly(8 + len(answer)) == reply(answer)

    async def round(self) -> None:
        data = self.rng.randbytes(self.rng.choice([100, 70_000, MIB + 5]))
        self.writer.write(request(Command.SET_TENSOR, T + bytes(9) + data))
        self.writer.write(request(Command.GRAPH_COMPUTE, graph(3, 4)))
        size = self.rng.choice([4, 3000, 400_000])
        expected = (pattern(256, Command.GET_TENSOR) * (size // 256 + 1))[:size]
        await self.ask(Command.GET_TENSOR, get_tensor(size), expected)
        await self.ask(Command.DEVICE_COUNT, b"", struct.pack("<I", 1))
        self.rounds += 1


@contextlib.asynccontextmanager
async def honest(port: int) -> AsyncIterator[Honest]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4 * MIB)
    try:
        writer.write(hello_of(SEVEN))
        assert await reader.readexactly(36) == hello_reply_of(SEVEN)
        client = Honest(reader, writer)
        await client.ask(
            Command.ALLOC_BUFFER, struct.pack("<IQ", 0, 1 << 20), pattern(16, Command.ALLOC_BUFFER)
        )
        yield client
    finally:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def going_on(client: Honest, during: str) -> AsyncIterator[None]:
    """``client`` works all the while, and more than once."""

    async def work() -> None:
        while True:
            await client.round()

    before, working = client.rounds, asyncio.create_task(work())
    try:
        yield
        assert not working.done(), working.exception()
        await until(lambda: client.rounds > before + 2 or working.done(), 10)
        assert not working.done(), f"{during}: {working.exception()!r}"
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


@dataclass
class World:
    """One link between a client and what stands for an rpc-server."""

    lab: Lab
    server: RpcStandIn
    near_end: NearEnd
    far_port: int
    launch: int

    @property
    def port(self) -> int:
        return self.near_end.stats().port


@contextlib.asynccontextmanager
async def linked(tmp_path: Path) -> AsyncIterator[World]:
    lab = Lab(tmp_path)
    async with (
        rpc_stand_in(most_kept_bytes=1 << 16) as server,
        lab.far_side("one", served(server.port)) as side,
        lab.near_ends(side) as [near_end],
    ):
        yield World(lab, server, near_end, side.worker.link_port, side.served.launch)


# -- far end: frames of somebody with the supervisor's certificate ------------------------------


def random_request(rng: random.Random) -> bytes:
    """A request, or what looks like one; perhaps the beginning of one only."""
    command = rng.choice([*THREE, 14, 16, 17, 18, 99, 255])
    match rng.randrange(8):
        case 0:
            said = rng.randbytes(rng.randrange(400))
        case 1:
            said = struct.pack("<BQ", command, rng.choice([0, 1, 2**31, 2**63, 2**64 - 1]))
        case 2:
            said = request(command, rng.randbytes(rng.randrange(700)))
        case 3:
            data = rng.randbytes(rng.choice([0, 100, 65_535, 65_536, 300_000]))
            said = request(Command.SET_TENSOR, T + bytes(9) + data)
        case 4:
            said = request(Command.GRAPH_COMPUTE, graph(rng.randrange(5), rng.randrange(300)))
        case 5:
            said = request(Command.GET_TENSOR, get_tensor(rng.choice([0, 1, 5000, 500_000])))
        case 6:
            said = request(7, T + bytes(8) + rng.randbytes(8))
        case _:
            said = request(Command.GET_ALLOC_SIZE, rng.randbytes(3260))
    return said if rng.random() < 0.9 else said[: rng.randrange(len(said) + 1)]


def random_frame(rng: random.Random) -> bytes:
    """Any frame, most of them such as a near end sends; some of them wrong in some way."""
    name, data = made(rng.randrange(20), rng.choice([100, 70_000, CHUNK_BYTES]))
    frames: list[Callable[[], bytes]] = [
        lambda: framed(Kind.OPEN, pack_open(rng.randrange(3), greets=rng.random() < 0.8)),
        lambda: framed(Kind.SHUT, pack_shut(rng.randrange(3), "x" * rng.randrange(50))),
        lambda: framed(Kind.REF, pack_ref(name, len(data))),
        lambda: framed(Kind.REF, pack_ref(name, rng.choice([0, 1, 5, CHUNK_BYTES, 2**32 - 1]))),
        lambda: framed(Kind.BODY, pack_number(rng.randrange(6)) + data),
        lambda: framed(Kind.SEED, name + (data if rng.random() < 0.8 else data[:-1])),
        lambda: framed(Kind.OFFER, pack_offer([(name, 5)] * rng.randrange(5))),
        lambda: framed(Kind.BEAT, rng.randbytes(24)),
        lambda: framed(rng.randrange(LAST_KIND + 3), rng.randbytes(rng.randrange(60))),
        lambda: struct.pack("<BI", rng.randrange(LAST_KIND + 3), rng.choice([1, 2**20, 2**32 - 1])),
    ]
    weights = [2, 1, 4, 1, 4, 4, 2, 1, 1, 1]
    if rng.random() < 0.4:
        return framed(Kind.DATA, random_request(rng)[: 256 << 10])
    (frame,) = rng.choices(frames, weights)
    return frame()


def hello(rng: random.Random, launch: int) -> bytes:
    said = Hello(launch, "fuzz", rng.choice([0.5, 5.0, 600.0]), rng.choice([MIB, 64 * MIB]))
    return framed(Kind.HELLO, pack_json(asdict(said)))


async def babble(world: World, rng: random.Random, launch: int, context: ssl.SSLContext) -> None:
    """One session: HELLO, often what would be right after it, then anything."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", world.far_port, ssl=context, server_hostname="agent-one"
    )
    draining = asyncio.create_task(_read_all(reader))
    try:
        with contextlib.suppress(OSError):
            writer.write(hello(rng, launch) if rng.random() < 0.95 else random_frame(rng))
            await asyncio.sleep(0.02)  # until it is welcome
            if rng.random() < 0.8:
                writer.write(framed(Kind.OPEN, pack_open(1, greets=True)))
            for _ in range(rng.randrange(1, 40)):
                writer.write(random_frame(rng))
                async with asyncio.timeout(1):
                    await writer.drain()
                if draining.done():
                    break
    except TimeoutError:
        pass  # it does not read us any more, which is a way to be bounded
    finally:
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
        writer.transport.abort()


async def _read_all(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1 << 16):
            pass


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_far_end_takes_any_frame_and_serves_its_launch_meanwhile(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    async with linked(tmp_path) as world, honest(world.port) as client:
        context = world.near_end._context
        for _ in range(5):  # all buffers there are, once
            await babble(world, rng, 0, context)
        await client.round()
        before, open_before = resident_bytes(), descriptors()
        async with going_on(client, "fuzz of the far end"):
            for _ in range(40):
                # Links for seeds are always let in; this launch, another one, and nonsense are not.
                launch = rng.choice([0, 0, 0, world.launch, world.launch + 5, -1, 2**63])
                await babble(world, rng, launch, context)
        assert world.near_end.stats().state == SERVING
        await until(lambda: descriptors() <= open_before)
        growth_bytes = resident_bytes() - before
        print(f"{growth_bytes / MIB:.1f} MiB more")
        assert growth_bytes < MOST_GROWTH_BYTES


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_far_end_whose_launch_babbles_is_there_for_the_next(
    tmp_path: Path, seed: int
) -> None:
    rng, lab = random.Random(seed), Lab(tmp_path)
    context = tls.client_context(
        lab.authority.certificate_pem,
        lab.authority.supervisor_certificate,
        lab.authority.supervisor_key,
    )
    async with (
        rpc_stand_in(most_kept_bytes=1 << 16) as server,
        lab.far_side("one", served(server.port)) as side,
    ):
        async with lab.near_ends(side) as [near_end], honest(near_end.stats().port) as client:
            await client.round()
            world = World(lab, server, near_end, side.worker.link_port, side.served.launch)
        before, open_before = resident_bytes(), descriptors()
        for _ in range(60):
            await babble(world, rng, side.served.launch, context)
        await until(lambda: not server.open, 10)
        await until(lambda: descriptors() <= open_before)
        async with lab.near_ends(side) as [near_end], honest(near_end.stats().port) as client:
            for _ in range(3):
                await client.round()
        print(f"{(resident_bytes() - before) / MIB:.1f} MiB more")
        assert resident_bytes() - before < MOST_GROWTH_BYTES
        assert len(server.received) > 10, "the babble reached the rpc-server"


async def test_sessions_that_never_say_hello_do_not_take_all_the_seats(tmp_path: Path) -> None:
    async with linked(tmp_path) as world, honest(world.port) as client:
        context = world.near_end._context
        callers = [await called(world, context) for _ in range(MOST_SESSIONS + 3)]
        await client.round()

        async def is_let_in() -> bool:
            heard = Heard()
            stream = await said_hello(heard, world, context)
            with contextlib.suppress(TimeoutError):
                await until(lambda: heard.frames or heard.ends, 1)
            stream.end(LinkLost("seen"))
            return bool(heard.frames) and heard.frames[0][0] is Kind.WELCOME

        async with asyncio.timeout(10):
            while not await is_let_in():
                await asyncio.sleep(0.2)
        for writer in callers:
            writer.transport.abort()
        await client.round()


async def called(world: World, context: ssl.SSLContext) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(
        "127.0.0.1", world.far_port, ssl=context, server_hostname="agent-one"
    )
    return writer


async def said_hello(heard: Heard, world: World, context: ssl.SSLContext) -> LinkStream:
    _, stream = await asyncio.get_running_loop().create_connection(
        heard.stream, "127.0.0.1", world.far_port, ssl=context, server_hostname="agent-one"
    )
    stream.send(Kind.HELLO, pack_json(asdict(Hello(0, "x", 5.0, MIB))))
    return stream


# -- near end: bytes of somebody on the main host -----------------------------------------------


async def mutter(port: int, rng: random.Random, *, reads: bool = True) -> None:
    """One connection to a near end: HELLO, most often, then anything."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    draining = asyncio.create_task(_read_all(reader) if reads else asyncio.sleep(60))
    try:
        with contextlib.suppress(OSError, TimeoutError):
            if rng.random() < 0.9:
                writer.write(hello_of(SEVEN))
                await asyncio.sleep(0.005)
            for _ in range(rng.randrange(1, 25)):
                writer.write(random_request(rng))
                async with asyncio.timeout(0.1):
                    await writer.drain()
        if rng.random() < 0.3:
            await asyncio.sleep(0.02)
        if rng.random() < 0.3 and writer.can_write_eof() and not writer.is_closing():
            with contextlib.suppress(OSError):
                writer.write_eof()
            await asyncio.sleep(0.02)
    finally:
        draining.cancel()
        await asyncio.gather(draining, return_exceptions=True)
        writer.transport.abort()


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_near_end_takes_any_bytes_and_serves_llama_server_meanwhile(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    async with linked(tmp_path) as world, honest(world.port) as client:
        await client.round()
        for _ in range(5):
            await mutter(world.port, rng)
        before, open_before = resident_bytes(), descriptors()
        async with going_on(client, "fuzz of the near end"):
            for _ in range(15):
                group = (mutter(world.port, rng, reads=rng.random() < 0.7) for _ in range(8))
                await asyncio.gather(*group)
        assert world.near_end.stats().state == SERVING
        assert len(world.server.received) == 1, "only llama-server got through"
        assert resident_bytes() - before < MOST_GROWTH_BYTES
        # Who waits for the rpc-server is not read, so that its end is seen when its turn comes.
        assert world.near_end.stats().clients <= MOST_CLIENTS
        client.writer.transport.abort()
        await until(lambda: world.near_end.stats().clients == 0)
        await until(lambda: descriptors() <= open_before)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_nothing_of_one_client_reaches_the_next(tmp_path: Path, seed: int) -> None:
    """Whoever hung up in the middle of anything, the next one finds the rpc-server fresh."""
    rng = random.Random(seed)
    async with linked(tmp_path) as world:
        for _ in range(15):
            for _ in range(rng.randrange(3)):
                await mutter(world.port, rng, reads=rng.random() < 0.7)
            async with honest(world.port) as client:
                await client.round()
        assert world.near_end.stats().state == SERVING
        await until(lambda: not world.server.open)


def crowd_at(port: int, count: int) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]


@pytest.mark.parametrize("is_greeting", [False, True])
async def test_of_a_crowd_at_once_the_oldest_go_and_llama_server_stays(
    tmp_path: Path, is_greeting: bool
) -> None:
    async with linked(tmp_path) as world, honest(world.port) as client:
        await client.round()
        before = resident_bytes()
        crowd = await asyncio.to_thread(crowd_at, world.port, 300)
        try:
            if is_greeting:
                for each in crowd:
                    with contextlib.suppress(OSError):
                        each.sendall(hello_of(SEVEN))
            await client.round()
            await until(lambda: world.near_end.stats().clients == MOST_CLIENTS)
            async with going_on(client, "a crowd"):
                await asyncio.sleep(0.2)
            assert resident_bytes() - before < MOST_GROWTH_BYTES
        finally:
            for each in crowd:
                each.close()
        await until(lambda: world.near_end.stats().clients == 1)


async def test_questions_without_end_whose_answers_nobody_reads_fill_no_memory(
    tmp_path: Path,
) -> None:
    async with linked(tmp_path) as world, honest(world.port) as client:
        await client.round()
        before = resident_bytes()
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(hello_of(SEVEN))
        await reader.readexactly(36)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        question, asked = request(Command.DEVICE_COUNT, b"") * 10_000, 0
        with contextlib.suppress(TimeoutError):
            while asked < 256 * MIB:
                writer.write(question)
                asked += len(question)
                async with asyncio.timeout(0.5):
                    await writer.drain()
        assert asked < 128 * MIB, "it goes on answering"
        async with going_on(client, "questions without end"):
            await asyncio.sleep(0.1)
        assert resident_bytes() - before < MOST_GROWTH_BYTES
        writer.transport.abort()


async def test_a_command_that_we_do_not_know_passes_and_ends_nobody_elses_link(
    tmp_path: Path,
) -> None:
    async with linked(tmp_path) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(hello_of(SEVEN))
        await reader.readexactly(36)
        writer.write(request(99, b"new"))
        async with asyncio.timeout(5):
            assert await reader.read() == b"", "this rpc-server does not know it either"
        writer.transport.abort()
        await until(lambda: world.server.received[0].endswith(request(99, b"new")))
        async with honest(world.port) as client:
            await client.round()
        assert world.near_end.stats().state == SERVING


# -- near end: frames of somebody with the agent's certificate ----------------------------------


@contextlib.contextmanager
def false_far_end(lab: Lab) -> Iterator[tuple[ssl.SSLContext, str]]:
    """The right certificate of an agent, and its serial."""
    issued = lab.authority.issue(tls.agent_name("one"))
    certificate, key = lab.folder / "false.crt", lab.folder / "false.key"
    certificate.write_text(issued.certificate_pem)
    key.write_text(issued.key_pem)
    yield server_context(certificate, key, lab.authority.certificate_path), issued.serial


def random_answer(rng: random.Random) -> bytes:
    """Any frame, most of them such as a far end sends."""
    name, _ = made(rng.randrange(5), 10)
    frames: list[Callable[[], bytes]] = [
        lambda: framed(Kind.ANSWER, pack_number(rng.randrange(99)) + rng.randbytes(40)),
        lambda: framed(Kind.ANSWER, pack_number(5) + reply(bytes(16))),
        lambda: framed(Kind.NEED, struct.pack("<I", rng.randrange(5)) * rng.randrange(4)),
        lambda: framed(Kind.DONE, pack_number(rng.choice([0, 1, 5, 2**32 - 1]))),
        lambda: framed(Kind.HELD, rng.randbytes(rng.randrange(5))),
        lambda: framed(Kind.STORED, name + b"\1"),
        lambda: framed(Kind.BASE, rng.randbytes(16)),
        lambda: framed(Kind.SHUT, pack_shut(rng.randrange(3), "why")),
        lambda: framed(Kind.WELCOME, pack_json(asdict(Welcome("7.0.0")))),
        lambda: framed(Kind.WELCOME, b"[" * 60_000),
        lambda: framed(Kind.REFUSED, b'{"code": 1}'),
        lambda: framed(rng.randrange(LAST_KIND + 3), rng.randbytes(rng.randrange(60))),
    ]
    (frame,) = rng.choices(frames, [6, 3, 3, 4, 2, 2, 3, 3, 2, 1, 1, 1])
    return frame()


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_far_end_that_babbles_costs_its_own_link_and_nothing_else(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    lab = Lab(tmp_path)
    async with linked(tmp_path / "other") as world, honest(world.port) as client:
        with false_far_end(lab) as (context, serial):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await reader.readexactly(10)
                    writer.write(framed(Kind.WELCOME, pack_json(asdict(Welcome("7.0.0")))))
                    for _ in range(rng.randrange(1, 30)):
                        writer.write(random_answer(rng))
                        await writer.drain()
                        await asyncio.sleep(rng.choice([0, 0, 0.003]))
                    await _read_all(reader)
                writer.transport.abort()

            listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
            port = listening.sockets[0].getsockname()[1]
            async with (
                lab.far_side("shape", served(1)) as side,
                going_on(client, "a false far end"),
            ):
                worker = replace(side.worker, agent_id="one", link_port=port, serial=serial)
                false = replace(side, worker=worker)
                ends = [await suffered(lab, false, rng) for _ in range(25)]
            listening.close()
        print(ends.count(LOST), "links lost of", len(ends))
        assert ends.count(LOST) > 5


async def suffered(lab: Lab, false: FarSide, rng: random.Random) -> str:
    """One link to a far end that babbles, and a client that believes in it; how the link is."""
    try:
        async with lab.near_ends(false, silence_s=1.0) as [near_end]:
            with contextlib.suppress(OSError):
                await mutter(near_end.stats().port, rng)
            await asyncio.sleep(0.03)
            return near_end.stats().state
    except LinkLost:
        return LOST
