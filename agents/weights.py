"""Random weights of every quantisation that matters, to measure a device with.

The quants are random, the scales fixed: arithmetic on infinities or subnormal numbers takes another
time than that on real weights.

Source:
    llama.cpp ``ggml/include/ggml.h`` (ids), ``ggml/src/ggml-common.h`` (block structs).
"""

import random
from dataclasses import dataclass
from typing import Final

SCALE_BYTE: Final = 0x1C
"""Twice this byte is the f16 number 0.004, four times the f32 number 5e-22."""


@dataclass(frozen=True, slots=True)
class WeightType:
    """A ggml type; ``scales_at`` are the places of f16 scales and minima in its block."""

    name: str
    type_id: int
    block_elements: int
    block_bytes: int
    scales_at: tuple[int, ...] = (0,)

    def row_bytes(self, elements: int) -> int:
        return elements // self.block_elements * self.block_bytes


F32: Final = WeightType("F32", 0, 1, 4, (2,))
I8: Final = WeightType("I8", 24, 1, 1, ())

WEIGHT_TYPES: Final = {
    kind.name: kind
    for kind in (
        F32,
        WeightType("F16", 1, 1, 2),
        WeightType("BF16", 30, 1, 2),
        WeightType("Q4_0", 2, 32, 18),
        WeightType("Q4_1", 3, 32, 20, (0, 2)),
        WeightType("Q5_0", 6, 32, 22),
        WeightType("Q5_1", 7, 32, 24, (0, 2)),
        WeightType("Q8_0", 8, 32, 34),
        WeightType("Q2_K", 10, 256, 84, (80, 82)),
        WeightType("Q3_K", 11, 256, 110, (108,)),
        WeightType("Q4_K", 12, 256, 144, (0, 2)),
        WeightType("Q5_K", 13, 256, 176, (0, 2)),
        WeightType("Q6_K", 14, 256, 210, (208,)),
        WeightType("IQ2_XXS", 16, 256, 66),
        WeightType("IQ2_XS", 17, 256, 74),
        WeightType("IQ3_XXS", 18, 256, 98),
        WeightType("IQ4_NL", 20, 32, 18),
        WeightType("IQ3_S", 21, 256, 110),
        WeightType("IQ2_S", 22, 256, 82),
        WeightType("IQ4_XS", 23, 256, 136),
        WeightType("MXFP4", 39, 32, 17, ()),
    )
}
"""What can be measured, by name."""

_FLOATS: Final = {"F32": 0x3F, "F16": 0x2F, "BF16": 0x3F}
"""Highest byte of floats between 0.1 and 1; its lowest bits and the sign are random."""

_MXFP4_EXPONENT: Final = 120
"""E8M0: 2 to the power of 120 - 127."""


def random_blocks(kind: WeightType, size_bytes: int, seed: int = 1) -> bytes:
    """At most ``size_bytes`` of weights, in whole blocks; equal arguments give equal bytes."""
    count = size_bytes // kind.block_bytes
    blocks = bytearray(random.Random(seed).randbytes(count * kind.block_bytes))
    if kind.name in _FLOATS:
        high = kind.block_bytes - 1
        keep = bytes(byte & 0x80 | _FLOATS[kind.name] - (byte & 1) for byte in range(256))
        blocks[high :: kind.block_bytes] = blocks[high :: kind.block_bytes].translate(keep)
        return bytes(blocks)
    if kind.name == "MXFP4":
        blocks[0 :: kind.block_bytes] = bytes([_MXFP4_EXPONENT]) * count
    for place in kind.scales_at:
        for byte in (place, place + 1):
            blocks[byte :: kind.block_bytes] = bytes([SCALE_BYTE]) * count
    return bytes(blocks)
