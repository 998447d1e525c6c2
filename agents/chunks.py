"""How weights are cut into chunks and named; near end, far end and store must agree on it."""

import hashlib
from collections.abc import Iterable, Iterator
from io import BufferedReader
from typing import Final, NewType, Protocol

CHUNK_BYTES: Final = 1 << 20
"""Tensor data is cut at multiples of this, from the start of each tensor.

A name is 0.003 % of it, an interrupted transfer loses 40 ms at 25 MB/s, and a buffer of 64 MiB
holds many. Each chunk is a file, which costs 0.05 ms beside the 0.9 ms of hashing and writing a
MiB: four times as much would gain 5 %, a quarter of it lose 20 % (``bench/chunk_store.py``)."""

SMALLEST_TENSOR_BYTES: Final = 64 << 10
"""Smaller tensors are not cut into chunks: naming and asking costs more than sending them."""

HASH: Final = "sha256"
"""OpenSSL has SHA instructions for it on ARMv8 phones, Apple silicon, and x86 since Zen and Ice
Lake; hashlib's blake2b has none to use: 2.0 against 1.3 GB/s here (``bench/chunk_store.py``)."""

NAME_BYTES: Final = 32

ChunkName = NewType("ChunkName", bytes)
"""Raw digest of the chunk's bytes."""

Data = bytes | bytearray | memoryview


class ChunkSource(Protocol):
    """Where chunks may be read from: the store, or the GGUF files of the device."""

    def has(self, names: Iterable[ChunkName]) -> set[ChunkName]:
        """Those of ``names`` that are believed to be here; reading one may still fail."""
        ...

    def get(self, name: ChunkName) -> bytes | None:
        """The chunk, verified; ``None`` if it is not here or fails its hash."""
        ...

    def readinto(self, name: ChunkName, buffer: bytearray | memoryview) -> int | None:
        """Like ``get``, into the start of ``buffer``; returns the chunk's size in bytes.

        After ``None`` the content of ``buffer`` is undefined.

        Raises:
            ValueError: ``buffer`` is too small.
        """
        ...


def chunk_name(data: Data) -> ChunkName:
    return ChunkName(hashlib.new(HASH, data, usedforsecurity=False).digest())


def cut(size_bytes: int, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """Offset and size of each chunk of one tensor; the last one may be shorter.

    Raises:
        ValueError: ``chunk_bytes`` is not positive.
    """
    if chunk_bytes <= 0:
        raise ValueError(f"chunks of {chunk_bytes} bytes; give a positive size")
    for offset in range(0, size_bytes, chunk_bytes):
        yield offset, min(chunk_bytes, size_bytes - offset)


def hash_chunks(view: memoryview, chunk_bytes: int = CHUNK_BYTES) -> Iterator[ChunkName]:
    """Names of the chunks of one tensor's data, in order, each computed when it is asked for.

    Raises:
        ValueError: ``chunk_bytes`` is not positive.
    """
    flat = view.cast("B")
    for offset, size_bytes in cut(flat.nbytes, chunk_bytes):
        yield chunk_name(flat[offset : offset + size_bytes])


def fill(file: BufferedReader, view: memoryview, size_bytes: int) -> memoryview:
    """Read ``size_bytes`` into the start of ``view``; return that part, shorter if the file ends.

    Raises:
        ValueError: ``view`` is too small.
    """
    if size_bytes > view.nbytes:
        raise ValueError(
            f"a chunk of {size_bytes} bytes does not fit into a buffer of {view.nbytes}"
        )
    return view[: file.readinto(view[:size_bytes])]
