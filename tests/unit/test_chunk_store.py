"""The store of weight chunks: whatever happens to its files, a load gets right bytes or none."""

import os
import random
import shutil
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from made_chunks import (
    DAMAGED,
    GIB,
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

from agents.chunk_store import TOUCH_INTERVAL_S, ChunkStore, default_cap_bytes
from agents.chunks import CHUNK_BYTES, ChunkName, chunk_name, cut, hash_chunks

# Names


def test_tensor_data_is_cut_from_its_start_and_the_last_chunk_is_shorter() -> None:
    data = made(1, 2500)[1]
    parts = [data[0:1000], data[1000:2000], data[2000:2500]]
    assert list(cut(2500, 1000)) == [(0, 1000), (1000, 1000), (2000, 500)]
    assert list(hash_chunks(memoryview(data), 1000)) == [chunk_name(part) for part in parts]
    assert list(hash_chunks(memoryview(b""))) == []
    with pytest.raises(ValueError, match="chunks of 0 bytes"):
        list(cut(1, 0))


def test_names_depend_on_bytes_alone() -> None:
    numbers = array("I", range(1000))
    assert list(hash_chunks(memoryview(numbers), 999)) == list(
        hash_chunks(memoryview(numbers.tobytes()), 999)
    )


# What comes back


def test_a_chunk_comes_back_also_after_a_restart(tmp_path: Path) -> None:
    name, data = made(1, CHUNK_BYTES)
    other = made(2)[0]
    first = ChunkStore(tmp_path)
    assert first.get(name) is None
    assert first.put(name, memoryview(data)) is STORED
    for store in (first, ChunkStore(tmp_path)):
        assert store.has([name, other]) == {name}
        assert store.get(name) == data
        assert store.usage().held_bytes == CHUNK_BYTES
    assert files_in(tmp_path) == [path_of(tmp_path, name)]


def test_a_chunk_is_read_into_a_buffer_that_may_be_larger(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    name, data = made(1, 1000)
    store.put(name, data)
    buffer = bytearray(1500)
    assert store.readinto(name, memoryview(buffer)[100:]) == 1000
    assert buffer == bytes(100) + data + bytes(400)
    assert store.readinto(made(2)[0], buffer) is None
    with pytest.raises(ValueError, match="1000 bytes does not fit into a buffer of 999"):
        store.readinto(name, bytearray(999))


def test_bytes_that_are_not_what_their_name_says_never_become_visible(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    name, data = made(1)
    assert store.put(name, data[:-1] + b"?") is DAMAGED
    assert store.has([name]) == set()
    assert files_in(tmp_path) == []


def test_putting_a_chunk_again_changes_nothing(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 10 * KIB)
    name, data = made(1, 9 * KIB)
    assert [store.put(name, data) for _ in range(3)] == [STORED] * 3
    assert (store.usage().chunks, store.usage().held_bytes, store.usage().evicted) == (1, 9216, 0)


HARM: list[Callable[[bytes], bytes]] = [
    flip,
    lambda data: data[:-1],
    lambda data: data[: len(data) // 2],
    lambda data: b"",
    lambda data: bytes(len(data)),
    lambda data: data + b"x",
]
HARM_NAMES = ["flipped", "shorter", "halved", "empty", "zeros", "longer"]


@pytest.mark.parametrize("harm", HARM, ids=HARM_NAMES)
@pytest.mark.parametrize("restarted", [False, True])
def test_a_harmed_chunk_is_deleted_and_can_be_put_again(
    tmp_path: Path,
    harm: Callable[[bytes], bytes],
    restarted: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = ChunkStore(tmp_path)
    name, data = made(1)
    sound = put_all(store, range(2, 4))
    store.put(name, data)
    path_of(tmp_path, name).write_bytes(harm(data))
    store = ChunkStore(tmp_path) if restarted else store
    assert store.get(name) is None
    assert store.has([name, *sound]) == set(sound)
    assert store.readinto(name, bytearray(len(data))) is None
    assert not path_of(tmp_path, name).exists()
    assert store.usage().held_bytes == 2 * 4 * KIB
    assert caplog.messages.count("chunk_store.chunk_damaged") == store.usage().damaged
    assert store.put(name, data) is STORED
    assert store.get(name) == data


def test_what_is_deleted_behind_its_back_counts_as_absent(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path / "store")
    read, put = made(1), made(2)
    for chunk in (read, put):
        store.put(*chunk)
    shutil.rmtree(tmp_path / "store")
    assert store.get(read[0]) is None
    assert store.has([read[0]]) == set()
    assert store.put(*put) is STORED, "believed to be there, yet written again"
    assert store.get(put[0]) == put[1]
    assert store.usage().held_bytes == len(put[1])


def test_the_empty_file_of_a_power_cut_is_not_promised(tmp_path: Path) -> None:
    names = put_all(ChunkStore(tmp_path), range(2))
    path_of(tmp_path, names[0]).write_bytes(b"")
    assert ChunkStore(tmp_path).has(names) == {names[1]}
    assert files_in(tmp_path) == [path_of(tmp_path, names[1])]


def test_only_files_that_are_called_like_chunks_are_taken_for_some(tmp_path: Path) -> None:
    name, data = made(1)
    odd = [
        tmp_path / "readme",
        tmp_path / "zz" / "zz",
        tmp_path / "00" / name.hex(),
        path_of(tmp_path, name).with_name(name.hex()[:2] + name.hex()[2:].upper()),
        path_of(tmp_path, name).with_name(f"{name.hex()} "),
        path_of(tmp_path, name).with_name(name.hex()[:-2]),
    ]
    for path in odd:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    path_of(tmp_path, name).mkdir()
    store = ChunkStore(tmp_path)
    assert store.usage().chunks == 0
    assert all(path.exists() for path in odd), "what is not ours is left alone"


# The cap, and who has to go


def test_the_default_cap_is_a_quarter_and_does_not_grow_by_restarting() -> None:
    assert default_cap_bytes(80 * GIB, 0) == 20 * GIB
    assert default_cap_bytes(60 * GIB, 20 * GIB) == 20 * GIB
    assert default_cap_bytes(0, 20 * GIB) == 5 * GIB, "a disk that others fill is given back"
    assert default_cap_bytes(1000 * GIB, 0) == 32 * GIB


def test_without_a_cap_one_follows_from_the_disk(tmp_path: Path) -> None:
    free_bytes = shutil.disk_usage(tmp_path).free
    cap_bytes = ChunkStore(tmp_path / "not" / "there").usage().cap_bytes
    assert 0 < cap_bytes <= 32 * GIB
    assert cap_bytes <= free_bytes // 2


def test_the_least_recently_used_goes_first_and_the_cap_holds(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 4 * 4 * KIB)
    names = put_all(store, range(4))
    assert store.get(names[0])
    store.put(*made(1))  # putting it again is a use as well
    late = put_all(store, range(4, 6))
    assert store.has(names) == {names[0], names[1]}
    assert store.has(late) == set(late)
    assert sum(path.stat().st_size for path in files_in(tmp_path)) == 4 * 4 * KIB
    assert (store.usage().held_bytes, store.usage().evicted) == (4 * 4 * KIB, 2)


def test_a_chunk_larger_than_the_cap_throws_nobody_out(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 10 * KIB)
    names = put_all(store, range(2))
    assert store.put(*made(9, 10 * KIB + 1)) is NO_ROOM
    assert store.has(names) == set(names)


def test_recency_survives_a_restart(tmp_path: Path) -> None:
    names = put_all(ChunkStore(tmp_path), range(6))
    for hours, name in enumerate(names, start=2):
        age(tmp_path, name, hours)  # so the last one is the oldest
    used = ChunkStore(tmp_path)
    assert used.get(names[5])
    assert used.readinto(names[3], bytearray(4 * KIB))
    survivors = ChunkStore(tmp_path, 3 * 4 * KIB)
    assert survivors.has(names) == {names[5], names[3], names[0]}
    assert len(files_in(tmp_path)) == 3


def test_a_use_is_written_down_once_an_hour(tmp_path: Path) -> None:
    now_s = time.time()
    store = ChunkStore(tmp_path, PLENTY_BYTES, clock=lambda: now_s)
    (name,) = put_all(store, range(1))
    path = path_of(tmp_path, name)
    os.utime(path, (1, 1))
    now_s += TOUCH_INTERVAL_S - 1
    assert store.get(name)
    assert path.stat().st_mtime == 1, "the last hour's use is known from writing it"
    now_s += 1
    assert store.get(name)
    assert path.stat().st_mtime == pytest.approx(now_s)


# Pins


def test_what_a_load_has_pinned_stays(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 3 * 4 * KIB)
    names = put_all(store, range(3))
    late = made(7)
    with store.pin(names[:1]) as pin:
        assert pin.hold([names[1], late[0]]) == {names[1]}
        assert store.put(*late) is STORED, "the only loose one goes"
        assert store.has(names) == set(names[:2])
        assert store.put(*made(8)) is NO_ROOM, "a chunk that came during the load is pinned too"
        assert store.usage().pinned_chunks == 3
        assert store.get(names[0]) == made(0)[1]
    assert store.usage().pinned_chunks == 0
    assert store.put(*made(8)) is STORED


def test_a_chunk_stays_until_its_last_load_has_ended(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 4 * KIB)
    (name,) = put_all(store, range(1))
    with store.pin([name]) as pin:
        with store.pin([name, name]):
            assert pin.hold([name]) == {name}
        assert store.put(*made(1)) is NO_ROOM
    assert store.put(*made(1)) is STORED


def test_a_late_thread_of_a_load_pins_nothing(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 4 * KIB)
    (name,) = put_all(store, range(1))
    with pytest.raises(ZeroDivisionError), store.pin() as pin:
        raise ZeroDivisionError
    assert pin.hold([name]) == {name}
    assert store.put(*made(1)) is STORED


def test_a_model_larger_than_the_cap_keeps_its_first_part(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 5 * 4 * KIB)
    chunks = [made(seed) for seed in range(8)]
    for _ in range(2):
        with store.pin() as pin:
            for name, data in chunks:
                if not pin.hold([name]):
                    store.put(name, data)
    assert store.has([name for name, _ in chunks]) == {name for name, _ in chunks[:5]}
    assert store.usage().evicted == 0


# Many at once


def test_ten_thousand_chunks_are_known_from_one_listing_of_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    for number in range(256):
        (folder / f"{number:02x}").mkdir(parents=True)
    contents = [count.to_bytes(8, "little") for count in range(10_000)]
    names = [chunk_name(content) for content in contents]
    for name, content in zip(names, contents, strict=True):
        path_of(folder, name).write_bytes(content)
    listings: list[Path] = []
    scandir = os.scandir

    def counting(folder: Path) -> "Iterator[os.DirEntry[str]]":
        listings.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", counting)
    store = ChunkStore(folder, PLENTY_BYTES)
    assert len(listings) == 257
    assert (store.usage().chunks, store.usage().held_bytes) == (10_000, 80_000)
    assert store.get(names[77]) == contents[77]
    monkeypatch.undo()
    folder.rename(tmp_path / "away")
    absent = [chunk_name(name) for name in names]
    assert store.has([*names, *absent]) == set(names), "from memory alone"


def test_threads_that_put_and_get_the_same_chunks_agree(tmp_path: Path) -> None:
    chunks = [made(seed, 20 * KIB + seed) for seed in range(60)]
    total_bytes = sum(len(data) for _, data in chunks)
    store = ChunkStore(tmp_path, total_bytes)  # not a byte to spare
    barrier = threading.Barrier(8)

    def work(seed: int) -> bool:
        mine = random.Random(seed).sample(chunks, len(chunks))
        barrier.wait()
        return all(store.put(*chunk) is STORED and store.get(chunk[0]) for chunk in mine)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert (store.usage().chunks, store.usage().held_bytes) == (60, total_bytes)
    assert (store.usage().evicted, store.usage().damaged) == (0, 0)
    assert len(files_in(tmp_path)) == 60


def test_two_threads_that_put_one_chunk_need_room_for_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = made(1)
    store = ChunkStore(tmp_path, len(data))
    results = []
    second = threading.Thread(target=lambda: results.append(store.put(name, data)))
    write = os.write
    writes = 0

    def meeting(handle: int, part: memoryview) -> int:
        nonlocal writes
        writes += 1
        if writes == 1:
            second.start()
            second.join(0.05)  # it waits for us, or would have asked for more room by now
        return write(handle, part)

    monkeypatch.setattr(os, "write", meeting)
    results.append(store.put(name, data))
    second.join()
    assert results == [STORED, STORED]
    assert writes == 1


def test_threads_that_push_each_others_chunks_out_get_right_bytes_or_none(tmp_path: Path) -> None:
    chunks = [made(seed, 8 * KIB) for seed in range(40)]
    store = ChunkStore(tmp_path, 10 * 8 * KIB)
    barrier = threading.Barrier(8)

    def work(seed: int) -> int:
        rng = random.Random(seed)
        hits = 0
        barrier.wait()
        for _ in range(60):
            name, data = rng.choice(chunks)
            found = store.get(name)
            assert found is None or found == data
            hits += found is not None
            assert store.put(name, data) is STORED
            assert store.usage().held_bytes <= 10 * 8 * KIB
        return hits

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) > 0
    held = {ChunkName(bytes.fromhex(path.name)) for path in files_in(tmp_path)}
    assert store.has([name for name, _ in chunks]) == held
    assert len(held) == store.usage().chunks == 10
    assert store.usage().damaged == 0


def test_two_stores_of_one_folder_do_each_other_no_harm(tmp_path: Path) -> None:
    one, two = ChunkStore(tmp_path, 6 * 4 * KIB), ChunkStore(tmp_path, 6 * 4 * KIB)
    names = put_all(one, range(4))
    assert put_all(two, range(2, 8)) == [made(seed)[0] for seed in range(2, 8)]
    third = ChunkStore(tmp_path, 2 * 4 * KIB)
    kept = third.has([made(seed)[0] for seed in range(8)])
    assert len(kept) == 2
    for seed in range(8):
        name, data = made(seed)
        assert one.get(name) == (data if name in kept & set(names) else None)
    assert put_all(one, range(4)) == names
    assert [third.get(name) is not None for name in kept] == [True, True]
