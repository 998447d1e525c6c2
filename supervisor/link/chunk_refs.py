"""Chunks that stand in the stream by name, and how tensors become such chunks. Does no I/O."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from agents.chunks import CHUNK_BYTES, ChunkName, chunk_name
from agents.rpc_commands import TensorData
from agents.rpc_tensors import TENSOR_BYTES


@dataclass(slots=True, eq=False)
class Ref:
    """A chunk that stands in the stream by its name. ``data`` is ``None`` if it was never read."""

    name: ChunkName
    size_bytes: int
    data: bytearray | None
    was_sent: bool = False
    """Its bytes, since the far end did not have them."""


class Cutter:
    """Cuts the data of one tensor into chunks as it comes."""

    def __init__(self, size_bytes: int) -> None:
        self._left_bytes = size_bytes
        self._filled = 0
        self._buffer = bytearray(min(CHUNK_BYTES, size_bytes))
        self.names: list[ChunkName] = []

    def feed(self, data: memoryview) -> Iterator[Ref]:
        """The chunks that are complete with ``data``."""
        while data:
            count = min(len(data), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = data[:count]
            self._filled += count
            data = data[count:]
            if self._filled == len(self._buffer):
                yield self._cut()

    def _cut(self) -> Ref:
        full = self._buffer
        self._left_bytes -= len(full)
        self._filled = 0
        self._buffer = bytearray(min(CHUNK_BYTES, self._left_bytes))
        name = chunk_name(full)
        self.names.append(name)
        return Ref(name, len(full), full)


class Window:
    """What was sent by name and may still be asked for, in order; bounded in bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._refs: deque[Ref] = deque()
        self._first = 0
        self.held_bytes = 0

    @property
    def is_full(self) -> bool:
        return self.held_bytes >= self._most_bytes

    def add(self, ref: Ref) -> None:
        self._refs.append(ref)
        self.held_bytes += ref.size_bytes

    def find(self, serial: int) -> Ref | None:
        index = serial - self._first
        return self._refs[index] if 0 <= index < len(self._refs) else None

    def done(self, count: int) -> list[Ref]:
        """Forget the first ``count`` refs of the link; returns those that were still here."""
        over = []
        while self._first < count and self._refs:
            ref = self._refs.popleft()
            self.held_bytes -= ref.size_bytes
            self._first += 1
            over.append(ref)
        return over


@dataclass(frozen=True, slots=True)
class HashQuestion:
    """SET_TENSOR_HASH: whether the worker has the data of a tensor, by FNV-1a."""

    tensor: bytes
    offset: bytes
    fnv: int
    size_bytes: int

    @classmethod
    def read(cls, body: bytes) -> "HashQuestion":
        """From a body of 296 + 8 + 8 bytes; the size follows from type and shape."""
        rows = 1
        for count in _numbers(body, _SHAPE_AT + 4, 3):
            rows *= count
        (row_bytes,) = _numbers(body, _STRIDES_AT + 4, 1)
        return cls(
            tensor=body[:TENSOR_BYTES],
            offset=body[TENSOR_BYTES : TENSOR_BYTES + 8],
            fnv=int.from_bytes(body[TENSOR_BYTES + 8 :], "little"),
            size_bytes=rows * row_bytes,
        )

    def matches(self, about: TensorData) -> bool:
        """The SET_TENSOR that follows a "no" is about the same data."""
        return about.data_bytes == self.size_bytes and about.offset_bytes == int.from_bytes(
            self.offset, "little"
        )

    def set_tensor_head(self, *, has_cache_flag: bool) -> bytes:
        """The body of a SET_TENSOR of this data, up to the data."""
        return self.tensor + (b"\0" if has_cache_flag else b"") + self.offset


_SHAPE_AT = 8 + 4 + 8
_STRIDES_AT = _SHAPE_AT + 16


def _numbers(body: bytes, at: int, count: int) -> list[int]:
    return [int.from_bytes(body[at + 4 * i : at + 4 * i + 4], "little") for i in range(count)]
