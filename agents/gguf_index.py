"""Offers the weights in GGUF files that the device already has as chunks, without a copy.

Naming gigabytes of chunks takes a phone minutes. So the names of one file are appended to one
cache file, batch by batch: a run that was cancelled or killed goes on where it was, and the
next start hashes nothing. A cache is only believed while path, size and modification time are the
same, and every chunk is verified when it is read, so neither a wrong cache nor a file that changes
does harm. Files are read, not mapped: one that shrinks would kill a process that maps it.
"""

import contextlib
import json
import logging
import stat
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from io import BufferedReader, FileIO
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from agents.chunks import (
    CHUNK_BYTES,
    HASH,
    NAME_BYTES,
    SMALLEST_TENSOR_BYTES,
    ChunkName,
    chunk_name,
    cut,
    fill,
)
from agents.gguf_tensors import NotIndexable, read_tensors

log = logging.getLogger(__name__)

BATCH_CHUNKS: Final = 32
"""Named between two looks at ``cancel``; a tenth of a second on a phone."""

_LAYOUT: Final = struct.Struct(f"<{NAME_BYTES}sQI")
_D = TypeVar("_D", bytes, memoryview)


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """How far the naming of one file is."""

    path: Path
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What became of the files; ``refused`` says why. Those in neither were not finished."""

    indexed: tuple[Path, ...]
    refused: Mapping[Path, str]
    cancelled: bool


Listener = Callable[[IndexProgress], None]


class GgufIndex:
    """Chunks of the GGUF files that were indexed; a ``ChunkSource``. May be used from any thread.

    As in the chunk store, no fault of the disk leaves it.
    """

    def __init__(self, folder: Path) -> None:
        """Keep caches in ``folder``; those of files that are gone are deleted."""
        self._folder = folder
        self._lock = threading.Lock()
        self._one_build = threading.Lock()
        self._places: dict[ChunkName, _Place] = {}
        self._stamps: dict[Path, _Stamp] = {}
        _prune(folder)

    def index_gguf(
        self,
        paths: Iterable[Path],
        *,
        on_progress: Listener = lambda progress: None,
        cancel: threading.Event | None = None,
    ) -> IndexReport:
        """Name the chunks of ``paths``, each part of a model a path; offer them as they are named.

        Takes as long as hashing the files takes, unless their caches are there. Only one call
        works at a time. Files that cannot be used are reported, not raised.
        """
        indexed: list[Path] = []
        refused: dict[Path, str] = {}
        cancel = cancel or threading.Event()
        with self._one_build:
            for path in paths:
                if cancel.is_set():
                    break
                try:
                    if self._index(path.absolute(), on_progress, cancel):
                        indexed.append(path)
                except (OSError, NotIndexable) as exc:
                    self._forget(path.absolute())
                    refused[path] = str(exc)
                    log.warning("gguf_index.file_refused", extra={"path": path, "reason": str(exc)})
        return IndexReport(tuple(indexed), refused, cancel.is_set())

    def has(self, names: Iterable[ChunkName]) -> set[ChunkName]:
        """Those of ``names`` that a file held when it was indexed."""
        with self._lock:
            return {name for name in names if name in self._places}

    def get(self, name: ChunkName) -> bytes | None:
        """The chunk, verified; ``None`` if no file holds it any more."""
        return self._read(name, lambda file, size_bytes: file.read(size_bytes))

    def readinto(self, name: ChunkName, buffer: bytearray | memoryview) -> int | None:
        """Like ``get``, into ``buffer`` (undefined after ``None``); returns the size in bytes.

        Raises:
            ValueError: ``buffer`` is too small.
        """
        view = memoryview(buffer).cast("B")
        chunk = self._read(name, lambda file, size_bytes: fill(file, view, size_bytes))
        return None if chunk is None else chunk.nbytes

    def _index(self, path: Path, on_progress: Listener, cancel: threading.Event) -> bool:
        """Offer one file; False if cancelled before its end."""
        stamp = _Stamp.of(path)
        cache = _Cache(self._folder, stamp)
        known = cache.load()
        if self._stamps.get(path) != stamp:
            self._forget(path)
            self._stamps[path] = stamp
        done_bytes = self._offer(path, known)
        if len(known) == cache.planned_chunks:
            on_progress(IndexProgress(path, done_bytes, done_bytes))
            return True
        with path.open("rb") as file, contextlib.closing(cache):
            plan = _plan(file, stamp.size_bytes)
            total_bytes = sum(size_bytes for _, size_bytes in plan)
            cache.start(len(plan), len(known))
            for batch in _name_batches(file, plan[len(known) :]):
                if _Stamp.of(path) != stamp:
                    raise NotIndexable("it changed while it was read; index it when it is complete")
                cache.append(batch)
                done_bytes += self._offer(path, batch)
                on_progress(IndexProgress(path, done_bytes, total_bytes))
                if cancel.is_set() and done_bytes < total_bytes:
                    return False
        log.info("gguf_index.file_indexed", extra={"path": path, "chunks": len(plan)})
        return True

    def _offer(self, path: Path, records: Iterable["_Record"]) -> int:
        """Return how many bytes are offered."""
        total_bytes = 0
        with self._lock:
            for name, offset_bytes, size_bytes in records:
                self._places[name] = _Place(path, offset_bytes, size_bytes)
                total_bytes += size_bytes
        return total_bytes

    def _forget(self, path: Path) -> None:
        with self._lock:
            kept = {name: place for name, place in self._places.items() if place.path != path}
            self._places = kept
            self._stamps.pop(path, None)

    def _read(self, name: ChunkName, take: Callable[[BufferedReader, int], _D]) -> _D | None:
        with self._lock:
            place = self._places.get(name)
        if place is None:
            return None
        try:
            with place.path.open("rb") as file:
                file.seek(place.offset_bytes)
                chunk = take(file, place.size_bytes)
        except OSError as exc:
            self._lose(place.path, str(exc))
            return None
        if chunk_name(chunk) != name:
            with contextlib.suppress(OSError):  # it speaks of other bytes than the file has
                _cache_path(self._folder, place.path).unlink()
            self._lose(place.path, "its bytes are not those that were indexed")
            return None
        return chunk

    def _lose(self, path: Path, reason: str) -> None:
        self._forget(path)
        log.warning("gguf_index.file_lost", extra={"path": path, "reason": reason})


class _Place(NamedTuple):
    path: Path
    offset_bytes: int
    size_bytes: int


class _Record(NamedTuple):
    name: ChunkName
    offset_bytes: int
    size_bytes: int


def _plan(file: BufferedReader, file_bytes: int) -> list[tuple[int, int]]:
    """Offset in the file and size of every chunk, in the order of the data."""
    return [
        (start + offset, size_bytes)
        for start, tensor_bytes in read_tensors(file, file_bytes)
        if tensor_bytes >= SMALLEST_TENSOR_BYTES
        for offset, size_bytes in cut(tensor_bytes)
    ]


def _name_batches(file: BufferedReader, plan: Iterable[tuple[int, int]]) -> Iterator[list[_Record]]:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    rest = iter(plan)
    while batch := list(islice(rest, BATCH_CHUNKS)):
        records = []
        for offset, size_bytes in batch:
            file.seek(offset)
            name = chunk_name(fill(file, buffer, size_bytes))
            records.append(_Record(name, offset, size_bytes))
        yield records


# Caches


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What a cache was made from; it is void when any of it differs."""

    path: str
    size_bytes: int
    modified_ns: int
    chunk_bytes: int = CHUNK_BYTES
    smallest_tensor_bytes: int = SMALLEST_TENSOR_BYTES
    hash: str = HASH

    @staticmethod
    def of(path: Path) -> "_Stamp":
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise NotIndexable("it is not a regular file")
        return _Stamp(str(path), facts.st_size, facts.st_mtime_ns)


class _Cache:
    """The names of one file's chunks on disk: a line of JSON, then records.

    What is torn at its end, by a kill or a full disk, is cut off before more is appended.
    """

    def __init__(self, folder: Path, stamp: _Stamp) -> None:
        self.planned_chunks = -1
        self._path = _cache_path(folder, Path(stamp.path))
        self._stamp = stamp
        self._file: FileIO | None = None

    def load(self) -> list[_Record]:
        """The records that are there; none if they are void. Sets ``planned_chunks``."""
        head, body = _read_cache(self._path)
        planned = head.pop("planned_chunks", None)
        if head != asdict(self._stamp) or not isinstance(planned, int):
            return []
        whole_bytes = len(body) // _LAYOUT.size * _LAYOUT.size
        records = [_Record(*fields) for fields in _LAYOUT.iter_unpack(body[:whole_bytes])]
        if not all(self._is_possible(record) for record in records):
            return []
        self.planned_chunks = planned
        return records

    def _is_possible(self, record: _Record) -> bool:
        end = record.offset_bytes + record.size_bytes
        return 0 < record.size_bytes <= CHUNK_BYTES and end <= self._stamp.size_bytes

    def start(self, planned_chunks: int, known_chunks: int) -> None:
        """Make ready to append after ``known_chunks`` records."""
        head = json.dumps(asdict(self._stamp) | {"planned_chunks": planned_chunks}).encode() + b"\n"
        with self._or_without():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            self._file = FileIO(self._path, "r+")
            self._file.truncate(len(head) + known_chunks * _LAYOUT.size if known_chunks else 0)
            self._write(head)
            self._file.seek(0, 2)

    def append(self, records: Iterable[_Record]) -> None:
        with self._or_without():
            self._write(b"".join(_LAYOUT.pack(*record) for record in records))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, data: bytes) -> None:
        if self._file is not None and self._file.write(data) < len(data):
            raise OSError(f"only a part of {len(data)} bytes could be written")

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        """On a full or read-only disk, offer the file without a cache."""
        try:
            yield
        except OSError as exc:
            self.close()
            fields = {"path": self._stamp.path, "reason": str(exc)}
            log.warning("gguf_index.cache_not_written", extra=fields)


def _cache_path(folder: Path, path: Path) -> Path:
    return folder / f"{chunk_name(bytes(path)).hex()}.index"


def _read_cache(path: Path) -> tuple[dict[str, object], bytes]:
    """Head and records; an empty head if there is none to be read."""
    try:
        line, _, body = path.read_bytes().partition(b"\n")
        head = json.loads(line)
    except (OSError, ValueError):
        return {}, b""
    return (head, body) if isinstance(head, dict) else ({}, b"")


def _prune(folder: Path) -> None:
    for cache in folder.glob("*.index"):
        head, _ = _read_cache(cache)
        if not Path(str(head.get("path", ""))).is_file():
            with contextlib.suppress(OSError):
                cache.unlink()
