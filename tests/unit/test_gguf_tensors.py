"""Where the tensors of a GGUF file lie: found in honest files, refused in broken ones."""

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_gguf import (
    ARRAY,
    FLOAT32,
    HUGE,
    LLAMA,
    STRING,
    TENSORS,
    InMemory,
    array,
    complaint_only,
    gguf,
    pair,
    text,
    u16,
    u32,
)

from agents.gguf_tensors import BLOCKS, NotIndexable, read_tensors
from supervisor.adapters.gguf import read_header
from supervisor.adapters.gguf_parse import parse_part
from supervisor.core.ggml_types import TYPE_SIZES
from supervisor.demo_model import write_demo_model
from supervisor.errors import ModelBroken

F32 = 0


def places(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as file:
        return [(at, size) for at, size in read_tensors(file, path.stat().st_size)]


def refusal(path: Path) -> str:
    with pytest.raises(NotIndexable) as caught:
        places(path)
    return str(caught.value)


def test_block_sizes_are_those_the_supervisor_plans_with() -> None:
    assert {
        type_id: (size.block_elements, size.block_bytes) for type_id, size in TYPE_SIZES.items()
    } == BLOCKS


def test_tensors_lie_where_the_supervisor_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_demo_model(path)
    found = places(path)
    assert found == [(t.offset_bytes, t.size_bytes) for t in read_header(path).tensors]
    assert len(found) > 10


def test_the_alignment_of_the_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    keys = [u32("general.alignment", 128), array("words", STRING, 2, text("x") + text("yz"))]
    content = gguf([*LLAMA, *keys, array("scores", FLOAT32, 2, bytes(8))], data_bytes=0)
    start = (len(content.rstrip(b"\0")) + 127) & -128
    path.write_bytes(content[:start].ljust(start, b"\0") + bytes(66))
    assert places(path) == [(start, 32), (start + 32, 34)]


def test_a_tensor_of_an_unknown_type_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(tensors=[("new", (7,), 999, 0), ("a", (8,), F32, 64)], data_bytes=96))
    assert places(path) == [(path.stat().st_size - 32, 32)]


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = gguf([*LLAMA, array("words", STRING, 2, text("x") + text("yz"))])
    path = tmp_path / "model.gguf"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert refusal(path).startswith("it is ")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<!DOCTYPE html>", "not a GGUF file"),
        (gguf(version=1), "GGUF version 1"),
        (gguf(version=0x03000000), "GGUF version 50331648"),
        (gguf(counts=(2, HUGE)), "claims 18446744073709551615 keys"),
        (gguf(counts=(HUGE, 3)), "claims 18446744073709551615 tensors"),
        (gguf([struct.pack("<Q", HUGE)]), "a name of 18446744073709551615 bytes"),
        (gguf([text("k") + struct.pack("<IQ", STRING, HUGE)]), "truncated: its header goes on"),
        (gguf([array("k", STRING, HUGE)]), "texts"),
        (gguf([array("k", STRING, 3_000_000)]), "truncated"),
        (gguf([array("k", FLOAT32, HUGE)]), "truncated"),
        (gguf([array("k", ARRAY, 1)]), "a key of type 9"),
        (gguf([pair("k", 13, b"")]), "a key of type 13"),
        (gguf([*LLAMA, u32("general.alignment", 0)]), "alignment 0"),
        (gguf([*LLAMA, u32("general.alignment", 24)]), "alignment 24"),
        (gguf(tensors=[("a", (1,) * 5, F32, 0)]), "5 dimensions"),
        (gguf(tensors=[("a", (HUGE, HUGE), F32, 0)]), "truncated"),
        (gguf(tensors=[("a", (8,), F32, 0), ("b", (8,), F32, 0)]), "share byte 0"),
        (gguf(tensors=[("a", (8,), F32, 0)], data_bytes=31), "truncated"),
    ],
    ids=complaint_only,
)
def test_broken_and_hostile_files_are_refused(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert complaint in refusal(path)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=3))
def test_whatever_is_changed_the_supervisor_would_find_the_same(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(gguf([*LLAMA, u16("k", 1), array("w", STRING, 1, text("x"))], TENSORS))
    for at, value in changes:
        content[at % len(content)] = value
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    try:
        expected = [
            (t.offset_bytes, t.size_bytes) for t in parse_part(InMemory(bytes(content))).tensors
        ]
    except ModelBroken:
        try:
            places(path)
        except NotIndexable as exc:
            assert str(exc)
    else:
        assert places(path) == expected
