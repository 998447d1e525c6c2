"""Writes models full of made-up numbers, with a tokenizer, so that llama-server serves them.

What they say is noise. What counts is how many bytes and operations a token takes: any width, any
types, any vocabulary, dense or a mixture of experts.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from agents.weights import WEIGHT_TYPES, WeightType, random_blocks

ALIGNMENT = 32
SEED_BYTES = 1 << 20
SMALL_SCALE = 0x04
"""Both bytes of an f16 of 6e-5: sums over a row stay near 1, far from what f16 can hold."""

CONTROLS = ("<unk>", "<s>", "</s>")
NORMAL_TYPE, UNKNOWN_TYPE, CONTROL_TYPE, BYTE_TYPE = 1, 2, 3, 6
FIRST_WORD = len(CONTROLS) + 256


@dataclass(frozen=True, slots=True)
class Made:
    """The sizes of a model; ``experts`` is how many there are and how many a token uses."""

    layers: int
    width: int
    feed_forward: int
    vocabulary: int = 4096
    heads: int = 8
    kv_heads: int = 4
    kind: str = "Q4_K"
    output_kind: str = "Q6_K"
    experts: tuple[int, int] = (0, 0)

    @property
    def architecture(self) -> str:
        return "qwen3moe" if self.experts[0] else "llama"

    @property
    def head_size(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of the file."""

    name: str
    shape: tuple[int, ...]
    kind: WeightType

    @property
    def size_bytes(self) -> int:
        rows = 1
        for size in self.shape[1:]:
            rows *= size
        return self.kind.row_bytes(self.shape[0]) * rows


def write_model(path: Path, made: Made) -> None:
    """Write the whole file; equal arguments give equal bytes."""
    tensors = list(tensors_of(made))
    with path.open("wb") as file:
        file.write(_header(made, tensors))
        for tensor in tensors:
            file.write(bytes(-file.tell() % ALIGNMENT))
            _fill(file, tensor)


def tensors_of(made: Made) -> Iterator[Tensor]:
    """What llama.cpp's loader asks for (``src/models/llama.cpp``, ``qwen3moe.cpp``)."""
    yield _matrix(made, "token_embd", made.width, made.vocabulary)
    yield _vector("output_norm", made.width)
    output = WEIGHT_TYPES[made.output_kind]
    yield Tensor("output.weight", (made.width, made.vocabulary), output)
    for layer in range(made.layers):
        yield from _attention(made, f"blk.{layer}")
        yield from _feed_forward(made, f"blk.{layer}")


def _attention(made: Made, block: str) -> Iterator[Tensor]:
    kv_width = made.kv_heads * made.head_size
    yield _vector(f"{block}.attn_norm", made.width)
    yield _matrix(made, f"{block}.attn_q", made.width, made.width)
    yield _matrix(made, f"{block}.attn_k", made.width, kv_width)
    yield _matrix(made, f"{block}.attn_v", made.width, kv_width)
    yield _matrix(made, f"{block}.attn_output", made.width, made.width)
    if made.experts[0]:
        yield _vector(f"{block}.attn_q_norm", made.head_size)
        yield _vector(f"{block}.attn_k_norm", made.head_size)


def _feed_forward(made: Made, block: str) -> Iterator[Tensor]:
    count, _ = made.experts
    yield _vector(f"{block}.ffn_norm", made.width)
    if count:
        yield Tensor(f"{block}.ffn_gate_inp.weight", (made.width, count), WEIGHT_TYPES["F32"])
    more, suffix = ((count,), "_exps") if count else ((), "")
    yield _matrix(made, f"{block}.ffn_gate{suffix}", made.width, made.feed_forward, *more)
    yield _matrix(made, f"{block}.ffn_up{suffix}", made.width, made.feed_forward, *more)
    yield _matrix(made, f"{block}.ffn_down{suffix}", made.feed_forward, made.width, *more)


def _matrix(made: Made, name: str, *shape: int) -> Tensor:
    return Tensor(f"{name}.weight", shape, WEIGHT_TYPES[made.kind])


def _vector(name: str, size: int) -> Tensor:
    return Tensor(f"{name}.weight", (size,), WEIGHT_TYPES["F32"])


def _fill(file: BinaryIO, tensor: Tensor) -> None:
    if len(tensor.shape) == 1:
        file.write(struct.pack("<f", 1.0) * tensor.shape[0])
        return
    seed, left = _seed(tensor.kind), tensor.size_bytes
    while left > 0:
        left -= file.write(seed[:left])


@cache
def _seed(kind: WeightType) -> bytes:
    """Whole blocks of random weights with small scales."""
    blocks = bytearray(random_blocks(kind, SEED_BYTES))
    if kind.type_id in (WEIGHT_TYPES["F16"].type_id, WEIGHT_TYPES["F32"].type_id):
        return bytes(blocks)
    for place in kind.scales_at:
        for byte in (place, place + 1):
            count = len(range(byte, len(blocks), kind.block_bytes))
            blocks[byte :: kind.block_bytes] = bytes([SMALL_SCALE]) * count
    return bytes(blocks)


def _header(made: Made, tensors: list[Tensor]) -> bytes:
    metadata = {**_metadata(made), **_tokenizer(made.vocabulary)}
    header = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _string(key) + value
    offset = 0
    for tensor in tensors:
        layout = f"<I{len(tensor.shape)}QIQ"
        header += _string(tensor.name)
        header += struct.pack(layout, len(tensor.shape), *tensor.shape, tensor.kind.type_id, offset)
        offset += -(-tensor.size_bytes // ALIGNMENT) * ALIGNMENT
    return bytes(header)


def _metadata(made: Made) -> dict[str, bytes]:
    numbers = {
        "context_length": 32768,
        "embedding_length": made.width,
        "block_count": made.layers,
        "feed_forward_length": made.feed_forward,
        "attention.head_count": made.heads,
        "attention.head_count_kv": made.kv_heads,
        "attention.key_length": made.head_size,
        "attention.value_length": made.head_size,
        "rope.dimension_count": made.head_size,
        "vocab_size": made.vocabulary,
    }
    if made.experts[0]:
        numbers["expert_count"], numbers["expert_used_count"] = made.experts
        numbers["expert_feed_forward_length"] = made.feed_forward
    name = made.architecture
    return {
        "general.architecture": _text(name),
        "general.name": _text("Made up for a benchmark"),
        **{f"{name}.{key}": struct.pack("<II", 4, number) for key, number in numbers.items()},
        f"{name}.attention.layer_norm_rms_epsilon": struct.pack("<If", 6, 1e-5),
    }


def _tokenizer(count: int) -> dict[str, bytes]:
    """SentencePiece with control tokens, bytes, and as many invented words as are missing."""
    tokens = [*CONTROLS, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"\u2581w{number}" for number in range(count - len(tokens))]
    types = [UNKNOWN_TYPE, CONTROL_TYPE, CONTROL_TYPE, *[BYTE_TYPE] * 256]
    types += [NORMAL_TYPE] * (count - len(types))
    scores = struct.pack(f"<{count}f", *(-float(number) for number in range(count)))
    return {
        "tokenizer.ggml.model": _text("llama"),
        "tokenizer.ggml.tokens": _array(8, count, b"".join(map(_string, tokens))),
        "tokenizer.ggml.scores": _array(6, count, scores),
        "tokenizer.ggml.token_type": _array(5, count, struct.pack(f"<{count}i", *types)),
        "tokenizer.ggml.unknown_token_id": struct.pack("<II", 4, 0),
        "tokenizer.ggml.bos_token_id": struct.pack("<II", 4, 1),
        "tokenizer.ggml.eos_token_id": struct.pack("<II", 4, 2),
    }


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _text(text: str) -> bytes:
    return struct.pack("<I", 8) + _string(text)


def _array(element_type: int, count: int, elements: bytes) -> bytes:
    return struct.pack("<IIQ", 9, element_type, count) + elements
