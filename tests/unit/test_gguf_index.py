"""Chunks out of GGUF files: offered without a copy, named once, never wrong."""

import json
import os
import random
import struct
import threading
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import pytest
from made_gguf import Tensor, gguf

from agents import gguf_index
from agents.chunks import (
    CHUNK_BYTES,
    SMALLEST_TENSOR_BYTES,
    ChunkName,
    Data,
    chunk_name,
    hash_chunks,
)
from agents.gguf_index import GgufIndex, IndexProgress

KIB = 1 << 10
F32 = 0


def write_model(path: Path, sizes: list[int], seed: int = 1) -> list[ChunkName]:
    """A GGUF of f32 tensors of ``sizes`` bytes; returns the names of their chunks."""
    rng = random.Random(seed)
    tensors: list[Tensor] = []
    names: list[ChunkName] = []
    data = b""
    for index, size in enumerate(sizes):
        weights = rng.randbytes(size)
        tensors.append((f"t{index}", (size // 4,), F32, len(data)))
        names += hash_chunks(memoryview(weights)) if size >= SMALLEST_TENSOR_BYTES else ()
        data += weights + bytes(-size % 32)
    path.write_bytes(gguf(tensors=tensors, data_bytes=0) + data)
    return names


def test_the_chunks_of_all_parts_are_offered(tmp_path: Path) -> None:
    one, two = tmp_path / "a-00001-of-00002.gguf", tmp_path / "a-00002-of-00002.gguf"
    sizes = [2 * CHUNK_BYTES + 20, 63 * KIB, 64 * KIB]
    names = write_model(one, sizes) + write_model(two, [CHUNK_BYTES], seed=2)
    index = GgufIndex(tmp_path / "cache")
    assert index.has(names) == set()
    seen: list[IndexProgress] = []
    report = index.index_gguf([one, two], on_progress=seen.append)
    assert (report.indexed, report.refused, report.cancelled) == ((one, two), {}, False)
    assert len(names) == 5
    assert [step.total_bytes for step in seen] == [2 * CHUNK_BYTES + 20 + 64 * KIB, CHUNK_BYTES]
    assert index.has(names) == set(names)
    for name in names:
        assert list(hash_chunks(memoryview(index.get(name) or b""))) == [name]
    buffer = bytearray(CHUNK_BYTES + 5)
    assert index.readinto(names[2], buffer) == 20
    assert list(hash_chunks(memoryview(buffer)[:20])) == [names[2]]
    with pytest.raises(ValueError, match="does not fit into a buffer of 9"):
        index.readinto(names[0], bytearray(9))


def test_files_that_cannot_be_used_are_reported_and_the_others_are_indexed(tmp_path: Path) -> None:
    good, html = tmp_path / "good.gguf", tmp_path / "page.gguf"
    fifo, gone = tmp_path / "fifo.gguf", tmp_path / "gone.gguf"
    names = write_model(good, [64 * KIB])
    html.write_text("<html>")
    os.mkfifo(fifo)
    index = GgufIndex(tmp_path / "cache")
    report = index.index_gguf([gone, html, fifo, tmp_path, good])
    assert report.indexed == (good,)
    assert list(report.refused) == [gone, html, fifo, tmp_path]
    assert "No such file" in report.refused[gone]
    assert report.refused[html] == "it is not a GGUF file"
    assert report.refused[fifo] == report.refused[tmp_path] == "it is not a regular file"
    assert index.has(names) == set(names)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the chunks that were named while indexing or verified while reading."""
    sizes: list[int] = []

    def counting(data: Data) -> ChunkName:
        sizes.append(len(data))
        return chunk_name(data)

    monkeypatch.setattr(gguf_index, "chunk_name", counting)
    return sizes


def cache_of(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache").iterdir()
    return path


def chunks_hashed(sizes: list[int]) -> int:
    return sum(size >= 64 * KIB for size in sizes)


def test_a_restart_names_nothing_again(tmp_path: Path, hashed: list[int]) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 40)
    seen: list[IndexProgress] = []
    GgufIndex(tmp_path / "cache").index_gguf([path], on_progress=seen.append)
    assert [step.done_bytes for step in seen] == [32 * 64 * KIB, 40 * 64 * KIB]
    assert {(step.path, step.total_bytes) for step in seen} == {(path, 40 * 64 * KIB)}
    assert chunks_hashed(hashed) == 40
    again = GgufIndex(tmp_path / "cache")
    assert again.index_gguf([path], on_progress=seen.append).indexed == (path,)
    assert seen[2] == IndexProgress(path, 40 * 64 * KIB, 40 * 64 * KIB)
    assert chunks_hashed(hashed) == 40
    assert again.has(names) == set(names)
    assert again.get(names[39])


def test_a_cancelled_run_goes_on_where_it_was(tmp_path: Path, hashed: list[int]) -> None:
    path, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    names = write_model(path, [64 * KIB] * 100)
    write_model(other, [64 * KIB])
    cancel = threading.Event()
    index = GgufIndex(tmp_path / "cache")
    report = index.index_gguf([path, other], on_progress=lambda step: cancel.set(), cancel=cancel)
    assert (report.indexed, report.refused, report.cancelled) == ((), {}, True)
    assert index.has(names) == set(names[:32]), "what is named is offered already"
    with cache_of(tmp_path).open("ab") as file:
        file.write(b"torn by a kill")
    index = GgufIndex(tmp_path / "cache")
    assert index.index_gguf([path]).indexed == (path,)
    assert chunks_hashed(hashed) == 100
    for again in (index, GgufIndex(tmp_path / "cache")):
        again.index_gguf([path])
        assert again.has(names) == set(names)
        assert all(again.get(name) for name in names[30:35])
    assert index.index_gguf([path, other], cancel=cancel).indexed == ()


@pytest.mark.parametrize("count", [2, 3])
def test_a_file_that_is_replaced_is_named_again(tmp_path: Path, count: int) -> None:
    path = tmp_path / "model.gguf"
    old = write_model(path, [64 * KIB] * 3)
    os.utime(path, (1, 1))
    index = GgufIndex(tmp_path / "cache")
    index.index_gguf([path])
    new = write_model(path, [64 * KIB] * count, seed=2)
    index.index_gguf([path])
    assert index.has([*old, *new]) == set(new)
    assert all(index.get(name) for name in new)


def test_a_file_that_did_not_change_is_offered_without_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB])
    index = GgufIndex(tmp_path / "cache")
    index.index_gguf([path])
    monkeypatch.setattr(index, "_forget", lambda path: pytest.fail("a load may read it just now"))
    assert index.index_gguf([path]).indexed == (path,)
    assert index.has(names) == set(names)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 64 * KIB - 1)


def flip_a_bit_unnoticed(path: Path) -> None:
    facts = path.stat()
    content = bytearray(path.read_bytes())
    content[-64 * KIB - 10] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("harm", [truncate, flip_a_bit_unnoticed, Path.unlink])
def test_a_file_that_changes_gives_no_wrong_bytes(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 3)
    index = GgufIndex(tmp_path / "cache")
    index.index_gguf([path])
    assert index.get(names[1])
    harm(path)
    assert index.get(names[1]) is None
    assert index.readinto(names[1], bytearray(64 * KIB)) is None
    assert index.has(names) == set(), "the rest of the file is not believed either"
    assert caplog.messages == ["gguf_index.file_lost"]
    index.index_gguf([path])
    assert names[1] not in index.has(names)
    assert all(index.get(name) for name in index.has(names))


def test_a_file_that_grows_while_it_is_named_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 70)

    def grow(step: IndexProgress) -> None:
        with path.open("ab") as file:
            file.write(b"x")

    index = GgufIndex(tmp_path / "cache")
    report = index.index_gguf([path], on_progress=grow)
    assert "changed while it was read" in report.refused[path]
    assert index.has(names) == set()


@pytest.mark.parametrize(
    "harm",
    [
        lambda cache: cache[:10],
        lambda cache: b"[]\n" + cache,
        lambda cache: cache.replace(b"sha256", b"sha512"),
        lambda cache: cache.replace(str(CHUNK_BYTES).encode(), b"4096"),
        lambda cache: cache[:-4] + b"\xff" * 4,
    ],
    ids=["torn", "no head", "other hash", "other cut", "impossible"],
)
def test_a_void_cache_is_made_again(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 3)
    GgufIndex(tmp_path / "cache").index_gguf([path])
    cache = cache_of(tmp_path)
    sound = cache.read_bytes()
    cache.write_bytes(harm(sound))
    head = {"path": str(path)}  # pruning looks at the path
    assert json.loads(sound.partition(b"\n")[0]).items() >= head.items()
    index = GgufIndex(tmp_path / "cache")
    assert index.index_gguf([path]).indexed == (path,)
    assert index.has(names) == set(names)
    assert all(index.get(name) for name in names)
    assert cache.read_bytes() == sound


def test_a_wrong_cache_gives_no_wrong_bytes_and_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 3)
    GgufIndex(tmp_path / "cache").index_gguf([path])
    cache = cache_of(tmp_path)
    content = bytearray(cache.read_bytes())
    content[-12:-4] = struct.pack("<Q", 7)  # the last chunk's offset
    cache.write_bytes(content)
    index = GgufIndex(tmp_path / "cache")
    index.index_gguf([path])
    assert index.get(names[2]) is None
    assert not cache.exists()
    index.index_gguf([path])
    assert all(index.get(name) for name in names)


def test_caches_of_files_that_are_gone_are_deleted(tmp_path: Path) -> None:
    kept, gone = tmp_path / "kept.gguf", tmp_path / "gone.gguf"
    for path in (kept, gone):
        write_model(path, [64 * KIB])
    GgufIndex(tmp_path / "cache").index_gguf([kept, gone])
    assert len(list((tmp_path / "cache").iterdir())) == 2
    gone.unlink()
    GgufIndex(tmp_path / "cache")
    assert f'"path": "{kept}"'.encode() in cache_of(tmp_path).read_bytes()


def test_without_room_for_its_cache_a_file_is_offered_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 70)
    (tmp_path / "cache").write_text("in the way")
    index = GgufIndex(tmp_path / "cache")
    assert index.index_gguf([path]).indexed == (path,)
    assert index.has(names) == set(names)
    assert caplog.messages == ["gguf_index.cache_not_written"]


def test_a_cache_that_fills_the_disk_is_gone_on_with_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 100)

    class FullDisk(FileIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]  # we write bytes only
            return super().write(data[: min(len(data), 2000 - self.tell())])

    with monkeypatch.context() as patch:
        patch.setattr(gguf_index, "FileIO", FullDisk)
        index = GgufIndex(tmp_path / "cache")
        assert index.index_gguf([path]).indexed == (path,)
    assert index.has(names) == set(names)
    assert caplog.messages == ["gguf_index.cache_not_written"]
    assert cache_of(tmp_path).stat().st_size == 2000
    for _ in range(2):
        index = GgufIndex(tmp_path / "cache")
        assert index.index_gguf([path]).indexed == (path,)
        assert all(index.get(name) for name in names)


def test_chunks_are_read_while_another_file_is_named(tmp_path: Path) -> None:
    path, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    names = write_model(path, [64 * KIB] * 5)
    others = write_model(other, [64 * KIB] * 200, seed=2)
    index = GgufIndex(tmp_path / "cache")
    index.index_gguf([path])
    worker = threading.Thread(target=index.index_gguf, args=([path, other],))
    worker.start()
    reads = 0
    while worker.is_alive() or not reads:
        assert all(index.get(name) for name in names)
        reads += 1
    worker.join()
    assert index.has([*names, *others]) == {*names, *others}
