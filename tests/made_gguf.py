"""Writes GGUF bytes piece by piece, so that a test can make any part of a file wrong."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

UINT8, UINT16, INT32, UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 2, 5, 4, 6, 7, 8, 9, 10
HUGE = 2**64 - 1
Tensor = tuple[str, Sequence[int], int, int]
"""Name, shape, type, offset."""


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, type_id: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", type_id) + value


def array(key: str, element_type: int, count: int, elements: bytes = b"") -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", element_type, count) + elements)


def u16(key: str, value: int) -> bytes:
    return pair(key, UINT16, struct.pack("<H", value))


def u32(key: str, value: int) -> bytes:
    return pair(key, UINT32, struct.pack("<I", value))


LLAMA = [
    pair("general.architecture", STRING, text("llama")),
    u32("llama.block_count", 2),
    u32("llama.context_length", 4096),
]
TENSORS: list[Tensor] = [("a", (4, 2), 0, 0), ("b", (32,), 8, 32)]  # 32 and 34 bytes


def gguf(
    pairs: Sequence[bytes] = LLAMA,
    tensors: Sequence[Tensor] = TENSORS,
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data_bytes: int = 66,
) -> bytes:
    """A file; ``counts`` of tensors and keys are what it claims to hold."""
    tensor_count, key_count = counts or (len(tensors), len(pairs))
    file = struct.pack("<4sIQQ", b"GGUF", version, tensor_count, key_count) + b"".join(pairs)
    for name, shape, type_id, offset in tensors:
        file += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        file += struct.pack("<IQ", type_id, offset)
    return file + bytes(-len(file) % 32) + bytes(data_bytes)


@dataclass
class InMemory:
    """A ``ByteSource`` that counts what is read of it; zeros follow its content up to its size."""

    content: bytes
    size_bytes: int = 0
    name: str = "model.gguf"
    reads: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.size_bytes = self.size_bytes or len(self.content)

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        size_bytes = max(0, min(size_bytes, self.size_bytes - offset_bytes))
        self.reads.append(size_bytes)
        return self.content[offset_bytes : offset_bytes + size_bytes].ljust(size_bytes, b"\0")


def complaint_only(value: object) -> str:
    """Name a case of a test by its complaint, not by the bytes of its file."""
    return value if isinstance(value, str) else "file"
