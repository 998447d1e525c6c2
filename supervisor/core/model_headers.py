"""What the library remembers of the header of one GGUF file; pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from math import prod
from typing import Any, Final, NamedTuple, TypeVar

from supervisor.core.quantisation import quantisation_of

MODEL: Final = "model"
PROJECTOR: Final = "projector"
ADAPTER: Final = "LoRA adapter"
IMATRIX: Final = "importance matrix"
VOCABULARY: Final = "vocabulary"

MAX_NAME: Final = 80

_NO_CHAT: Final = frozenset(
    {"bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2"}
    | {"jina-bert-v3", "eurobert", "gemma-embedding", "llama-embed", "t5", "t5encoder"}
    | {"wavtokenizer-dec"}
)
"""Architectures that nobody chats with."""

_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

T = TypeVar("T")


class FileVersion(NamedTuple):
    """What differs as soon as a file is written or replaced; nobody can set ``changed_ns``."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class HeaderFacts:
    """One file by its header; ``problem`` is why it has none, a sentence without its subject."""

    kind: str = ""
    architecture: str = ""
    name: str = ""
    parameters: int = 0
    quantisation: str = ""
    ctx_train_tokens: int = 0
    blocks: int = 0
    tensors: int = 0
    split_number: int = 0
    """From 0."""
    split_count: int = 1
    split_tensors: int = 0
    has_tokenizer: bool = False
    has_chat_template: bool = False
    needs_chat_template: bool = False
    problem: str = ""
    remedy: str = ""
    problem_code: str = ""

    def as_list(self) -> list[Any]:
        return list(astuple(self))


_TYPES: Final = tuple(type(getattr(HeaderFacts(), field.name)) for field in fields(HeaderFacts))


def from_list(values: object) -> HeaderFacts | None:
    """What ``as_list`` gave; None if an older or damaged file holds something else."""
    if not isinstance(values, list) or len(values) != len(_TYPES):
        return None
    if any(type(value) is not kind for value, kind in zip(values, _TYPES, strict=True)):
        return None
    return HeaderFacts(*values)


def facts_of(
    file_name: str,
    metadata: Mapping[str, object],
    tensors: Iterable[tuple[Sequence[int], int, int]],
) -> HeaderFacts:
    """Make a header's facts.

    Args:
        file_name: Without its folder; it may tell the quantisation better.
        metadata: Of the file.
        tensors: Shape, ``enum ggml_type`` and size in bytes of each.
    """
    parameters, count = 0, 0
    bytes_by_type: dict[int, int] = defaultdict(int)
    for shape, type_id, size_bytes in tensors:
        parameters += prod(shape)
        count += 1
        bytes_by_type[type_id] += size_bytes
    architecture = _at(metadata, "general.architecture", str, "")[:MAX_NAME]
    is_embedder = architecture in _NO_CHAT or f"{architecture}.pooling_type" in metadata
    return HeaderFacts(
        kind=_kind(file_name, metadata, architecture, count),
        architecture=plain(architecture),
        name=plain(_at(metadata, "general.name", str, "").strip()[:MAX_NAME]),
        parameters=parameters,
        quantisation=quantisation_of(file_name, metadata.get("general.file_type"), bytes_by_type),
        ctx_train_tokens=_at(metadata, f"{architecture}.context_length", int, 0),
        blocks=_at(metadata, f"{architecture}.block_count", int, 0),
        tensors=count,
        split_number=_at(metadata, "split.no", int, 0),
        split_count=_at(metadata, "split.count", int, 1) or 1,
        split_tensors=_at(metadata, "split.tensors.count", int, 0),
        has_tokenizer="tokenizer.ggml.model" in metadata,
        has_chat_template="tokenizer.chat_template" in metadata,
        needs_chat_template=not is_embedder,
    )


def plain(text: str) -> str:
    """A stranger's text without what would command a terminal."""
    return _CONTROLS.sub("?", text)


def _kind(file_name: str, metadata: Mapping[str, object], architecture: str, tensors: int) -> str:
    """By what the file says of itself; by its name only where it says nothing."""
    told = _at(metadata, "general.type", str, "")
    is_part = "split.count" in metadata
    signs = (
        (PROJECTOR, told == "mmproj" or architecture == "clip"),
        (ADAPTER, told == "adapter" or "adapter.type" in metadata),
        (IMATRIX, told == "imatrix" or "imatrix.datasets" in metadata),
        (VOCABULARY, told == "vocab" or bool(architecture and not tensors and not is_part)),
        (MODEL, bool(architecture) or is_part),
    )
    return next((kind for kind, is_so in signs if is_so), "") or kind_by_name(file_name)


def kind_by_name(file_name: str) -> str:
    """What a file is that cannot be read, or does not say."""
    name = file_name.lower()
    if "mmproj" in name:
        return PROJECTOR
    return IMATRIX if "imatrix" in name else MODEL


def _at(metadata: Mapping[str, object], key: str, kind: type[T], default: T) -> T:
    value = metadata.get(key)
    return value if isinstance(value, kind) else default
