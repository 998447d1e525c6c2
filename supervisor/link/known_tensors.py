"""Remembers which chunks a tensor consists of that llama-server asks for by SET_TENSOR_HASH.

Such a question carries a hash of the tensor's data, and data only follows if we answer that it is
missing; who knows the chunks behind the hash can tell the far end to fetch them instead.

One file per tensor, ``<FNV-1a 64 of the data>-<its size in bytes>``: the names of its chunks, and a
digest. It appears by rename, so kill -9 leaves it whole or absent; one that was harmed later is
deleted when it is read. Nothing is synced: what a power cut takes is learned again. No fault of the
disk leaves this module.
"""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from agents.chunks import CHUNK_BYTES, HASH, NAME_BYTES, ChunkName

MAX_FILES: Final = 20_000
TOUCH_INTERVAL_S: Final = 3600.0
"""A use is written to the file's times at most once in this time, to spare flash memory."""

_SPARE_SHARE: Final = 10
_DIGEST_BYTES: Final = 16
_OURS: Final = re.compile(r"[0-9a-f]{16}-\d+(\.\d+\.part)?")


class KnownTensors:
    """The tensors in one folder; processes may share it."""

    def __init__(self, folder: Path, max_files: int = MAX_FILES) -> None:
        """Nothing is read yet, and the folder is made when the first tensor is learned."""
        self._folder = folder
        self._max_files = max_files
        self._count: int | None = None

    def find(self, fnv: int, size_bytes: int) -> tuple[ChunkName, ...] | None:
        """The chunks of a tensor, in order, ``None`` if they are not known.

        Args:
            fnv: FNV-1a 64 of the tensor's data.
            size_bytes: Of the data.
        """
        path = self._path(fnv, size_bytes)
        try:
            content = _read(path, _chunk_count(size_bytes) * NAME_BYTES + _DIGEST_BYTES)
        except OSError:
            return None
        names = content[:-_DIGEST_BYTES]
        if content[-_DIGEST_BYTES:] != _digest(path, names):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        _touch(path)
        return tuple(
            ChunkName(names[at : at + NAME_BYTES]) for at in range(0, len(names), NAME_BYTES)
        )

    def learn(self, fnv: int, size_bytes: int, names: Sequence[ChunkName]) -> None:
        """Remember the chunks of a tensor; throw out those used longest ago if it gets too many.

        Args:
            fnv: FNV-1a 64 of the tensor's data.
            size_bytes: Of the data.
            names: Of all its chunks, in order.

        Raises:
            ValueError: These cannot be the chunks of a tensor of that size.
        """
        if len(names) != _chunk_count(size_bytes) or {*map(len, names)} - {NAME_BYTES}:
            raise ValueError(f"{len(names)} chunks are not those of {size_bytes} bytes")
        path = self._path(fnv, size_bytes)
        joined = b"".join(names)
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            count = self._counted() + (not path.exists())
            _replace(path, joined + _digest(path, joined))
            self._count = count
            if count > self._max_files:
                self._make_room()

    def _path(self, fnv: int, size_bytes: int) -> Path:
        return self._folder / f"{fnv:016x}-{size_bytes}"

    def _counted(self) -> int:
        # Others may add to the folder meanwhile; their next start, or ours, sees it.
        if self._count is None:
            self._count = sum(1 for _ in self._used())
        return self._count

    def _make_room(self) -> None:
        """Leave a tenth free, so that not every further tensor looks at all the files."""
        used = sorted(self._used())
        surplus = len(used) - (self._max_files - self._max_files // _SPARE_SHARE)
        self._count = len(used) - max(surplus, 0)
        for _, path in used[: max(surplus, 0)]:
            with contextlib.suppress(OSError):
                path.unlink()

    def _used(self) -> Iterator[tuple[float, Path]]:
        """When each file was used last, seconds. Leftovers of killed writers grow old as well."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if _OURS.fullmatch(entry.name) and entry.is_file():
                        yield entry.stat().st_mtime, Path(entry.path)


def _chunk_count(size_bytes: int) -> int:
    return -(-size_bytes // CHUNK_BYTES)


def _digest(path: Path, names: bytes) -> bytes:
    """Of the content and of what it means, so that it holds for no other tensor or cutting."""
    digest = hashlib.blake2b(names, digest_size=_DIGEST_BYTES, person=b"known tensor 1")
    digest.update(f"{path.name} {CHUNK_BYTES} {HASH}".encode())
    return digest.digest()


def _read(path: Path, expected_bytes: int) -> bytes:
    """The content of a file, or nothing if its size is another.

    Raises:
        OSError: It is not there or cannot be read.
    """
    with path.open("rb") as file:
        return file.read() if os.fstat(file.fileno()).st_size == expected_bytes else b""


def _replace(path: Path, content: bytes) -> None:
    """Raises: OSError, and leaves nothing behind."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > TOUCH_INTERVAL_S:
            os.utime(path)
