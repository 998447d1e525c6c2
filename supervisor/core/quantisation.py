"""What a model's quantisation is called, from its header and its name; pure."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from supervisor.core.ggml_types import TYPE_SIZES
from supervisor.core.model_reference import RepoModel

FILE_TYPES: Final[dict[int, str]] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
"""``general.file_type``: ``enum llama_ftype`` in llama.cpp ``include/llama.h``."""

_FAMILY: Final = re.compile(r"(?:^|[-_])(i?q\d|tq\d|bf16|fp?16|fp?32|mxfp4|nvfp4)", re.IGNORECASE)


@lru_cache(maxsize=1 << 16)
def label_in(name: str) -> str:
    """The quantisation that a file's name tells, in capitals; empty if none."""
    return RepoModel(stem=name.removesuffix(".gguf"), parts=()).label


def quantisation_of(name: str, file_type: object, bytes_by_type: Mapping[int, int]) -> str:
    """What to call it: the header's word, or the name's where that says more of the same.

    Args:
        name: Of the file, or what its tool calls the model.
        file_type: ``general.file_type`` as the header has it, if it has one.
        bytes_by_type: Of the tensors, by ggml type.
    """
    told = FILE_TYPES.get(file_type, "") if type(file_type) is int else ""
    header = told or majority(bytes_by_type)
    label = label_in(name)
    if not header:
        return label
    return (
        label
        if label and _family(label) == _family(header) and _says_more(label, told)
        else (header)
    )


def majority(bytes_by_type: Mapping[int, int]) -> str:
    """The type that most of the weights have; empty if there are none."""
    if not bytes_by_type:
        return ""
    most = max(bytes_by_type, key=lambda type_id: bytes_by_type[type_id])
    size = TYPE_SIZES.get(most)
    return size.name if size else ""


def _says_more(label: str, told: str) -> bool:
    return len(label) >= len(told)


def _family(label: str) -> str:
    match = _FAMILY.search(label)
    return match[1].lower().replace("fp", "f") if match else ""
