"""Reads GGUF headers: what a model is and where its tensors lie; never the weights.

Model files come from strangers, so every count and length is checked against the file's size and
against a limit before anything is allocated for it.

Layout (GGUF v2 and v3, little-endian): magic, version, tensor count, key count; the keys; one
entry per tensor; then the data, aligned, the tensors one after the other without gaps.

Source:
    llama.cpp ``ggml/src/gguf.cpp``, ``gguf_init_from_reader``; ``src/llama-model-loader.cpp``
    for split files.
"""

import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from supervisor.core.ggml_types import MAX_DIMENSIONS, tensor_bytes
from supervisor.errors import ModelBroken, ModelMissing

# Limits, each well above what real models have (given in brackets).
MAX_KEYS: Final = 4096  # [60]
MAX_TENSORS: Final = 65_536  # all parts together [2 000]
MAX_STRINGS: Final = 4_000_000  # in all arrays of one part [800 000: vocabulary and merges]
MAX_NAME_BYTES: Final = 63  # GGML_MAX_NAME - 1; longer tensor names are refused by ggml
MAX_KEY_BYTES: Final = 65_535
MAX_TEXT_BYTES: Final = 1 << 20  # longer texts are skipped [100 000: chat templates]
MAX_ELEMENTS: Final = 4096  # longer arrays of numbers are skipped
MAX_KEPT_BYTES: Final = 4 << 20  # all keys and values kept from one part [200 000]
MAX_SHOWN: Final = 80  # characters of a file's own text in a message or a name
MAX_BLOCKS: Final = 512  # LLAMA_MAX_LAYERS in src/llama-hparams.h

CHUNK_BYTES: Final = 1 << 20
DEFAULT_ALIGNMENT: Final = 32
ELEMENT_COST_BYTES: Final = 32  # a Python number and its place in a tuple

STRING: Final = 8
ARRAY: Final = 9
SCALARS: Final[dict[int, tuple[str, str]]] = {  # name and struct code
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
U32: Final = struct.Struct("<I")
U64: Final = struct.Struct("<Q")
PART_NAME: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class ByteSource(Protocol):
    """Something to read a GGUF file from: a local file, or a remote one by HTTP ranges."""

    @property
    def name(self) -> str:
        """What error messages call it."""
        ...

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Return the bytes of that range; fewer only where the file ends."""
        ...


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """Stands for an array that was not kept; a text over ``MAX_TEXT_BYTES`` is one of uint8."""

    element_type: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor; ``offset_bytes`` counts from the start of the file of its part."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufPart:
    """The header of one file."""

    metadata: Mapping[str, object]
    tensors: tuple[TensorInfo, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header of a model: the metadata of its first part, the tensors of all."""

    path: Path
    parts: tuple[Path, ...]
    metadata: Mapping[str, object]
    tensors: tuple[TensorInfo, ...]
    size_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def name(self) -> str:
        """``general.name``, or the file's name without part number and suffix."""
        named = self.metadata.get("general.name")
        if isinstance(named, str) and named.strip():
            return named.strip()[:MAX_SHOWN]
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
    _check_language_model(path, first.metadata)
    paths = _part_paths(path, first.metadata)
    parts = [first]
    for part_path in paths[1:]:
        parts.append(_read_local(part_path))
        _check_part(part_path, parts)
    header = GgufHeader(
        path=path,
        parts=paths,
        metadata=first.metadata,
        tensors=tuple(tensor for part in parts for tensor in part.tensors),
        size_bytes=sum(part.size_bytes for part in parts),
    )
    _check_tensors(header)
    return header


def parse_part(source: ByteSource) -> GgufPart:
    """Read the header of one file and check that its tensors lie within it.

    Raises:
        ModelBroken: See ``read_header``. Errors of ``source.read`` pass through.
    """
    cursor = _Cursor(source)
    _check_magic(cursor)
    tensor_count, key_count = cursor.u64(), cursor.u64()
    metadata = _metadata(cursor, key_count)
    tensors = _tensors(cursor, tensor_count, _alignment(cursor, metadata))
    return GgufPart(metadata, tensors, source.size_bytes)


@dataclass(frozen=True, slots=True)
class _LocalSource:
    name: str
    size_bytes: int
    file: BinaryIO

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        self.file.seek(offset_bytes)
        return self.file.read(size_bytes)


class _Cursor:
    """Walks forward through a source, one large read at a time."""

    def __init__(self, source: ByteSource) -> None:
        self.position = 0
        self._source = source
        self._window = b""
        self._window_start = 0
        self._strings = 0
        self._kept_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._source.size_bytes

    def broken(self, problem: str) -> ModelBroken:
        return ModelBroken(f"{self._source.name} {problem}")

    def damaged(self, problem: str) -> ModelBroken:
        return self.broken(f"is damaged: {problem}; download it again")

    def limit(self, what: str, count: int, limit: int) -> None:
        if count > limit:
            raise self.broken(f"claims {count} {what}, at most {limit} are read; choose another")

    def take(self, size: int) -> bytes:
        at = self._fill(size)
        self.position += size
        return self._window[at : at + size]

    def u32(self) -> int:
        value: int = U32.unpack(self.take(4))[0]
        return value

    def u64(self) -> int:
        value: int = U64.unpack(self.take(8))[0]
        return value

    def text(self, size: int, limit: int) -> str:
        """Keep the next ``size`` bytes as text; invalid UTF-8 shows as replacement characters."""
        if size > limit:
            raise self.damaged(f"a name of {size} bytes before byte {self.position}")
        self.keep(size)
        return self.take(size).decode("utf-8", "replace")

    def keep(self, size: int) -> None:
        self._kept_bytes += size
        self.limit("bytes of metadata", self._kept_bytes, MAX_KEPT_BYTES)

    def skip(self, size: int) -> None:
        self._need(size)
        self.position += size

    def skip_strings(self, count: int) -> None:
        """Walk over ``count`` strings without making an object of any."""
        self._strings += count
        self.limit("texts in arrays", self._strings, MAX_STRINGS)
        while count > 0:
            at = self._fill(8)
            window, last, length_at = self._window, len(self._window) - 8, U64.unpack_from
            while count > 0 and at <= last:
                at += 8 + length_at(window, at)[0]
                count -= 1
            self.position = self._window_start + at
            self._need(0)

    def _need(self, size: int) -> None:
        if self.position + size > self.size_bytes:
            raise self.broken(
                f"is truncated: its header continues to byte {self.position + size} or further,"
                f" the file has {self.size_bytes}; download it again"
            )

    def _fill(self, size: int) -> int:
        """Have the next ``size`` bytes in the window; return where they start in it."""
        at = self.position - self._window_start
        if at + size <= len(self._window):
            return at
        self._need(size)
        ahead = min(CHUNK_BYTES, self.size_bytes - self.position)
        self._window = self._source.read(self.position, max(size, ahead))
        self._window_start = self.position
        if len(self._window) < size:
            raise self.broken("became shorter while it was read; try again when it is complete")
        return 0


def _check_magic(cursor: _Cursor) -> None:
    start = cursor.take(min(8, cursor.size_bytes))
    if not start:
        raise cursor.broken("is not a GGUF file (starts with nothing: it is empty)")
    if start[:4] != b"GGUF":
        raise cursor.broken(f"is not a GGUF file (starts with {start!r}); give a .gguf file")
    if len(start) < 8:
        raise cursor.broken(f"is truncated: the file has {len(start)} bytes; download it again")
    version = U32.unpack_from(start, 4)[0]
    if version & 0xFFFF == 0 and version:
        raise cursor.broken("is a big-endian GGUF; choose the little-endian file of this model")
    if version not in (2, 3):
        raise cursor.broken(
            f"has GGUF version {version}, only 2 and 3 can be loaded; choose another file"
        )


def _metadata(cursor: _Cursor, count: int) -> dict[str, object]:
    cursor.limit("metadata keys", count, MAX_KEYS)
    metadata: dict[str, object] = {}
    for _ in range(count):
        key = cursor.text(cursor.u64(), MAX_KEY_BYTES)
        if not key or key in metadata:
            raise cursor.damaged(f"metadata key {key[:MAX_SHOWN]!r} is empty or there twice")
        metadata[key] = _value(cursor, key)
    return metadata


def _value(cursor: _Cursor, key: str) -> object:
    type_id = cursor.u32()
    if type_id == ARRAY:
        return _array(cursor, key)
    if type_id == STRING:
        size = cursor.u64()
        if size <= MAX_TEXT_BYTES:
            return cursor.text(size, MAX_TEXT_BYTES)
        cursor.skip(size)
        return SkippedArray("uint8", size)
    return _numbers(cursor, key, type_id, 1)[0]


def _array(cursor: _Cursor, key: str) -> object:
    type_id, count = cursor.u32(), cursor.u64()
    if type_id == STRING:
        cursor.skip_strings(count)
        return SkippedArray("string", count)
    if count <= MAX_ELEMENTS:
        return _numbers(cursor, key, type_id, count)
    name, code = _scalar(cursor, key, type_id)
    cursor.skip(count * struct.calcsize(f"<{code}"))
    return SkippedArray(name, count)


def _numbers(cursor: _Cursor, key: str, type_id: int, count: int) -> tuple[object, ...]:
    _, code = _scalar(cursor, key, type_id)
    layout = f"<{count}{code}"
    cursor.keep(count * ELEMENT_COST_BYTES)
    return struct.unpack(layout, cursor.take(struct.calcsize(layout)))


def _scalar(cursor: _Cursor, key: str, type_id: int) -> tuple[str, str]:
    scalar = SCALARS.get(type_id)
    if scalar is None:  # also an array of arrays, which ggml refuses as well
        raise cursor.damaged(f"metadata key {key[:MAX_SHOWN]!r} has the type {type_id}")
    return scalar


def _alignment(cursor: _Cursor, metadata: Mapping[str, object]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.damaged(f"alignment {_shown(alignment)} is not a power of two")
    return alignment


def _tensors(cursor: _Cursor, count: int, alignment: int) -> tuple[TensorInfo, ...]:
    cursor.limit("tensors", count, MAX_TENSORS)
    entries = [_tensor(cursor) for _ in range(count)]
    data_start = _aligned(cursor.position, alignment)
    tensors: list[TensorInfo] = []
    end = 0
    for name, shape, type_id, offset, size in entries:
        if offset != end:  # ggml refuses gaps as well as overlaps
            raise cursor.damaged(
                f"tensor {name!r} starts at byte {offset} of the data, not after the one before it"
                f" at {end}"
            )
        end = _aligned(offset + size, alignment)
        tensors.append(TensorInfo(name, shape, type_id, data_start + offset, size))
    if tensors:
        _check_complete(cursor, tensors[-1])
    return tuple(tensors)


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int, int]:
    """Read one entry: name, shape, type, offset in the data, size."""
    name = cursor.text(cursor.u64(), MAX_NAME_BYTES)
    dimensions = cursor.u32()
    if dimensions > MAX_DIMENSIONS:
        raise cursor.damaged(f"tensor {name!r} has {dimensions} dimensions")
    shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions))
    type_id, offset = cursor.u32(), cursor.u64()
    try:
        size = tensor_bytes(type_id, shape)
    except ValueError as exc:
        raise cursor.broken(
            f"has a tensor {name!r} that this program cannot load: {exc}; download it again, or"
            " choose another quantisation"
        ) from exc
    return name, shape, type_id, offset, size


def _check_complete(cursor: _Cursor, last: TensorInfo) -> None:
    end = last.offset_bytes + last.size_bytes
    if end > cursor.size_bytes:
        raise cursor.broken(
            f"is truncated: tensor {last.name!r} ends at byte {end}, the file has"
            f" {cursor.size_bytes}; download it again"
        )


def _aligned(position: int, alignment: int) -> int:
    return (position + alignment - 1) & -alignment


def _read_local(path: Path) -> GgufPart:
    try:
        _check_regular(path)
        with path.open("rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            return parse_part(_LocalSource(str(path), size_bytes, file))
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


def _shown(value: object) -> str:
    """Show a value from the file in a message, whatever its length."""
    return repr(value)[:MAX_SHOWN]


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


def _part_paths(path: Path, metadata: Mapping[str, object]) -> tuple[Path, ...]:
    """Name all parts of a model from its first; a model of one file is its only part."""
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
    paths = tuple(path.with_name(name) for name in names)
    # Path.exists would raise where the rights to look are missing.
    for missing in (part for part in paths if not os.path.exists(part)):  # noqa: PTH110
        raise ModelMissing(f"{missing} is missing, one of {count} parts; fetch it as well")
    return paths


def _check_part(path: Path, parts: list[GgufPart]) -> None:
    """Check that the last of ``parts``, read from ``path``, belongs to the first."""
    number = parts[-1].metadata.get("split.no")
    if number != len(parts) - 1:
        raise ModelBroken(
            f"{path} says that it is part {_shown(number)} (from 0), not {len(parts) - 1};"
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
            f" {_shown(expected)} belong to the model; download it again"
        )
    seen: set[str] = set()
    for tensor in header.tensors:
        if tensor.name in seen:
            raise ModelBroken(f"{header.path} is damaged: tensor {tensor.name!r} is there twice")
        seen.add(tensor.name)
