"""What is wrong with a model, from what was read of its files; pure.

A fault ends a launch before anything starts. A warning does not: the model runs, though perhaps not
as its user wants.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from supervisor.core.model_headers import (
    ADAPTER,
    IMATRIX,
    MODEL,
    PROJECTOR,
    VOCABULARY,
    HeaderFacts,
)
from supervisor.errors import ArchitectureUnsupported, ModelBroken, ModelMissing

AGAIN: Final = "download it again"
MAX_BLOCKS: Final = 512
"""``LLAMA_MAX_LAYERS`` in llama.cpp ``src/llama-hparams.h``."""

_SHOWN: Final = 8
START_BYTES: Final = 512
"""Of a file, for ``named_start``."""

_MAGICS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (
        b"version https://git-lfs.github.com",
        "is a pointer of git-lfs, not the model that it stands for",
        "run 'git lfs pull' in its folder, or download the file itself",
    ),
    (
        b"PK\x03\x04",
        "is a zip archive, perhaps a model of PyTorch",
        "unpack it, or choose a GGUF file of this model",
    ),
    (b"\x1f\x8b", "is packed with gzip", "unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd", "unpack it with zstd -d"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive", "unpack it"),
    (
        b"\x80\x02",
        "is a model of PyTorch",
        "choose a GGUF file of this model, or convert it with convert_hf_to_gguf.py",
    ),
    *(
        (magic, "is of the time before GGUF (GGML)", "choose a GGUF file of this model")
        for magic in (b"lmgg", b"tjgg", b"fmgg", b"ggml", b"ggjt", b"ggmf")
    ),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """``problem`` is a sentence without its subject, the file; ``remedy`` what to do."""

    problem: str
    remedy: str
    code: str = ModelBroken.code


def named_start(start: bytes) -> Fault:
    """What a file is that does not begin as a GGUF file does.

    Args:
        start: Its first ``START_BYTES``.
    """
    for magic, problem, remedy in _MAGICS:
        if start.startswith(magic):
            return Fault(problem, remedy)
    if not start:
        return Fault("is empty", AGAIN)
    if not any(start):
        return Fault("holds nothing but zeros where it begins: a download that never came", AGAIN)
    return _text_start(start) or Fault(
        f"is not a GGUF file (starts with {start[:8]!r})", "give a .gguf file"
    )


def _text_start(start: bytes) -> Fault | None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return Fault("is a web page: what was downloaded is an error or a login page", AGAIN)
    if text.startswith(b"{"):
        return Fault("is JSON text, perhaps the error that a download ended with", AGAIN)
    if len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 30:
        return Fault(
            "is a safetensors file",
            "choose a GGUF file of this model, or convert it with convert_hf_to_gguf.py",
        )
    return None


def fault_of(
    parts: Sequence[tuple[str, HeaderFacts]],
    missing: Sequence[str] = (),
    named_count: int = 1,
    knows: Callable[[str], bool | None] = lambda _: None,
) -> Fault | None:
    """The first reason why a model cannot be launched.

    Args:
        parts: Names and headers of its files that are there, in order.
        missing: Names of parts that are not.
        named_count: Parts that there are by the names.
        knows: Whether the engine knows an architecture; None: nobody can say, which is no fault.
    """
    for name, header in parts:
        if header.problem:
            return _of_part(name, header, len(parts) + len(missing))
    return (
        _split_fault(parts, missing, named_count)
        or _kind_fault(parts[0][1])
        or _engine_fault(parts[0][1], knows)
    )


def warning_of(header: HeaderFacts) -> str:
    """What its user should know of a model that runs; empty if nothing."""
    if header.kind != MODEL or header.has_chat_template or not header.needs_chat_template:
        return ""
    return (
        "it has no chat template, so that chats follow a usual one, which may not be its own; give"
        " one with --chat-template-file"
    )


def _of_part(name: str, header: HeaderFacts, count: int) -> Fault:
    part = f"its part {name} " if count > 1 else ""
    return Fault(f"{part}{header.problem}", header.remedy, header.problem_code)


def _split_fault(
    parts: Sequence[tuple[str, HeaderFacts]], missing: Sequence[str], named_count: int
) -> Fault | None:
    if missing:
        shown = ", ".join(missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        count = len(parts) + len(missing)
        return Fault(
            f"has not all of its {count} parts: {shown}{more} missing",
            "fetch what is missing into the same folder",
            ModelMissing.code,
        )
    first = parts[0][1]
    if first.split_count != named_count:
        return Fault(
            f"says that it has {first.split_count} parts, its name says {named_count}",
            f"give it back its name (…-00001-of-{first.split_count:05d}.gguf), or {AGAIN}",
        )
    for at, (name, header) in enumerate(parts):
        if header.split_number != at:
            return Fault(
                f"has a part {name} that says that it is number {header.split_number + 1}", AGAIN
            )
    found = sum(header.tensors for _, header in parts)
    if named_count > 1 and found != first.split_tensors:
        return Fault(f"has {found} tensors in its parts, {first.split_tensors} belong to it", AGAIN)
    return None


_COMPANIONS: Final = {
    PROJECTOR: (
        "is a projector (mmproj), which lies beside a model for images or sound",
        "launch the model beside it, with --mmproj and this file",
    ),
    ADAPTER: (
        "is a LoRA adapter, which changes a model",
        "launch the model that it was made for, with --lora and this file",
    ),
    IMATRIX: ("is an importance matrix, which is for quantising", "give the model itself"),
    VOCABULARY: ("is a vocabulary without weights", "give the model itself"),
}


def _kind_fault(header: HeaderFacts) -> Fault | None:
    if (companion := not_a_model(header.kind)) is not None:
        return companion
    if not header.architecture:
        return Fault("has no general.architecture", "give a file made for llama.cpp")
    if not header.blocks:
        return Fault(
            f"has no {header.architecture}.block_count: it is no language model",
            "give a language model",
        )
    if header.blocks > MAX_BLOCKS:
        return Fault(
            f"has {header.blocks} blocks, llama.cpp loads at most {MAX_BLOCKS}",
            "choose another model",
        )
    if not header.has_tokenizer:
        return Fault(
            "has no tokenizer (tokenizer.ggml.model), so that nobody could read its text",
            "download the model from where it is whole, or convert it again beside its tokenizer"
            " files",
        )
    return None


def _engine_fault(header: HeaderFacts, knows: Callable[[str], bool | None]) -> Fault | None:
    if knows(header.architecture) is not False:
        return None
    return Fault(
        f"is of the architecture {header.architecture!r}, which this build of llama.cpp does not"
        " know",
        "take a newer build with 'supervisor engine install', or choose another model",
        ArchitectureUnsupported.code,
    )


def not_a_model(kind: str) -> Fault | None:
    """Why what lies beside models cannot be launched; None if it is a model."""
    return Fault(*_COMPANIONS[kind]) if kind in _COMPANIONS else None


def error_of(path: str, fault: Fault) -> ModelBroken | ModelMissing | ArchitectureUnsupported:
    """The error that a launch of it ends with."""
    text = f"{path} {fault.problem}; {fault.remedy}"
    kinds = (ModelMissing, ArchitectureUnsupported)
    kind = next((kind for kind in kinds if kind.code == fault.code), ModelBroken)
    return kind(text)
