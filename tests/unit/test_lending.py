"""What a push leaves out while other devices bring it, and sends after all if they do not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from link_world import Heard, until, wired

from agents.chunks import ChunkName
from agents.gguf_tensors import read_tensors
from agents.link_frames import Kind, read_offer, read_seed
from supervisor.demo_model import write_demo_model
from supervisor.link.job import PlannedTensor
from supervisor.link.model_chunks import ModelChunks
from supervisor.link.outbox import Outbox
from supervisor.link.seeding import Seeder


class Sending:
    """A seeder, and a far end that has nothing and keeps everything."""

    def __init__(self, path: Path, folder: Path) -> None:
        with path.open("rb") as file:
            found = list(read_tensors(file, path.stat().st_size))
        self.tensors = [PlannedTensor(str(path), *span) for span in found if span[1] >= 64 << 10]
        chunks = ModelChunks(folder, [path])
        self.link, self.wire = wired(Heard())
        self.out = Outbox(self.link, 64 << 20, chunks, lambda: None)
        self.seeder = Seeder(self.out, chunks, self.tensors)
        self.sizes = {
            name: place.size_bytes
            for place, _ in chunks.chunks_of(map(Located, self.tensors))
            if (name := chunks.name_of(place))
        }
        self.sent: list[ChunkName] = []

    @property
    def names(self) -> list[ChunkName]:
        return list(self.sizes)

    async def answer(self) -> None:
        while True:
            for kind, body in self.wire.spoken():
                if kind is Kind.OFFER:
                    self.out.on_held(bytes(len(read_offer(memoryview(body)))))
                elif kind is Kind.SEED:
                    name, _ = read_seed(memoryview(body))
                    self.sent.append(name)
                    self.out.on_stored(name, is_stored=True)
            await asyncio.sleep(0.001)


class Located:
    def __init__(self, tensor: PlannedTensor) -> None:
        self.file = Path(tensor.file)
        self.offset_bytes, self.size_bytes = tensor.offset_bytes, tensor.size_bytes


@pytest.fixture
async def sending(tmp_path: Path) -> AsyncIterator[Sending]:
    path = tmp_path / "model.gguf"
    write_demo_model(path, recite=False)
    made = Sending(path, tmp_path / "index")
    answering = asyncio.create_task(made.answer())
    try:
        yield made
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


@contextlib.asynccontextmanager
async def running(sending: Sending) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(sending.seeder.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_another_device_brings_is_not_sent(sending: Sending) -> None:
    lent = sending.names[-5:]
    assert sending.seeder.lend(lent) == lent
    async with running(sending) as task:
        await until(lambda: len(sending.sent) == len(sending.names) - 5)
        await asyncio.sleep(0.05)
        assert not task.done(), "it waits for what is lent"
        sending.seeder.settle({name: sending.sizes[name] for name in lent}, [])
        async with asyncio.timeout(5):
            await task
    assert not set(sending.sent) & set(lent)
    assert sending.seeder.peer_bytes == sum(sending.sizes[name] for name in lent)
    assert sending.seeder.done_bytes == sending.seeder.total_bytes


async def test_what_is_given_back_is_sent_after_all_and_once(sending: Sending) -> None:
    lent = sending.names[:6]
    sending.seeder.lend(lent)
    async with running(sending) as task:
        await until(lambda: len(sending.sent) == len(sending.names) - 6)
        sending.seeder.settle({lent[0]: sending.sizes[lent[0]]}, lent[1:])
        async with asyncio.timeout(5):
            await task
    assert sorted(sending.sent) == sorted(set(sending.names) - {lent[0]})
    assert sending.seeder.done_bytes == sending.seeder.total_bytes


async def test_what_was_sent_is_not_lent(sending: Sending) -> None:
    async with running(sending) as task:
        async with asyncio.timeout(20):
            await task
        assert sending.seeder.lend(sending.names) == []
    assert sorted(sending.sent) == sorted(sending.names)


async def test_what_was_never_lent_cannot_be_settled(sending: Sending) -> None:
    sending.seeder.settle(dict(sending.sizes), [])
    assert sending.seeder.peer_bytes == 0
    async with running(sending) as task, asyncio.timeout(20):
        await task
    assert sorted(sending.sent) == sorted(sending.names)


async def test_a_chunk_that_stands_in_several_places_counts_in_each(sending: Sending) -> None:
    """Whoever brings it brings it once; what is done must still become the total."""
    seeder = Seeder(sending.out, sending.seeder._chunks, [*sending.tensors, *sending.tensors])
    sending.seeder = seeder
    lent = sending.names[-5:]
    assert seeder.lend(lent) == lent
    async with running(sending) as task:
        await until(lambda: len(sending.sent) == len(sending.names) - 5)
        seeder.settle({name: sending.sizes[name] for name in lent}, [])
        async with asyncio.timeout(20):
            await task
    assert seeder.done_bytes == seeder.total_bytes
    assert seeder._own_bytes + seeder.peer_bytes == seeder.total_bytes
