"""What a question's key depends on, and answers that outlive processes, crashes and bad disks."""

import errno
import itertools
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agents.rpc_commands import GENERATIONS, Generation
from agents.rpc_protocol import Command
from agents.rpc_tensors import MAX_SOURCES, TENSOR_BYTES
from supervisor.link import alloc_sizes
from supervisor.link.alloc_sizes import KEY_BYTES, MAX_BYTES, AllocSizes, file_name, question_key

RECORD_BYTES = 32
OLD, NEW = GENERATIONS[3, 5], GENERATIONS[7, 0]

# struct rpc_tensor of ggml-rpc.cpp: name and format
FIELDS = {
    "id": "Q",
    "type": "I",
    "buffer": "Q",
    "shape": "4I",
    "strides": "4I",
    "operation": "I",
    "parameters": "16i",
    "flags": "i",
    "sources": "10Q",
    "view": "Q",
    "view_offset": "Q",
    "address": "Q",
    "name": "64s",
    "uses": "i",
}
SIZES = {name: struct.calcsize("<" + code) for name, code in FIELDS.items()}
AT = dict(zip(SIZES, itertools.accumulate(SIZES.values(), initial=0), strict=False))
MATTERS = ["type", "shape", "strides", "operation", "parameters", "flags", "view_offset"]
HANDLES = [AT["buffer"], *range(AT["sources"], AT["sources"] + 80, 8), AT["view"]]
NODE: dict[str, Any] = {
    "id": 0x55F6_0000_1000,
    "type": 0,
    "buffer": 0,
    "shape": (512, 154, 1, 1),
    "strides": (4, 2048, 315392, 315392),
    "operation": 29,
    "parameters": tuple(range(1, 17)),
    "flags": 16,
    "sources": (0x1000, 0x2000, 0, 0, 0, 0, 0, 0, 0, 0),
    "view": 0,
    "view_offset": 0,
    "address": 0,
    "name": b"Qcur-0",
    "uses": 0,
}
WEIGHT = NODE | {
    "type": 8,
    "buffer": 0x55F6_0000_8000,
    "shape": (512, 512, 1, 1),
    "strides": (34, 544, 278528, 278528),
    "operation": 0,
    "parameters": (0,) * 16,
    "flags": 0,
    "sources": (0,) * 10,
    "address": 0x7F71_9FDB_0760,
    "name": b"blk.0.attn_q.weight",
}


def packed(tensor: dict[str, Any]) -> bytes:
    values = (value if isinstance(value, tuple) else (value,) for value in tensor.values())
    return struct.pack("<" + "".join(FIELDS.values()), *itertools.chain(*values))


def body(tensor: dict[str, Any] = NODE, sources: dict[int, dict[str, Any]] | None = None) -> bytes:
    """A question since 3.6; by default a product of a weight and another node."""
    given = {0: WEIGHT, 1: NODE} if sources is None else sources
    parts = [packed(given[i]) if i in given else bytes(TENSOR_BYTES) for i in range(MAX_SOURCES)]
    return bytes(4) + packed(tensor) + b"".join(parts)


def key(made: bytes, generation: Generation = NEW) -> bytes:
    return question_key(made, generation)


def changed(made: bytes, at: int) -> bytes:
    return made[:at] + bytes((made[at] ^ 1,)) + made[at + 1 :]


def tensor_at(index: int) -> int:
    """Where the tensor itself (0) or source ``index - 1`` begins."""
    return 4 + index * TENSOR_BYTES


def each_byte(names: list[str], index: int) -> list[int]:
    return [tensor_at(index) + AT[name] + i for name in names for i in range(SIZES[name])]


# Keys


def test_a_key_has_16_bytes_and_is_the_same_each_time() -> None:
    assert KEY_BYTES == 16
    assert len(key(body())) == 16
    assert key(body()) == key(body())


@pytest.mark.parametrize("index", [0, 1, 2, 10])
def test_every_byte_of_every_field_that_matters_changes_the_key(index: int) -> None:
    made = body(sources=dict.fromkeys(range(MAX_SOURCES), WEIGHT | {"operation": 1}))
    seen = {key(made)}
    places = each_byte(MATTERS, index)
    for at in places:
        seen.add(key(changed(made, at)))
    assert len(seen) == 1 + len(places), "all differ, from each other, too"


def test_every_byte_of_the_device_index_changes_the_key() -> None:
    assert len({key(changed(body(), at)) for at in range(4)} | {key(body())}) == 5


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("place", HANDLES)
def test_it_matters_whether_a_source_a_view_or_a_buffer_is_there(index: int, place: int) -> None:
    at = tensor_at(index) + place
    made = body()
    without = made[:at] + bytes(8) + made[at + 8 :]
    present = {key(made[:at] + struct.pack("<Q", n) + made[at + 8 :]) for n in (1, 1 << 63, 77)}
    assert key(without) not in present
    if (index, place) != (0, AT["buffer"]):
        assert len(present) == 1, "which one it is does not matter"


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("name", ["id", "uses", "address"])
def test_what_is_new_in_every_launch_does_not_matter(index: int, name: str) -> None:
    for at in each_byte([name], index)[name == "address" :]:
        assert key(changed(body(), at)) == key(body())


def test_names_of_nodes_and_of_sources_do_not_matter() -> None:
    assert key(body(NODE | {"name": b"other"})) == key(body())
    sources = {0: WEIGHT | {"name": b"other.weight"}, 1: NODE | {"name": b"RPC0[host:1]#mask#0"}}
    assert key(body(sources=sources)) == key(body())


def test_weights_are_told_apart_by_name_but_not_by_layer() -> None:
    """OpenVINO has room for another type in place of the embeddings."""

    def weight(name: bytes) -> bytes:
        return key(body(WEIGHT | {"name": name, "buffer": 0, "address": 0}, {}))

    assert weight(b"blk.0.attn_q.weight") == weight(b"blk.17.attn_q.weight")
    names = [b"token_embd.weight", b"output.weight", b"blk.1.attn_q.weight", b"", b"x" * 64]
    assert len({weight(name) for name in names}) == len(names)
    assert weight(b"output.weight") == weight(b"output.weight\0left over")


def test_a_tensor_that_lies_in_a_buffer_is_known_only_there() -> None:
    """Its buffer may be another device's, and CUDA pads what follows it by address."""
    placed = NODE | {"buffer": 0x5000, "address": 0x7000}
    elsewhere = [placed | {"buffer": 0x5008}, placed | {"address": 0x7010}, NODE]
    assert len({key(body(tensor)) for tensor in [placed, *elsewhere]}) == 4
    assert key(body(placed)) == key(body(placed))


def test_an_address_without_a_buffer_is_none() -> None:
    assert key(body(NODE | {"address": 0x7000})) == key(body())


def test_how_a_source_is_aligned_matters() -> None:
    """WebGPU computes another way if an address is no multiple of four elements."""

    def at(address: int) -> bytes:
        return key(body(sources={0: WEIGHT | {"address": address}}))

    assert len({at(0x7000 + offset) for offset in range(16)}) == 16
    assert at(0x7000) == at(0x7010) == at(0x9990)


def test_the_order_and_the_number_of_sources_matter() -> None:
    variants: list[dict[int, dict[str, Any]]] = [
        {},
        {0: WEIGHT},
        {1: WEIGHT},
        {9: WEIGHT},
        {0: WEIGHT, 1: WEIGHT},
        {0: WEIGHT, 1: NODE},
        {0: NODE, 1: WEIGHT},
    ]
    assert len({key(body(sources=sources)) for sources in variants}) == len(variants)


def test_a_source_of_zeros_is_one_all_the_same() -> None:
    made = body(sources={})
    places = [tensor_at(index) for index in range(1, 1 + MAX_SOURCES)]
    keys = {key(made[:at] + struct.pack("<Q", 7) + made[at + 8 :]) for at in places}
    assert len(keys | {key(made)}) == 1 + MAX_SOURCES


def test_what_a_source_without_an_id_says_does_not_matter() -> None:
    assert key(body(sources={0: WEIGHT | {"id": 0}})) == key(body(sources={}))


def test_questions_without_sources_are_those_until_3_5() -> None:
    old = body()[: 4 + TENSOR_BYTES]
    assert len(key(old, OLD)) == 16
    assert key(old, OLD) not in {key(body()), key(body(sources={}))}
    for at in each_byte(MATTERS, 0):
        assert key(changed(old, at), OLD) != key(old, OLD)


@pytest.mark.parametrize("generation", GENERATIONS.values(), ids=lambda g: g.name)
def test_every_generation_has_one_length(generation: Generation) -> None:
    length = generation.rules[Command.GET_ALLOC_SIZE].body_bytes
    assert len(question_key(body()[:length], generation)) == 16
    for wrong in (length - 1, length + 1, 0, 300 if length == 3260 else 3260):
        with pytest.raises(ValueError, match=f"of {wrong} bytes.*{generation.name}.*{length}"):
            question_key(bytes(wrong), generation)


# The file's name


def test_a_file_name_is_one_for_each_server_and_safe() -> None:
    base = ("agent-1", "b10875", "7.0.0", ["CUDA0", "CPU"])
    others: list[tuple[str, str, str, list[str]]] = [
        ("agent-2", *base[1:]),
        ("agent-1", "b10876", *base[2:]),
        (*base[:2], "7.0.1", base[3]),
        (*base[:3], ["CPU", "CUDA0"]),
        (*base[:3], ["CUDA0"]),
        (*base[:3], ["CUDA0,CPU"]),
        (*base[:3], []),
        ("agent-1b10875", "", *base[2:]),
        ("", "agent-1", "b10875", ["7.0.0", "CUDA0", "CPU"]),
        ("../../etc/passwd", "C:\\nul", "a/b", ["\0", '"', "\ud800", "😀" * 1000, "\n"]),
        ("", "", "", []),
    ]
    names = [file_name(*base), *(file_name(*other) for other in others)]
    assert file_name(*base) == names[0]
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        assert len(name) <= 64
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


# The file


def a_key(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES, "big")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "sizes"


def filled(path: Path, count: int, first: int = 0) -> AllocSizes:
    sizes = AllocSizes(path)
    for number in range(first, first + count):
        sizes.learn(a_key(number), 1000 + number)
    return sizes


def known(path: Path, numbers: range) -> list[int]:
    """Which of the numbers that ``filled`` wrote a new process finds; none may be wrong."""
    sizes = AllocSizes(path)
    found = {number: sizes.get(a_key(number)) for number in numbers}
    sizes.close()
    assert all(size in (None, 1000 + number) for number, size in found.items())
    return [number for number, size in found.items() if size is not None]


def test_what_was_learned_is_known_now_and_in_the_next_process(path: Path) -> None:
    sizes = AllocSizes(path)
    assert sizes.get(a_key(1)) is None
    sizes.learn(a_key(1), 0)
    sizes.learn(a_key(2), (1 << 64) - 1)
    for again in (sizes, AllocSizes(path)):
        assert again.get(a_key(1)) == 0
        assert again.get(a_key(2)) == (1 << 64) - 1
        assert again.get(a_key(3)) is None
        again.close()
    assert path.stat().st_size == 2 * RECORD_BYTES


def test_what_is_known_is_not_written_again_and_the_last_answer_counts(path: Path) -> None:
    sizes = filled(path, 1)
    sizes.learn(a_key(0), 1000)
    assert path.stat().st_size == RECORD_BYTES
    sizes.learn(a_key(0), 5)
    assert (sizes.get(a_key(0)), AllocSizes(path).get(a_key(0))) == (5, 5)
    AllocSizes(path).learn(a_key(0), 5)
    assert path.stat().st_size == 2 * RECORD_BYTES


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_key_of_another_length_is_refused(path: Path, length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes"):
        AllocSizes(path).learn(bytes(length), 1)
    assert path.stat().st_size == 0


def test_a_closed_file_is_not_written_but_all_stays_known(path: Path) -> None:
    sizes = filled(path, 1)
    sizes.close()
    sizes.close()
    sizes.learn(a_key(1), 1001)
    assert [sizes.get(a_key(number)) for number in range(2)] == [1000, 1001]
    assert known(path, range(2)) == [0]


@pytest.mark.parametrize("torn_bytes", range(1, RECORD_BYTES))
def test_a_torn_tail_costs_its_own_answer_only(path: Path, torn_bytes: int) -> None:
    filled(path, 3).close()
    os.truncate(path, 2 * RECORD_BYTES + torn_bytes)
    sizes = AllocSizes(path)
    assert [sizes.get(a_key(number)) for number in range(3)] == [1000, 1001, None]
    sizes.learn(a_key(3), 1003)
    assert path.stat().st_size == 3 * RECORD_BYTES
    assert known(path, range(5)) == [0, 1, 3]


def test_no_flipped_bit_gives_a_wrong_answer(path: Path) -> None:
    filled(path, 3).close()
    whole = path.read_bytes()
    for bit in range(8 * RECORD_BYTES):
        harmed = bytearray(whole)
        harmed[RECORD_BYTES + bit // 8] ^= 1 << bit % 8
        path.write_bytes(harmed)
        sizes = AllocSizes(path)
        assert set(sizes._sizes) == {a_key(0), a_key(2)}
        sizes.close()


@pytest.mark.parametrize("junk", [bytes(4096), b"\xff" * 4096, b"GGUF" * 999, b"x"])
def test_a_file_of_something_else_is_no_answer(path: Path, junk: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(junk)
    assert AllocSizes(path)._sizes == {}
    filled(path, 2).close()
    assert known(path, range(2)) == [0, 1]


def test_misplaced_records_are_no_answers_and_cure_themselves(path: Path) -> None:
    """A process that appends before another one has cut its torn record off."""
    filled(path, 2).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:RECORD_BYTES] + whole[:10] + whole[RECORD_BYTES:])
    assert known(path, range(2)) == [0]
    filled(path, 1, first=2).close()
    assert known(path, range(3)) == [0, 2]


def test_a_full_file_starts_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alloc_sizes, "MAX_BYTES", 8 * RECORD_BYTES)
    sizes = filled(path, 8)
    assert path.stat().st_size == 8 * RECORD_BYTES
    sizes.learn(a_key(8), 1008)
    assert path.stat().st_size == RECORD_BYTES
    assert known(path, range(9)) == [8]
    assert sizes.get(a_key(0)) == 1000, "what this process knows it still knows"
    sizes.learn(a_key(9), 1009)
    assert known(path, range(10)) == [8, 9]


def test_a_torn_tail_takes_no_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alloc_sizes, "MAX_BYTES", 4 * RECORD_BYTES)
    filled(path, 4).close()
    os.truncate(path, 3 * RECORD_BYTES + 5)
    filled(path, 1, first=4).close()
    assert known(path, range(5)) == [0, 1, 2, 4]


def test_the_limit_is_a_mebibyte_of_whole_records() -> None:
    assert MAX_BYTES == 1 << 20
    assert alloc_sizes._MAX_RECORDS * RECORD_BYTES == MAX_BYTES


def test_a_file_that_is_too_long_is_read_in_part_and_then_starts_anew(path: Path) -> None:
    filled(path, 2).close()
    second = path.read_bytes()[RECORD_BYTES:]
    os.truncate(path, RECORD_BYTES)
    os.truncate(path, MAX_BYTES)
    with path.open("ab") as file:
        file.write(second)
    assert known(path, range(2)) == [0]
    filled(path, 1, first=2).close()
    assert path.stat().st_size == RECORD_BYTES


def test_memory_is_bounded_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alloc_sizes, "_MAX_RECORDS", 3)
    sizes = filled(path, 3)
    assert len(sizes._sizes) == 3
    sizes.learn(a_key(3), 1003)
    assert sizes._sizes == {a_key(3): 1003}
    assert known(path, range(4)) == [0, 1, 2, 3]


# Processes

LEARNER = """
import sys
from pathlib import Path
from supervisor.link.alloc_sizes import AllocSizes
sizes = AllocSizes(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    sizes.learn(number.to_bytes(16, "big"), 1000 + number)
"""


def learner(path: Path, first: int, end: int) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-c", LEARNER, str(path), str(first), str(end)]
    made = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert made.stdout is not None
    assert made.stdout.readline() == b"ready\n"
    return made


def go(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def finish(process: "subprocess.Popen[bytes]") -> int:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    return process.wait(30)


def test_processes_that_append_at_once_take_nothing_from_each_other(path: Path) -> None:
    learners = [learner(path, 2000 * index, 2000 * index + 2000) for index in range(3)]
    for process in learners:
        go(process)
    assert [finish(process) for process in learners] == [0, 0, 0]
    assert path.stat().st_size == 6000 * RECORD_BYTES
    assert known(path, range(6001)) == list(range(6000))


def test_kill_9_amid_writing_loses_nothing_that_was_written(path: Path) -> None:
    end = 0
    for _ in range(3):
        process = learner(path, end, end + 30_000)
        go(process)
        size_bytes = path.stat().st_size
        wait_for_bytes(path, size_bytes + 10 * RECORD_BYTES)
        process.send_signal(signal.SIGKILL)
        finish(process)
        found = known(path, range(end + 30_000))
        assert found == list(range(len(found)))
        assert path.stat().st_size == len(found) * RECORD_BYTES
        assert end < len(found) <= end + 30_000
        end = len(found)
        if end > 20_000:
            break


def wait_for_bytes(path: Path, size_bytes: int) -> None:
    deadline_s = time.monotonic() + 10
    while path.stat().st_size < size_bytes:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


# Disks


def test_a_really_full_disk_is_done_without(path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    sizes = filled(path, 3)
    assert [sizes.get(a_key(number)) for number in range(3)] == [1000, 1001, 1002]
    assert sizes._file is None, "a disk that refused is not tried for every answer"


def test_half_a_record_on_a_full_disk_is_cut_off(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, write = filled(path, 2), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:11]))
        sizes.learn(a_key(2), 1002)
    assert path.stat().st_size == 2 * RECORD_BYTES
    sizes.learn(a_key(3), 1003)
    assert [sizes.get(a_key(number)) for number in range(4)] == [1000, 1001, 1002, 1003]
    assert known(path, range(5)) == [0, 1, 3]


@pytest.mark.parametrize("call", ["write", "fstat", "ftruncate"])
def test_no_fault_of_the_disk_leaves_the_module(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    sizes = filled(path, 2)
    os.truncate(path, RECORD_BYTES + 1)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        sizes.learn(a_key(2), 1002)
    assert sizes.get(a_key(2)) == 1002
    assert known(path, range(4)) == [0]


def test_a_read_only_file_is_still_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path, 2).close()
    open_file = os.open

    def read_only(name: Path, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return open_file(name, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        sizes = filled(path, 1, first=2)
    assert [sizes.get(a_key(number)) for number in range(3)] == [1000, 1001, 1002]
    assert known(path, range(3)) == [0, 1]


@pytest.mark.parametrize("place", ["file/sizes", "folder"])
def test_a_place_that_cannot_be_a_file_is_done_without(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    sizes = filled(tmp_path / place, 2)
    assert [sizes.get(a_key(number)) for number in range(2)] == [1000, 1001]
