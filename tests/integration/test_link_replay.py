"""A link changes nothing: what a real session said, said again through both of its ends."""

import asyncio
import contextlib
import itertools
import random
import struct
from pathlib import Path

import pytest
from lab.capture import captured, llama_server, our_flags, recorder, rpc_server
from lab.linked import Lab, Served
from lab.replay import (
    Forwarded,
    Script,
    bases_of,
    described,
    exchanges,
    replayed,
    scripted_server,
    serving_on_loopback,
)

from agents.contract import EngineFacts
from agents.rpc_protocol import Command, DeviceMemory, hello_request
from supervisor.demo_model import write_demo_model

DEVICE = DeviceMemory(1 << 33, 1 << 34, 32, 1 << 40)


@pytest.mark.parametrize("is_ours", [True, False], ids=["our flags", "default flags"])
async def test_a_recorded_session_is_the_same_through_a_link_the_first_time_and_the_second(
    engine: EngineFacts, random_model: Path, tmp_path: Path, is_ours: bool
) -> None:
    """Every answer; and at the server every request that the near end has no answer for."""
    flags = our_flags(engine) if is_ours else []
    recorded = await captured(engine, random_model, tmp_path, workers=2, flags=flags)
    lab = Lab(tmp_path)
    for number, worker in enumerate(recorded):
        version, device = described(worker.connections)
        hello = exchanges(worker.connections[0])[0]
        script = Script(hello.answer, bases_of(worker.connections))
        forwarded = Forwarded()
        async with (
            scripted_server(script) as port,
            lab.far_side(f"device-{number}", Served(port, version, (device,))) as side,
        ):
            for _ in range(2):
                expected = forwarded.of(worker.connections)
                script.expect(expected)
                async with lab.near_ends(side) as [near_end]:
                    for connection in worker.connections:
                        heard = await replayed(connection, near_end.stats().port)
                        assert not script.problem, script.problem
                        assert heard == connection.said(by_client=False)
                assert script.got == b"".join(exchange.request for exchange in expected)
                assert script.connections == 1
                print(f"{len(expected)} of {sum(map(len, map(exchanges, worker.connections)))}")


async def test_a_recorded_session_that_asks_by_hash_is_the_same_the_first_time(
    engine: EngineFacts, tmp_path: Path
) -> None:
    model = tmp_path / "wide.gguf"
    write_demo_model(model, layers=1, embedding=1024, feed_forward=10304, recite=False)
    [worker] = await captured(engine, model, tmp_path, workers=1, flags=our_flags(engine))
    version, device = described(worker.connections)
    hello = exchanges(worker.connections[0])[0]
    script = Script(hello.answer, bases_of(worker.connections))
    script.expect(Forwarded().of(worker.connections))
    lab = Lab(tmp_path)
    async with (
        scripted_server(script) as port,
        lab.far_side("one", Served(port, version, (device,))) as side,
        lab.near_ends(side) as [near_end],
    ):
        for connection in worker.connections:
            heard = await replayed(connection, near_end.stats().port)
            assert not script.problem, script.problem
            assert heard == connection.said(by_client=False)
    assert script.got == b"".join(exchange.request for exchange in script.expected)


@pytest.mark.parametrize("is_ours", [True, False], ids=["our flags", "default flags"])
async def test_a_living_session_is_the_same_on_both_sides_of_a_link(
    engine: EngineFacts, random_model: Path, tmp_path: Path, is_ours: bool
) -> None:
    """The real programs at both ends."""
    flags = our_flags(engine) if is_ours else []
    lab, forwarded = Lab(tmp_path), Forwarded()
    async with rpc_server(engine, tmp_path / "rpc-server.log") as port:
        for number in range(2):
            log = tmp_path / f"{number}.log"
            async with recorder(port) as beyond:
                served = await Served.proven(beyond.port, asked_at=port)
                async with (
                    lab.far_side("one", served) as side,
                    lab.near_ends(side) as [near_end],
                    recorder(near_end.stats().port) as before,
                    llama_server(engine, random_model, [before.port], flags, log) as server,
                ):
                    await server.complete("the river " * 100, 8)
                    await server.complete("and now", 8)
            [connection] = beyond.connections
            hello, *rest = exchanges(connection)
            assert hello.request == hello_request()
            asked = [each for each in rest if each.command != Command.BUFFER_GET_BASE]
            assert asked == forwarded.of(before.connections)
            heard, true = bases_of(before.connections), bases_of([connection])
            assert heard
            assert heard.items() <= true.items()


# -- what we do not know ---------------------------------------------------------------------------


def pieces(data: bytes, rng: random.Random) -> list[bytes]:
    """Cut somewhere."""
    cuts = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(7))})
    return [data[start:end] for start, end in itertools.pairwise(cuts)]


class Stranger:
    """A server that says what it likes: after ``hello``, whatever is asked, ``answer``."""

    def __init__(self, *, expects: bytes, says: bytes) -> None:
        self.expects = expects
        self.says = says
        self.got = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speaks when everything has come, hangs up when the client has."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            self.got = await reader.readexactly(len(self.expects))
        for piece in pieces(self.says, random.Random(2)):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)
        self.got += await reader.read()


@pytest.mark.parametrize("version", ["9.9.9", "7.2.0", "2.0.0"])
async def test_a_version_that_nobody_knows_passes_through_untouched(
    tmp_path: Path, version: str
) -> None:
    rng = random.Random(1)
    said = hello_request() + rng.randbytes(3_000_000)
    stranger = Stranger(expects=said, says=rng.randbytes(2_000_000))
    lab = Lab(tmp_path)
    async with (
        serving_on_loopback(stranger.serve) as port,
        lab.far_side("one", Served(port, version, (DEVICE,))) as side,
        lab.near_ends(side) as [near_end],
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", near_end.stats().port)
        for piece in pieces(said, rng):
            writer.write(piece)
            await asyncio.sleep(0.001)
        async with asyncio.timeout(10):
            heard = await reader.readexactly(len(stranger.says))
        writer.close()
        await writer.wait_closed()
    assert heard == stranger.says
    assert stranger.got == said, "its own HELLO and everything after it, and nothing of ours"


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "after a known one"])
async def test_a_command_that_nobody_knows_passes_through_untouched_with_all_that_follows(
    tmp_path: Path, is_first: bool
) -> None:
    """Also questions that a near end could answer: nobody knows what they are about by then."""
    rng = random.Random(1)
    known = struct.pack("<BQQ", Command.BUFFER_GET_BASE, 8, 77)
    known_answer = struct.pack("<QQ", 8, 4096)
    memory = struct.pack("<BQI", Command.GET_DEVICE_MEMORY, 4, 0)
    unknown = struct.pack("<BQ", 42, 100_000) + rng.randbytes(100_000)
    said = (b"" if is_first else known) + unknown + memory + rng.randbytes(200_000)
    answers = rng.randbytes(300_000)
    hello_answer = struct.pack("<Q4B24x", 28, 7, 0, 0, 0)
    got = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(hello_request())) == hello_request()
        writer.write(hello_answer)
        if not is_first:
            got.extend(await reader.readexactly(len(known)))
            writer.write(known_answer)
        got.extend(await reader.readexactly(len(said) - len(got)))
        for piece in pieces(answers, random.Random(2)):
            writer.write(piece)
            await writer.drain()
        got.extend(await reader.read())

    lab = Lab(tmp_path)
    async with (
        serving_on_loopback(serve) as port,
        lab.far_side("one", Served(port, "7.0.0", (DEVICE,))) as side,
        lab.near_ends(side) as [near_end],
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", near_end.stats().port)
        async with asyncio.timeout(10):
            writer.write(hello_request())
            assert await reader.readexactly(len(hello_answer)) == hello_answer
            rest = said
            if not is_first:
                writer.write(known)
                assert await reader.readexactly(len(known_answer)) == known_answer
                rest = said[len(known) :]
            for piece in pieces(rest, rng):
                writer.write(piece)
                await asyncio.sleep(0.001)
            heard = await reader.readexactly(len(answers))
        writer.close()
        await writer.wait_closed()
    assert heard == answers
    assert bytes(got) == said


async def test_a_server_that_hangs_up_on_what_nobody_knows_is_heard_to_the_last_byte(
    tmp_path: Path,
) -> None:
    last_words = random.Random(1).randbytes(1_000_000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(hello_request()))
        writer.write(last_words)
        await writer.drain()

    lab = Lab(tmp_path)
    async with (
        serving_on_loopback(serve) as port,
        lab.far_side("one", Served(port, "9.9.9", (DEVICE,))) as side,
        lab.near_ends(side) as [near_end],
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", near_end.stats().port)
        writer.write(hello_request())
        async with asyncio.timeout(10):
            assert await reader.read(-1) == last_words
        writer.close()
        await writer.wait_closed()
