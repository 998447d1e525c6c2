"""The parser of one GGUF file: honest bytes are understood, broken and hostile ones are named."""

import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_gguf import (
    ARRAY,
    BOOL,
    FLOAT32,
    HUGE,
    INT32,
    LLAMA,
    STRING,
    UINT8,
    UINT64,
    InMemory,
    array,
    complaint_only,
    gguf,
    pair,
    text,
    u16,
    u32,
)

from supervisor.adapters.gguf_parse import (
    CHUNK_BYTES,
    MAX_HEADER_BYTES,
    MAX_KEPT_BYTES,
    SkippedArray,
    TensorInfo,
    parse_part,
)
from supervisor.core.ggml_types import TYPE_SIZES, tensor_bytes
from supervisor.errors import ModelBroken

pytestmark = pytest.mark.timeout(60)  # a hostile file must not keep anybody waiting

FUZZING = settings(max_examples=200, deadline=None)
ALLOWED_BYTES = 40_000_000


def refusal(content: bytes, size_bytes: int = 0) -> str:
    """Read broken bytes; check that this takes little memory and reads no byte twice."""
    source = InMemory(content, size_bytes)
    tracemalloc.start()
    try:
        with pytest.raises(ModelBroken) as caught:
            parse_part(source)
        assert tracemalloc.get_traced_memory()[1] < ALLOWED_BYTES
    finally:
        tracemalloc.stop()
    assert sum(source.reads) <= max(1.1 * len(content), MAX_HEADER_BYTES)
    message = str(caught.value)
    assert message.startswith(source.name)
    assert len(message) < 500
    return message


def test_metadata_tensors_and_sizes_are_read() -> None:
    content = gguf()
    part = parse_part(InMemory(content))
    assert part.metadata["llama.block_count"] == 2
    assert part.size_bytes == len(content)
    assert part.header_bytes == len(content) - 66
    assert part.tensors == (
        TensorInfo("a", (4, 2), 0, len(content) - 66, 32),
        TensorInfo("b", (32,), 8, len(content) - 34, 34),
    )


def test_a_file_without_tensors_ends_with_its_header() -> None:
    padded = gguf(tensors=[], data_bytes=0)
    bare = padded[: padded.rindex(LLAMA[-1]) + len(LLAMA[-1])]
    assert len(bare) < len(padded)
    for content in (padded, bare):
        assert parse_part(InMemory(content)).header_bytes == len(content)


def test_version_2_is_read() -> None:
    assert len(parse_part(InMemory(gguf(version=2))).tensors) == 2


def test_every_kind_of_value_is_kept_or_counted() -> None:
    scalars = "BbHhIif?QQQqd"
    pairs = [
        pair(f"k{type_id}", type_id, struct.pack(f"<{scalars[type_id]}", 1))
        for type_id in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)
    ]
    pairs += [
        array("heads", INT32, 3, struct.pack("<3i", 4, -4, 8)),
        array("flags", BOOL, 2, b"\x00\x01"),
        array("none", FLOAT32, 0),
        array("long", UINT8, 5000, bytes(5000)),
        array("words", STRING, 2, text("x") + text("")),
        pair("latin", STRING, struct.pack("<Q", 1) + b"\xe9"),
        pair("book", STRING, text("x" * 2_000_000)),
    ]
    metadata = parse_part(InMemory(gguf([*LLAMA, *pairs]))).metadata
    assert all(metadata[f"k{type_id}"] == 1 for type_id in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12))
    assert metadata["k7"] is True
    assert metadata["heads"] == (4, -4, 8)
    assert metadata["flags"] == (False, True)
    assert metadata["none"] == ()
    assert metadata["long"] == SkippedArray("uint8", 5000)
    assert metadata["words"] == SkippedArray("string", 2)
    assert metadata["latin"] == "\N{REPLACEMENT CHARACTER}"
    assert metadata["book"] == SkippedArray("uint8", 2_000_000)


def test_a_large_vocabulary_is_counted_in_little_memory() -> None:
    count = 150_000
    tokens = b"".join(
        struct.pack("<Q", 3 + n % 9) + b"abcdefghijkl"[: 3 + n % 9] for n in range(count)
    )
    scores = array("tokenizer.ggml.scores", FLOAT32, count, bytes(4 * count))
    source = InMemory(gguf([*LLAMA, array("tokenizer.ggml.tokens", STRING, count, tokens), scores]))
    tracemalloc.start()
    try:
        part = parse_part(source)
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert part.metadata["tokenizer.ggml.tokens"] == SkippedArray("string", count)
    assert sum(source.reads) < source.size_bytes + CHUNK_BYTES


def test_a_source_that_shrinks_is_named() -> None:
    class Shrinking:
        name = "model.gguf"
        size_bytes = 1000

        def read(self, offset_bytes: int, size_bytes: int) -> bytes:
            return b"GGUF"

    with pytest.raises(ModelBroken, match=r"^model\.gguf became shorter"):
        parse_part(Shrinking())


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a GGUF file"),
        (b"GG", "not a GGUF file"),
        (b"GGUF\x03", "is truncated"),
        (b"<!DOCTYPE html>", r"not a GGUF file (starts with b'<!DOCTYP')"),
        (b"version https://git-lfs", "not a GGUF file"),
        (gguf(version=0), "version 0"),
        (gguf(version=1), "version 1"),
        (gguf(version=4), "version 4"),
        (gguf(version=0x03000000), "big-endian"),
    ],
    ids=complaint_only,
)
def test_what_is_no_gguf_is_refused_with_the_reason(content: bytes, complaint: str) -> None:
    assert complaint in refusal(content)


def test_a_truncated_file_is_named_as_truncated() -> None:
    whole = gguf()
    message = refusal(whole[:-1])
    assert "is truncated: tensor 'b' ends at byte" in message
    assert f"byte {len(whole)}, the file has {len(whole) - 1}; download it again" in message


def test_a_file_cut_anywhere_is_broken() -> None:
    whole = gguf([*LLAMA, array("words", STRING, 2, text("x") + text("yz"))])
    for size in range(len(whole)):
        with pytest.raises(ModelBroken):
            parse_part(InMemory(whole[:size]))


# Hostile files


@pytest.mark.parametrize(
    ("content", "complaints"),
    [
        (gguf(counts=(2, HUGE)), "metadata keys"),
        (gguf(counts=(HUGE, 3)), "tensors"),
        (gguf(counts=(2, 4000)), "damaged|truncated"),
        (gguf(counts=(60_000, 3)), "damaged|truncated"),
        (gguf([struct.pack("<Q", HUGE)]), "name of 18446744073709551615 bytes"),
        (gguf([struct.pack("<Q", 60_000)]), "truncated"),
        (gguf([text("k") + struct.pack("<IQ", STRING, HUGE)]), "truncated"),
        (gguf([text("k") + struct.pack("<IQ", STRING, 2**20)]), "truncated"),
        (gguf([array("k", UINT8, HUGE)]), "truncated"),
        (gguf([array("k", UINT64, 4096)]), "truncated"),
        (gguf([array("k", STRING, HUGE)]), "texts in arrays"),
        (gguf([array("k", STRING, 3_000_000)]), "truncated"),
        (gguf([array("k", STRING, 2, struct.pack("<Q", HUGE))]), "truncated"),
        (gguf([array("k", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 5000)]), "type 9"),
        (gguf([array("k", 99, 1)]), "type 99"),
        (gguf([array("k", 99, HUGE)]), "type 99"),
        (gguf([pair("k", 13, b"")]), "type 13"),
        (gguf([*LLAMA, LLAMA[0]]), "there twice"),
        (gguf([u32("", 1)]), "empty"),
        (gguf([*LLAMA, u32("general.alignment", 0)]), "alignment 0"),
        (gguf([*LLAMA, u32("general.alignment", 24)]), "alignment 24"),
        (gguf([*LLAMA, pair("general.alignment", STRING, text("x" * 5000))]), "alignment"),
        (gguf([*LLAMA, pair("general.alignment", INT32, struct.pack("<i", -32))]), "alignment"),
        (gguf([*LLAMA, u32("general.alignment", 2**31)]), "starts at byte"),
        (gguf(tensors=[("a" * 64, (4,), 0, 0)]), "name of 64 bytes"),
        (gguf(tensors=[("a", (4, 4, 4, 4, 4), 0, 0)]), "5 dimensions"),
        (gguf(tensors=[("a", (2**63,), 0, 0)]), "more elements"),
        (gguf(tensors=[("a", (2**32, 2**32, 2**32, 2**32), 0, 0)]), "more elements"),
        (gguf(tensors=[("a", (2**40,), 0, 0)]), "truncated"),
        (gguf(tensors=[("a", (4,), 4, 0)]), "unknown tensor type 4"),
        (gguf(tensors=[("a", (4,), 2**32 - 1, 0)]), "unknown tensor type"),
        (gguf(tensors=[("a", (33,), 8, 0)]), "not a multiple of 32"),
        (gguf(tensors=[("a", (4,), 0, 2**64 - 32)]), "starts at byte"),
        (gguf(tensors=[("a", (4,), 0, 32)]), "starts at byte 32"),
        (gguf(tensors=[("a", (32,), 0, 0), ("b", (4,), 0, 64)]), "starts at byte 64"),
        (gguf(tensors=[("a", (4,), 0, 0), ("b", (4,), 0, 16)]), "starts at byte 16"),
    ],
    ids=complaint_only,
)
def test_hostile_bytes_are_refused(content: bytes, complaints: str) -> None:
    message = refusal(content)
    assert any(complaint in message for complaint in complaints.split("|"))


@pytest.mark.parametrize(
    "content",
    [gguf([], [], counts=(0, 4096)), gguf([], [], counts=(65_536, 0))],
    ids=["keys", "tensors"],
)
def test_zeros_that_cost_the_sender_nothing_are_refused(content: bytes) -> None:
    refusal(content, 1 << 36)


def test_millions_of_empty_texts_are_read_once() -> None:
    source = InMemory(gguf([array("k", STRING, 4_000_000)], [], counts=(2, 1)), 1 << 36)
    with pytest.raises(ModelBroken, match="is damaged"):
        parse_part(source)
    assert sum(source.reads) < 34 << 20


@pytest.mark.parametrize(
    "content",
    [
        gguf([array("k", UINT8, 1 << 34)], []),
        gguf([text("k") + struct.pack("<IQ", STRING, 1 << 34)], []),
        gguf([array("k", STRING, 1, struct.pack("<Q", 1 << 34))], []),
    ],
    ids=["numbers", "text", "texts"],
)
def test_a_header_of_gigabytes_is_refused_unread(content: bytes) -> None:
    source = InMemory(content, 1 << 36)
    with pytest.raises(ModelBroken, match=rf"bytes of header, at most {MAX_HEADER_BYTES} are read"):
        parse_part(source)
    assert sum(source.reads) < 2 << 20


def test_much_metadata_of_the_allowed_sizes_is_refused() -> None:
    texts = [pair(f"k{n}", STRING, text("x" * 1_000_000)) for n in range(6)]
    assert f"{MAX_KEPT_BYTES} are read" in refusal(gguf(texts))
    arrays = [array(f"k{n}", UINT8, 4096, bytes(4096)) for n in range(64)]
    assert f"{MAX_KEPT_BYTES} are read" in refusal(gguf(arrays))


def parse_fuzzed(content: bytes) -> None:
    tracemalloc.start()
    try:
        part = parse_part(InMemory(content))
        assert part.header_bytes <= len(content)
        assert all(t.offset_bytes + t.size_bytes <= len(content) for t in part.tensors)
    except ModelBroken as exc:
        assert len(str(exc)) < 1000
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 10_000_000


SEED = gguf(
    [
        *LLAMA,
        u32("general.alignment", 32),
        array("heads", INT32, 3, struct.pack("<3i", 4, 4, 8)),
        array("words", STRING, 2, text("x") + text("yz")),
        u16("split.count", 1),
    ]
)
NUMBERS = st.sampled_from([0, 1, 8, 9, 2**31, 2**32 - 1, 2**62, 2**63, HUGE])


@FUZZING
@given(
    changes=st.lists(st.tuples(st.integers(4, len(SEED) - 9), st.integers(0, 255)), max_size=4),
    numbers=st.lists(st.tuples(st.integers(4, len(SEED) - 9), NUMBERS), max_size=2),
    size=st.integers(0, len(SEED)) | st.just(len(SEED)),
)
def test_a_mutated_header_is_read_or_refused(
    changes: list[tuple[int, int]], numbers: list[tuple[int, int]], size: int
) -> None:
    content = bytearray(SEED)
    for at, byte in changes:
        content[at] = byte
    for at, number in numbers:
        content[at : at + 8] = struct.pack("<Q", number)
    parse_fuzzed(bytes(content[:size]))


@FUZZING
@given(start=st.sampled_from([b"", b"GGUF\x03\0\0\0"]), content=st.binary(max_size=300))
def test_random_bytes_are_refused(start: bytes, content: bytes) -> None:
    parse_fuzzed(start + content)


# Sizes


@pytest.mark.parametrize(
    ("type_id", "shape", "size_bytes"),
    [(0, (), 4), (0, (3, 5), 60), (1, (0, 7), 0), (8, (64, 2), 136), (14, (512,), 420)],
)
def test_the_size_of_a_tensor(type_id: int, shape: tuple[int, ...], size_bytes: int) -> None:
    assert tensor_bytes(type_id, shape) == size_bytes


@pytest.mark.parametrize(
    ("type_id", "shape"),
    [(4, (1,)), (-1, (1,)), (8, ()), (8, (31,)), (0, (-4,)), (0, (2**62,)), (0, (1,) * 5)],
)
def test_an_impossible_tensor_has_no_size(type_id: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"type|dimension|elements"):
        tensor_bytes(type_id, shape)


def test_no_block_is_larger_than_its_elements_in_64_bits() -> None:
    """A slip in the table would show here: between one and 64 bits per element, at least."""
    for size in TYPE_SIZES.values():
        assert 1 <= size.block_bytes * 8 / size.block_elements <= 64
