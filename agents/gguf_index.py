"""Offers the weights in GGUF files that the device already has as chunks, without a copy.

Naming gigabytes of chunks takes a phone minutes. So the names of one file are appended to one
cache file as they come, in any order: a run that was cancelled or killed goes on where it was, and
the next start hashes nothing. A cache is only believed while path, size and modification time are
the same, and every chunk is verified when it is read, so neither a wrong cache nor a file that
changes does harm. Files are read, not mapped: one that shrinks would kill a process that maps it.
"""

import contextlib
import json
import logging
import os
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


class Span(NamedTuple):
    """Where a chunk is in its file; a few bytes long, or up to ``CHUNK_BYTES``."""

    offset_bytes: int
    size_bytes: int


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
        self._caches: dict[Path, _Cache] = {}
        self._one_append = threading.Lock()
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

    def recall(self, path: Path) -> Mapping[Span, ChunkName]:
        """Offer those chunks of a file whose names are known from before; names nothing.

        Makes the file known to ``name_chunk``.

        Raises:
            NotIndexable: It is not a complete GGUF file.
            OSError: It cannot be read.
        """
        path = path.absolute()
        stamp = _Stamp.of(path)
        cache = _Cache(self._folder, stamp)
        known = cache.load()
        if cache.planned_chunks < 0:
            with path.open("rb") as file:
                cache.start(len(_plan(file, stamp.size_bytes)))
        self._renew(path, stamp)
        self._caches[path] = cache
        self._offer(path, known)
        return known

    def name_chunk(self, path: Path, span: Span) -> ChunkName:
        """Name one chunk of a file that was recalled, offer it and remember it.

        Raises:
            NotIndexable: The file is not what it was when it was recalled.
            OSError: It cannot be read.
        """
        path = path.absolute()
        cache = self._caches[path]
        with path.open("rb") as file:
            name = _name(file, span, memoryview(bytearray(span.size_bytes)))
        if _Stamp.of(path) != cache.stamp:
            raise NotIndexable("it changed since it was recalled")
        with self._one_append:
            cache.append({span: name})
        self._offer(path, {span: name})
        return name

    def has(self, names: Iterable[ChunkName]) -> set[ChunkName]:
        """Those of ``names`` that a file held when it was named."""
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
        self._renew(path, stamp)
        done_bytes = self._offer(path, known)
        if len(known) == cache.planned_chunks:
            on_progress(IndexProgress(path, done_bytes, done_bytes))
            return True
        with path.open("rb") as file:
            plan = _plan(file, stamp.size_bytes)
            total_bytes = sum(span.size_bytes for span in plan)
            cache.start(len(plan))
            for batch in _name_batches(file, [span for span in plan if span not in known]):
                if _Stamp.of(path) != stamp:
                    raise NotIndexable("it changed while it was read; index it when it is complete")
                cache.append(batch)
                done_bytes += self._offer(path, batch)
                on_progress(IndexProgress(path, done_bytes, total_bytes))
                if cancel.is_set() and done_bytes < total_bytes:
                    return False
        log.info("gguf_index.file_indexed", extra={"path": path, "chunks": len(plan)})
        return True

    def _renew(self, path: Path, stamp: "_Stamp") -> None:
        """Forget what another version of the file had; a load may be reading this one just now."""
        if self._stamps.get(path) != stamp:
            self._forget(path)
            self._stamps[path] = stamp

    def _offer(self, path: Path, named: Mapping[Span, ChunkName]) -> int:
        """Return how many bytes are offered."""
        with self._lock:
            for span, name in named.items():
                self._places[name] = _Place(path, span)
        return sum(span.size_bytes for span in named)

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
                file.seek(place.span.offset_bytes)
                chunk = take(file, place.span.size_bytes)
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
    span: Span


def _plan(file: BufferedReader, file_bytes: int) -> list[Span]:
    """Where every chunk of a file is, in the order of the data."""
    return [
        Span(start + offset, size_bytes)
        for start, tensor_bytes in read_tensors(file, file_bytes)
        if tensor_bytes >= SMALLEST_TENSOR_BYTES
        for offset, size_bytes in cut(tensor_bytes)
    ]


def _name_batches(
    file: BufferedReader, spans: Iterable[Span]
) -> Iterator[Mapping[Span, ChunkName]]:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    rest = iter(spans)
    while batch := list(islice(rest, BATCH_CHUNKS)):
        yield {span: _name(file, span, buffer) for span in batch}


def _name(file: BufferedReader, span: Span, buffer: memoryview) -> ChunkName:
    file.seek(span.offset_bytes)
    data = fill(file, buffer, span.size_bytes)
    if data.nbytes < span.size_bytes:
        raise NotIndexable(f"it ends before byte {span.offset_bytes + span.size_bytes}")
    return chunk_name(data)


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
    """The names of one file's chunks on disk: a line of JSON, then records in any order.

    The file is opened anew for each append, which is one write, so that several processes may name
    the same model. What is torn at its end, by a kill or a full disk, is cut off before more is
    appended.
    """

    def __init__(self, folder: Path, stamp: _Stamp) -> None:
        self.stamp = stamp
        self.planned_chunks = -1
        self._path = _cache_path(folder, Path(stamp.path))
        self._is_writable = True

    def load(self) -> dict[Span, ChunkName]:
        """The names that are there; none if they are void. Sets ``planned_chunks`` if not."""
        head, body = _read_cache(self._path)
        planned = head.pop("planned_chunks", None)
        if head != asdict(self.stamp) or not isinstance(planned, int):
            return {}
        whole_bytes = len(body) // _LAYOUT.size * _LAYOUT.size
        records = _LAYOUT.iter_unpack(body[:whole_bytes])
        known = {Span(*span): ChunkName(name) for name, *span in records}
        if not all(self._is_possible(span) for span in known):
            return {}
        self.planned_chunks = planned
        return known

    def _is_possible(self, span: Span) -> bool:
        end = span.offset_bytes + span.size_bytes
        return 0 < span.size_bytes <= CHUNK_BYTES and end <= self.stamp.size_bytes

    def start(self, planned_chunks: int) -> None:
        """Make ready to append, with an empty cache if ``load`` found none."""
        if self.planned_chunks == planned_chunks:
            return
        self.planned_chunks = planned_chunks
        with self._or_without():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            with FileIO(self._path, "r+") as file:
                file.truncate(0)
                _write(file, self._head())

    def append(self, named: Mapping[Span, ChunkName]) -> None:
        if not self._is_writable:
            return
        with self._or_without(), FileIO(self._path, "r+", opener=_to_append) as file:
            head = self._head()
            if file.read(len(head)) != head:
                raise OSError("it was made anew, for another version of the model")
            end = file.seek(0, 2)
            if torn_bytes := (end - len(head)) % _LAYOUT.size:
                file.seek(file.truncate(end - torn_bytes))
            _write(file, b"".join(_LAYOUT.pack(name, *span) for span, name in named.items()))

    def _head(self) -> bytes:
        head = asdict(self.stamp) | {"planned_chunks": self.planned_chunks}
        return json.dumps(head).encode() + b"\n"

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        """On a full or read-only disk, offer the file without a cache."""
        try:
            yield
        except OSError as exc:
            self._is_writable = False
            fields = {"path": self.stamp.path, "reason": str(exc)}
            log.warning("gguf_index.cache_not_written", extra=fields)


def _to_append(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_APPEND)


def _write(file: FileIO, data: bytes) -> None:
    if (written := file.write(data)) < len(data):
        raise OSError(f"only {written} of {len(data)} bytes could be written")


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
