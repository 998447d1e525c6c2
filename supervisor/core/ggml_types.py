"""Sizes of ggml tensor types; pure data, so that a model can be planned without the engine."""

from collections.abc import Sequence
from typing import Final, NamedTuple

MAX_DIMENSIONS: Final = 4
"""``GGML_MAX_DIMS`` in ``ggml/include/ggml.h``."""

MAX_BYTES: Final = 2**63 - 1
"""ggml counts elements and bytes in signed 64 bits."""


class TypeSize(NamedTuple):
    """A type stores a row as blocks of a fixed number of elements."""

    name: str
    block_elements: int
    block_bytes: int


F32: Final = 0
F16: Final = 1
Q8_0: Final = 8

TYPE_SIZES: Final[dict[int, TypeSize]] = {
    F32: TypeSize("F32", 1, 4),
    F16: TypeSize("F16", 1, 2),
    2: TypeSize("Q4_0", 32, 18),
    3: TypeSize("Q4_1", 32, 20),
    6: TypeSize("Q5_0", 32, 22),
    7: TypeSize("Q5_1", 32, 24),
    Q8_0: TypeSize("Q8_0", 32, 34),
    9: TypeSize("Q8_1", 32, 36),
    10: TypeSize("Q2_K", 256, 84),
    11: TypeSize("Q3_K", 256, 110),
    12: TypeSize("Q4_K", 256, 144),
    13: TypeSize("Q5_K", 256, 176),
    14: TypeSize("Q6_K", 256, 210),
    15: TypeSize("Q8_K", 256, 292),
    16: TypeSize("IQ2_XXS", 256, 66),
    17: TypeSize("IQ2_XS", 256, 74),
    18: TypeSize("IQ3_XXS", 256, 98),
    19: TypeSize("IQ1_S", 256, 50),
    20: TypeSize("IQ4_NL", 32, 18),
    21: TypeSize("IQ3_S", 256, 110),
    22: TypeSize("IQ2_S", 256, 82),
    23: TypeSize("IQ4_XS", 256, 136),
    24: TypeSize("I8", 1, 1),
    25: TypeSize("I16", 1, 2),
    26: TypeSize("I32", 1, 4),
    27: TypeSize("I64", 1, 8),
    28: TypeSize("F64", 1, 8),
    29: TypeSize("IQ1_M", 256, 56),
    30: TypeSize("BF16", 1, 2),
    34: TypeSize("TQ1_0", 256, 54),
    35: TypeSize("TQ2_0", 256, 66),
    39: TypeSize("MXFP4", 32, 17),
    40: TypeSize("NVFP4", 64, 36),
    41: TypeSize("Q1_0", 128, 18),
    42: TypeSize("Q2_0", 64, 18),
}
"""By ``enum ggml_type``; the ids that are absent were removed from ggml.

Source:
    llama.cpp as vendored by llama-cpp-python 0.3.36: ``ggml/include/ggml.h`` (ids),
    ``ggml/src/ggml.c`` ``type_traits``, ``ggml/src/ggml-common.h`` (block structs).
"""


def tensor_bytes(type_id: int, shape: Sequence[int]) -> int:
    """Size of one tensor's data, without padding.

    Args:
        type_id: ``enum ggml_type``.
        shape: Elements per dimension, the row length first; empty is one element.

    Raises:
        ValueError: The type is unknown, or no tensor of that type has such a shape.
    """
    size = TYPE_SIZES.get(type_id)
    if size is None:
        raise ValueError(f"unknown tensor type {type_id}")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{len(shape)} dimensions, at most {MAX_DIMENSIONS} are possible")
    row_elements = shape[0] if shape else 1
    if row_elements % size.block_elements:
        raise ValueError(
            f"a row of {row_elements} elements is not a multiple of {size.block_elements},"
            f" the block of {size.name}"
        )
    return _elements(shape) // size.block_elements * size.block_bytes


def _elements(shape: Sequence[int]) -> int:
    elements = 1
    for dimension in shape:
        if dimension < 0:
            raise ValueError(f"a dimension of {dimension} elements")
        elements *= dimension
        if elements > MAX_BYTES // 8:  # the widest element has eight bytes
            raise ValueError(f"shape {tuple(shape)} has more elements than 64 bits can address")
    return elements
