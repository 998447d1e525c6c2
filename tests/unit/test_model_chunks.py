"""The chunks of a model on this host: named as they are asked for, once, and never wrong."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_gguf_index import KIB, cache_of, flip_a_bit_unnoticed, truncate, write_model

from agents import gguf_index
from agents.chunks import CHUNK_BYTES, ChunkName, Data, chunk_name, hash_chunks
from agents.gguf_index import GgufIndex, Span
from agents.gguf_tensors import NotIndexable, read_tensors
from supervisor.core.seeding import FileTensor
from supervisor.link.model_chunks import ChunkPlace, ModelChunks


def tensors_of(*paths: Path) -> list[FileTensor]:
    """As a caller has them who has read the headers."""
    found = []
    for path in paths:
        with path.open("rb") as file:
            places = read_tensors(file, path.stat().st_size)
        found += [FileTensor(f"t{i}", path, *place) for i, place in enumerate(places)]
    return found


def opened(tmp_path: Path, *paths: Path) -> ModelChunks:
    return ModelChunks(tmp_path / "cache", paths)


def known(chunks: ModelChunks, *paths: Path) -> list[ChunkName | None]:
    return [name for _, name in chunks.chunks_of(tensors_of(*paths))]


def places(chunks: ModelChunks, *paths: Path) -> list[ChunkPlace]:
    return [place for place, _ in chunks.chunks_of(tensors_of(*paths))]


def holds(chunks: ModelChunks, name: ChunkName) -> bool:
    data = chunks.read(name)
    return data is not None and list(hash_chunks(memoryview(data))) == [name]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the chunks that were hashed, to name or to verify them."""
    sizes: list[int] = []

    def counting(data: Data) -> ChunkName:
        if len(data) >= 20 * KIB:  # the path of a file is hashed too
            sizes.append(len(data))
        return chunk_name(data)

    monkeypatch.setattr(gguf_index, "chunk_name", counting)
    yield sizes


def test_chunks_are_named_when_they_are_asked_for_and_not_before(
    tmp_path: Path, hashed: list[int]
) -> None:
    one, two = tmp_path / "a-00001-of-00002.gguf", tmp_path / "a-00002-of-00002.gguf"
    names = write_model(one, [2 * CHUNK_BYTES + 20 * KIB, 63 * KIB, 64 * KIB])
    names += write_model(two, [CHUNK_BYTES], seed=2)
    chunks = opened(tmp_path, one, two)
    wanted = places(chunks, one, two)
    assert [(p.file, p.size_bytes) for p in wanted] == [
        *[(one, size) for size in (CHUNK_BYTES, CHUNK_BYTES, 20 * KIB, 64 * KIB)],
        (two, CHUNK_BYTES),
    ]
    assert known(chunks, one, two) == [None] * 5
    assert hashed == []
    assert chunks.read(names[0]) is None, "not named yet"
    for index in (4, 0, 2):
        assert chunks.name_of(wanted[index]) == names[index]
    assert hashed == [CHUNK_BYTES, CHUNK_BYTES, 20 * KIB]
    assert known(chunks, one, two) == [names[0], None, names[2], None, names[4]]
    assert all(holds(chunks, names[index]) for index in (0, 2, 4))
    assert chunks.name_of(wanted[0]) == names[0]
    assert len(hashed) == 3 + 3, "the three reads were verified, nothing was named again"


def test_the_next_launch_knows_what_was_named_in_any_order(
    tmp_path: Path, hashed: list[int]
) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 100)
    order = random.Random(1).sample(range(100), 60)
    chunks = opened(tmp_path, path)
    wanted = places(chunks, path)
    for index in order:
        chunks.name_of(wanted[index])
    again = opened(tmp_path, path)
    assert known(again, path) == [
        name if index in order else None for index, name in enumerate(names)
    ]
    assert [again.name_of(wanted[index]) for index in order] == [names[i] for i in order]
    assert len(hashed) == 60
    assert all(holds(again, names[index]) for index in order)


def test_an_index_of_the_whole_file_goes_on_from_it_and_the_other_way_round(
    tmp_path: Path, hashed: list[int]
) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 100)
    chunks = opened(tmp_path, path)
    for place in places(chunks, path)[::3]:
        chunks.name_of(place)
    index = GgufIndex(tmp_path / "cache")
    assert index.index_gguf([path]).indexed == (path,)
    assert len(hashed) == 100
    assert index.has(names) == set(names)
    assert known(opened(tmp_path, path), path) == names
    assert GgufIndex(tmp_path / "cache").index_gguf([path]).indexed == (path,)
    assert len(hashed) == 100


NAME_FOR_EVER = """
import sys
from pathlib import Path
from agents.gguf_index import GgufIndex, Span
index, path = GgufIndex(Path(sys.argv[1])), Path(sys.argv[2])
index.recall(path)
print("ready", flush=True)
for offset in range(path.stat().st_size - 65536):
    index.name_chunk(path, Span(offset, 65536))
"""


def test_what_was_named_before_a_kill_9_is_there_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 100)
    argv = [sys.executable, "-c", NAME_FOR_EVER, str(tmp_path / "cache"), str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        while cache_of(tmp_path).stat().st_size < 50 * 44:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    with cache_of(tmp_path).open("ab") as file:
        file.write(b"torn")
    index = GgufIndex(tmp_path / "cache")
    before = index.recall(path)
    assert len(before) > 40
    assert all(index.get(name) for name in before.values())
    chunks = opened(tmp_path, path)
    assert [chunks.name_of(place) for place in places(chunks, path)] == names
    after = index.recall(path)
    assert before.items() < after.items(), "what is torn does not spoil what is appended"
    assert known(opened(tmp_path, path), path) == names


def test_several_threads_and_indexes_name_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 200)
    several = [opened(tmp_path, path) for _ in range(2)]
    wanted = places(several[0], path)

    def name_all(chunks: ModelChunks, seed: int) -> None:
        for index in random.Random(seed).sample(range(200), 200):
            assert chunks.name_of(wanted[index]) == names[index]
            assert holds(chunks, names[index])

    threads = [
        threading.Thread(target=name_all, args=(chunks, seed))
        for seed, chunks in enumerate([*several, *several])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert known(opened(tmp_path, path), path) == names


def replace(path: Path) -> None:
    write_model(path, [64 * KIB] * 3, seed=2)


def touch(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize("harm", [truncate, replace, touch, Path.unlink])
def test_nothing_of_a_file_that_changed_is_named(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    names = write_model(path, [64 * KIB] * 3)
    others = write_model(other, [64 * KIB], seed=3)
    chunks = opened(tmp_path, path, other)
    wanted, elsewhere = places(chunks, path), places(chunks, other)
    assert chunks.name_of(wanted[0]) == names[0]
    harm(path)
    assert [chunks.name_of(place) for place in wanted[1:]] == [None, None]
    assert chunks.read(names[1]) is None
    assert chunks.read(names[0]) is None or holds(chunks, names[0])
    assert chunks.name_of(elsewhere[0]) == others[0]
    assert caplog.messages.count("model_chunks.file_refused") == 1
    with contextlib.suppress(OSError, NotIndexable):
        assert GgufIndex(tmp_path / "cache").recall(path) == {}, "not of this version"


def test_bytes_that_changed_unnoticed_are_not_given(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 3)
    chunks = opened(tmp_path, path)
    for place in places(chunks, path):
        chunks.name_of(place)
    flip_a_bit_unnoticed(path)
    assert chunks.read(names[1]) is None
    assert known(opened(tmp_path, path), path) == [None] * 3, "the cache is not believed either"


def test_a_file_that_cannot_be_used_has_no_chunks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone, page, good = tmp_path / "gone.gguf", tmp_path / "page.gguf", tmp_path / "good.gguf"
    page.write_text("<html>")
    names = write_model(good, [64 * KIB])
    chunks = opened(tmp_path, gone, page, good)
    assert caplog.messages == ["model_chunks.file_refused"] * 2
    assert chunks.name_of(ChunkPlace(gone, 0, 64 * KIB)) is None
    assert chunks.name_of(ChunkPlace(page, 0, 6)) is None
    assert chunks.name_of(ChunkPlace(tmp_path / "never named.gguf", 0, 6)) is None
    assert [chunks.name_of(place) for place in places(chunks, good)] == names
    assert len(caplog.messages) == 2


def test_without_room_for_its_cache_a_model_is_named_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.gguf"
    names = write_model(path, [64 * KIB] * 3)
    (tmp_path / "cache").write_text("in the way")
    chunks = opened(tmp_path, path)
    assert [chunks.name_of(place) for place in places(chunks, path)] == names
    assert all(holds(chunks, name) for name in names)
    assert caplog.messages == ["gguf_index.cache_not_written"]


def test_a_cache_that_another_made_for_a_new_version_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, [64 * KIB] * 3)
    index = GgufIndex(tmp_path / "cache")
    index.recall(path)
    facts = path.stat()
    new = write_model(path, [64 * KIB] * 5, seed=2)
    opened(tmp_path, path)
    cache = cache_of(tmp_path).read_bytes()
    os.truncate(path, facts.st_size)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as it was, for a moment
    index.name_chunk(path, Span(facts.st_size - 64 * KIB, 64 * KIB))
    assert caplog.messages == ["gguf_index.cache_not_written"]
    assert cache_of(tmp_path).read_bytes() == cache
    assert len(new) == 5


def test_a_place_beyond_the_end_has_no_name(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(path, [64 * KIB])
    index = GgufIndex(tmp_path / "cache")
    index.recall(path)
    with pytest.raises(NotIndexable, match="ends before byte"):
        index.name_chunk(path, Span(path.stat().st_size - 10, 20))
