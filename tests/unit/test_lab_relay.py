"""The emulated link: each of its properties, by bounds that a busy machine cannot break."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from cluster import eventually
from lab.links import RELAY, Link, Traffic, emulated_link

LOOPBACK = "127.0.0.1"
QUIET_S = 0.15
"""How long nothing has to come, where nothing may."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Ends:
    """A listening target, and all connections to it and from here."""

    port: int = 0
    arrived: asyncio.Queue[Streams] = field(default_factory=asyncio.Queue)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def near(self, port: int) -> Streams:
        """Connect, without waiting for the target to notice."""
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        self.writers.append(writer)
        return reader, writer

    async def pair(self, link: Link) -> tuple[Streams, Streams]:
        """A connection as it is seen here and by the target."""
        near = await self.near(link.port)
        return near, await self.arrived.get()

    def arrive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.arrived.put_nowait((reader, writer))

    async def close(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    made = Ends()
    server = await asyncio.start_server(made.arrive, LOOPBACK, 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.close()


@asynccontextmanager
async def connected(ends: Ends, link: Link) -> AsyncIterator[tuple[Streams, Streams]]:
    """A connection that answers within a deadline, or the test fails."""
    async with asyncio.timeout(20):
        yield await ends.pair(link)


async def passage_s(
    data: bytes, writer: asyncio.StreamWriter, reader: asyncio.StreamReader
) -> float:
    """Seconds that the data takes; it has to arrive as it was."""
    started_s = time.perf_counter()
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    return time.perf_counter() - started_s


async def is_quiet(reader: asyncio.StreamReader) -> bool:
    """Whether nothing comes for a while."""
    try:
        async with asyncio.timeout(QUIET_S):
            return not await reader.read(1)
    except TimeoutError:
        return True


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection as a machine does that does not know it."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def settled(link: Link, open_connections: int) -> Traffic:
    async def is_so() -> Traffic | None:
        traffic = await link.traffic()
        return traffic if traffic.open == open_connections else None

    found = await eventually(is_so, within_s=10, what=f"{open_connections} open connections")
    assert isinstance(found, Traffic)
    return found


async def test_each_way_has_its_delay(ends: Ends) -> None:
    async with (
        emulated_link(ends.port, one_way_delay_s=(0.1, 0.04)) as link,
        connected(ends, link) as ((reader, writer), (far_reader, far_writer)),
    ):
        assert await passage_s(b"up", writer, far_reader) >= 0.1
        assert await passage_s(b"down", far_writer, reader) >= 0.04
        await link.set(one_way_delay_s=0.06)
        assert await passage_s(b"down", far_writer, reader) >= 0.06


async def test_what_is_under_way_keeps_its_delay_and_its_order(ends: Ends) -> None:
    async with (
        emulated_link(ends.port, one_way_delay_s=0.2) as link,
        connected(ends, link) as ((_, writer), (far_reader, _)),
    ):
        started_s = time.perf_counter()
        writer.write(b"late")
        await asyncio.sleep(0.1)
        await link.set(one_way_delay_s=0)
        writer.write(b"soon")
        assert await far_reader.readexactly(8) == b"latesoon"
        assert time.perf_counter() - started_s >= 0.2


async def test_each_way_has_its_rate(ends: Ends) -> None:
    data = random.Random(1).randbytes(200_000)
    async with (
        emulated_link(ends.port, rate_bytes_per_s=(1e6, 2e6)) as link,
        connected(ends, link) as ((reader, writer), (far_reader, far_writer)),
    ):
        assert await passage_s(data, writer, far_reader) >= 0.2
        assert await passage_s(data, far_writer, reader) >= 0.1


async def test_connections_share_the_rate(ends: Ends) -> None:
    data = bytes(100_000)
    async with (
        emulated_link(ends.port, rate_bytes_per_s=1e6) as link,
        connected(ends, link) as ((_, one), (far_one, _)),
        connected(ends, link) as ((_, two), (far_two, _)),
    ):
        started_s = time.perf_counter()
        await asyncio.gather(passage_s(data, one, far_one), passage_s(data, two, far_two))
        assert time.perf_counter() - started_s >= 0.2


async def test_a_short_message_does_not_wait_for_all_that_another_connection_sends(
    ends: Ends,
) -> None:
    async with (
        emulated_link(ends.port, rate_bytes_per_s=1e6) as link,
        connected(ends, link) as ((_, one), (far_one, _)),
        connected(ends, link) as ((_, two), (far_two, _)),
    ):
        bulk = asyncio.create_task(passage_s(bytes(4_000_000), one, far_one))
        await asyncio.sleep(0.05)
        await passage_s(b"urgent", two, far_two)
        assert (await link.traffic()).up_bytes < 3_000_000
        await link.set(rate_bytes_per_s=0)
        await bulk


async def test_jitter_delays_and_keeps_the_order(ends: Ends) -> None:
    async with (
        emulated_link(ends.port, one_way_delay_s=0.005, jitter_s=(0.03, 0)) as link,
        connected(ends, link) as ((_, writer), (far_reader, _)),
    ):
        times_s = [await passage_s(b"ping", writer, far_reader) for _ in range(12)]
        assert min(times_s) >= 0.005
        assert max(times_s) >= 0.015
        pieces = [number.to_bytes(4, "big") for number in range(200)]
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        assert await far_reader.readexactly(800) == b"".join(pieces)


async def test_nothing_passes_a_black_hole_and_all_of_it_afterwards(ends: Ends) -> None:
    up, down = random.Random(1).randbytes(3_000_000), random.Random(2).randbytes(2_000_000)
    async with (
        emulated_link(ends.port) as link,
        connected(ends, link) as ((reader, writer), (far_reader, far_writer)),
    ):
        await link.black_hole()
        before = await link.traffic()
        sending = asyncio.gather(
            passage_s(up, writer, far_reader), passage_s(down, far_writer, reader)
        )
        await asyncio.sleep(QUIET_S)
        assert await link.traffic() == before == Traffic(0, 0, accepted=1, open=1)
        await link.heal()
        await sending
        assert await link.traffic() == Traffic(len(up), len(down), accepted=1, open=1)


async def test_what_a_black_hole_caught_under_way_takes_the_rest_of_its_delay(ends: Ends) -> None:
    async with (
        emulated_link(ends.port, one_way_delay_s=0.3) as link,
        connected(ends, link) as ((_, writer), (far_reader, _)),
    ):
        written_s = time.perf_counter()
        writer.write(b"caught")
        await asyncio.sleep(0.05)
        await link.black_hole()
        under_way_s = time.perf_counter() - written_s
        await asyncio.sleep(0.25)
        assert await is_quiet(far_reader)
        healed_s = time.perf_counter()
        await link.heal()
        assert await far_reader.readexactly(6) == b"caught"
        assert time.perf_counter() - healed_s >= 0.3 - under_way_s


async def test_connections_made_to_a_black_hole_are_answered_when_it_heals(ends: Ends) -> None:
    async with emulated_link(ends.port) as link, asyncio.timeout(20):
        await link.black_hole()
        reader, writer = await ends.near(link.port)
        writer.write(b"hello?")
        assert await is_quiet(reader)
        assert ends.arrived.empty()
        await link.heal()
        far_reader, far_writer = await ends.arrived.get()
        assert await far_reader.readexactly(6) == b"hello?"
        await passage_s(b"yes", far_writer, reader)


async def test_a_cut_resets_both_ends_and_lets_new_connections_in(ends: Ends) -> None:
    async with emulated_link(ends.port) as link:
        async with connected(ends, link) as ((reader, _), (far_reader, _)):
            await link.cut()
            for end in (reader, far_reader):
                with pytest.raises(ConnectionResetError):
                    await end.read()
        assert await link.traffic() == Traffic(0, 0, accepted=1, open=0)
        async with connected(ends, link) as ((_, writer), (far_reader, _)):
            await passage_s(b"again", writer, far_reader)


async def test_a_cut_reaches_connections_that_wait_in_a_black_hole(ends: Ends) -> None:
    async with emulated_link(ends.port) as link, asyncio.timeout(20):
        await link.black_hole()
        reader, _ = await ends.near(link.port)
        await link.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_the_end_of_one_way_leaves_the_other_open(ends: Ends) -> None:
    async with (
        emulated_link(ends.port, one_way_delay_s=0.05) as link,
        connected(ends, link) as ((reader, writer), (far_reader, far_writer)),
    ):
        started_s = time.perf_counter()
        writer.write_eof()
        assert await far_reader.read() == b""
        assert time.perf_counter() - started_s >= 0.05
        far_writer.write(b"answer")
        far_writer.write_eof()
        assert await reader.read() == b"answer"
        await settled(link, 0)


async def test_a_reset_arrives_as_one_after_what_was_sent_and_after_the_delay(ends: Ends) -> None:
    async with (
        emulated_link(ends.port, one_way_delay_s=0.05) as link,
        connected(ends, link) as ((reader, _), (_, far_writer)),
    ):
        far_writer.write(b"last words")
        started_s = time.perf_counter()
        reset(far_writer)
        assert await reader.readexactly(10) == b"last words"
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert time.perf_counter() - started_s >= 0.05
        assert await settled(link, 0) == Traffic(0, 10, accepted=1, open=0)


async def test_who_talks_to_one_who_has_closed_is_reset(ends: Ends) -> None:
    async with (
        emulated_link(ends.port) as link,
        connected(ends, link) as ((reader, writer), (_, far_writer)),
    ):
        far_writer.close()
        assert await reader.read() == b""
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"anyone?")
                await writer.drain()
                await asyncio.sleep(0.01)
        await settled(link, 0)


async def test_a_target_that_does_not_listen_resets(ends: Ends) -> None:
    with socket.socket() as deaf:
        deaf.bind((LOOPBACK, 0))
        async with emulated_link(deaf.getsockname()[1]) as link, asyncio.timeout(20):
            with pytest.raises(ConnectionResetError):  # as early as while connecting
                await (await ends.near(link.port))[0].read()
            assert await link.traffic() == Traffic(0, 0, accepted=1, open=0)


async def test_traffic_is_counted_exactly(ends: Ends) -> None:
    async with (
        emulated_link(ends.port) as link,
        connected(ends, link) as ((reader, writer), (far_reader, far_writer)),
        connected(ends, link),
    ):
        await passage_s(bytes(123_457), writer, far_reader)
        await passage_s(bytes(7_001), far_writer, reader)
        assert await link.traffic() == Traffic(123_457, 7_001, accepted=2, open=2)
        writer.close()
        far_writer.close()
        assert await settled(link, 1) == Traffic(123_457, 7_001, accepted=2, open=1)


async def test_what_is_under_way_is_bounded(ends: Ends) -> None:
    async with (
        emulated_link(ends.port, one_way_delay_s=60) as link,
        connected(ends, link) as ((_, writer), _),
    ):
        piece = bytes(1 << 20)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                for _ in range(256):
                    writer.write(piece)
                    await writer.drain()
        assert writer.transport.get_write_buffer_size() > 0
        assert resident_bytes(link.pid) < 64 << 20


async def test_an_answer_to_who_was_cancelled_is_not_taken_for_the_next(ends: Ends) -> None:
    async with emulated_link(ends.port) as link:
        os.kill(link.pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await link.cut()
        os.kill(link.pid, signal.SIGCONT)
        assert await link.traffic() == Traffic(0, 0, accepted=0, open=0)


@pytest.mark.parametrize("line", ["", "hole\n"])
def test_a_relay_ends_with_its_starter(line: str) -> None:
    """Who is killed cannot say goodbye, but what it had open is closed for it."""
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:4] + ['127.0.0.1', '1'], stdin=subprocess.PIPE)\n"
        "child.stdin.write(sys.argv[4].encode())\n"
        "child.stdin.flush()\n"
        "time.sleep(60)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, sys.executable, "-IS", str(RELAY), line],
        stdout=subprocess.PIPE,
    )
    with starter:
        assert starter.stdout is not None
        for _ in ["port", *line.splitlines()]:
            assert starter.stdout.readline()
        starter.kill()
        assert starter.stdout.read() == b"", "its stdout is closed when the last writer has ended"


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
