"""Names of a model's chunks: computed once, for all who ask, and told to each how far it is."""

import asyncio
import threading
from pathlib import Path

import pytest

from agents.gguf_tensors import read_tensors
from supervisor.core.seeding import FileTensor
from supervisor.demo_model import write_demo_model
from supervisor.link.model_chunks import ChunkPlace, ModelChunks
from supervisor.service import naming
from supervisor.service.naming import ChunkNamer


@pytest.fixture
def tensors(tmp_path: Path) -> tuple[FileTensor, ...]:
    path = tmp_path / "model.gguf"
    write_demo_model(path, layers=2, recite=False)
    with path.open("rb") as file:
        found = list(read_tensors(file, path.stat().st_size))
    return tuple(FileTensor(f"t{n}", path, *span) for n, span in enumerate(found))


async def test_a_model_that_several_devices_get_is_counted_once(
    tensors: tuple[FileTensor, ...], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    namer = ChunkNamer(tmp_path / "names")
    shares = {"a": tensors, "b": (*tensors[3:], *tensors[:3]), "c": tensors[:4]}
    named = await namer.named(shares, lambda *bytes_: told.append(bytes_))
    large = [tensor.size_bytes for tensor in tensors if tensor.size_bytes >= 64 << 10]
    assert told[-1] == (sum(large), sum(large))
    assert dict(named["a"]) == dict(named["b"])
    assert set(named["c"]) < set(named["a"])


async def test_who_comes_second_waits_hears_how_far_it_is_and_hashes_nothing(
    tensors: tuple[FileTensor, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go, hashed = threading.Event(), []
    name_of = ModelChunks.name_of

    def slow(self: ModelChunks, place: ChunkPlace) -> object:
        may_go.wait(20)
        hashed.append(place)
        return name_of(self, place)

    monkeypatch.setattr(ModelChunks, "name_of", slow)
    monkeypatch.setattr(naming, "_TELL_S", 0.02)
    namer, heard = ChunkNamer(tmp_path / "names"), asyncio.Event()
    first = asyncio.create_task(namer.named({"a": tensors}, lambda *_: None))
    second = asyncio.create_task(namer.named({"b": tensors}, lambda *_: heard.set()))
    leaving = asyncio.create_task(namer.named({"c": tensors}, lambda *_: None))
    async with asyncio.timeout(20):
        await heard.wait()
        leaving.cancel()
        may_go.set()
        one, two = await asyncio.gather(first, second)
    assert one["a"] == two["b"]
    assert len(hashed) == len(set(hashed))
    assert (await namer.named({"a": tensors}, lambda *_: None))["a"] == one["a"], "nobody is stuck"
