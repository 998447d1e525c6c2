"""Files of a model's full size that hold only its header, so that the engine can plan a model
which is not downloaded.

The engine checks that all tensors lie within the file, and reads none of them when it only
estimates memory (``no_alloc``). A sparse file costs the disk what its header is long.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisor.adapters.gguf import GgufHeader, LocalSource
from supervisor.adapters.gguf_parse import parse_part


@dataclass(frozen=True, slots=True)
class PartStart:
    """One file of a model: its own name, its first bytes (the whole header), and its size."""

    name: str
    start: bytes
    size_bytes: int

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        return self.start[offset_bytes : offset_bytes + size_bytes]


def sparse_model(parts: Sequence[PartStart], folder: Path) -> Path:
    """Write every part of a model as a sparse file; returns the first, which the engine is given.

    Args:
        parts: In order; the names of a split model are kept, since the engine looks for them.
        folder: Exists already.

    Raises:
        ModelBroken: A start is no GGUF header, or not a whole one.
        OSError: It cannot be written, or the file system has no files of that size.
    """
    paths = []
    for part in parts:
        path = folder / Path(part.name).name
        path.write_bytes(part.start[: parse_part(part).header_bytes])
        os.truncate(path, part.size_bytes)
        paths.append(path)
    return paths[0]


def local_parts(header: GgufHeader) -> list[PartStart]:
    """The parts of a local model, as ``sparse_model`` takes them.

    Raises:
        ModelBroken: A file changed since its header was read.
        OSError: A file cannot be read.
    """
    parts = []
    for path in header.parts:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            header_bytes = parse_part(LocalSource(str(path), size_bytes, file)).header_bytes
            file.seek(0)
            parts.append(PartStart(path.name, file.read(header_bytes), size_bytes))
    return parts
