"""Chunks of tensors that are found again or not at all, but never wrong ones."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agents.chunks import CHUNK_BYTES, ChunkName
from supervisor.link import known_tensors
from supervisor.link.known_tensors import MAX_FILES, TOUCH_INTERVAL_S, KnownTensors

FNV = 0x00AB_CDEF_0123_4567
HOUR_S = 3600.0


def made_names(count: int, seed: int = 0) -> tuple[ChunkName, ...]:
    return tuple(
        ChunkName(hashlib.sha256(b"%d %d" % (seed, index)).digest()) for index in range(count)
    )


def learned(known: KnownTensors, count: int, first: int = 0) -> None:
    """Tensors of one chunk each."""
    for number in range(first, first + count):
        known.learn(number, 9, made_names(1, number))


def found(folder: Path, numbers: range) -> list[int]:
    """Which of those that ``learned`` wrote a new process finds; none may be wrong."""
    known = KnownTensors(folder)
    names = {number: known.find(number, 9) for number in numbers}
    assert all(value in (None, made_names(1, number)) for number, value in names.items())
    return [number for number, value in names.items() if value is not None]


def age(folder: Path, number: int, hours: float) -> None:
    then_s = time.time() - hours * HOUR_S
    os.utime(folder / f"{number:016x}-9", (then_s, then_s))


def files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(
    ("size_bytes", "chunks"),
    [
        (0, 0),
        (1, 1),
        (CHUNK_BYTES - 1, 1),
        (CHUNK_BYTES, 1),
        (CHUNK_BYTES + 1, 2),
        (64 << 30, 65536),
    ],
)
def test_what_was_learned_is_found_by_others(tmp_path: Path, size_bytes: int, chunks: int) -> None:
    folder = tmp_path / "deep" / "folder"
    known, names = KnownTensors(folder), made_names(chunks)
    assert known.find(FNV, size_bytes) is None
    known.learn(FNV, size_bytes, names)
    assert known.find(FNV, size_bytes) == names
    assert KnownTensors(folder).find(FNV, size_bytes) == names
    assert files(folder) == [f"00abcdef01234567-{size_bytes}"]
    content = (folder / files(folder)[0]).read_bytes()
    assert content[: 32 * chunks] == b"".join(names)
    assert len(content) == 32 * chunks + 16


def test_a_tensor_is_its_hash_and_its_size(tmp_path: Path) -> None:
    known = KnownTensors(tmp_path)
    known.learn(FNV, 9, made_names(1))
    assert known.find(FNV, 10) is None
    assert known.find(FNV + 1, 9) is None
    assert known.find(FNV, 9) == made_names(1)


def test_the_last_that_was_learned_counts(tmp_path: Path) -> None:
    known = KnownTensors(tmp_path)
    known.learn(FNV, 9, made_names(1, 1))
    known.learn(FNV, 9, made_names(1, 2))
    assert known.find(FNV, 9) == made_names(1, 2)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    ("size_bytes", "names"),
    [
        (CHUNK_BYTES + 1, made_names(1)),
        (CHUNK_BYTES, made_names(2)),
        (1, ()),
        (0, made_names(1)),
        (1, (ChunkName(b"short"),)),
        (CHUNK_BYTES + 1, (ChunkName(bytes(31)), ChunkName(bytes(33)))),
    ],
)
def test_chunks_that_cannot_be_those_of_the_tensor_are_refused(
    tmp_path: Path, size_bytes: int, names: tuple[ChunkName, ...]
) -> None:
    with pytest.raises(ValueError, match=f"not those of {size_bytes} bytes"):
        KnownTensors(tmp_path).learn(FNV, size_bytes, names)
    assert files(tmp_path) == []


# Harm


def one(folder: Path, size_bytes: int = 2 * CHUNK_BYTES) -> tuple[KnownTensors, Path]:
    known = KnownTensors(folder)
    known.learn(FNV, size_bytes, made_names(2))
    return known, folder / f"{FNV:016x}-{size_bytes}"


def test_a_flipped_bit_is_noticed_and_the_file_dropped(tmp_path: Path) -> None:
    known, path = one(tmp_path)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        harmed = bytearray(whole)
        harmed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(harmed)
        assert known.find(FNV, 2 * CHUNK_BYTES) is None
        assert not path.exists()


def test_a_file_of_another_length_is_dropped(tmp_path: Path) -> None:
    known, path = one(tmp_path)
    whole = path.read_bytes()
    for harmed in (b"", whole[:-1], whole[:32], whole[32:], whole + b"\0", whole * 2):
        path.write_bytes(harmed)
        assert known.find(FNV, 2 * CHUNK_BYTES) is None
        assert not path.exists()


def test_a_huge_file_or_size_is_not_read(tmp_path: Path) -> None:
    known, path = one(tmp_path)
    os.truncate(path, 1 << 40)
    assert known.find(FNV, 2 * CHUNK_BYTES) is None
    assert not path.exists()
    path = tmp_path / f"{FNV:016x}-{1 << 63}"
    path.write_bytes(b"small")
    assert known.find(FNV, 1 << 63) is None
    assert not path.exists()


@pytest.mark.parametrize("other", [f"{FNV + 1:016x}-{2 << 20}", f"{FNV:016x}-{(2 << 20) - 1}"])
def test_a_file_under_another_name_is_dropped(tmp_path: Path, other: str) -> None:
    known, path = one(tmp_path)
    path.rename(tmp_path / other)
    fnv, size_bytes = other.split("-")
    assert known.find(int(fnv, 16), int(size_bytes)) is None
    assert files(tmp_path) == []


@pytest.mark.parametrize(("name", "value"), [("CHUNK_BYTES", CHUNK_BYTES + 1), ("HASH", "md5")])
def test_files_of_another_cutting_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    known, path = one(tmp_path, size_bytes=2 * CHUNK_BYTES)
    monkeypatch.setattr(known_tensors, name, value)
    assert known.find(FNV, 2 * CHUNK_BYTES) is None
    assert not path.exists()


# Room


def test_only_so_many_files_are_kept_and_the_oldest_go(tmp_path: Path) -> None:
    known = KnownTensors(tmp_path, max_files=20)
    learned(known, 20)
    for number in range(20):
        age(tmp_path, number, 100 - number)
    assert found(tmp_path, range(20)) == list(range(20))
    for number in range(20):
        age(tmp_path, number, 100 - number)
    learned(known, 1, first=20)
    assert files(tmp_path) == [f"{number:016x}-9" for number in range(3, 21)]
    learned(known, 2, first=21)
    assert len(files(tmp_path)) == 20
    learned(known, 1, first=23)
    assert len(files(tmp_path)) == 18


def test_the_limit_is_20_000_files() -> None:
    assert KnownTensors(Path())._max_files == MAX_FILES == 20_000


def test_what_was_learned_again_is_not_one_more(tmp_path: Path) -> None:
    known = KnownTensors(tmp_path, max_files=10)
    learned(known, 10)
    learned(known, 1)
    assert len(files(tmp_path)) == 10


def test_what_is_used_stays(tmp_path: Path) -> None:
    known = KnownTensors(tmp_path, max_files=3)
    learned(known, 3)
    for number in range(3):
        age(tmp_path, number, 50 - number)
    assert known.find(0, 9) is not None
    learned(known, 1, first=3)
    assert found(tmp_path, range(4)) == [0, 2, 3]


def test_a_use_is_written_down_once_in_an_hour(tmp_path: Path) -> None:
    known = KnownTensors(tmp_path)
    learned(known, 1)
    path = tmp_path / f"{0:016x}-9"
    for hours, is_touched in [(0.9, False), (1.1, True)]:
        age(tmp_path, 0, hours)
        before_s = path.stat().st_mtime
        assert known.find(0, 9) is not None
        assert (path.stat().st_mtime > before_s) is is_touched
    assert TOUCH_INTERVAL_S == HOUR_S


def test_files_of_earlier_processes_and_their_leftovers_count_and_go(tmp_path: Path) -> None:
    learned(KnownTensors(tmp_path), 2)
    age(tmp_path, 0, 5)
    age(tmp_path, 1, 4)
    leftover = tmp_path / f"{7:016x}-9.4711.part"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    learned(KnownTensors(tmp_path, max_files=3), 1, first=2)
    assert files(tmp_path) == [f"{number:016x}-9" for number in range(3)]


def test_what_is_not_ours_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    strangers = ["notes", f"{1:015x}-9", f"{1:016X}-A", f"{1:016x}-9.bak", f"x{1:016x}-9"]
    for name in strangers:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / f"{1:016x}-1").mkdir()
    os.utime(tmp_path / f"{1:016x}-1", (1 << 40, 1 << 40))
    known = KnownTensors(tmp_path, max_files=2)
    learned(known, 2, first=5)
    assert len(files(tmp_path)) == len(strangers) + 3
    learned(known, 1, first=7)
    assert {*strangers, f"{1:016x}-1"} <= set(files(tmp_path))
    assert len(files(tmp_path)) == len(strangers) + 3


def test_a_folder_that_others_emptied_is_not_emptied_further(tmp_path: Path) -> None:
    known = KnownTensors(tmp_path, max_files=20)
    learned(known, 20)
    for number in range(5):
        (tmp_path / f"{number:016x}-9").unlink()
    learned(known, 1, first=20)
    assert found(tmp_path, range(21)) == list(range(5, 21))
    assert known._count == 16


# Disks


def test_a_folder_that_cannot_be_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        known = KnownTensors(folder)
        learned(known, 2)
        assert known.find(0, 9) is None


def test_a_folder_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    known = KnownTensors(tmp_path / "folder")
    learned(known, 1)
    (tmp_path / "folder" / f"{0:016x}-9").unlink()
    (tmp_path / "folder").rmdir()
    assert known.find(0, 9) is None
    learned(known, 1)
    assert known.find(0, 9) == made_names(1, 0)


def test_a_really_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    known = KnownTensors(tmp_path, max_files=2)
    learned(known, 1)
    (tmp_path / f"{1:016x}-9.{os.getpid()}.part").symlink_to("/dev/full")
    learned(known, 1, first=1)
    assert files(tmp_path) == [f"{0:016x}-9"]
    assert known._count == 1
    learned(known, 1, first=1)
    assert found(tmp_path, range(2)) == [0, 1]


@pytest.mark.parametrize("call", ["utime", "stat", "scandir", "unlink", "replace", "mkdir"])
def test_no_fault_of_the_disk_leaves_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    known = KnownTensors(tmp_path, max_files=2)
    learned(known, 2)
    age(tmp_path, 0, 5)
    (tmp_path / f"{1:016x}-9").write_bytes(b"harmed")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        assert known.find(1, 9) is None
        assert known.find(0, 9) in (made_names(1, 0), None)
        learned(known, 3, first=2)
        learned(KnownTensors(tmp_path, max_files=1), 1, first=9)
    assert known.find(0, 9) in (made_names(1, 0), None)
    learned(known, 2, first=20)
    assert found(tmp_path, range(20, 22)) == [20, 21]


LEARNER = """
import hashlib, itertools, sys
from pathlib import Path
from supervisor.link.known_tensors import KnownTensors
known = KnownTensors(Path(sys.argv[1]))
names = [hashlib.sha256(b"%d" % index).digest() for index in range(2000)]
print("ready", flush=True)
for number in itertools.count():
    known.learn(number % 50, 2000 << 20, names)
"""


def test_kill_9_amid_writing_leaves_whole_files_only(tmp_path: Path) -> None:
    names = tuple(ChunkName(hashlib.sha256(b"%d" % index).digest()) for index in range(2000))
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", LEARNER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.03)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
    whole = [name for name in files(tmp_path) if not name.endswith(".part")]
    known = KnownTensors(tmp_path)
    assert whole
    for name in whole:
        assert known.find(int(name[:16], 16), 2000 << 20) == names
