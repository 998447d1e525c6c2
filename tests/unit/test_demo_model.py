"""The demo model: a valid file, written whole or not at all, that recites its sentence."""

import math
import struct
from pathlib import Path
from typing import TypedDict

import pytest

from supervisor import demo_model
from supervisor.adapters.gguf import GgufHeader, SkippedArray, TensorInfo, read_header
from supervisor.core.ggml_types import F32, Q8_0
from supervisor.demo_model import SENTENCE, write_demo_model


class SizeArguments(TypedDict, total=False):
    """The sizes that ``write_demo_model`` takes."""

    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int


SMALL: SizeArguments = {
    "layers": 2,
    "embedding": 64,
    "feed_forward": 96,
    "heads": 2,
    "kv_heads": 1,
}


@pytest.fixture
def small(tmp_path: Path) -> GgufHeader:
    path = tmp_path / "small.gguf"
    write_demo_model(path, **SMALL)
    return read_header(path)


def test_the_default_model_is_a_complete_gguf(tmp_path: Path) -> None:
    write_demo_model(tmp_path / "demo.gguf")
    header = read_header(tmp_path / "demo.gguf")
    assert (header.architecture, header.block_count) == ("llama", 8)
    assert header.context_length == 4096
    assert len(header.tensors) == 3 + 9 * 8
    assert 10_000_000 < header.size_bytes < 40_000_000


def test_the_header_says_the_sizes_that_were_asked_for(small: GgufHeader) -> None:
    assert small.metadata["llama.embedding_length"] == SMALL["embedding"]
    assert small.metadata["llama.feed_forward_length"] == SMALL["feed_forward"]
    assert small.metadata["llama.attention.head_count"] == SMALL["heads"]
    assert small.metadata["llama.attention.head_count_kv"] == SMALL["kv_heads"]
    shapes = {tensor.name: tensor.shape for tensor in small.tensors}
    assert shapes["blk.1.ffn_down.weight"] == (96, 64)
    assert shapes["blk.1.attn_k.weight"] == (64, 32)


def test_vocabulary_scores_and_rows_have_equal_length(small: GgufHeader) -> None:
    tokens = small.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, SkippedArray)
    shapes = {tensor.name: tensor.shape for tensor in small.tensors}
    assert shapes["token_embd.weight"] == shapes["output.weight"] == (64, tokens.count)
    assert tokens.count == len(set(demo_model._tokens()))


def test_the_words_of_the_sentence_are_distinct() -> None:
    words = SENTENCE.split()
    assert len(words) == len(set(words)) == 48
    assert " ".join(words) == SENTENCE


def test_the_chat_template_ends_outside_the_sentence() -> None:
    assert demo_model.CHAT_TEMPLATE.endswith("|>\\n' }}{% endif %}")
    assert "\n" not in SENTENCE


def rows(header: GgufHeader, name: str) -> list[tuple[float, ...]]:
    """Dequantise a Q8_0 matrix."""
    tensor = next(tensor for tensor in header.tensors if tensor.name == name)
    return [row(header, tensor, at) for at in range(tensor.shape[1])]


def row(header: GgufHeader, tensor: TensorInfo, index: int) -> tuple[float, ...]:
    assert tensor.type_id == Q8_0
    blocks = tensor.shape[0] // 32
    with header.path.open("rb") as file:
        file.seek(tensor.offset_bytes + index * blocks * 34)
        content = file.read(blocks * 34)
    return tuple(
        scale * quant for scale, *quants in struct.iter_unpack("<e32b", content) for quant in quants
    )


def test_without_its_layers_the_model_recites_the_sentence_and_ends(small: GgufHeader) -> None:
    tokens = demo_model._tokens()
    embeddings, outputs = rows(small, "token_embd.weight"), rows(small, "output.weight")

    def following(token: int) -> tuple[int, float]:
        """The most likely next token, and how far its logit is above the second."""
        length = math.sqrt(math.fsum(x * x for x in embeddings[token]) / len(embeddings[token]))
        logits = [
            math.fsum(x * y for x, y in zip(embeddings[token], output, strict=True)) / length
            for output in outputs
        ]
        *_, second, first = sorted(range(len(logits)), key=logits.__getitem__)
        return first, logits[first] - logits[second]

    newline = 3 + ord("\n")
    token, gap = following(newline)
    answer = []
    while token != demo_model.END:
        assert gap > 15
        answer.append(tokens[token])
        token, gap = following(token)
    assert "".join(answer).replace("\u2581", " ") == SENTENCE
    for outside in (demo_model.BEGIN, 3, 3 + 255, len(tokens) - 1):
        assert tokens[following(outside)[0]] == "This"


def test_a_random_model_never_ends_nor_answers_with_bytes(tmp_path: Path) -> None:
    write_demo_model(tmp_path / "random.gguf", recite=False, **SMALL)
    outputs = rows(read_header(tmp_path / "random.gguf"), "output.weight")
    first_word = demo_model.FIRST_WORD_TOKEN
    assert not any(any(output) for output in outputs[:first_word])
    assert all(any(output) for output in outputs[first_word : first_word + 100])


def test_scales_are_finite_and_norms_are_one(small: GgufHeader) -> None:
    content = small.path.read_bytes()
    for tensor in small.tensors:
        data = content[tensor.offset_bytes : tensor.offset_bytes + tensor.size_bytes]
        if tensor.type_id == F32:
            assert set(struct.unpack(f"<{tensor.shape[0]}f", data)) == {1.0}
        else:
            assert {data[at : at + 2] for at in range(0, len(data), 34)} == {data[:2]}
            assert 2**-14 <= struct.unpack_from("<e", data)[0] < math.inf  # normal f16


def test_equal_arguments_give_equal_files_and_other_seeds_others(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    write_demo_model(one, **SMALL)
    write_demo_model(same, **SMALL)
    write_demo_model(other, seed=2, **SMALL)
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> bytes:
        raise OSError("disk full")

    path = tmp_path / "demo.gguf"
    path.write_bytes(b"old")
    monkeypatch.setattr(demo_model, "_quantised", fail)
    with pytest.raises(OSError, match="disk full"):
        write_demo_model(path, **SMALL)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 0},
        {"embedding": 500},
        {"heads": 7},
        {"kv_heads": 3},
        {"feed_forward": 1000},
        {"embedding": 48, "heads": 3, "kv_heads": 1},
    ],
)
def test_impossible_sizes_are_refused(tmp_path: Path, sizes: SizeArguments) -> None:
    with pytest.raises(ValueError, match="Sizes"):
        write_demo_model(tmp_path / "demo.gguf", **sizes)
    assert not list(tmp_path.iterdir())
