"""The store of weight chunks on disks that are full or read-only, and after kill -9."""

import errno
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_chunks import (
    KIB,
    NO_ROOM,
    PLENTY_BYTES,
    STORED,
    age,
    files_in,
    flip,
    made,
    path_of,
    put_all,
)

from agents import chunk_store
from agents.chunk_store import REST_S, ChunkStore
from agents.chunks import ChunkName

# Disks that refuse


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_is_named_once_and_tried_again_later(
    tmp_path: Path,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    now_s = time.time()
    store = ChunkStore(tmp_path, 4 * 4 * KIB, clock=lambda: now_s)
    names = put_all(store, range(3))
    attempts = 0
    write = os.write

    def refuse(handle: int, data: memoryview) -> int:
        nonlocal attempts
        attempts += 1
        if attempts % 2:
            return write(handle, data[: len(data) // 2])
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        assert {store.put(*made(seed)) for seed in range(10, 40)} == {NO_ROOM}
        assert attempts == 2, "a load is not slowed down by trying at every chunk"
        now_s += REST_S
        assert store.put(*made(10)) is NO_ROOM
        assert attempts == 4
    assert len(files_in(tmp_path)) == 3, "half a chunk does not stay"
    assert all(store.get(name) for name in names)
    assert store.put(*made(10)) is NO_ROOM
    now_s += REST_S
    assert store.put(*made(10)) is STORED
    assert caplog.messages == ["chunk_store.stopped_storing", "chunk_store.storing_again"]
    assert caplog.records[0].__dict__["reason"] == os.strerror(code)
    assert (store.usage().held_bytes, store.usage().evicted) == (4 * 4 * KIB, 0)


def test_a_place_that_is_no_folder_is_no_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    store = ChunkStore(tmp_path / "file" / "store")
    assert [store.put(*made(seed)) for seed in range(3)] == [NO_ROOM] * 3
    assert caplog.messages == ["chunk_store.stopped_storing"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("not permitted here: mounting a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_really_full_disk_keeps_what_fitted(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ChunkStore(small_disk / "store", PLENTY_BYTES)
    chunks = [made(seed, 150 * KIB) for seed in range(12)]
    results = [store.put(*chunk) for chunk in chunks]
    count = results.count(STORED)
    assert 3 <= count <= 6
    assert results == [STORED] * count + [NO_ROOM] * (12 - count)
    assert caplog.messages == ["chunk_store.stopped_storing"]
    assert [store.get(name) for name, _ in chunks[:count]] == [data for _, data in chunks[:count]]
    assert len(files_in(small_disk)) == count
    assert ChunkStore(small_disk / "store").usage().held_bytes <= (1 << 20) // 4


def test_a_really_read_only_disk_is_still_read(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = put_all(ChunkStore(small_disk / "store", PLENTY_BYTES), range(4))
    harmed = path_of(small_disk / "store", names[3])
    harmed.write_bytes(flip(harmed.read_bytes()))
    age(small_disk / "store", names[2], 5)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = ChunkStore(small_disk / "store", 1)
    assert store.has(names) == set(names), "what cannot be deleted is still of use"
    assert [store.get(name) for name in names[:3]] == [made(seed)[1] for seed in range(3)]
    assert store.get(names[3]) is None
    assert store.has(names) == set(names[:3])
    assert store.put(*made(9)) is NO_ROOM
    assert caplog.messages == ["chunk_store.stopped_storing", "chunk_store.chunk_damaged"]


# Killed writers

WRITER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from agents.chunk_store import ChunkStore
from agents.chunks import chunk_name
write, replace, point = os.write, Path.replace, sys.argv[3]
def die(*_):
    os.kill(os.getpid(), 9)
def half(handle, data):
    write(handle, data[: len(data) // 2])
    die()
if point == "opened":
    os.write = die
elif point == "half":
    os.write = half
elif point == "written":
    Path.replace = die
elif point == "renamed":
    Path.replace = lambda path, target: (replace(path, target), die())
store = ChunkStore(Path(sys.argv[2]), 32 << 20)
block = os.urandom(4 << 20)
for count in range(10**9):
    data = count.to_bytes(8, "little") + block
    name = chunk_name(data)
    print("+" + name.hex(), flush=True)
    store.put(name, data)
    print("=" + name.hex(), flush=True)
"""


def killed_writer(folder: Path, point: str, after_s: float = 0) -> tuple[list[str], list[str]]:
    """Names that it began to put, and that it had put, when it was killed."""
    root = str(Path(chunk_store.__file__).parent.parent)
    argv = [sys.executable, "-I", "-S", "-c", WRITER, root, str(folder), point]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        if point == "random":
            time.sleep(after_s)
            child.kill()
        lines += child.stdout.read().splitlines()
    assert child.returncode == -signal.SIGKILL, lines
    whole = [line.strip() for line in lines if len(line.strip()) == 65]
    began, done = ([line[1:] for line in whole if line[0] == sign] for sign in "+=")
    return began, done


@pytest.mark.parametrize(
    ("point", "leftovers", "chunks"),
    [("opened", 1, 0), ("half", 1, 0), ("written", 1, 0), ("renamed", 0, 1)],
)
def test_a_writer_killed_at_any_step_leaves_a_whole_chunk_or_none(
    tmp_path: Path, point: str, leftovers: int, chunks: int
) -> None:
    began, _ = killed_writer(tmp_path, point)
    assert len(list(tmp_path.rglob("*.new"))) == leftovers
    store = ChunkStore(tmp_path)
    name = ChunkName(bytes.fromhex(began[0]))
    assert len(store.has([name])) == chunks
    assert (store.get(name) is not None) == bool(chunks)
    assert len(files_in(tmp_path)) == chunks


def test_writers_killed_at_random_moments_leave_only_whole_chunks(tmp_path: Path) -> None:
    rng = random.Random()
    caught_writing = rounds = 0
    while rounds < 8 or caught_writing < 2:
        rounds += 1
        assert rounds < 200, "no writer was killed while it wrote"
        _, done = killed_writer(tmp_path, "random", rng.uniform(0, 0.03))
        caught_writing += bool(list(tmp_path.rglob("*.new")))
        store = ChunkStore(tmp_path, 32 << 20)
        for text in done[-6:]:  # its cap holds six, and the one that it was writing
            assert store.get(ChunkName(bytes.fromhex(text)))
        names = [ChunkName(bytes.fromhex(path.name)) for path in files_in(tmp_path)]
        assert store.has(names) == set(names), "no leftovers"
        assert all(store.get(name) for name in names)
        assert store.usage().damaged == 0
