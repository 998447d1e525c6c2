"""Fetching an engine's archive over real mutual TLS, from main hosts that misbehave."""

import asyncio
import contextlib
import hashlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from agents import tls
from agents.contract import EngineOffer, JoinReply
from agents.engine_fetch import Fetcher, quiet_thread
from agents.errors import DiskFull, EngineDigestWrong, EngineNotFetched
from agents.join import Identity
from supervisor.adapters.authority import Authority

CONTENT = random.Random(8).randbytes(700_000)
OFFER = EngineOffer("b1", "llama-b1.tar.gz", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
Send = Callable[[int, asyncio.StreamWriter], Awaitable[None]]
"""Answers a request for what begins at a byte."""


async def whole(start: int, writer: asyncio.StreamWriter) -> None:
    status = "206 Partial Content" if start else "200 OK"
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(CONTENT) - start}\r\n\r\n"
    writer.write(head.encode() + CONTENT[start:])


def status(line: str) -> Send:
    async def answer(start: int, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n".encode())

    return answer


def first_bytes(count: int, then: Callable[[], Awaitable[None]]) -> Send:
    """``count`` bytes, and then something else than the rest."""

    async def answer(start: int, writer: asyncio.StreamWriter) -> None:
        code = "206 Partial Content" if start else "200 OK"
        head = f"HTTP/1.1 {code}\r\nContent-Length: {len(CONTENT) - start}\r\n\r\n"
        writer.write(head.encode() + CONTENT[start : start + count])
        await writer.drain()
        await then()

    return answer


async def nothing() -> None:
    """It hangs up."""


async def silence() -> None:
    await asyncio.sleep(30)


class Shop:
    """A main host that plays a list of answers, one per request, and remembers the ranges."""

    def __init__(self, authority: Authority, *answers: Send) -> None:
        self._authority = authority
        self._answers = list(answers)
        self.begun: list[int] = []
        self.told: list[int] = []
        self.port = 0

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(
            self._authority.supervisor_certificate, self._authority.supervisor_key
        )
        context.load_verify_locations(cadata=self._authority.certificate_pem)
        context.verify_mode = ssl.CERT_REQUIRED
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        tasks = self._tasks = set[asyncio.Task[None]]()
        async with server:
            yield
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert head.startswith("get /engines/llama-b1.tar.gz ")
            _, found, rest = head.partition("range: bytes=")
            start = int(rest.partition("-")[0]) if found else 0
            self.begun.append(start)
            answer = self._answers.pop(0) if self._answers else whole
            await answer(start, writer)
            await writer.drain()
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def fetch(
        self, folder: Path, *, stall_s: float = 5.0, offer: EngineOffer = OFFER
    ) -> None:
        """As a device that has joined."""
        issued = self._authority.issue(tls.agent_name("1"))
        identity = Identity(folder / "identity")
        identity.store(
            JoinReply(issued.certificate_pem, issued.key_pem, self._authority.certificate_pem)
        )
        endpoints = ["127.0.0.1:9", f"127.0.0.1:{self.port}"]
        fetcher = Fetcher(lambda: endpoints, identity, stall_first_s=stall_s, pause_first_s=0.01)
        with quiet_thread() as threads:
            await fetcher.fetch(offer, folder / "part", threads, self.told.append)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


async def test_a_cut_transfer_goes_on_where_it_ended(authority: Authority, tmp_path: Path) -> None:
    cut = first_bytes(300_000, nothing)
    shop = Shop(authority, cut, cut)
    async with shop.open():
        await shop.fetch(tmp_path)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert len(shop.begun) == 3
    assert shop.begun[0] == 0 < shop.begun[1] < shop.begun[2]
    assert shop.told == sorted(shop.told)
    assert shop.told[-1] == len(CONTENT)


async def test_what_an_earlier_run_fetched_is_not_asked_for_again(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "part").write_bytes(CONTENT[:500_000])
    shop = Shop(authority)
    async with shop.open():
        await shop.fetch(tmp_path)
        await shop.fetch(tmp_path)
    assert shop.begun == [500_000]


async def test_a_main_host_that_knows_no_ranges_begins_anew(
    authority: Authority, tmp_path: Path
) -> None:
    async def from_the_start(start: int, writer: asyncio.StreamWriter) -> None:
        await whole(0, writer)

    (tmp_path / "part").write_bytes(b"x" * 1000)
    shop = Shop(authority, from_the_start)
    async with shop.open():
        await shop.fetch(tmp_path)
    assert (tmp_path / "part").read_bytes() == CONTENT


async def test_silence_ends_an_attempt_and_not_the_transfer(
    authority: Authority, tmp_path: Path
) -> None:
    shop = Shop(authority, first_bytes(300_000, silence))
    async with asyncio.timeout(20), shop.open():
        await shop.fetch(tmp_path, stall_s=0.5)
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert len(shop.begun) == 2
    assert shop.begun[1] > 0


async def test_a_busy_main_host_is_asked_again(authority: Authority, tmp_path: Path) -> None:
    shop = Shop(authority, status("503 Busy"), status("500 Oops"))
    async with shop.open():
        await shop.fetch(tmp_path)
    assert shop.begun == [0, 0, 0]


async def test_who_does_not_give_it_is_not_asked_again(
    authority: Authority, tmp_path: Path
) -> None:
    shop = Shop(authority, status("404 Not Found"))
    async with shop.open():
        with pytest.raises(EngineNotFetched, match=r"llama-b1\.tar\.gz \(HTTP 404\)"):
            await shop.fetch(tmp_path)
    assert shop.begun == [0]


async def test_a_main_host_that_is_gone_is_given_up_after_a_while(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.engine_fetch._PAUSE_LONGEST_S", 0.01)
    (tmp_path / "part").write_bytes(CONTENT[:1000])
    shop = Shop(authority)  # never opened
    with pytest.raises(EngineNotFetched, match="1000 of 700000 bytes came"):
        await shop.fetch(tmp_path)
    assert (tmp_path / "part").read_bytes() == CONTENT[:1000], "the next attempt goes on there"


async def test_other_bytes_are_thrown_away(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"x" * 1000)
    shop = Shop(authority)
    async with shop.open():
        with pytest.raises(EngineDigestWrong, match="was thrown away"):
            await shop.fetch(tmp_path)
        assert not (tmp_path / "part").exists()
        await shop.fetch(tmp_path)
    assert (tmp_path / "part").read_bytes() == CONTENT


async def test_more_than_was_offered_is_not_taken(authority: Authority, tmp_path: Path) -> None:
    offer = EngineOffer("b1", OFFER.archive, OFFER.sha256, len(CONTENT) - 10)
    shop = Shop(authority)
    async with shop.open():
        with pytest.raises(EngineDigestWrong):
            await shop.fetch(tmp_path, offer=offer)
    assert shop.told[-1] == len(CONTENT) - 10


async def test_a_disk_that_takes_nothing_is_told(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "part").symlink_to("/dev/full")
    shop = Shop(authority)
    async with shop.open():
        with pytest.raises(DiskFull, match="No space left"):
            await shop.fetch(tmp_path)
