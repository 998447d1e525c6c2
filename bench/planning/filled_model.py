"""Real files of the made-up models of ``shapes``: random weights, and a vocabulary of any size.

The weights are small enough for finite numbers everywhere; what the model says means nothing.
"""

import math
import random
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from shapes import Q4_K, Shape, header, string, text

from supervisor.adapters.gguf import TensorInfo, parse_part
from supervisor.core.ggml_types import F32, Q8_0, TYPE_SIZES

PATTERN_BLOCKS = 4096
"""Blocks that are random; larger tensors repeat them, which no program notices."""

SCALE_STD = {Q8_0: 74.0, Q4_K: 150.0}
"""Standard deviation of a weight whose block has scale 1 (``dequantize_row_*``, random bits)."""

MEAN_QUANT = 7.5
CONTROL_TYPE, NORMAL_TYPE, UNKNOWN_TYPE, BYTE_TYPE = 3, 1, 2, 6
FIRST_WORD = 3 + 256
"""The first token after the control tokens and the bytes."""


def write_model(shape: Shape, folder: Path) -> Path:
    """Write a whole model; its name is that of the shape."""
    start = header(shape, vocabulary(shape.vocabulary))
    path = folder / start.name
    with path.open("wb") as file:
        file.write(start.start)
        for tensor in parse_part(start).tensors:
            file.seek(tensor.offset_bytes)
            for piece in weights(tensor):
                file.write(piece)
        file.truncate(start.size_bytes)
    return path


def weights(tensor: TensorInfo) -> Iterable[bytes]:
    """The bytes of a tensor, in pieces."""
    pattern = _pattern(tensor)
    for offset in range(0, tensor.size_bytes, len(pattern)):
        yield pattern[: tensor.size_bytes - offset]


def _pattern(tensor: TensorInfo) -> bytes:
    if tensor.type_id == F32:
        return _plain(tensor)
    inputs = tensor.shape[0]
    return _quantised(tensor.type_id, 1 / (SCALE_STD[tensor.type_id] * math.sqrt(inputs)))


def _plain(tensor: TensorInfo) -> bytes:
    """Norms of one, no biases, a decay that forgets, and random small matrices."""
    if tensor.name.endswith(("bias", "ssm_d")):
        return struct.pack("<f", 0.0)
    if tensor.name.endswith("ssm_a"):
        return struct.pack("<f", -1.0)
    if len(tensor.shape) == 1 or "norm" in tensor.name:
        return struct.pack("<f", 1.0)
    rng, std = random.Random(1), 1 / math.sqrt(tensor.shape[0])
    return struct.pack("<4096f", *(rng.gauss(0, std) for _ in range(4096)))


@cache
def _quantised(type_id: int, scale: float) -> bytes:
    """Random blocks with one scale; those of Q4_K have a second one, for the mean."""
    size = TYPE_SIZES[type_id].block_bytes
    scales = struct.pack("<e", scale)
    if type_id == Q4_K:
        scales += struct.pack("<e", scale * MEAN_QUANT)
    blocks = bytearray(random.Random(2).randbytes(size * PATTERN_BLOCKS))
    for index, byte in enumerate(scales):
        blocks[index::size] = bytes([byte]) * PATTERN_BLOCKS
    return bytes(blocks)


def vocabulary(count: int) -> dict[str, bytes]:
    """Metadata of a tokenizer with control tokens, bytes and made-up words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"\u2581word{index}" for index in range(count - len(tokens))]
    types = [UNKNOWN_TYPE, CONTROL_TYPE, CONTROL_TYPE, *[BYTE_TYPE] * 256]
    types += [NORMAL_TYPE] * (count - len(types))
    scores = [-float(index) for index in range(count)]
    return {
        "tokenizer.ggml.model": text("llama"),
        "tokenizer.ggml.tokens": _array(8, count, b"".join(map(string, tokens))),
        "tokenizer.ggml.scores": _array(6, count, struct.pack(f"<{count}f", *scores)),
        "tokenizer.ggml.token_type": _array(5, count, struct.pack(f"<{count}i", *types)),
        "tokenizer.ggml.unknown_token_id": struct.pack("<II", 4, 0),
        "tokenizer.ggml.bos_token_id": struct.pack("<II", 4, 1),
        "tokenizer.ggml.eos_token_id": struct.pack("<II", 4, 2),
    }


def _array(element_type: int, count: int, elements: bytes) -> bytes:
    return struct.pack("<IIQ", 9, element_type, count) + elements
