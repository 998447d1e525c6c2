"""A content-addressed store of weight chunks, so that weights cross the network only once.

Every chunk is one file, ``ab/abcd…``, named by its hash. Packed segments would save creating files
(0.05 ms of 0.9 per MiB) but need a log, a compactor and a repair of torn tails. A file appears by
rename, so kill -9 at any moment leaves it whole or absent; unlink gives its space back at once; its
modification time tells when it was last used; and two processes need no protocol. 32 GiB are 128
files in each of 256 folders, little for ext4, f2fs and APFS.

Nothing is synced: what a power cut tears fails its hash when it is read and is fetched again,
while a sync per chunk would make flash memory the bottleneck of a first load.

No fault of the disk leaves this module: a store that cannot write has no room, a chunk that cannot
be read is absent. All methods block and may be called from any thread.
"""

import contextlib
import enum
import itertools
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from agents.chunk_ledger import Held, Ledger, Pin
from agents.chunks import NAME_BYTES, ChunkName, Data, chunk_name, fill

log = logging.getLogger(__name__)

LARGEST_CAP_BYTES: Final = 32 << 30
SHARE_OF_DISK: Final = 4
WRITERS: Final = 64
"""At most so many chunks are written at once."""
TOUCH_INTERVAL_S: Final = 3600.0
"""A use is written to the file's times at most once in this time, to spare flash memory."""
REST_S: Final = 60.0
"""After a failed write, until the next one is tried."""

_D = TypeVar("_D", bytes, memoryview)


def default_cap_bytes(free_bytes: int, held_bytes: int) -> int:
    """A quarter of what the file system could give us, at most 32 GiB.

    What the store holds already counts as free: else the cap would grow with each restart.
    """
    return min((free_bytes + held_bytes) // SHARE_OF_DISK, LARGEST_CAP_BYTES)


class PutResult(enum.Enum):
    """What became of a chunk that was put."""

    STORED = "stored"
    """It is in the store, now or already before."""
    NO_ROOM = "no_room"
    """It is intact, but the cap, pins or the disk leave no room."""
    DAMAGED = "damaged"
    """It is not what its name says; fetch it again."""


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """What the store holds; ``evicted`` and ``damaged`` count chunks since it was opened."""

    chunks: int
    held_bytes: int
    cap_bytes: int
    pinned_chunks: int
    evicted: int
    damaged: int


class ChunkStore:
    """The chunks in one folder; see the module's docstring for what it promises."""

    def __init__(
        self,
        folder: Path,
        cap_bytes: int | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Read which chunks ``folder`` holds, and throw out what exceeds the cap.

        Args:
            folder: Made when the first chunk is stored. Leftovers of killed writers are deleted.
            cap_bytes: Most bytes of chunks to hold; by default ``default_cap_bytes`` of now.
            clock: Seconds, comparable with the times of files.
        """
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        # One writer per name: two would ask for room twice, and throw others out for it.
        self._writers = [threading.Lock() for _ in range(WRITERS)]
        self._ledger = Ledger()
        self._serial = itertools.count()
        self._failed_s: float | None = None
        self._evicted = self._damaged = 0
        for _, name, held in sorted(_scan(folder), key=lambda found: found.used_s):
            self._ledger.add(name, held)
        held_bytes = self._ledger.held_bytes
        if cap_bytes is None:
            cap_bytes = default_cap_bytes(_free_bytes(folder), held_bytes)
        self._ledger.cap_bytes = cap_bytes
        try:
            with self._lock:
                self._make_room(0)
        except OSError as exc:
            self._rest(exc)

    def usage(self) -> StoreUsage:
        with self._lock:
            books = self._ledger
            return StoreUsage(
                len(books.loose) + len(books.pinned),
                books.held_bytes,
                books.cap_bytes,
                len(books.pinned),
                self._evicted,
                self._damaged,
            )

    def has(self, names: Iterable[ChunkName]) -> set[ChunkName]:
        """Those of ``names`` that the store holds, from memory; reading one may still fail.

        A load asks by ``Pin.hold``, so that what it was told is there stays there.
        """
        with self._lock:
            return {name for name in names if self._ledger.find(name)}

    @contextlib.contextmanager
    def pin(self, names: Iterable[ChunkName] = ()) -> Iterator[Pin]:
        """Keep ``names``, and those that ``Pin.hold`` adds, until the context is left."""
        pin = Pin(self._ledger, self._lock)
        try:
            pin.hold(names)
            yield pin
        finally:
            pin.release()

    def put(self, name: ChunkName, data: Data) -> PutResult:
        """Store ``data`` under its name, if it is what its name says and there is room.

        Chunks of running loads are never thrown out for it, so that a model larger than the cap
        keeps its first part instead of pushing itself out. ``data`` must not change meanwhile.
        """
        size_bytes = memoryview(data).nbytes
        if chunk_name(data) != name:
            return PutResult.DAMAGED
        with self._writers[name[0] % len(self._writers)]:
            if self._is_stored(name, size_bytes):
                return PutResult.STORED
            if self._is_resting():
                return PutResult.NO_ROOM
            try:
                if not self._reserve(size_bytes):
                    return PutResult.NO_ROOM
                self._write(name, data, size_bytes)
            except OSError as exc:
                self._rest(exc)
                return PutResult.NO_ROOM
        self._work_again()
        return PutResult.STORED

    def get(self, name: ChunkName) -> bytes | None:
        """The chunk, verified; one that is torn or changed is deleted, and ``None``.

        ``readinto`` is twice as fast: it saves getting a MiB of fresh memory each time.
        """
        return self._read(name, lambda file, size_bytes: file.read(size_bytes))

    def readinto(self, name: ChunkName, buffer: bytearray | memoryview) -> int | None:
        """Like ``get``, into ``buffer`` (undefined after ``None``); returns the size in bytes.

        Raises:
            ValueError: ``buffer`` is too small.
        """
        view = memoryview(buffer).cast("B")
        chunk = self._read(name, lambda file, size_bytes: fill(file, view, size_bytes))
        return None if chunk is None else chunk.nbytes

    def _path(self, name: ChunkName) -> Path:
        text = name.hex()
        return self._folder / text[:2] / text

    # Writing

    def _is_stored(self, name: ChunkName, size_bytes: int) -> bool:
        """Look at the file as well: who puts a chunk that we hold may have failed to read it."""
        with self._lock:
            held = self._ledger.find(name)
        if held is None:
            return False
        with contextlib.suppress(OSError):
            if self._path(name).stat().st_size == size_bytes:
                self._touch(name)
                return True
        self._forget(name, held)
        return False

    def _reserve(self, size_bytes: int) -> bool:
        """Keep room while other threads write too; ``_write`` gives it back."""
        with self._lock:
            fits = self._make_room(size_bytes)
            self._ledger.reserved_bytes += size_bytes if fits else 0
            return fits

    def _make_room(self, size_bytes: int) -> bool:
        if (victims := self._ledger.victims(size_bytes)) is None:
            return False
        for name in victims:
            self._path(name).unlink(missing_ok=True)
            self._ledger.remove(name)
            self._evicted += 1
        return True

    def _write(self, name: ChunkName, data: Data, size_bytes: int) -> None:
        path = self._path(name)
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{next(self._serial)}.new")
        written = False
        try:
            _write_new(temporary, data)
            with self._lock:
                temporary.replace(path)
                written = True
                self._ledger.reserved_bytes -= size_bytes
                self._ledger.add(name, Held(size_bytes, self._clock()))
        finally:
            if not written:
                with self._lock:
                    self._ledger.reserved_bytes -= size_bytes
                with contextlib.suppress(OSError):
                    temporary.unlink()

    def _is_resting(self) -> bool:
        with self._lock:
            return self._failed_s is not None and 0 <= self._clock() - self._failed_s < REST_S

    def _rest(self, exc: OSError) -> None:
        """Have no room for a while; trying at every chunk would slow a load down."""
        with self._lock:
            first, self._failed_s = self._failed_s is None, self._clock()
        if first:
            free_bytes = _free_bytes(self._folder)
            fields = {"reason": exc.strerror, "folder": self._folder, "free_bytes": free_bytes}
            log.warning("chunk_store.stopped_storing", extra=fields | {"next_try_s": REST_S})

    def _work_again(self) -> None:
        with self._lock:
            failed_s, self._failed_s = self._failed_s, None
        if failed_s is not None:
            log.info("chunk_store.storing_again", extra={"folder": self._folder})

    # Reading

    def _read(self, name: ChunkName, take: Callable[[BufferedReader, int], _D]) -> _D | None:
        with self._lock:
            held = self._ledger.find(name)
        if held is None:
            return None
        try:
            with self._path(name).open("rb") as file:
                whole = os.fstat(file.fileno()).st_size == held.size_bytes
                chunk = take(file, held.size_bytes)
        except OSError:
            self._forget(name, held)  # gone, or not readable: it will be put again
            return None
        if not whole or chunk_name(chunk) != name:
            self._discard(name, held)
            return None
        self._touch(name)
        return chunk

    def _touch(self, name: ChunkName) -> None:
        """Note a use, in the file's times only now and then."""
        now_s = self._clock()
        with self._lock:
            if (held := self._ledger.find(name)) is None:
                return
            if name in self._ledger.loose:
                self._ledger.loose.move_to_end(name)
            if 0 <= now_s - held.touched_s < TOUCH_INTERVAL_S:
                return
            held.touched_s = now_s
        with contextlib.suppress(OSError):
            os.utime(self._path(name), (now_s, now_s))

    def _forget(self, name: ChunkName, held: Held) -> None:
        """Take ``held`` off the books, unless another thread has put the chunk again."""
        with self._lock:
            if self._ledger.find(name) is held:
                self._ledger.remove(name)

    def _discard(self, name: ChunkName, held: Held) -> None:
        with self._lock:
            if self._ledger.find(name) is not held:
                return
            with contextlib.suppress(OSError):
                self._path(name).unlink()
            self._ledger.remove(name)
            self._damaged += 1
            level = logging.WARNING if self._damaged == 1 else logging.DEBUG
        fields = {"chunk": name.hex(), "size_bytes": held.size_bytes, "folder": self._folder}
        log.log(level, "chunk_store.chunk_damaged", extra=fields)


def _write_new(path: Path, data: Data) -> None:
    handle = _create(path)
    try:
        rest = memoryview(data).cast("B")
        while rest.nbytes:
            rest = rest[os.write(handle, rest) :]
    finally:
        os.close(handle)


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:  # the first chunk of its folder, or somebody deleted the folder
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


class _Found(NamedTuple):
    used_s: float
    name: ChunkName
    held: Held


def _scan(folder: Path) -> Iterator[_Found]:
    """Chunks by what their files are called; leftovers of killed writers are deleted.

    Empty files go too: a power cut leaves them where a name was written before its data.
    """
    for subfolder in _listing(folder):
        if len(subfolder.name) != 2:
            continue
        for entry in _listing(Path(subfolder.path)):
            with contextlib.suppress(OSError, ValueError):
                facts = entry.stat(follow_symlinks=False)
                if entry.name.endswith(".new") or not facts.st_size:
                    Path(entry.path).unlink()
                elif stat.S_ISREG(facts.st_mode):
                    name = _name_of_file(entry.name, subfolder.name)
                    yield _Found(facts.st_mtime, name, Held(facts.st_size, facts.st_mtime))


def _listing(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # not there yet, not a folder, or not ours: it holds nothing for us
        return []


def _name_of_file(file_name: str, folder_name: str) -> ChunkName:
    name = ChunkName(bytes.fromhex(file_name))
    if len(name) != NAME_BYTES or name.hex() != file_name or file_name[:2] != folder_name:
        raise ValueError(f"{file_name} is not the name of a chunk")
    return name


def _free_bytes(folder: Path) -> int:
    """Room on the file system of ``folder``, or of the nearest parent that is there."""
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 0
