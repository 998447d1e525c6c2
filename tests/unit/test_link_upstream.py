"""The far end's connection to the rpc-server, and the session that fills it from a link."""

import asyncio
import contextlib
import itertools
import random
import struct
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from link_world import RpcStandIn, Spoken, Wire, feed, rpc_stand_in, spoken, until
from made_chunks import PLENTY_BYTES, flip, made, path_of
from peers import peer, script
from rpc_talk import SEVEN, T, framed, get_tensor, hello_of, hello_reply_of, pattern, reply

from agents.chunk_store import ChunkStore
from agents.chunks import ChunkName, chunk_name
from agents.errors import LinkFraming, LinkLost, RpcFraming
from agents.link_frames import (
    DATA_BYTES,
    Hello,
    Kind,
    Welcome,
    pack_json,
    pack_number,
    pack_offer,
    pack_open,
    pack_ref,
    pack_shut,
    read_need,
    read_number,
    read_numbered,
    read_shut,
    read_stored,
)
from agents.link_session import Admission, Session, Stock
from agents.link_upstream import MOST_QUEUED_BYTES, Chunk, Upstream, connect
from agents.rpc_protocol import Command, Triple

KIB, MIB = 1 << 10, 1 << 20


@dataclass
class Told:
    """What an upstream tells its owner."""

    answers: bytearray = field(default_factory=bytearray)
    sizes: list[int] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    bases: dict[int, int] = field(default_factory=dict)
    moves: int = 0

    def on_answer(self, data: memoryview, took_s: float) -> None:
        self.answers += data
        self.sizes.append(len(data))
        self.took.append(took_s)

    def on_base(self, handle: int, base: int) -> None:
        self.bases[handle] = base

    def on_chunk_written(self, chunk: Chunk) -> None:
        self.written.append(chunk.serial)

    def on_moved(self) -> None:
        self.moves += 1

    def on_upstream_end(self, reason: str) -> None:
        self.ends.append(reason)


@contextlib.asynccontextmanager
async def upstream_to(
    port: int, triple: Triple = SEVEN, *, greets: bool = True
) -> AsyncIterator[tuple[Upstream, Told]]:
    told = Told()
    made = Upstream(told, triple, greets=greets)
    try:
        await connect(port, lambda: made, 5)
        yield made, told
    finally:
        made.abort()
        await asyncio.sleep(0)


def set_tensor(data_bytes: int) -> bytes:
    """Head of a request; the data follows."""
    head = T + b"\0" + struct.pack("<Q", 0)
    return struct.pack("<BQ", Command.SET_TENSOR, len(head) + data_bytes) + head


def chunks(count: int, size_bytes: int = 100_000) -> list[tuple[Chunk, bytes]]:
    found = []
    for serial in range(count):
        name, data = made(serial, size_bytes)
        found.append((Chunk(serial, name, size_bytes), data))
    return found


# -- order --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_order_is_kept_whatever_the_order_in_which_chunks_come(seed: int) -> None:
    rng = random.Random(seed)
    async with rpc_stand_in() as server, upstream_to(server.port) as (upstream, told):
        given, expected = chunks(12), bytearray(hello_of(SEVEN))
        for chunk, data in given:
            head = set_tensor(len(data))
            question = framed(Command.DEVICE_COUNT, b"")
            expected += head + data + question
            view = memoryview(bytearray(head))
            upstream.write(view)
            view[:] = bytes(len(view))  # a view may be reused as soon as it is given
            upstream.write(chunk)
            upstream.write(question)
        rng.shuffle(given)
        for chunk, data in given:
            chunk.data = data
            upstream.advance()
            if rng.random() < 0.3:
                await asyncio.sleep(0)
        await until(lambda: len(server.received[0]) >= len(expected))
        assert server.received[0] == expected
        assert told.written == list(range(12))
        assert upstream.queued_bytes == 0
        assert all(chunk.data is None for chunk, _ in given), "what was written is let go"
        await until(lambda: told.answers == reply(pattern(4, Command.DEVICE_COUNT)) * 12)
        assert not told.ends


async def test_a_missing_chunk_holds_back_what_is_behind_it_and_nothing_else() -> None:
    async with rpc_stand_in() as server, upstream_to(server.port) as (upstream, told):
        (first, first_data), (second, second_data) = chunks(2)
        before = hello_of(SEVEN) + framed(Command.DEVICE_COUNT, b"") + set_tensor(100_000)
        for item in (before[len(hello_of(SEVEN)) :], first, set_tensor(100_000), second):
            upstream.write(item)
        second.data = second_data
        upstream.advance()
        await until(lambda: server.received and len(server.received[0]) == len(before))
        await until(lambda: told.answers)
        await asyncio.sleep(0.05)
        assert server.received[0] == before
        assert upstream.waits_for_chunk
        assert not first.is_written
        first.data = first_data
        upstream.advance()
        rest = first_data + set_tensor(100_000) + second_data
        await until(lambda: len(server.received[0]) == len(before) + len(rest))
        assert server.received[0] == before + rest
        assert not upstream.waits_for_chunk


# -- answers ------------------------------------------------------------------------------------


async def test_answers_pass_in_frames_and_the_time_stands_on_the_first_bytes() -> None:
    async with rpc_stand_in() as server, upstream_to(server.port) as (upstream, told):
        size = 3 * DATA_BYTES + 5
        upstream.write(framed(Command.GET_TENSOR, get_tensor(size)))
        await until(lambda: len(told.answers) == 8 + size)
        assert told.answers == reply(pattern(256, Command.GET_TENSOR) * 3 * KIB + pattern(5, 8))
        assert max(told.sizes) <= DATA_BYTES
        assert told.took[0] > 0
        assert not any(told.took[1:])
        assert upstream.last_command == "GET_TENSOR"


async def test_the_length_of_an_answer_waits_for_its_first_bytes() -> None:
    """rpc-server sends them apart; one frame is enough."""
    answer = reply(b"\1\0\0\0")
    talk = script(hello_reply_of(SEVEN), answer[:8])
    async with peer(talk) as server, upstream_to(server.port) as (upstream, told):
        upstream.write(framed(Command.DEVICE_COUNT, b""))
        await asyncio.sleep(0.1)
        assert not told.answers
        upstream.buffer_updated(_into(upstream, answer[8:]))
        assert told.answers == answer
        assert told.sizes == [12]


def _into(upstream: Upstream, data: bytes) -> int:
    upstream.get_buffer(-1)[: len(data)] = data
    return len(data)


# -- the greeting -------------------------------------------------------------------------------


async def test_what_is_asked_before_the_greeting_waits_for_it() -> None:
    async with rpc_stand_in() as server:
        server.reads.clear()
        async with upstream_to(server.port) as (upstream, told):
            upstream.write(framed(Command.DEVICE_COUNT, b""))
            await asyncio.sleep(0.05)
            server.reads.set()
            await until(lambda: told.answers)
            assert server.received[0] == hello_of(SEVEN) + framed(Command.DEVICE_COUNT, b"")
            assert told.answers[:8] == struct.pack("<Q", 4), "the greeting is not passed on"


@pytest.mark.parametrize("seen", [Triple(6, 0, 0), Triple(7, 1, 0), Triple(7, 0, 1)], ids=str)
async def test_an_rpc_server_of_another_version_is_refused(seen: Triple) -> None:
    async with rpc_stand_in(seen) as server, upstream_to(server.port) as (upstream, told):
        upstream.write(framed(Command.DEVICE_COUNT, b""))
        await until(lambda: told.ends)
        assert f"speaks RPC {seen} now, 7.0.0 when it started" in told.ends[0]
        assert server.received[0] == hello_of(SEVEN), "it got no request"
        await until(lambda: not server.open)


async def test_one_that_answers_no_greeting_has_another_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agents.link_upstream._GREETING_S", 0.1)
    async with rpc_stand_in(is_dumb=True) as server, upstream_to(server.port) as (_, told):
        await until(lambda: told.ends)
        assert "another client" in told.ends[0]


@pytest.mark.parametrize("cut", [1, 7, 8, 11, 35])
async def test_a_greeting_in_pieces_is_read(cut: int) -> None:
    told = Told()
    upstream, wire = Upstream(told, SEVEN, greets=True), Wire()
    upstream.connection_made(wire)
    upstream.write(framed(Command.DEVICE_COUNT, b""))
    greeting = hello_reply_of(SEVEN)
    for piece in (greeting[:cut], greeting[cut:] + reply(bytes(4))):
        upstream.buffer_updated(_into(upstream, piece))
    assert wire.written == hello_of(SEVEN) + framed(Command.DEVICE_COUNT, b"")
    assert told.answers == reply(bytes(4))


async def test_without_a_greeting_of_ours_every_byte_is_passed_on() -> None:
    async with (
        rpc_stand_in() as server,
        upstream_to(server.port, greets=False) as (upstream, told),
    ):
        upstream.write(hello_of(SEVEN))
        await until(lambda: told.answers == hello_reply_of(SEVEN))
        assert server.received[0] == hello_of(SEVEN)


# -- ends ---------------------------------------------------------------------------------------


async def test_when_the_client_hangs_up_the_rpc_server_reads_everything_first() -> None:
    async with rpc_stand_in() as server, upstream_to(server.port) as (upstream, told):
        [(chunk, data)] = chunks(1)
        upstream.write(set_tensor(len(data)))
        upstream.write(chunk)
        upstream.end_writing()
        await asyncio.sleep(0.05)
        assert server.open == 1
        chunk.data = data
        upstream.advance()
        await until(lambda: told.ends)
        assert server.received[0].endswith(data)
        assert "closed the connection" in told.ends[0]


async def test_an_rpc_server_that_dies_is_told_once() -> None:
    async with rpc_stand_in() as server, upstream_to(server.port) as (upstream, told):
        await until(lambda: server.writers)
        server.writers[0].transport.abort()
        await until(lambda: told.ends)
        upstream.write(b"late")
        upstream.advance()
        await asyncio.sleep(0.02)
        assert len(told.ends) == 1


async def test_nobody_listens() -> None:
    upstream = Upstream(Told(), SEVEN, greets=True)
    with pytest.raises(LinkLost, match="does not take a connection"):
        await connect(1, lambda: upstream, 5)


async def test_an_aborted_upstream_closes_a_connection_that_comes_late() -> None:
    told, wire = Told(), Wire()
    upstream = Upstream(told, SEVEN, greets=True)
    upstream.abort()
    upstream.connection_made(wire)
    assert wire.is_aborted
    assert not wire.written
    assert not told.ends


async def test_requests_of_impossible_lengths_never_reach_the_rpc_server() -> None:
    async with rpc_stand_in() as server, upstream_to(server.port) as (upstream, _):
        upstream.write(framed(Command.DEVICE_COUNT, b""))
        await until(lambda: server.received and len(server.received[0]) > 40)
        before = bytes(server.received[0])
        with pytest.raises(RpcFraming):
            upstream.write(struct.pack("<BQ", Command.GET_ALIGNMENT, 2**63))
        await asyncio.sleep(0.05)
        assert server.received[0] == before


async def test_such_requests_end_it_in_words_when_they_had_to_wait() -> None:
    """asyncio swallows what its callbacks raise; the client would wait for ever."""
    told, wire = Told(), Wire()
    upstream = Upstream(told, SEVEN, greets=True)
    upstream.connection_made(wire)
    upstream.buffer_updated(_into(upstream, hello_reply_of(SEVEN)))
    upstream.pause_writing()
    upstream.write(struct.pack("<BQ", Command.GET_ALIGNMENT, 2**63))
    upstream.resume_writing()
    assert wire.is_aborted
    assert "GET_ALIGNMENT claims" in told.ends[0]


# -- a session ----------------------------------------------------------------------------------


@dataclass
class Visit:
    """A session whose link is a wire, so that everything on it can be said and seen."""

    session: Session
    wire: Wire
    store: ChunkStore
    folder: Path
    ended: list[Session]
    server: RpcStandIn
    serials: Iterator[int] = field(default_factory=itertools.count)

    def say(self, kind: Kind, body: bytes = b"") -> None:
        feed(self.session.link, [spoken(kind, body)])

    def ref(self, name: ChunkName, size_bytes: int) -> int:
        self.say(Kind.REF, pack_ref(name, size_bytes))
        return next(self.serials)

    def body(self, serial: int, data: bytes) -> None:
        self.say(Kind.BODY, pack_number(serial) + data)

    async def hears(self, kind: Kind) -> list[bytes]:
        """Bodies of the frames of that kind since the last call, when there are some."""
        heard: list[Spoken] = []

        def has_come() -> bool:
            heard.extend(self.wire.spoken())
            return any(each is kind for each, _ in heard)

        await until(has_come)
        return [body for each, body in heard if each is kind]

    async def done(self, count: int) -> None:
        async with asyncio.timeout(5):
            while count not in [
                read_number(memoryview(body), Kind.DONE) for body in await self.hears(Kind.DONE)
            ]:
                pass


@contextlib.asynccontextmanager
async def visit(
    tmp_path: Path, *, window_bytes: int = 64 * MIB, is_open: bool = True
) -> AsyncIterator[Visit]:
    """A session that was admitted, and its channel to an rpc-server."""
    store, threads = ChunkStore(tmp_path / "chunks", PLENTY_BYTES), ThreadPoolExecutor(2)
    ended: list[Session] = []
    async with rpc_stand_in() as server:

        async def admit(hello: Hello, session: Session) -> Admission:
            return Admission(server.port if hello.launch else 0, Welcome("7.0.0"))

        session, wire = Session(Stock(store, (), threads), admit, ended.append), Wire()
        session.link.connection_made(wire)
        seen = Visit(session, wire, store, tmp_path / "chunks", ended, server)
        launch = 1 if is_open else 0
        seen.say(Kind.HELLO, pack_json(asdict(Hello(launch, "main", 600.0, window_bytes))))
        await seen.hears(Kind.WELCOME)
        if is_open:
            seen.say(Kind.OPEN, pack_open(1, greets=True))
            await until(lambda: server.received and len(server.received[0]) == 33)
        try:
            yield seen
        finally:
            session.close(LinkLost("over"))
            threads.shutdown()
            await asyncio.sleep(0)


async def test_a_chunk_that_is_here_is_taken_and_one_that_is_not_is_asked_for(
    tmp_path: Path,
) -> None:
    async with visit(tmp_path) as seen:
        (here, here_data), (gone, gone_data) = made(1, 100_000), made(2, 70_000)
        seen.store.put(here, here_data)
        seen.say(Kind.DATA, set_tensor(170_000))
        seen.ref(gone, len(gone_data))
        seen.ref(here, len(here_data))
        (need,) = await seen.hears(Kind.NEED)
        assert read_need(memoryview(need)) == [0]
        await asyncio.sleep(0.05)
        received = seen.server.received[0]
        assert len(received) == 33 + len(set_tensor(0)), "what follows it waits"
        seen.body(0, gone_data)
        await seen.done(2)
        await until(lambda: received.endswith(gone_data + here_data))
        assert seen.store.get(gone) == gone_data, "it is kept for the next launch"


async def test_a_chunk_that_is_named_twice_is_asked_for_once(tmp_path: Path) -> None:
    async with visit(tmp_path) as seen:
        name, data = made(1, 100_000)
        seen.say(Kind.DATA, set_tensor(300_000))
        for _ in range(3):
            seen.ref(name, len(data))
        (need,) = await seen.hears(Kind.NEED)
        assert read_need(memoryview(need)) == [0]
        seen.body(0, data)
        await seen.done(3)
        await until(lambda: seen.server.received[0].endswith(data * 3))


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
async def test_a_chunk_that_was_harmed_in_the_store_is_asked_for(tmp_path: Path, harm: str) -> None:
    async with visit(tmp_path) as seen:
        name, data = made(1, 100_000)
        seen.store.put(name, data)
        path = path_of(seen.folder, name)
        if harm == "gone":
            path.unlink()
        else:
            path.write_bytes(flip(data) if harm == "flipped" else data[:-1])
        seen.say(Kind.DATA, set_tensor(len(data)))
        seen.ref(name, len(data))
        await seen.hears(Kind.NEED)
        seen.body(0, data)
        await seen.done(1)
        await until(lambda: seen.server.received[0].endswith(data))
        assert seen.store.get(name) == data


async def test_a_chunk_that_is_not_what_its_name_says_ends_the_link(tmp_path: Path) -> None:
    async with visit(tmp_path) as seen:
        name, data = made(1, 100_000)
        seen.say(Kind.DATA, set_tensor(len(data)))
        seen.ref(name, len(data))
        await seen.hears(Kind.NEED)
        seen.body(0, flip(data))
        await until(lambda: seen.ended)
        assert "not what its name says" in str(seen.session.error)
        await until(lambda: not seen.server.open)
        assert seen.store.get(name) is None


async def test_bytes_behind_a_missing_chunk_do_not_keep_it_from_coming(tmp_path: Path) -> None:
    """The link is not read while much waits for the rpc-server; unless it brings what is next."""
    async with visit(tmp_path) as seen:
        name, data = made(1, 100_000)
        upstream = seen.session._upstream
        assert upstream is not None
        seen.server.reads.clear()
        seen.say(Kind.DATA, set_tensor(64 * MIB))
        while not upstream.queued_bytes:
            seen.say(Kind.DATA, bytes(DATA_BYTES))
        seen.ref(name, len(data))
        while seen.wire.reads():
            seen.say(Kind.DATA, bytes(DATA_BYTES))
        assert not upstream.waits_for_chunk
        seen.server.reads.set()
        await until(lambda: upstream.waits_for_chunk)
        assert upstream.queued_bytes > MOST_QUEUED_BYTES // 2
        assert seen.wire.reads(), "what is next could never come"
        seen.body(0, data)
        await seen.done(1)


async def test_what_waits_for_an_rpc_server_that_does_not_read_is_bounded(tmp_path: Path) -> None:
    async with visit(tmp_path) as seen:
        seen.server.reads.clear()
        seen.say(Kind.DATA, set_tensor(64 * MIB))
        sent = 0
        while seen.wire.reads() and sent < 64 * MIB:
            seen.say(Kind.DATA, bytes(DATA_BYTES))
            sent += DATA_BYTES
        upstream = seen.session._upstream
        assert upstream is not None
        assert upstream.queued_bytes <= MOST_QUEUED_BYTES + DATA_BYTES
        assert sent < 32 * MIB, "kernel buffers, and the queue"
        seen.server.reads.set()
        await until(seen.wire.reads)
        assert upstream.queued_bytes < MOST_QUEUED_BYTES


async def test_more_chunks_than_the_window_end_the_link(tmp_path: Path) -> None:
    async with visit(tmp_path, window_bytes=2 * MIB) as seen:
        seen.say(Kind.DATA, set_tensor(64 * MIB))
        for serial in range(18):
            seen.ref(made(serial, 8)[0], MIB)
        assert not seen.ended
        seen.ref(made(18, 8)[0], MIB)
        assert isinstance(seen.session.error, LinkFraming)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.HELLO, b"{}"),
        (Kind.WELCOME, b"{}"),
        (Kind.ANSWER, bytes(8)),
        (Kind.NEED, bytes(4)),
        (Kind.HELD, b"\1"),
        (Kind.DONE, bytes(4)),
        (Kind.STORED, bytes(33)),
        (Kind.BODY, pack_number(7) + b"x"),
        (Kind.BODY, b""),
        (Kind.OPEN, pack_open(2, greets=True)),
        (Kind.REF, pack_ref(made(1)[0], 0)),
        (Kind.SEED, bytes(32)),
    ],
)
async def test_what_a_near_end_never_says_ends_the_link(
    tmp_path: Path, kind: Kind, body: bytes
) -> None:
    async with visit(tmp_path) as seen:
        seen.say(kind, body)
        assert isinstance(seen.session.error, LinkFraming)
        assert "internal" not in str(seen.session.error)
        assert seen.ended == [seen.session]
        await until(lambda: not seen.server.open)


async def test_a_body_of_another_size_than_its_reference_ends_the_link(tmp_path: Path) -> None:
    async with visit(tmp_path) as seen:
        name, data = made(1, 100_000)
        seen.say(Kind.DATA, set_tensor(len(data)))
        seen.ref(name, len(data))
        await seen.hears(Kind.NEED)
        seen.body(0, data + b"x")
        assert isinstance(seen.session.error, LinkFraming)


async def test_when_the_rpc_server_dies_the_window_opens_and_a_new_channel_works(
    tmp_path: Path,
) -> None:
    async with visit(tmp_path) as seen:
        name, data = made(1, 100_000)
        seen.say(Kind.DATA, set_tensor(len(data)))
        seen.ref(name, len(data))
        await seen.hears(Kind.NEED)
        seen.server.writers[0].transport.abort()
        await until(lambda: seen.session._upstream is None)
        heard = seen.wire.spoken()
        assert [kind for kind, _ in heard] == [Kind.SHUT, Kind.DONE]
        channel, why = read_shut(memoryview(heard[0][1]))
        assert (channel, why[:28]) == (1, "the rpc-server closed the co")
        seen.body(0, data)  # it was on its way
        seen.say(Kind.DATA, b"nobody reads this")
        seen.ref(name, len(data))
        await seen.done(2)
        seen.say(Kind.OPEN, pack_open(2, greets=True))
        seen.say(Kind.DATA, framed(Command.DEVICE_COUNT, b""))
        (answer,) = await seen.hears(Kind.ANSWER)
        assert bytes(read_numbered(memoryview(answer), Kind.ANSWER)[1][:8]) == struct.pack("<Q", 4)
        assert seen.server.received[1] == hello_of(SEVEN) + framed(Command.DEVICE_COUNT, b"")


async def test_a_client_that_hangs_up_ends_the_rpc_servers_connection_too(tmp_path: Path) -> None:
    async with visit(tmp_path) as seen:
        seen.say(Kind.SHUT, pack_shut(5))
        await asyncio.sleep(0.05)
        assert seen.server.open == 1, "that was another channel"
        seen.say(Kind.SHUT, pack_shut(1))
        await seen.hears(Kind.SHUT)
        await until(lambda: not seen.server.open)


async def test_a_full_link_stops_the_answers_of_the_rpc_server(tmp_path: Path) -> None:
    async with visit(tmp_path) as seen:
        seen.session.link.pause_writing()
        seen.say(Kind.DATA, framed(Command.GET_TENSOR, get_tensor(40 * MIB)))
        await asyncio.sleep(0.2)
        assert 0 < len(seen.wire.written) < 2 * MIB
        seen.session.link.resume_writing()
        await until(lambda: len(seen.wire.written) > 40 * MIB, 10)


async def test_seeds_are_stored_and_found_by_what_follows_at_once(tmp_path: Path) -> None:
    async with visit(tmp_path) as seen:
        name, data = made(1, 100_000)
        other, _ = made(2)
        seen.say(Kind.OFFER, pack_offer([(name, len(data)), (other, 5)]))
        assert await seen.hears(Kind.HELD) == [b"\0\0"]
        seen.say(Kind.SEED, name + data)
        seen.say(Kind.DATA, set_tensor(len(data)))
        seen.ref(name, len(data))
        (stored,) = await seen.hears(Kind.STORED)
        assert read_stored(memoryview(stored)) == (name, True)
        await until(lambda: seen.server.received[0].endswith(data))
        seen.say(Kind.OFFER, pack_offer([(name, len(data))]))
        assert await seen.hears(Kind.HELD) == [b"\1"]


async def test_a_link_for_seeds_reaches_no_rpc_server(tmp_path: Path) -> None:
    async with visit(tmp_path, is_open=False) as seen:
        name, data = made(1)
        seen.say(Kind.SEED, name + data)
        await seen.hears(Kind.STORED)
        assert seen.store.get(name) == data
        seen.say(Kind.OPEN, pack_open(1, greets=True))
        assert "only for seeds" in str(seen.session.error)
        assert not seen.server.received


@pytest.mark.parametrize(
    "hello",
    [
        asdict(Hello(1, "m", 0.1, MIB)),
        asdict(Hello(1, "m", 601, MIB)),
        asdict(Hello(1, "m", float("nan"), MIB)),
        asdict(Hello(1, "m", 10**400, MIB)),
        asdict(Hello(1, "m", 5, 0)),
        asdict(Hello(1, "m", 5, -1)),
        asdict(Hello(1, "m", 5, 1 << 40)),
        {"launch": 1},
        {"launch": "1", "main_host": "m", "silence_s": 5, "window_bytes": 5},
    ],
)
async def test_an_impossible_hello_ends_the_link_in_words(
    tmp_path: Path, hello: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    threads, ended = ThreadPoolExecutor(1), list[Session]()

    async def admit(hello: Hello, session: Session) -> Admission:
        raise AssertionError("nobody may be admitted")

    stock = Stock(ChunkStore(tmp_path, PLENTY_BYTES), (), threads)
    session, wire = Session(stock, admit, ended.append), Wire()
    session.link.connection_made(wire)
    feed(session.link, [spoken(Kind.HELLO, pack_json(hello))])
    assert ended == [session]
    assert wire.is_aborted
    assert "link.bug" not in caplog.text
    threads.shutdown()


async def test_another_link_protocol_is_refused_with_both_numbers(tmp_path: Path) -> None:
    threads = ThreadPoolExecutor(1)

    async def admit(hello: Hello, session: Session) -> Admission:
        raise AssertionError("nobody may be admitted")

    stock = Stock(ChunkStore(tmp_path, PLENTY_BYTES), (), threads)
    session, wire = Session(stock, admit, lambda _: None), Wire()
    session.link.connection_made(wire)
    hello = asdict(Hello(1, "m", 5, MIB, protocol=99))
    feed(session.link, [spoken(Kind.HELLO, pack_json(hello))])
    ((kind, body),) = wire.spoken()
    assert kind is Kind.REFUSED
    assert b"99" in body
    assert wire.is_closed
    session.close(LinkLost("over"))
    threads.shutdown()


async def test_a_session_that_ends_lets_go_of_everything(tmp_path: Path) -> None:
    async with visit(tmp_path) as seen:
        name, data = made(1, 100_000)
        seen.store.put(name, data)
        seen.say(Kind.OFFER, pack_offer([(name, len(data))]))
        assert seen.store.usage().pinned_chunks == 1
        seen.say(Kind.DATA, set_tensor(10 * MIB))
        for serial in range(5):
            seen.ref(chunk_name(bytes([serial])), MIB)
        seen.ref(name, len(data))
        seen.session.close(LinkLost("over"))
        assert seen.store.usage().pinned_chunks == 0
        await until(lambda: not seen.server.open)
        await until(lambda: not seen.session._tasks)
        assert seen.ended == [seen.session]
