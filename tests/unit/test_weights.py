"""Weights on their way: cut at the same places whatever the pieces, named, remembered."""

import asyncio
import hashlib
import random
import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_world import Heard, Wire, wired
from rpc_talk import SEVEN, T, reply

from agents.chunks import CHUNK_BYTES, SMALLEST_TENSOR_BYTES, chunk_name
from agents.link_frames import Kind, pack_offer, pack_ref
from agents.rpc_commands import TensorData, generation_of
from supervisor.link.chunk_refs import Cutter, HashQuestion, Ref
from supervisor.link.known_tensors import KnownTensors
from supervisor.link.outbox import Outbox
from supervisor.link.weights import WeightSender

MIB = 1 << 20
SHAPE_AT, STRIDES_AT = 20, 36


def cut_by_hand(data: bytes) -> list[bytes]:
    return [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]


# -- cutting ------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    size_bytes=st.one_of(
        st.integers(1, 4 * MIB),
        st.sampled_from([MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 7, SMALLEST_TENSOR_BYTES]),
    ),
    marks=st.lists(st.integers(0, 4 * MIB), max_size=10),
)
def test_a_tensor_is_cut_at_the_same_places_whatever_the_pieces(
    size_bytes: int, marks: list[int]
) -> None:
    data = random.Random(size_bytes).randbytes(size_bytes)
    cutter, found = Cutter(size_bytes), list[Ref]()
    edges = [0, *sorted(mark % (size_bytes + 1) for mark in marks), size_bytes]
    buffer = bytearray(4 * MIB)
    for start, end in pairwise(edges):
        buffer[: end - start] = data[start:end]  # the same memory for every piece
        found.extend(cutter.feed(memoryview(buffer)[: end - start]))
    expected = cut_by_hand(data)
    assert [bytes(ref.data or b"") for ref in found] == expected
    assert [ref.name for ref in found] == [chunk_name(part) for part in expected] == cutter.names
    assert [ref.size_bytes for ref in found] == [len(part) for part in expected]
    assert not any(ref.was_sent for ref in found)


def test_a_cutter_takes_no_more_memory_than_a_chunk_and_what_it_gave() -> None:
    cutter = Cutter(1 << 40)
    assert len(cutter._buffer) == CHUNK_BYTES
    assert not list(cutter.feed(memoryview(bytes(100))))


# -- questions by hash --------------------------------------------------------------------------


def hash_of(data: bytes) -> int:
    """Any 64 bits will do; llama-server takes FNV-1a."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def question(data: bytes, *, offset: int = 0, shape: tuple[int, ...] = (64, 1, 1, 1)) -> bytes:
    """SET_TENSOR_HASH of a tensor whose rows are as long as its data needs."""
    rows = shape[1] * shape[2] * shape[3]
    tensor = bytearray(T)
    struct.pack_into("<4I", tensor, SHAPE_AT, *shape)
    struct.pack_into("<4I", tensor, STRIDES_AT, 34, len(data) // rows, 0, 0)
    return bytes(tensor) + struct.pack("<QQ", offset, hash_of(data))


@pytest.mark.parametrize("shape", [(64, 1, 1, 1), (64, 4, 1, 1), (64, 4, 2, 8)])
def test_size_and_hash_are_read_from_a_question(shape: tuple[int, ...]) -> None:
    data = bytes(640 * 64)
    found = HashQuestion.read(question(data, offset=640, shape=shape))
    assert found.size_bytes == len(data)
    assert found.fnv == hash_of(data)
    assert found.offset == struct.pack("<Q", 640)
    assert len(found.tensor) == 296


async def test_a_question_of_impossible_numbers_is_only_unknown(tmp_path: Path) -> None:
    way = Sender(tmp_path)
    huge = bytearray(T)
    struct.pack_into("<8I", huge, SHAPE_AT, *[2**32 - 1] * 8)
    for body in (bytes(huge), bytes(296)):
        asked = HashQuestion.read(body + b"\xff" * 16)
        assert way.sender.is_known(asked) is False
        assert way.sender.answer(asked, True, is_known=True) == reply(b"\0")
    assert not way.left()


def head_of(asked: HashQuestion, data_bytes: int) -> TensorData:
    body = asked.set_tensor_head(has_cache_flag=True)
    generation = generation_of(SEVEN, 24)
    assert generation is not None
    return TensorData.read(body, len(body) + data_bytes, generation)


# -- a sender -----------------------------------------------------------------------------------


class Sender:
    """A sender, and what has left its outbox."""

    def __init__(self, folder: Path) -> None:
        self.heard = Heard()
        link, self.wire = wired(self.heard)
        self.out = Outbox(link, 256 * MIB, None, lambda: None)
        self.sender = WeightSender(self.out, KnownTensors(folder / "tensors"))
        self.sender.stores = True

    def left(self) -> list[tuple[Kind, bytes]]:
        self.out.advance()
        return self.wire.spoken()

    def give(self, data: bytes, asked: HashQuestion | None = None) -> None:
        self.sender.begin(head_of(asked or HashQuestion.read(question(data)), len(data)))
        for start in range(0, len(data), 300_000):
            self.sender.feed(memoryview(data)[start : start + 300_000])
        self.sender.end()


def names_of(data: bytes) -> list[tuple[Kind, bytes]]:
    return [(Kind.REF, pack_ref(chunk_name(part), len(part))) for part in cut_by_hand(data)]


def as_it_is(left: list[tuple[Kind, bytes]]) -> bytes:
    assert {kind for kind, _ in left} == {Kind.DATA}
    return b"".join(body for _, body in left)


DATA = random.Random(7).randbytes(2 * MIB + 64)


async def test_large_weights_leave_by_name(tmp_path: Path) -> None:
    way = Sender(tmp_path)
    way.give(DATA)
    assert way.left() == names_of(DATA)
    assert way.sender.whole_bytes == 0
    assert way.out.on_their_way == {chunk_name(part) for part in cut_by_hand(DATA)}


async def test_small_weights_leave_as_they_are(tmp_path: Path) -> None:
    way, small = Sender(tmp_path), DATA[: SMALLEST_TENSOR_BYTES - 1]
    way.give(small)
    assert as_it_is(way.left()) == small
    assert way.sender.whole_bytes == len(small)
    way.give(DATA[:SMALLEST_TENSOR_BYTES])
    assert way.left() == names_of(DATA[:SMALLEST_TENSOR_BYTES])


@pytest.mark.parametrize("why", ["graph", "no store"])
async def test_activations_and_what_nobody_keeps_leave_as_they_are(
    tmp_path: Path, why: str
) -> None:
    way = Sender(tmp_path)
    way.sender.stores = why != "no store"
    way.sender.is_over = why == "graph"
    assert not way.sender.takes_hashes
    way.give(DATA)
    assert as_it_is(way.left()) == DATA
    assert way.sender.whole_bytes == (0 if why == "graph" else len(DATA))


async def test_a_tensor_that_was_given_once_need_not_be_given_again(tmp_path: Path) -> None:
    """Across connections and launches: what was learned is on disk, what is held is asked."""
    asked = HashQuestion.read(question(DATA, offset=128))
    first = Sender(tmp_path)
    assert first.sender.is_known(asked) is False
    assert first.sender.answer(asked, True, is_known=False) == reply(b"\0")
    first.give(DATA, asked)
    first.left()

    again = Sender(tmp_path)
    assert again.sender.is_known(asked) is None, "the far end has to be asked"
    asking = asyncio.create_task(again.sender.ask(asked))
    await asyncio.sleep(0)
    parts = cut_by_hand(DATA)
    assert again.left() == [
        (Kind.OFFER, pack_offer((chunk_name(part), len(part)) for part in parts))
    ]
    again.out.on_held(b"\1\1\1")
    assert await asking is True
    assert again.sender.is_known(asked) is True
    assert again.sender.answer(asked, True, is_known=True) == reply(b"\1")
    head, *names = again.left()
    body = asked.set_tensor_head(has_cache_flag=True)
    assert head == (Kind.DATA, struct.pack("<BQ", 6, len(body) + len(DATA)) + body)
    assert names == names_of(DATA)


async def test_the_set_tensor_that_stands_for_a_hash_is_the_one_llama_server_would_send(
    tmp_path: Path,
) -> None:
    asked = HashQuestion.read(question(DATA, offset=128))
    old = asked.set_tensor_head(has_cache_flag=False)
    new = asked.set_tensor_head(has_cache_flag=True)
    assert old == asked.tensor + struct.pack("<Q", 128)
    assert new == asked.tensor + b"\0" + struct.pack("<Q", 128)
    about = head_of(asked, len(DATA))
    assert asked.matches(about)
    assert not asked.matches(head_of(asked, len(DATA) - 1))


async def test_a_far_end_that_lacks_one_chunk_gets_the_whole_tensor_named(tmp_path: Path) -> None:
    asked = HashQuestion.read(question(DATA))
    way = Sender(tmp_path)
    way.sender.answer(asked, True, is_known=False)
    way.give(DATA, asked)
    way.left()
    asking = asyncio.create_task(way.sender.ask(asked))
    await asyncio.sleep(0)
    way.out.on_held(b"\1\0\1")
    assert await asking is False
    assert way.sender.answer(asked, True, is_known=False) == reply(b"\0")


async def test_nothing_is_learned_from_another_tensor_than_the_one_asked_about(
    tmp_path: Path,
) -> None:
    asked, other = HashQuestion.read(question(DATA)), DATA[: MIB + 1]
    way = Sender(tmp_path)
    way.sender.answer(asked, True, is_known=False)
    way.give(other)
    assert way.sender.is_known(asked) is False
    way.give(DATA)
    assert way.sender.is_known(asked) is False, "only what follows the answer at once"


async def test_a_connection_that_ends_in_a_tensor_leaves_nothing_to_the_next(
    tmp_path: Path,
) -> None:
    asked = HashQuestion.read(question(DATA))
    way = Sender(tmp_path)
    way.sender.answer(asked, True, is_known=False)
    way.sender.begin(head_of(asked, len(DATA)))
    way.sender.feed(memoryview(DATA)[:100])
    way.sender.forget()
    way.out.drop()
    way.sender.end()
    assert way.sender.is_known(asked) is False
    way.give(DATA[:SMALLEST_TENSOR_BYTES])
    assert way.left() == names_of(DATA[:SMALLEST_TENSOR_BYTES])


async def test_a_far_end_that_gives_up_while_it_is_asked_is_heard(tmp_path: Path) -> None:
    asked = HashQuestion.read(question(DATA))
    way = Sender(tmp_path)
    way.sender.answer(asked, True, is_known=False)
    way.give(DATA, asked)
    asking = asyncio.create_task(way.sender.ask(asked))
    await asyncio.sleep(0)
    way.out.close()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert isinstance(way.wire, Wire)
