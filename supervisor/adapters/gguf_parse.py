"""Turns the first bytes of one GGUF file into metadata and tensors; never touches the weights.

Model files come from strangers, so every count and length is checked against the file's size and
against a limit before anything is allocated for it.

Layout (GGUF v2 and v3, little-endian): magic, version, tensor count, key count; the keys; one
entry per tensor; then the data, aligned, the tensors one after the other without gaps.

Source:
    llama.cpp ``ggml/src/gguf.cpp``, ``gguf_init_from_reader``.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from supervisor.core.ggml_types import MAX_DIMENSIONS, tensor_bytes
from supervisor.errors import ModelBroken

# Limits, each well above what real models have (given in brackets).
MAX_KEYS: Final = 4096  # [60]
MAX_TENSORS: Final = 65_536  # all parts together [2 000]
MAX_STRINGS: Final = 4_000_000  # in all arrays of one part [800 000: vocabulary and merges]
MAX_NAME_BYTES: Final = 63  # GGML_MAX_NAME - 1; longer tensor names are refused by ggml
MAX_KEY_BYTES: Final = 65_535
MAX_TEXT_BYTES: Final = 1 << 20  # longer texts are skipped [100 000: chat templates]
MAX_ELEMENTS: Final = 4096  # longer arrays of numbers are skipped
MAX_KEPT_BYTES: Final = 4 << 20  # all keys and values kept from one part [200 000]
MAX_HEADER_BYTES: Final = 128 << 20  # up to the data of one part [16 MB: 262 144 tokens]
MAX_SHOWN: Final = 80  # characters of a file's own text in a message or a name

CHUNK_BYTES: Final = 1 << 16  # little, since a remote file's next bytes may cost megabytes
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
    """The header of one file, which ends where the data of its tensors begins."""

    metadata: Mapping[str, object]
    tensors: tuple[TensorInfo, ...]
    header_bytes: int
    size_bytes: int


def parse_part(source: ByteSource) -> GgufPart:
    """Read the header of one file and check that its tensors lie within it.

    Raises:
        ModelBroken: It is not a GGUF that llama-server can load, or it is truncated. Errors of
            ``source.read`` pass through.
    """
    cursor = _Cursor(source)
    _check_magic(cursor)
    tensor_count, key_count = cursor.u64(), cursor.u64()
    metadata = _metadata(cursor, key_count)
    alignment = _alignment(cursor, metadata)
    tensors = _tensors(cursor, tensor_count, alignment)
    header_bytes = min(_aligned(cursor.position, alignment), source.size_bytes)
    return GgufPart(metadata, tensors, header_bytes, source.size_bytes)


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
        self.limit("bytes of header", self.position + size, MAX_HEADER_BYTES)

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
        raise cursor.damaged(f"alignment {shown(alignment)} is not a power of two")
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


def shown(value: object) -> str:
    """Show a value from the file in a message, whatever its length."""
    return repr(value)[:MAX_SHOWN]
