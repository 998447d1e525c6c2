"""Where the tensors of a GGUF file lie: reads its header, skips everything else.

Every length is checked against what the file can hold before anything is read or allocated for it.

Source:
    llama.cpp ``ggml/src/gguf.cpp`` (layout), ``ggml/include/ggml.h`` (type ids),
    ``ggml/src/ggml-common.h`` (blocks), as vendored by llama-cpp-python 0.3.36.
"""

import struct
from io import BufferedReader
from typing import Final, NamedTuple

# Limits, each well above what real models have (given in brackets).
MAX_KEYS: Final = 4096  # [60]
MAX_TENSORS: Final = 65_536  # [2 000]
MAX_STRINGS: Final = 4_000_000  # in all arrays [800 000: vocabulary and merges]
MAX_HEADER_BYTES: Final = 128 << 20  # [16 MB]
MAX_TAKEN_BYTES: Final = 65_535  # a key [60]
MAX_DIMENSIONS: Final = 4

# fmt: off
BLOCKS: Final[dict[int, tuple[int, int]]] = {
    0: (1, 4), 1: (1, 2), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 30: (1, 2),
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 20: (32, 18),
    39: (32, 17), 40: (64, 36), 42: (64, 18), 41: (128, 18),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 29: (256, 56), 34: (256, 54), 35: (256, 66),
}
# fmt: on
"""Elements and bytes of one block, by ``enum ggml_type``."""

_STRING: Final = 8
_ARRAY: Final = 9
_UINT32: Final = 4
_SCALAR_BYTES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


class NotIndexable(Exception):
    """A file cannot be offered as chunks; ``GgufIndex`` reports the text of this as the reason."""


class TensorPlace(NamedTuple):
    """One tensor's data; ``offset_bytes`` counts from the start of the file."""

    offset_bytes: int
    size_bytes: int


def read_tensors(file: BufferedReader, file_bytes: int) -> list[TensorPlace]:
    """Read the header at the start of ``file``, in the order of the data.

    Tensors of types that are not in ``BLOCKS`` are left out.

    Raises:
        NotIndexable: It is no GGUF, or truncated, or damaged.
        OSError: It cannot be read.
    """
    header = _Header(file, file_bytes)
    if header.take(4) != b"GGUF":
        raise NotIndexable("it is not a GGUF file")
    if (version := header.u32()) not in (2, 3):
        raise NotIndexable(f"it has GGUF version {version}, only 2 and 3 are read")
    tensor_count = header.count("tensors", MAX_TENSORS)
    alignment = _alignment_among_keys(header, header.count("keys", MAX_KEYS))
    entries = [_entry(header) for _ in range(tensor_count)]
    start = (header.position + alignment - 1) & -alignment
    end = 0
    places = []
    for offset, size_bytes in entries:
        if offset < end:
            raise NotIndexable(f"two of its tensors share byte {offset} of the data")
        end = offset + (size_bytes or 0)
        if start + end > file_bytes:
            raise NotIndexable(f"it is truncated: {file_bytes} bytes of at least {start + end}")
        if size_bytes is not None:
            places.append(TensorPlace(start + offset, size_bytes))
    return places


class _Header:
    """Walks forward through the header."""

    def __init__(self, file: BufferedReader, file_bytes: int) -> None:
        self.position = 0
        self._file = file
        self._end = min(file_bytes, MAX_HEADER_BYTES)
        self._strings = 0
        file.seek(0)

    def take(self, size: int) -> bytes:
        if size > MAX_TAKEN_BYTES:
            raise NotIndexable(f"it is damaged: a name of {size} bytes at {self.position}")
        self._advance(size)
        data = self._file.read(size)
        if len(data) < size:
            raise NotIndexable(f"it became shorter than {self.position} bytes while it was read")
        return data

    def skip(self, size: int) -> None:
        self._advance(size)
        self._file.seek(self.position)

    def u32(self) -> int:
        value: int = _U32.unpack(self.take(4))[0]
        return value

    def u64(self) -> int:
        value: int = _U64.unpack(self.take(8))[0]
        return value

    def count(self, what: str, limit: int) -> int:
        if (value := self.u64()) > limit:
            raise NotIndexable(f"it claims {value} {what}, at most {limit} are read")
        return value

    def skip_strings(self, count: int) -> None:
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise NotIndexable(f"it claims {self._strings} texts, at most {MAX_STRINGS} are read")
        for _ in range(count):
            self.skip(self.u64())

    def _advance(self, size: int) -> None:
        self.position += size
        if self.position > self._end:
            raise NotIndexable(
                f"it is truncated: its header goes on to byte {self.position},"
                f" but can be read up to {self._end}"
            )


def _alignment_among_keys(header: _Header, key_count: int) -> int:
    """Skip all keys but the one that matters to offsets."""
    alignment = 32
    for _ in range(key_count):
        key = header.take(header.u64())
        type_id = header.u32()
        if key == b"general.alignment" and type_id == _UINT32:
            alignment = header.u32()
        else:
            _skip_value(header, type_id)
    if alignment <= 0 or alignment & (alignment - 1):
        raise NotIndexable(f"its alignment {alignment} is not a power of two")
    return alignment


def _skip_value(header: _Header, type_id: int) -> None:
    if type_id == _STRING:
        header.skip(header.u64())
    elif type_id == _ARRAY:
        element_type, count = header.u32(), header.u64()
        if element_type == _STRING:
            header.skip_strings(count)
        else:
            header.skip(count * _scalar_bytes(element_type))
    else:
        header.skip(_scalar_bytes(type_id))


def _scalar_bytes(type_id: int) -> int:
    if (size := _SCALAR_BYTES.get(type_id)) is None:
        raise NotIndexable(f"it is damaged: a key of type {type_id}")
    return size


def _entry(header: _Header) -> tuple[int, int | None]:
    """Offset in the data, and size; ``None`` for a type that we do not know."""
    header.skip(header.u64())
    if (dimensions := header.u32()) > MAX_DIMENSIONS:
        raise NotIndexable(f"it is damaged: a tensor of {dimensions} dimensions")
    shape = [header.u64() for _ in range(dimensions)]
    block = BLOCKS.get(header.u32())
    offset = header.u64()
    if block is None:
        return offset, None
    elements = 1
    for count in shape:
        elements *= count
    return offset, elements // block[0] * block[1]
