"""The header of a model file, or of all its parts: what it says, or why it cannot be used."""

import errno
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_gguf import (
    INT32,
    LLAMA,
    STRING,
    Tensor,
    complaint_only,
    gguf,
    pair,
    text,
    u16,
    u32,
)

from supervisor.adapters.gguf import TensorInfo, read_header
from supervisor.errors import ModelBroken, ModelMissing

pytestmark = pytest.mark.timeout(60)

FUZZING = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write_file


def test_a_header_is_read(write: Write) -> None:
    path = write(gguf([*LLAMA, pair("general.name", STRING, text("Tiny"))]))
    header = read_header(path)
    assert header.parts == (path,)
    assert (header.architecture, header.name) == ("llama", "Tiny")
    assert (header.block_count, header.context_length) == (2, 4096)
    assert header.size_bytes == path.stat().st_size
    first, second = header.tensors
    assert first == TensorInfo("a", (4, 2), 0, header.size_bytes - 66, 32)
    assert second == TensorInfo("b", (32,), 8, header.size_bytes - 34, 34)


def test_a_model_without_a_name_is_called_like_its_file(write: Write) -> None:
    assert read_header(write(gguf(), "Gemma-Q8_0.gguf")).name == "Gemma-Q8_0"


def test_a_model_without_a_context_length_has_none(write: Write) -> None:
    assert read_header(write(gguf(LLAMA[:2]))).context_length is None


# Files that are not there


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"absent\.gguf does not exist"):
        read_header(tmp_path / "absent.gguf")


def test_a_path_through_a_file_does_not_exist(write: Write) -> None:
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
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> Any:  # root may read everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = write(gguf())
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelMissing, match="cannot be read: Permission denied"):
        read_header(path)


# Files of a kind that llama.cpp does not load


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<!DOCTYPE html>", "not a GGUF file"),
        (gguf()[:-1], "is truncated: tensor 'b' ends at byte"),
        (gguf([]), "no general.architecture"),
        (gguf([u32("general.architecture", 1)]), "no general.architecture"),
        (gguf([pair("general.architecture", STRING, text("x" * 9999))]), "architecture"),
        (gguf(LLAMA[:1]), "no llama.block_count"),
        (gguf([LLAMA[0], u32("llama.block_count", 0)]), "no llama.block_count"),
        (gguf([LLAMA[0], u32("llama.block_count", 2**32 - 1)]), "at most 512"),
        (gguf(tensors=[]), "no tensors"),
        (gguf(tensors=[("a", (4,), 0, 0), ("a", (4,), 0, 32)]), "there twice"),
    ],
    ids=complaint_only,
)
def test_what_is_not_a_model_is_refused_with_the_reason(
    write: Write, content: bytes, complaint: str
) -> None:
    path = write(content)
    with pytest.raises(ModelBroken) as caught:
        read_header(path)
    message = str(caught.value)
    assert complaint in message
    assert message.startswith(str(path))
    assert len(message) < len(str(path)) + 500


def test_a_sparse_file_of_zeros_is_refused(write: Write) -> None:
    path = write(gguf([], [], counts=(65_536, 4096)))
    os.truncate(path, 2**36)
    with pytest.raises(ModelBroken, match="is damaged"):
        read_header(path)


@FUZZING
@given(
    at=st.integers(24, len(gguf()) - 9),
    number=st.sampled_from([0, 1, 2**31, 2**63]) | st.integers(0, 2**64 - 1),
    size=st.integers(0, len(gguf())) | st.just(len(gguf())),
)
def test_a_mutated_model_is_read_or_refused(write: Write, at: int, number: int, size: int) -> None:
    content = bytearray(gguf())
    content[at : at + 8] = struct.pack("<Q", number)
    try:
        header = read_header(write(bytes(content[:size])))
        assert header.name
        assert header.block_count > 0
    except (ModelBroken, ModelMissing) as exc:
        assert len(str(exc)) < 1000


# Split files


def part(number: int, count: int, tensors: Sequence[Tensor], total: int = 2) -> bytes:
    """Make a part, ``number`` from 1, as llama-gguf-split writes it."""
    pairs = [
        u16("split.no", number - 1),
        u16("split.count", count),
        pair("split.tensors.count", INT32, struct.pack("<i", total)),
    ]
    return gguf([*(LLAMA if number == 1 else []), *pairs], tensors, data_bytes=32)


A: list[Tensor] = [("a", (8,), 0, 0)]
B: list[Tensor] = [("b", (8,), 0, 0)]
NAMES = [f"big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def write_parts(write: Write, *contents: bytes) -> Path:
    paths = [write(content, name) for content, name in zip(contents, NAMES, strict=False)]
    return paths[0]


def test_a_split_model_is_read_as_one(write: Write) -> None:
    first = write_parts(write, part(1, 3, []), part(2, 3, A), part(3, 3, B))
    header = read_header(first)
    assert header.path == first
    assert [path.name for path in header.parts] == NAMES
    assert [tensor.name for tensor in header.tensors] == ["a", "b"]
    assert header.size_bytes == sum(path.stat().st_size for path in header.parts)
    assert header.name == "big"


def test_a_missing_part_is_named(write: Write) -> None:
    first = write_parts(write, part(1, 3, []), part(2, 3, A))
    with pytest.raises(ModelMissing, match=r"big-00003-of-00003\.gguf is missing"):
        read_header(first)


def test_a_truncated_part_is_named(write: Write) -> None:
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
    write: Write, parts: tuple[bytes, ...], complaint: str
) -> None:
    with pytest.raises(ModelBroken, match=complaint):
        read_header(write_parts(write, *parts))


def test_a_later_part_names_the_first(write: Write) -> None:
    content = gguf([*LLAMA, u16("split.no", 1), u16("split.count", 3)])
    with pytest.raises(ModelBroken, match=r"not the first part .* give big-00001-of-00003\.gguf"):
        read_header(write(content, NAMES[1]))


def test_a_split_model_under_another_name_is_refused(write: Write) -> None:
    with pytest.raises(ModelBroken, match="not named so"):
        read_header(write(part(1, 3, A), "renamed.gguf"))
