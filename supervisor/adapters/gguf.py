"""Reads the header of a GGUF model, in one file or in several: what it is and where its tensors
lie; never the weights.

Source:
    llama.cpp ``src/llama-model-loader.cpp`` for split files.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import BinaryIO, Final

from supervisor.adapters.gguf_parse import (
    MAX_SHOWN,
    MAX_TENSORS,
    GgufPart,
    SkippedArray,
    TensorInfo,
    parse_part,
    shown,
)
from supervisor.core.model_headers import plain
from supervisor.errors import ModelBroken, ModelMissing

__all__ = [
    "GgufHeader",
    "LocalSource",
    "SkippedArray",
    "TensorInfo",
    "joined",
    "parse_part",
    "part_paths",
    "read_header",
]

MAX_BLOCKS: Final = 512  # LLAMA_MAX_LAYERS in src/llama-hparams.h
PART_NAME: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of a model: the metadata of its first part, the tensors of all."""

    path: Path
    parts: tuple[Path, ...]
    metadata: Mapping[str, object]
    tensors: tuple[TensorInfo, ...]
    size_bytes: int
    tensor_counts: tuple[int, ...] = ()
    """By part."""

    def located(self) -> Iterator[tuple[Path, TensorInfo]]:
        """Every tensor with the file that it is in."""
        files = chain.from_iterable(
            repeat(part, count) for part, count in zip(self.parts, self.tensor_counts, strict=True)
        )
        return zip(files, self.tensors, strict=True)

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def name(self) -> str:
        """``general.name``, or the file's name without part number and suffix."""
        named = self.metadata.get("general.name")
        if isinstance(named, str) and named.strip():
            return plain(named.strip()[:MAX_SHOWN])
        match = PART_NAME.fullmatch(self.path.name)
        return match["stem"] if match else self.path.stem

    @property
    def block_count(self) -> int:
        """Repeating blocks; ``read_header`` has checked that the key is there."""
        return _count_at(self.metadata, f"{self.architecture}.block_count") or 0

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained for, if the file says so."""
        return _count_at(self.metadata, f"{self.architecture}.context_length")


def read_header(path: Path) -> GgufHeader:
    """Read the header of a local model, with all its parts.

    Raises:
        ModelMissing: The file or one of its parts does not exist or cannot be read.
        ModelBroken: It is not a GGUF that llama-server can load, or it is truncated.
    """
    first = _read_local(path)
    paths = part_paths(path, first.metadata)
    # Path.exists would raise where the rights to look are missing.
    for missing in (part for part in paths if not os.path.exists(part)):  # noqa: PTH110
        raise ModelMissing(f"{missing} is missing, one of {len(paths)} parts; fetch it as well")
    return joined(paths, chain([first], map(_read_local, paths[1:])))


def part_paths(path: Path, metadata: Mapping[str, object]) -> tuple[Path, ...]:
    """Name all parts of a model from its first; a model of one file is its only part.

    Raises:
        ModelBroken: It is not a language model, or not the first part of one.
    """
    _check_language_model(path, metadata)
    count = _count_at(metadata, "split.count") or 1
    if count == 1:
        return (path,)
    match = PART_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise ModelBroken(
            f"{path} is one of {count} parts but not named so; give it back its name"
            f" (…-00001-of-{count:05d}.gguf)"
        )
    names = [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    if metadata.get("split.no") != 0 or path.name != names[0]:
        raise ModelBroken(f"{path} is not the first part of its model; give {names[0]}")
    return tuple(path.with_name(name) for name in names)


def joined(paths: Sequence[Path], parts: Iterable[GgufPart]) -> GgufHeader:
    """Make one header of all parts; each is checked before the next one is asked for.

    Args:
        paths: As ``part_paths`` names them; of a remote model only names.
        parts: In the same order.

    Raises:
        ModelBroken: The parts do not belong together. Errors of ``parts`` pass through.
    """
    found: list[GgufPart] = []
    for path, part in zip(paths, parts, strict=True):
        found.append(part)
        _check_part(path, found)
    header = GgufHeader(
        path=paths[0],
        parts=tuple(paths),
        metadata=found[0].metadata,
        tensors=tuple(tensor for part in found for tensor in part.tensors),
        size_bytes=sum(part.size_bytes for part in found),
        tensor_counts=tuple(len(part.tensors) for part in found),
    )
    _check_tensors(header)
    return header


@dataclass(frozen=True, slots=True)
class LocalSource:
    """An open file as ``parse_part`` reads it."""

    name: str
    size_bytes: int
    file: BinaryIO

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        self.file.seek(offset_bytes)
        return self.file.read(size_bytes)


def _read_local(path: Path) -> GgufPart:
    try:
        _check_regular(path)
        with path.open("rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            return parse_part(LocalSource(str(path), size_bytes, file))
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise ModelMissing(f"{path} does not exist; check the name or fetch the model") from exc
    except OSError as exc:
        raise ModelMissing(f"{path} cannot be read: {exc.strerror}; check its rights") from exc


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except ValueError as exc:  # a NUL byte in the path
        raise ModelMissing(f"{str(path)!r} is not a file name: {exc}") from exc
    if stat.S_ISDIR(mode):
        raise ModelMissing(f"{path} is a directory; give the .gguf file in it")
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        raise ModelMissing(f"{path} is not a regular file; give a .gguf file")


def _count_at(metadata: Mapping[str, object], key: str) -> int | None:
    value = metadata.get(key)
    return value if type(value) is int and value > 0 else None


def _check_language_model(path: Path, metadata: Mapping[str, object]) -> None:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not 0 < len(architecture) <= MAX_SHOWN:
        raise ModelBroken(f"{path} has no general.architecture; give a file made for llama.cpp")
    key = f"{architecture}.block_count"
    blocks = _count_at(metadata, key)
    if blocks is None:
        raise ModelBroken(
            f"{path} has no {key}: it is an adapter, a projector or a vocabulary;"
            " give a language model"
        )
    if blocks > MAX_BLOCKS:
        raise ModelBroken(f"{path} has {key} {blocks}, llama.cpp loads at most {MAX_BLOCKS}")


def _check_part(path: Path, parts: list[GgufPart]) -> None:
    """Check that the last of ``parts``, read from ``path``, belongs to the first."""
    number = parts[-1].metadata.get("split.no")
    if len(parts) > 1 and number != len(parts) - 1:
        raise ModelBroken(
            f"{path} says that it is part {shown(number)} (from 0), not {len(parts) - 1};"
            " download it again"
        )
    tensor_count = sum(len(part.tensors) for part in parts)
    if tensor_count > MAX_TENSORS:
        raise ModelBroken(f"{path}: over {MAX_TENSORS} tensors up to this part; not a known model")


def _check_tensors(header: GgufHeader) -> None:
    if not header.tensors:
        raise ModelBroken(f"{header.path} has no tensors: it is a vocabulary; give a model")
    expected = header.metadata.get("split.tensors.count")
    if len(header.parts) > 1 and expected != len(header.tensors):
        raise ModelBroken(
            f"{header.path}: its parts have {len(header.tensors)} tensors,"
            f" {shown(expected)} belong to the model; download it again"
        )
    seen: set[str] = set()
    for tensor in header.tensors:
        if tensor.name in seen:
            raise ModelBroken(f"{header.path} is damaged: tensor {tensor.name!r} is there twice")
        seen.add(tensor.name)
