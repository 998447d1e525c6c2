"""One file of the hub's cache: fetched, gone on with, proven.

huggingface_hub 2.4 cannot go on with a file that was cut off. It writes to a name that is new each
time (``blobs/ETAG.RANDOM.incomplete``, ``_download_to_tmp_and_move``), whether by plain HTTP or by
hf_xet, and removes it after any failure; after kill -9 it stays for ever, nobody reads it, and the
next download begins at the first byte. Nor does it check the digest of what plain HTTP brought.

So the bytes are fetched here: by plain ranges, which the hub's store serves for files of either
kind, into ``blobs/ETAG.incomplete``, the name that huggingface_hub had for years and derives its
own from, under its own lock. All the rest is its own work: addresses, token, proxies, connections,
and the finished file's place (``Line.linked``), so that every tool finds it there.
"""

import contextlib
import errno
import hashlib
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Final, TypeVar

from filelock import Timeout
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils._fixes import WeakFileLock

from agents.errors import DiskFull, FolderNotWritable
from supervisor.adapters.hub_http import RemotePart
from supervisor.core.units import gib
from supervisor.errors import HubUnreachable, ModelDigestWrong
from supervisor.fetching.ahead import Ahead
from supervisor.fetching.line import Facts, Line, TryAgain, given_up

T = TypeVar("T")

_LONGEST_BACKOFF_S: Final = 60.0
_READ_BYTES: Final = 4 << 20
_LOCK_LOOK_S: Final = 0.5
_LOCK_PATIENCE_S: Final = 900.0
"""Another process that fetches the same file may be without progress for so long."""

_SAFE_ETAG: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_GIT: Final = re.compile(r"[0-9a-f]{40}")


class Stopped(Exception):
    """Somebody else failed or we are told to end; what came is kept."""


@dataclass(slots=True)
class Standing:
    """How far a file is; one thread writes, another reads."""

    done_bytes: int = 0
    is_checking: bool = False
    detail: str = ""
    ahead: Ahead | None = None

    @property
    def there_bytes(self) -> int:
        """In the file, and waiting to be written."""
        return self.done_bytes + (self.ahead.waiting_bytes if self.ahead else 0)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a file of a repository lies in the hub's cache."""

    blob: Path
    incomplete: Path
    lock: Path

    @classmethod
    def of(cls, cache: Path, repo: str, etag: str) -> "Places":
        """Raises:
        HubUnreachable: What the hub gives as version can be no file's name.
        """
        if not _SAFE_ETAG.fullmatch(etag) or etag.strip(".") == "":
            raise HubUnreachable(
                f"the hub gives {etag[:64]!r} as the version of a file of {repo}, which is none;"
                " check HF_ENDPOINT"
            )
        name = repo_folder_name(repo_id=repo, repo_type="model")
        blobs = cache / name / "blobs"
        return cls(
            blobs / etag, blobs / f"{etag}.incomplete", cache / ".locks" / name / f"{etag}.lock"
        )

    def coming(self) -> tuple[int, int]:
        """When it was last written, in nanoseconds, and how many bytes are there then.

        Under whatever name huggingface_hub writes; what others left behind is no progress.
        """
        found = [(0, 0)]
        with contextlib.suppress(OSError):
            for path in self.blob.parent.glob(f"{self.blob.name}*.incomplete"):
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size))
        return max(found)

    def done_bytes(self) -> int:
        for path in (self.blob, self.incomplete):
            with contextlib.suppress(OSError):
                return path.stat().st_size
        return 0


@dataclass(slots=True)
class Fetching:
    """Fetches one file."""

    line: Line
    part: RemotePart
    cache: Path
    stop: Event
    connections: int = 1
    standing: Standing = field(default_factory=Standing)

    def run(self) -> None:
        """Fetch it, unless it is there.

        Raises:
            ModelMissing, ModelForbidden, HubOffline, HubUnreachable: With reason and link.
            ModelDigestWrong: Its bytes are others than the hub says; they are thrown away.
            DiskFull, FolderNotWritable: With the numbers.
            Stopped
        """
        facts = self._patiently(lambda: self.line.facts(self.part))
        if facts.size_bytes != self.part.size_bytes:
            raise HubUnreachable(
                f"{self.part.name} has {self.part.size_bytes} bytes in the hub's list, and"
                f" {facts.size_bytes} where it is stored; try again later, or use another mirror"
            )
        places = Places.of(self.cache, self.part.repo, facts.etag)
        with _written(places.blob.parent, self.part.size_bytes), self._locked(places):
            places.blob.parent.mkdir(parents=True, exist_ok=True)
            if not places.blob.exists():
                self._fill(places, facts)
        self.standing.done_bytes = self.part.size_bytes

    def link(self) -> Path:
        """Let it appear under its name; returns its path. To be called after ``run``.

        Raises:
            ModelMissing, ModelForbidden, HubOffline, HubUnreachable: With reason and link.
            Stopped
        """
        return self._patiently(lambda: self.line.linked(self.part, self.cache))

    def _fill(self, places: Places, facts: Facts) -> None:
        incomplete = places.incomplete
        if incomplete.is_file() and incomplete.stat().st_size > self.part.size_bytes:
            incomplete.unlink()
        digest = _digest_for(facts.etag, self.part)
        # Unbuffered: what was taken is kept, whatever becomes of this process.
        with incomplete.open("ab", buffering=0) as file:
            self._digest_start(incomplete, digest)

            def take(piece: bytes) -> None:
                if self.stop.is_set():
                    raise Stopped
                with _written(incomplete.parent, self.part.size_bytes):
                    view = memoryview(piece)
                    while view:
                        view = view[file.write(view) :]
                if digest:
                    digest.update(piece)
                self.standing.done_bytes += len(piece)
                self.standing.detail = ""

            ahead = Ahead(self.line, self.part, self.stop, self.connections)
            self.standing.ahead = ahead
            with contextlib.closing(ahead.windows(self.standing.done_bytes)) as windows:
                for window in windows:
                    for piece in ahead.pieces(window):
                        take(piece)
                    self._patiently(partial(self._more, ahead.end_of(window), take))
                    if self.standing.done_bytes == self.part.size_bytes:
                        break
            os.fsync(file.fileno())
        self._prove(digest, incomplete, facts)
        incomplete.rename(places.blob)

    def _more(self, end: int, take: Callable[[bytes], None]) -> None:
        """What no connection brought ahead."""
        while self.standing.done_bytes < end:
            self.line.stream(self.part, self.standing.done_bytes, end, take)

    def _digest_start(self, incomplete: Path, digest: Any) -> None:
        """What is there already counts, as bytes and in the digest."""
        self.standing.is_checking = True
        with incomplete.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                if self.stop.is_set():
                    raise Stopped
                if digest:
                    digest.update(piece)
                self.standing.done_bytes += len(piece)
        self.standing.is_checking = False

    def _prove(self, digest: Any, incomplete: Path, facts: Facts) -> None:
        wanted = facts.etag if _is_digest(facts.etag) else self.part.etag
        if digest is None or digest.hexdigest() == wanted:
            return
        incomplete.unlink()
        self.standing.done_bytes = 0
        raise ModelDigestWrong(
            f"{self.part.name} came with the digest {digest.hexdigest()[:16]}..., and the hub says"
            f" {wanted[:16]}...: its {self.part.size_bytes} bytes were thrown away; fetch it again,"
            " and if that ends alike, from another mirror (HF_ENDPOINT)"
        )

    # -- patience ------------------------------------------------------------------------------

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do it until it succeeds, fails for good, or made no progress for several tries."""
        failures, before = 0, self.standing.done_bytes
        while True:
            try:
                return work()
            except TryAgain as exc:
                done = self.standing.done_bytes
                failures = 1 if done > before else failures + 1
                before = done
                if failures >= self.line.patience.tries:
                    raise given_up(exc) from exc
                problem = str(exc).partition(";")[0]
                self._pause(max(exc.after_s, self._backoff_s(failures)), problem)

    def _backoff_s(self, failures: int) -> float:
        longest_s = min(self.line.patience.first_pause_s * 2.0**failures, _LONGEST_BACKOFF_S)
        return longest_s * random.uniform(0.5, 1.0)

    def _pause(self, pause_s: float, why: str) -> None:
        self.standing.detail = f"goes on in {pause_s:.0f} s: {why}"
        if self.stop.wait(pause_s):
            raise Stopped

    @contextlib.contextmanager
    def _locked(self, places: Places) -> Iterator[None]:
        """Alone with the file, as huggingface_hub does it; whoever else fetches it is waited for.

        Raises:
            HubUnreachable: That one makes no progress.
        """
        places.lock.parent.mkdir(parents=True, exist_ok=True)
        deadline_s, before = time.monotonic() + _LOCK_PATIENCE_S, (0, 0)
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(WeakFileLock(places.lock, timeout=_LOCK_LOOK_S))
                    break
                except Timeout:
                    pass
                coming = places.coming()
                self.standing.done_bytes = min(coming[1], self.part.size_bytes)
                self.standing.detail = f"{self.part.name} is being fetched by another program"
                if coming != before:
                    deadline_s, before = time.monotonic() + _LOCK_PATIENCE_S, coming
                if self.stop.is_set():
                    raise Stopped
                if time.monotonic() > deadline_s:
                    raise HubUnreachable(
                        f"another program holds {places.lock} and fetches nothing; end it"
                    )
            self.standing.done_bytes, self.standing.detail = 0, ""
            yield


def check_room(parts: list[RemotePart], cache: Path, promised_bytes: int = 0) -> None:
    """Whether what is missing has room where the cache is, beside what is promised to others.

    Raises:
        DiskFull: With both figures.
        FolderNotWritable: The folder cannot be made.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(cache).free
    except OSError as exc:
        raise FolderNotWritable(
            f"the hub's cache {cache} cannot be used: {exc.strerror or exc}; choose another folder"
            " with HF_HUB_CACHE"
        ) from exc
    missing_bytes = sum(part.size_bytes - there_bytes(part, cache) for part in parts)
    if missing_bytes > free_bytes - promised_bytes:
        others = f", of which other pulls need {gib(promised_bytes)}" if promised_bytes else ""
        raise DiskFull(
            f"{gib(missing_bytes)} are missing of {parts[0].repo}, and {cache} has"
            f" {gib(free_bytes)} free{others}; free space there, or choose another folder with"
            " HF_HUB_CACHE"
        )


def there_bytes(part: RemotePart, cache: Path) -> int:
    """Of a file that is whole or was begun."""
    if not _SAFE_ETAG.fullmatch(part.etag):
        return 0
    return min(Places.of(cache, part.repo, part.etag).done_bytes(), part.size_bytes)


def forget(part: RemotePart, cache: Path) -> None:
    """Remove what was begun of a file and is not whole, unless another process goes on with it."""
    if not _SAFE_ETAG.fullmatch(part.etag):
        return
    places = Places.of(cache, part.repo, part.etag)
    with contextlib.suppress(OSError):  # Timeout is one
        if places.incomplete.exists():
            places.lock.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(places.lock, timeout=_LOCK_LOOK_S):
                places.incomplete.unlink(missing_ok=True)


@contextlib.contextmanager
def _written(folder: Path, size_bytes: int) -> Iterator[None]:
    """Say what is wrong with a folder that cannot be written."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            free_bytes = shutil.disk_usage(folder).free
            raise DiskFull(
                f"no room is left in {folder} for a file of {gib(size_bytes)} ({gib(free_bytes)}"
                " free); free space there and resume, what came is kept"
            ) from exc
        raise FolderNotWritable(
            f"the hub's cache cannot be written: {folder}: {exc.strerror or exc}; check its"
            " permissions, or choose another folder with HF_HUB_CACHE"
        ) from exc


def _is_digest(etag: str) -> bool:
    return bool(_SHA256.fullmatch(etag) or _GIT.fullmatch(etag))


def _digest_for(etag: str, part: RemotePart) -> Any:
    """What counts the digest that an etag is: of LFS files SHA-256, of small ones git's own.

    None where a mirror gives another kind of etag, which proves nothing.
    """
    wanted = etag if _is_digest(etag) else part.etag
    if _SHA256.fullmatch(wanted):
        return hashlib.sha256()
    if _GIT.fullmatch(wanted):
        begun = hashlib.sha1(usedforsecurity=False)
        begun.update(b"blob %d\0" % part.size_bytes)
        return begun
    return None
