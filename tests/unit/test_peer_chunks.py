"""Chunks from device to device: who may read, what is believed, and what remains of it."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from lab.linked import FarSide, Lab, Served
from made_chunks import made

from agents import tls
from agents.chunk_store import ChunkStore
from agents.chunks import ChunkName
from agents.errors import BadMessage, FetchUnknown
from agents.far_end import FarEnd, server_context
from agents.link_frames import LINK_PROTOCOL, Kind, Welcome, header, pack_json
from agents.link_session import Stock
from agents.peer_chunks import LONGEST_GRANT_S, PeerChunks
from agents.peer_fetch import Fetches
from agents.peer_messages import FetchOrder, FetchStatus, PeerGrant

KIB = 1 << 10


@dataclass
class Device:
    """One that fetches: its identity, its store, its fetches."""

    name: str
    serial: str
    stock: Stock
    fetches: Fetches
    context: Callable[[], ssl.SSLContext]


@dataclass
class World:
    lab: Lab
    receiver: Device
    source: FarSide
    far_end: FarEnd
    """Of the source."""

    @property
    def peers(self) -> PeerChunks:
        return self.far_end.peers

    def has(self, *chunks: tuple[ChunkName, bytes]) -> list[ChunkName]:
        """Give the source these."""
        for name, data in chunks:
            self.far_end.stock.store.put(name, data)
        return [name for name, _ in chunks]

    def allow(self, seconds: float = 60.0, limit_bytes_per_s: int = 0) -> None:
        receiver = self.receiver
        self.peers.allow(PeerGrant(receiver.name, receiver.serial, seconds, limit_bytes_per_s))

    def order(self, names: list[ChunkName], start: int = 0, **more: object) -> FetchStatus:
        worker = self.source.worker
        order = FetchOrder(
            id="f",
            agent_id=worker.agent_id,
            serial=worker.serial,
            places=[f"127.0.0.1:{worker.link_port}"],
            names=[name.hex() for name in names],
            start=start,
        )
        return self.receiver.fetches.order(replace(order, **more))  # type: ignore[arg-type]

    def held(self) -> int:
        return self.receiver.stock.store.usage().chunks

    async def settled(self, count: int, within_s: float = 20.0) -> FetchStatus:
        async with asyncio.timeout(within_s):
            while True:
                status = self.receiver.fetches.status("f")
                if status.done_chunks >= count or status.is_over:
                    return status
                await asyncio.sleep(0.01)

    async def over(self, within_s: float = 20.0) -> FetchStatus:
        return await self.settled(1 << 30, within_s)


@contextlib.asynccontextmanager
async def device(lab: Lab, name: str) -> AsyncIterator[Device]:
    folder = lab.folder / name
    folder.mkdir()
    issued = lab.authority.issue(tls.agent_name(name))
    certificate, key = folder / "agent.crt", folder / "agent.key"
    certificate.write_text(issued.certificate_pem)
    key.write_text(issued.key_pem)

    def context() -> ssl.SSLContext:
        return tls.client_context(lab.authority.certificate_pem, certificate, key)

    threads = ThreadPoolExecutor(2)
    stock = Stock(ChunkStore(folder / "chunks"), (), threads)
    fetches = Fetches(stock, context)
    try:
        yield Device(name, issued.serial, stock, fetches, context)
    finally:
        await fetches.close()
        threads.shutdown()


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    lab, made_ends = Lab(tmp_path), []
    init = FarEnd.__init__

    def remembered(self: FarEnd, *arguments: object) -> None:
        init(self, *arguments)  # type: ignore[arg-type]
        made_ends.append(self)

    monkeypatch.setattr(FarEnd, "__init__", remembered)
    served = Served(1, "7.0.0", ())
    async with lab.far_side("source", served) as source, device(lab, "receiver") as receiver:
        yield World(lab, receiver, source, made_ends[0])


async def test_chunks_come_by_name_and_are_kept(world: World) -> None:
    names = world.has(*(made(seed, 300 * KIB) for seed in range(9)))
    world.allow()
    world.order(names[:4])
    world.order(names[4:], start=4)
    world.order(names[4:], start=4)  # repeated, as after an answer that was lost
    status = await world.settled(9)
    assert (status.done_chunks, status.lacking, status.is_over) == (9, [], False)
    assert status.done_bytes == 9 * 300 * KIB
    assert world.receiver.stock.store.has(names) == set(names)
    for seed, name in enumerate(names):
        assert world.receiver.stock.store.get(name) == made(seed, 300 * KIB)[1]


async def test_what_is_here_already_is_not_fetched_and_what_is_nowhere_is_told(
    world: World,
) -> None:
    chunks = [made(seed, 64 * KIB) for seed in range(4)]
    names = world.has(*chunks[:2])
    world.receiver.stock.store.put(*chunks[2])
    world.allow()
    world.order([chunks[2][0], names[0], chunks[3][0], names[1]])
    status = await world.settled(4)
    assert (status.done_chunks, status.lacking) == (4, [2])
    assert status.done_bytes == 2 * 64 * KIB
    assert world.held() == 3


@pytest.mark.parametrize("why", ["no grant", "another's", "over", "taken back"])
async def test_nobody_reads_without_a_grant(world: World, why: str) -> None:
    names = world.has(made(1, 64 * KIB))
    match why:
        case "another's":
            world.peers.allow(PeerGrant("somebody", world.receiver.serial, 60.0))
            world.peers.allow(PeerGrant("receiver", "abcdef", 60.0))
        case "over":
            world.allow(seconds=0.05)
            await asyncio.sleep(0.1)
        case "taken back":
            world.allow()
            world.allow(seconds=0)
    world.order(names)
    status = await world.over()
    assert status.is_over
    assert status.error_code == "link_lost"
    assert "cannot be reached" in status.detail
    assert world.held() == 0


async def test_a_grant_that_is_taken_back_ends_what_goes_on(world: World) -> None:
    names = world.has(*(made(seed, 1 << 20) for seed in range(8)))
    world.allow(limit_bytes_per_s=2 << 20)
    world.order(names)
    await world.settled(1)
    world.allow(seconds=0)
    status = await world.over()
    assert 0 < status.done_chunks < 8
    assert world.held() == status.done_chunks, "what had come stays"


async def test_who_holds_a_grant_may_not_speak_as_the_supervisor(world: World) -> None:
    """It gets in to say which chunks it wants; anything else ends it."""
    world.allow()
    worker = world.source.worker
    for spoken in (
        header(Kind.OFFER, 36) + bytes(36),
        header(Kind.HELLO, 2) + b"{}",
        header(Kind.WANT, 7) + bytes(7),
    ):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            worker.link_port,
            ssl=world.receiver.context(),
            server_hostname=tls.agent_name("source"),
        )
        async with asyncio.timeout(10):
            await reader.readexactly(5)  # the head of its WELCOME
            writer.write(spoken)
            with contextlib.suppress(ConnectionError):
                while await reader.read(1 << 16):
                    pass
        writer.transport.abort()


async def test_a_limit_is_kept(world: World) -> None:
    names = world.has(*(made(seed, 1 << 20) for seed in range(6)))
    world.allow(limit_bytes_per_s=4 << 20)
    started_s = asyncio.get_running_loop().time()
    world.order(names)
    await world.settled(6)
    took_s = asyncio.get_running_loop().time() - started_s
    assert took_s >= (6 - 2) / 4, "6 MiB at 4 MiB/s, but for what a rest may make up for"


async def test_a_launch_goes_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.peers, "_is_serving", lambda: True)
    names = world.has(*(made(seed, 1 << 20) for seed in range(4)))
    world.allow()
    started_s = asyncio.get_running_loop().time()
    world.order(names)
    await world.settled(4)
    assert asyncio.get_running_loop().time() - started_s >= (4 - 2) / 2


@contextlib.asynccontextmanager
async def liar(
    lab: Lab, answer: Callable[[bytes], bytes], protocol: int = LINK_PROTOCOL
) -> AsyncIterator[tuple[int, str]]:
    """A device of the cluster that answers what it likes; its port and serial number."""
    folder = lab.folder / "liar"
    folder.mkdir()
    issued = lab.authority.issue(tls.agent_name("source"))
    certificate, key = folder / "agent.crt", folder / "agent.key"
    certificate.write_text(issued.certificate_pem)
    key.write_text(issued.key_pem)
    context = server_context(certificate, key, lab.authority.certificate_path)
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = pack_json(asdict(Welcome(protocol=protocol)))
        writer.write(header(Kind.WELCOME, len(body)) + body)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(int.from_bytes(head[1:], "little"))
                if head[0] == Kind.WANT:
                    writer.write(answer(body[:32]))
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], issued.serial
    finally:
        over.set()
        server.close()


@pytest.mark.parametrize("lie", ["wrong bytes", "another chunk", "too much", "nonsense"])
async def test_a_device_that_lies_is_left(world: World, lie: str) -> None:
    name, _ = made(1, 64 * KIB)
    answers = {
        "wrong bytes": lambda asked: header(Kind.CHUNK, 32 + 4) + asked + b"evil",
        "another chunk": lambda asked: header(Kind.CHUNK, 32 + 4) + bytes(32) + b"evil",
        "too much": lambda asked: header(Kind.CHUNK, 1 << 30) + asked,
        "nonsense": lambda asked: b"\xff" * 64,
    }
    async with liar(world.lab, answers[lie]) as (port, serial):
        world.order([name], serial=serial, places=[f"127.0.0.1:{port}"])
        status = await world.over()
    assert status.is_over
    assert status.error_code == ("peer_failed" if lie == "wrong bytes" else "link_framing")
    assert world.held() == 0


async def test_a_device_that_is_not_the_one_that_was_told_gets_no_word(world: World) -> None:
    name, _ = made(1, 64 * KIB)
    async with liar(world.lab, lambda asked: b"") as (port, _):
        world.order([name], places=[f"127.0.0.1:{port}"])  # with the real one's serial number
        status = await world.over()
    assert "shows certificate" in status.detail


async def test_a_device_of_another_version_is_left_and_that_is_said(world: World) -> None:
    name, _ = made(1, 64 * KIB)
    newer = LINK_PROTOCOL + 1
    async with liar(world.lab, lambda asked: b"", newer) as (port, serial):
        world.order([name], serial=serial, places=[f"127.0.0.1:{port}"])
        status = await world.over()
    assert status.error_code == "peer_unsupported"
    assert f"speaks link protocol {newer}" in status.detail


async def test_a_device_that_answers_nowhere_is_given_up_soon(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many places it may have: the main host sends what it was to bring."""
    monkeypatch.setattr("agents.peer_fetch._PLACE_S", 0.2)
    monkeypatch.setattr("agents.peer_fetch._CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes callers, and says nothing
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        world.order([made(1, 64 * KIB)[0]], places=[place] * 6)
        status = await world.over()
    assert status.detail.count("no answer") < 6


async def test_small_chunks_count_as_what_they_are(world: World) -> None:
    names = world.has(*(made(seed, 64 * KIB) for seed in range(64)))
    world.allow(limit_bytes_per_s=4 << 20)
    world.order(names)
    status = await world.settled(64, within_s=8.0)
    assert status.done_chunks == 64, "4 MiB at 4 MiB/s"


async def test_a_device_that_goes_silent_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.peer_fetch.STALL_S", 1.0)
    monkeypatch.setattr("agents.peer_fetch.PEER_SILENCE_S", 60.0)
    name, _ = made(1, 64 * KIB)
    async with liar(world.lab, lambda asked: b"") as (port, serial):
        world.order([name], serial=serial, places=[f"127.0.0.1:{port}"])
        status = await world.over()
    assert status.error_code == "peer_failed"
    assert "gave nothing" in status.detail


async def test_orders_that_cannot_be(world: World) -> None:
    name, _ = made(1, 64 * KIB)
    with pytest.raises(FetchUnknown):
        world.order([name], start=3)
    with pytest.raises(FetchUnknown):
        world.receiver.fetches.status("f")
    for text in ("xx", "ab"):
        with pytest.raises(BadMessage):
            world.receiver.fetches.order(
                FetchOrder("f", "source", "ab", ["127.0.0.1:1"], names=[text])
            )
    for places in ([], ["nowhere"], ["127.0.0.1:1"] * 7):
        with pytest.raises(BadMessage):
            world.order([name], places=places)
    for grant in (
        PeerGrant("a", "no number", 1.0),
        PeerGrant("a", "ab", LONGEST_GRANT_S + 1),
        PeerGrant("a", "ab", -1.0),
        PeerGrant("a", "ab", 1.0, -1),
    ):
        with pytest.raises(BadMessage):
            world.peers.allow(grant)
