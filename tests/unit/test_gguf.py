"""The GGUF header reader: honest files are read, broken and hostile ones are named."""

import errno
import os
import struct
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.adapters.gguf import (
    MAX_KEPT_BYTES,
    ByteSource,
    SkippedArray,
    TensorInfo,
    parse_part,
    read_header,
)
from supervisor.core.ggml_types import TYPE_SIZES, tensor_bytes
from supervisor.errors import ModelBroken, ModelMissing

UINT8, INT32, UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 5, 4, 6, 7, 8, 9, 10
HUGE = 2**64 - 1
Tensor = tuple[str, Sequence[int], int, int]  # name, shape, type, offset
FUZZING = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, type_id: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", type_id) + value


def array(key: str, element_type: int, count: int, elements: bytes = b"") -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", element_type, count) + elements)


def u32(key: str, value: int) -> bytes:
    return pair(key, UINT32, struct.pack("<I", value))


LLAMA = [
    pair("general.architecture", STRING, text("llama")),
    u32("llama.block_count", 2),
    u32("llama.context_length", 4096),
]
TENSORS: list[Tensor] = [("a", (4, 2), 0, 0), ("b", (32,), 8, 32)]  # 32 and 34 bytes


def gguf(
    pairs: Sequence[bytes] = LLAMA,
    tensors: Sequence[Tensor] = TENSORS,
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data_bytes: int = 66,
) -> bytes:
    tensor_count, key_count = counts or (len(tensors), len(pairs))
    file = struct.pack("<4sIQQ", b"GGUF", version, tensor_count, key_count) + b"".join(pairs)
    for name, shape, type_id, offset in tensors:
        file += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        file += struct.pack("<IQ", type_id, offset)
    return file + bytes(-len(file) % 32) + bytes(data_bytes)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_file(content: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_file


def complaint_only(value: object) -> str:
    """Name a case by its complaint, not by the bytes of its file."""
    return value if isinstance(value, str) else "file"


def refusal(path: Path) -> str:
    """Read a broken file; check that this is quick and takes little memory."""
    started = time.monotonic()
    with pytest.raises(ModelBroken) as caught:
        read_header(path)
    assert time.monotonic() - started < 3
    tracemalloc.start()  # apart, because it makes everything several times slower
    try:
        with pytest.raises(ModelBroken):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message) < len(str(path)) + 500
    return message


def test_a_header_is_read(write: Callable[..., Path]) -> None:
    path = write(gguf([*LLAMA, pair("general.name", STRING, text("Tiny"))]))
    header = read_header(path)
    assert header.parts == (path,)
    assert (header.architecture, header.name) == ("llama", "Tiny")
    assert (header.block_count, header.context_length) == (2, 4096)
    assert header.size_bytes == path.stat().st_size
    first, second = header.tensors
    assert first == TensorInfo("a", (4, 2), 0, header.size_bytes - 66, 32)
    assert second == TensorInfo("b", (32,), 8, header.size_bytes - 34, 34)


def test_version_2_is_read(write: Callable[..., Path]) -> None:
    assert read_header(write(gguf(version=2))).block_count == 2


def test_a_model_without_a_name_is_called_like_its_file(write: Callable[..., Path]) -> None:
    assert read_header(write(gguf(), "Gemma-Q8_0.gguf")).name == "Gemma-Q8_0"


def test_a_model_without_a_context_length_has_none(write: Callable[..., Path]) -> None:
    assert read_header(write(gguf(LLAMA[:2]))).context_length is None


def test_every_kind_of_value_is_kept_or_counted(write: Callable[..., Path]) -> None:
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
    metadata = read_header(write(gguf([*LLAMA, *pairs]))).metadata
    assert all(metadata[f"k{type_id}"] == 1 for type_id in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12))
    assert metadata["k7"] is True
    assert metadata["heads"] == (4, -4, 8)
    assert metadata["flags"] == (False, True)
    assert metadata["none"] == ()
    assert metadata["long"] == SkippedArray("uint8", 5000)
    assert metadata["words"] == SkippedArray("string", 2)
    assert metadata["latin"] == "\N{REPLACEMENT CHARACTER}"
    assert metadata["book"] == SkippedArray("uint8", 2_000_000)


def test_a_large_vocabulary_costs_little_time_and_memory(write: Callable[..., Path]) -> None:
    count = 150_000
    tokens = b"".join(
        struct.pack("<Q", 3 + n % 9) + b"abcdefghijkl"[: 3 + n % 9] for n in range(count)
    )
    path = write(
        gguf(
            [
                *LLAMA,
                array("tokenizer.ggml.tokens", STRING, count, tokens),
                array("tokenizer.ggml.scores", FLOAT32, count, bytes(4 * count)),
            ]
        )
    )
    del tokens
    started = time.perf_counter()
    header = read_header(path)
    assert time.perf_counter() - started < 0.5
    assert header.metadata["tokenizer.ggml.tokens"] == SkippedArray("string", count)
    tracemalloc.start()
    read_header(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 30_000_000


def test_a_source_that_is_no_file_can_be_read_in_ranges() -> None:
    class Ranges(ByteSource):
        name = "https://example.org/model.gguf"
        content = gguf()
        size_bytes = len(content)

        def read(self, offset_bytes: int, size_bytes: int) -> bytes:
            return self.content[offset_bytes : offset_bytes + size_bytes]

    part = parse_part(Ranges())
    assert [tensor.name for tensor in part.tensors] == ["a", "b"]


def test_a_source_that_shrinks_is_named() -> None:
    class Shrinking(ByteSource):
        name = "model.gguf"
        size_bytes = 1000

        def read(self, offset_bytes: int, size_bytes: int) -> bytes:
            return b"GGUF"

    with pytest.raises(ModelBroken, match="became shorter"):
        parse_part(Shrinking())


# Files that are not there


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"absent\.gguf does not exist"):
        read_header(tmp_path / "absent.gguf")


def test_a_path_through_a_file_does_not_exist(write: Callable[..., Path]) -> None:
    with pytest.raises(ModelMissing, match="does not exist"):
        read_header(write(gguf()) / "model.gguf")


def test_a_directory_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="is a directory"):
        read_header(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelMissing, match="not a regular file"):
        read_header(tmp_path / "pipe.gguf")


def test_a_path_with_a_nul_byte_is_no_file_name(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="not a file name"):
        read_header(tmp_path / "a\0b.gguf")


def test_an_unreadable_file_is_reported_with_the_reason(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> Any:  # root may read everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = write(gguf())
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelMissing, match="cannot be read: Permission denied"):
        read_header(path)


# Files that are no GGUF, or of a kind that llama.cpp does not load


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a GGUF file"),
        (b"GG", "not a GGUF file"),
        (b"GGUF\x03", "is truncated"),
        (b"<!DOCTYPE html>", r"not a GGUF file \(starts with b'<!DOCTYP'\)"),
        (b"version https://git-lfs", "not a GGUF file"),
        (gguf(version=0), "version 0"),
        (gguf(version=1), "version 1"),
        (gguf(version=4), "version 4"),
        (gguf(version=0x03000000), "big-endian"),
        (gguf([]), "no general.architecture"),
        (gguf([u32("general.architecture", 1)]), "no general.architecture"),
        (gguf([pair("general.architecture", STRING, text("x" * 9999))]), "architecture"),
        (gguf(LLAMA[:1]), r"no llama\.block_count"),
        (gguf([LLAMA[0], u32("llama.block_count", 0)]), r"no llama\.block_count"),
        (gguf([LLAMA[0], u32("llama.block_count", 2**32 - 1)]), "at most 512"),
        (gguf(tensors=[]), "no tensors"),
    ],
    ids=complaint_only,
)
def test_what_is_not_a_model_is_refused_with_the_reason(
    write: Callable[..., Path], content: bytes, complaint: str
) -> None:
    path = write(content)
    with pytest.raises(ModelBroken, match=complaint):
        read_header(path)
    refusal(path)


def test_a_truncated_model_is_named_as_truncated(write: Callable[..., Path]) -> None:
    whole = gguf()
    message = refusal(write(whole[:-1]))
    assert "is truncated: tensor 'b' ends at byte" in message
    assert f"byte {len(whole)}, the file has {len(whole) - 1}; download it again" in message


def test_a_file_cut_anywhere_is_broken(write: Callable[..., Path]) -> None:
    whole = gguf([*LLAMA, array("words", STRING, 2, text("x") + text("yz"))])
    for size in range(len(whole)):
        with pytest.raises(ModelBroken):
            read_header(write(whole[:size]))


# Hostile files


@pytest.mark.parametrize(
    ("content", "complaint"),
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
        (gguf(tensors=[("a", (4,), 0, 0), ("a", (4,), 0, 32)]), "there twice"),
    ],
    ids=complaint_only,
)
def test_a_hostile_file_is_refused_quickly(
    write: Callable[..., Path], content: bytes, complaint: str
) -> None:
    path = write(content)
    with pytest.raises(ModelBroken, match=complaint):
        read_header(path)
    refusal(path)


@pytest.mark.parametrize(
    "content",
    [gguf([], [], counts=(0, 4096)), gguf([], [], counts=(65_536, 0))],
    ids=["keys", "tensors"],
)
def test_a_hostile_sparse_file_is_refused_quickly(
    write: Callable[..., Path], content: bytes
) -> None:
    """Zeros that cost the sender nothing: empty keys, scalar tensors."""
    path = write(content)
    os.truncate(path, 2**36)
    refusal(path)


def test_a_sparse_file_of_empty_texts_is_refused_quickly(write: Callable[..., Path]) -> None:
    path = write(gguf([array("k", STRING, 4_000_000)], []))
    os.truncate(path, 2**36)
    started = time.monotonic()
    with pytest.raises(ModelBroken):
        read_header(path)
    assert time.monotonic() - started < 5


def test_much_metadata_of_the_allowed_sizes_is_refused(write: Callable[..., Path]) -> None:
    texts = [pair(f"k{n}", STRING, text("x" * 1_000_000)) for n in range(6)]
    assert f"{MAX_KEPT_BYTES} are read" in refusal(write(gguf(texts)))
    arrays = [array(f"k{n}", UINT8, 4096, bytes(4096)) for n in range(64)]
    assert f"{MAX_KEPT_BYTES} are read" in refusal(write(gguf(arrays)))


def read_fuzzed(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    tracemalloc.start()
    started = time.monotonic()
    try:
        header = read_header(path)
        assert header.name and header.block_count > 0
        assert all(t.offset_bytes + t.size_bytes <= len(content) for t in header.tensors)
    except (ModelBroken, ModelMissing) as exc:
        assert len(str(exc)) < 1000
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.monotonic() - started < 3
    assert peak_bytes < 10_000_000


SEED = gguf(
    [
        *LLAMA,
        u32("general.alignment", 32),
        array("heads", INT32, 3, struct.pack("<3i", 4, 4, 8)),
        array("words", STRING, 2, text("x") + text("yz")),
        pair("split.count", 2, struct.pack("<H", 1)),
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
    tmp_path: Path, changes: list[tuple[int, int]], numbers: list[tuple[int, int]], size: int
) -> None:
    content = bytearray(SEED)
    for at, byte in changes:
        content[at] = byte
    for at, number in numbers:
        content[at : at + 8] = struct.pack("<Q", number)
    read_fuzzed(tmp_path / "m.gguf", bytes(content[:size]))


@FUZZING
@given(start=st.sampled_from([b"", b"GGUF\x03\0\0\0"]), content=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path: Path, start: bytes, content: bytes) -> None:
    read_fuzzed(tmp_path / "m.gguf", start + content)


# Split files


def part(number: int, count: int, tensors: Sequence[Tensor], total: int = 2) -> bytes:
    """Make a part, ``number`` from 1, as llama-gguf-split writes it."""
    pairs = [
        pair("split.no", 2, struct.pack("<H", number - 1)),
        pair("split.count", 2, struct.pack("<H", count)),
        pair("split.tensors.count", INT32, struct.pack("<i", total)),
    ]
    return gguf([*(LLAMA if number == 1 else []), *pairs], tensors, data_bytes=32)


A: list[Tensor] = [("a", (8,), 0, 0)]
B: list[Tensor] = [("b", (8,), 0, 0)]
NAMES = [f"big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def write_parts(write: Callable[..., Path], *contents: bytes) -> Path:
    paths = [write(content, name) for content, name in zip(contents, NAMES, strict=False)]
    return paths[0]


def test_a_split_model_is_read_as_one(write: Callable[..., Path]) -> None:
    first = write_parts(write, part(1, 3, []), part(2, 3, A), part(3, 3, B))
    header = read_header(first)
    assert header.path == first
    assert [path.name for path in header.parts] == NAMES
    assert [tensor.name for tensor in header.tensors] == ["a", "b"]
    assert header.size_bytes == sum(path.stat().st_size for path in header.parts)
    assert header.name == "big"


def test_a_missing_part_is_named(write: Callable[..., Path]) -> None:
    first = write_parts(write, part(1, 3, []), part(2, 3, A))
    with pytest.raises(ModelMissing, match=r"big-00003-of-00003\.gguf is missing"):
        read_header(first)


def test_a_truncated_part_is_named(write: Callable[..., Path]) -> None:
    first = write_parts(write, part(1, 3, []), part(2, 3, A)[:-1], part(3, 3, B))
    with pytest.raises(ModelBroken, match=r"big-00002-of-00003\.gguf is truncated"):
        read_header(first)


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ((part(1, 3, []), part(3, 3, A), part(3, 3, B)), "says that it is part 2"),
        ((part(1, 3, []), part(2, 3, A), gguf()), "says that it is part None"),
        ((part(1, 3, []), part(2, 3, A), part(3, 3, A)), "'a' is there twice"),
        ((part(1, 3, [], total=9), part(2, 3, A), part(3, 3, B)), "9 belong to"),
        ((part(1, 4, []), part(2, 3, A), part(3, 3, B)), "not named so"),
        ((part(1, 65_535, []), part(2, 3, A), part(3, 3, B)), "not named so"),
    ],
    ids=complaint_only,
)
def test_parts_that_do_not_fit_are_refused(
    write: Callable[..., Path], parts: tuple[bytes, ...], complaint: str
) -> None:
    with pytest.raises(ModelBroken, match=complaint):
        read_header(write_parts(write, *parts))


def test_a_later_part_names_the_first(write: Callable[..., Path]) -> None:
    content = gguf([*LLAMA, pair("split.no", 2, b"\1\0"), pair("split.count", 2, b"\3\0")])
    with pytest.raises(ModelBroken, match=r"not the first part .* give big-00001-of-00003\.gguf"):
        read_header(write(content, NAMES[1]))


def test_a_split_model_under_another_name_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(ModelBroken, match="not named so"):
        read_header(write(part(1, 3, A), "renamed.gguf"))


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
