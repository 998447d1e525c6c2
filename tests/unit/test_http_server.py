"""The page's server against clients that take more than their share, over real sockets."""

import asyncio
import contextlib
import itertools
import logging
import os
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from agents import ports
from supervisor.api import bounded
from supervisor.api.door import Door, Limits
from supervisor.api.http_server import GuardedProtocol, GuardedWeb

LIMITS = Limits(
    connections=20,
    per_address=10,
    stall_s=0.4,
    head_s=0.4,
    body_s=0.4,
    leaving_s=0.4,
    silent_s=0.2,
)
SOON_S = 10.0
PIECE = b"x" * 65536
GET = b"GET /short HTTP/1.1\r\nhost: a\r\n\r\n"
CHUNKED = b"POST /%b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
POST = b"POST /%b HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"


@dataclass
class Served:
    """A server with a small application, which notes what it saw."""

    limits: Limits
    port: int = 0
    web: GuardedWeb = field(init=False)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """The client of an endless answer, or of a body, left."""
    read_bytes: int = 0

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        match scope["path"].rpartition("/")[2]:
            case "endless":
                await self._endless(receive, send)
            case "echo":
                await self._echo(receive, send)
            case "busy":
                await receive()
                await self.left.wait()
                await _answer(send, b"at last")
            case _:
                await _answer(send, b"short")

    async def _endless(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        sending = asyncio.create_task(self._pieces(send))
        while (await receive())["type"] != "http.disconnect":
            pass
        sending.cancel()
        self.left.set()

    async def _pieces(self, send: Any) -> None:
        while True:
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            await asyncio.sleep(0)

    async def _echo(self, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request":
            self.read_bytes += len(message["body"])
            if not message["more_body"]:
                await _answer(send, b"%d" % self.read_bytes)
                return
        self.left.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Served"]:
        listener = ports.listen("127.0.0.1", 0, "test")
        self.port = listener.getsockname()[1]
        self.web = GuardedWeb(self.app, self.limits)
        serving = asyncio.create_task(self.web.serve([listener]))
        looking = asyncio.create_task(self._look())
        try:
            yield self
        finally:
            self.web.should_exit = True
            async with asyncio.timeout(SOON_S):
                await serving
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _look(self) -> None:
        """More often than once a second, so that tests are short."""
        while True:
            await asyncio.sleep(0.02)
            self.web.look_around()

    @contextlib.asynccontextmanager
    async def client(self, said: bytes = b"") -> AsyncIterator["Client"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(said)
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    async def said(self, request: bytes) -> bytes:
        """Everything that is answered, until the connection ends."""
        async with self.client(request) as client:
            return await client.rest()

    async def is_empty(self) -> None:
        """Wait until nobody is connected."""
        async with asyncio.timeout(SOON_S):
            while self.web.door.connections:
                await asyncio.sleep(0.02)


@dataclass
class Client:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def rest(self) -> bytes:
        async with asyncio.timeout(SOON_S):
            return await self.reader.read()

    async def answer(self) -> bytes:
        """One answer, which has a length."""
        async with asyncio.timeout(SOON_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            return head + await self.reader.readexactly(length)

    async def trickle(self, piece: bytes, every_s: float) -> None:
        """Send until it is not taken any more."""
        with contextlib.suppress(OSError):
            while True:
                self.writer.write(piece)
                await self.writer.drain()
                await asyncio.sleep(every_s)

    def reset(self) -> None:
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def _answer(send: Any, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def served(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Served]:
    """Nothing that a client does may be logged, but for the line that counts; none may stay."""
    async with Served(LIMITS).running() as made:
        yield made
        await made.is_empty()
    records = [*caplog.get_records("call"), *caplog.get_records("teardown")]
    worst = [record for record in records if record.levelno >= logging.WARNING]
    assert {record.getMessage() for record in worst} <= {"http.clients_sent_away"}
    assert len(worst) <= 1


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


# -- heads -------------------------------------------------------------------------------------


async def test_who_says_nothing_is_sent_away_without_a_word(served: Served) -> None:
    assert await served.said(b"") == b""


async def test_a_head_that_comes_byte_by_byte_is_cut(served: Served) -> None:
    async with served.client(b"GET / HTTP/1.1\r\nh: ") as client:
        trickling = asyncio.create_task(client.trickle(b"x", 0.05))
        answer = await client.rest()
        assert status(answer) == 408
        assert b"connection: close" in answer
        trickling.cancel()


async def test_a_kept_connection_may_be_silent_but_not_slow(served: Served) -> None:
    async with served.client() as client:
        for _ in range(2):
            client.writer.write(GET)
            assert status(await client.answer()) == 200
            await asyncio.sleep(LIMITS.head_s + 0.2)
        client.writer.write(GET[:-2])
        assert status(await client.rest()) == 408


async def test_a_head_without_end_is_refused(served: Served) -> None:
    for line in (b"a: " + b"x" * 1021 + b"\r\n", b"a: b\r\n" * 200, b"x" * 1024):
        async with served.client(b"GET / HTTP/1.1\r\n") as client:
            trickling = asyncio.create_task(client.trickle(line, 0))
            answer = await client.rest()
            assert status(answer) == 431
            trickling.cancel()


async def test_a_whole_head_that_is_too_large_is_refused(served: Served) -> None:
    many = b"".join(b"h%d: a\r\n" % number for number in range(bounded.HEADERS))
    large = b"".join(b"h%d: %b\r\n" % (n, b"x" * 1000) for n in range(70))
    fits = many[: many.rindex(b"h")]
    shapes = {b"short": b'"code":"request_too_large"', b"v1/messages": b'{"type":"error"'}
    for path, shape in shapes.items():
        start = b"GET /%b HTTP/1.1\r\nhost: a\r\n" % path
        async with served.client(start + many + b"\r\n") as client:
            answer = await client.answer()
            assert status(answer) == 431
            assert shape in answer
        for headers, expected in ((large, 431), (fits, 200)):
            async with served.client(start + headers + b"\r\n") as client:
                assert status(await client.answer()) == expected


NOT_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\na: \x00\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %b\r\n\r\n" % (b"9" * 5000),
    b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
    CHUNKED % b"echo" + b"zz\r\n",
    CHUNKED % b"echo" + b"1\r\nab\r\n",
    CHUNKED % b"echo" + b"f" * 100 + b"\r\n",
    CHUNKED % b"echo" + b"0\r\n" + b"a" * 100 * 1024,
]


async def test_what_is_not_http_is_refused_in_one_sentence(served: Served) -> None:
    for words in NOT_HTTP:
        answer = await served.said(words)
        assert 400 <= status(answer) < 502, words
        assert answer.partition(b"\r\n\r\n")[2].count(b"\n") == 0


async def test_other_protocols_are_not_spoken(served: Served) -> None:
    upgrade = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    async with served.client(upgrade) as client:
        assert status(await client.answer()) == 200
    async with served.client(b"CONNECT b:1 HTTP/1.1\r\nhost: b:1\r\n\r\n") as client:
        assert status(await client.answer()) == 405


# -- bodies ------------------------------------------------------------------------------------


async def test_a_body_that_comes_no_further_is_cut(served: Served) -> None:
    async with served.client(POST % (b"echo", 5000)) as client:
        trickling = asyncio.create_task(client.trickle(b"x", 0.05))
        assert status(await client.rest()) == 408
        trickling.cancel()
    assert served.left.is_set()


async def test_a_slow_body_that_comes_on_is_waited_for(served: Served) -> None:
    pieces, piece = 6, b"x" * 2000
    async with served.client(POST % (b"echo", pieces * len(piece))) as client:
        for _ in range(pieces):
            await asyncio.sleep(LIMITS.body_s / 2)
            client.writer.write(piece)
        answer = await client.answer()
        assert answer.endswith(b"%d" % (pieces * len(piece)))


async def test_who_waits_for_100_continue_is_not_late(served: Served) -> None:
    asks = b"POST /busy HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    async with served.client(asks) as client:
        async with asyncio.timeout(SOON_S):
            assert b"100 Continue" in await client.reader.readuntil(b"\r\n\r\n")
        client.writer.write(b"ab")
        await asyncio.sleep(LIMITS.body_s + 0.2)
        served.left.set()
        assert (await client.answer()).endswith(b"at last")


async def test_a_body_that_nobody_reads_is_not_late(served: Served) -> None:
    size = 2**20
    async with served.client(POST % (b"v1/busy", size)) as client:
        client.writer.write(b"x" * size)  # more than is taken before the application reads on
        await asyncio.sleep(2 * LIMITS.body_s)
        served.left.set()
        assert (await client.answer()).endswith(b"at last")


@pytest.mark.parametrize("start", [POST % (b"api/plan", 10**9), CHUNKED % b"api/plan"])
async def test_who_sends_on_after_an_answer_can_read_it(served: Served, start: bytes) -> None:
    async with served.client(start) as client:
        chunk = b"%x\r\n%b\r\n" % (len(PIECE), PIECE)
        for _ in range(100):  # more than the kernel holds
            client.writer.write(chunk)
            await client.writer.drain()
        assert status(await client.answer()) in (413, 200)
        assert await client.rest() == b""


async def test_a_large_body_is_for_the_gateway_only(served: Served) -> None:
    size = bounded.BODY_BYTES + 1
    async with served.client(POST % (b"echo", size)) as client:
        answer = await client.answer()
        assert status(answer) == 413
        assert b'"request_too_large"' in answer
    async with served.client(POST % (b"v1/messages", size) + b"x" * size) as client:
        assert status(await client.answer()) == 200
    async with served.client(POST % (b"echo", size - 1) + b"x" * (size - 1)) as client:
        assert (await client.answer()).endswith(b"%d" % (size - 1))


async def test_garbage_in_a_body_after_the_answer_began_ends_both(served: Served) -> None:
    async with served.client(CHUNKED % b"endless" + b"1\r\na\r\n") as client:
        await client.reader.read(100)
        client.writer.write(b"garbage\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1 400" not in await client.rest()
    async with asyncio.timeout(SOON_S):
        await served.left.wait()


# -- who does not read ---------------------------------------------------------------------------


async def test_who_reads_nothing_is_cut_off(served: Served) -> None:
    async with served.client(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n") as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(SOON_S):
            await served.left.wait()
        await served.is_empty()


async def test_who_reads_slowly_is_not(served: Served) -> None:
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
    reader.connect(("127.0.0.1", served.port))
    reader.setblocking(False)
    reader.send(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
    loop = asyncio.get_running_loop()
    try:
        for _ in range(round(4 * LIMITS.stall_s / 0.05)):
            await asyncio.sleep(0.05)
            assert len(await loop.sock_recv(reader, 65536)) > 0
        assert not served.left.is_set()
    finally:
        reader.close()


# -- how many ------------------------------------------------------------------------------------


async def test_beyond_the_bound_a_connection_is_refused_at_once(served: Served) -> None:
    async with contextlib.AsyncExitStack() as stack:
        busy = [
            await stack.enter_async_context(served.client(POST % (b"busy", 0)))
            for _ in range(LIMITS.connections)
        ]
        await asyncio.sleep(LIMITS.silent_s + 0.1)
        for _ in range(50):
            refused = await served.said(b"")
            assert status(refused) == 503
            assert b"retry-after: 1\r\n" in refused
        served.left.set()
        for client in busy:
            assert (await client.answer()).endswith(b"at last")
        await asyncio.sleep(LIMITS.silent_s + 0.1)
        # All are idle now, and make room, the oldest first.
        async with served.client(GET) as late:
            assert status(await late.answer()) == 200
        assert await busy[0].rest() == b""
        busy[-1].writer.write(GET)
        assert status(await busy[-1].answer()) == 200


async def test_one_address_gets_its_share_unless_it_is_this_host() -> None:
    web = GuardedWeb(lambda *_: None, LIMITS)  # type: ignore[arg-type]
    web.config.load()

    def protocol() -> GuardedProtocol:
        return GuardedProtocol(
            web.door,
            config=web.config,
            server_state=web.server_state,
            app_state={},
        )

    door, share = Door(LIMITS), LIMITS.per_address
    guests = [protocol() for _ in range(share)]
    assert all(door.entered(guest, "10.0.0.7") for guest in guests)
    assert not door.entered(protocol(), "10.0.0.7")
    assert door.entered(protocol(), "10.0.0.8")
    door.left(guests[0], "10.0.0.7")
    assert door.entered(protocol(), "10.0.0.7")
    door = Door(LIMITS)
    assert all(door.entered(protocol(), "127.0.0.1") for _ in range(share + 1))


# -- who vanishes --------------------------------------------------------------------------------


STAGES = [
    b"",
    GET[:-2],
    GET,
    GET * 20,
    POST % (b"echo", 100) + b"half",
    CHUNKED % b"echo" + b"zz\r\n",
    b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n",
    POST % (b"busy", 0),
]


async def test_who_vanishes_is_forgotten(served: Served) -> None:
    for words, reset, pause_s in itertools.product(STAGES, (True, False), (0, 0.01)):
        async with served.client(words) as client:
            await asyncio.sleep(pause_s)
            client.reset() if reset else client.writer.close()
    served.left.set()
    await served.is_empty()


async def test_many_who_had_to_go_are_one_line(
    caplog: pytest.LogCaptureFixture, served: Served
) -> None:
    for _ in range(20):
        await served.said(b"nonsense\r\n\r\n")
    await served.is_empty()
    await asyncio.sleep(0.05)
    told = [r for r in caplog.records if r.getMessage() == "http.clients_sent_away"]
    assert len(told) == 1
    assert "malformed" in vars(told[0])["how_many"]


async def test_a_stop_does_not_wait_for_clients_that_linger() -> None:
    long = replace(LIMITS, leaving_s=600, stall_s=600, head_s=600, body_s=600)
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        async with Served(long).running() as served:
            garbage = CHUNKED % b"echo" + b"zz\r\n"
            for words in (b"", GET[:-2], b"nonsense\r\n\r\n", POST % (b"short", 9), garbage):
                await stack.enter_async_context(served.client(words))
            await asyncio.sleep(0.1)
            stopped_s = loop.time()
        assert loop.time() - stopped_s < 2.0


# -- descriptors ---------------------------------------------------------------------------------


def test_the_soft_limit_becomes_the_hard_one() -> None:
    script = (
        "import resource as r; from supervisor.api.http_server import allow_descriptors;"
        "r.setrlimit(r.RLIMIT_NOFILE, (100, 300)); print(allow_descriptors());"
        "print(r.getrlimit(r.RLIMIT_NOFILE)); print(allow_descriptors())"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[:3] == ["300", "(300, 300)", "300"]


async def test_without_descriptors_it_waits_in_silence_and_goes_on(served: Served) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(8)]
    lowest_free = os.dup(0)
    os.close(lowest_free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        await asyncio.sleep(0.3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(SOON_S):
        for client in waiting:
            client.setblocking(False)
            await loop.sock_sendall(client, GET)
            assert status(await loop.sock_recv(client, 100)) == 200
            client.close()
