"""Walks folders of models: links are followed, loops are not, what cannot be read is counted."""

import os
import re
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from supervisor.core.model_headers import FileVersion

MAX_DEPTH: Final = 12
MAX_FOLDERS: Final = 100_000
MAX_FILES: Final = 50_000
SUFFIX: Final = ".gguf"

_ODD: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and bytes that are no UTF-8."""


class Seen(NamedTuple):
    """A file that may be one of a model's."""

    path: str
    name: str
    version: FileVersion


class Stopped(Exception):
    """The scan is no longer wanted."""


@dataclass(slots=True)
class Walk:
    """One scan. ``folders`` tells by their times whether another one is worth it."""

    stop: threading.Event = field(default_factory=threading.Event)
    folders: dict[str, int] = field(default_factory=dict)
    """When each was last changed, ns; 0: it is not there."""
    skipped: list[str] = field(default_factory=list)
    """Folders and files that cannot be read, each with the reason."""
    files: int = 0

    def model_files(self, root: str) -> Iterator[Seen]:
        """All files that end as a model does, in ``root`` and below."""
        visited: set[tuple[int, int]] = set()
        waiting = [(root, 0)]
        while waiting:
            folder, depth = waiting.pop()
            for entry in self.entries(folder, visited):
                found = self._looked_at(entry)
                if found is None:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    if depth < MAX_DEPTH:
                        waiting.append((entry.path, depth + 1))
                elif stat.S_ISREG(found.st_mode):
                    self.files += 1
                    if self.files > MAX_FILES:
                        self.skipped.append(f"{root}: models beyond the first {MAX_FILES:,}")
                        return
                    yield Seen(entry.path, entry.name, version_of(found))

    def entries(
        self, folder: str, visited: set[tuple[int, int]] | None = None
    ) -> list[os.DirEntry[str]]:
        """What a folder holds, in order; nothing if it is not there, or was seen before."""
        if self.stop.is_set():
            raise Stopped
        try:
            found = os.stat(folder)  # noqa: PTH116
        except FileNotFoundError:
            self.folders[folder] = 0
            return []
        except (OSError, ValueError) as exc:
            self.skip(folder, exc)
            return []
        if visited is not None:
            if (found.st_dev, found.st_ino) in visited or len(self.folders) >= MAX_FOLDERS:
                return []
            visited.add((found.st_dev, found.st_ino))
        self.folders[folder] = found.st_mtime_ns
        try:
            with os.scandir(folder) as entries:
                named = [entry for entry in entries if self._is_readable(entry)]
            return sorted(named, key=lambda entry: entry.name)
        except NotADirectoryError:
            return []
        except OSError as exc:
            self.skip(folder, exc)
            return []

    def version(self, path: str) -> FileVersion | None:
        """Of one regular file; None if there is none that can be looked at."""
        try:
            found = os.stat(path)  # noqa: PTH116
        except (OSError, ValueError) as exc:
            self.skip(path, exc)
            return None
        return version_of(found) if stat.S_ISREG(found.st_mode) else None

    def skip(self, path: str, exc: Exception) -> None:
        reason = exc.strerror if isinstance(exc, OSError) else ""
        self.skipped.append(f"{path}: {reason or exc}")

    def _is_readable(self, entry: "os.DirEntry[str]") -> bool:
        """Whether its name can be shown and sent; names are bytes, and may be anything."""
        if _ODD.search(entry.name) is None:
            return True
        self.skipped.append(f"{_ODD.sub('?', entry.path)}: its name is no text; rename it")
        return False

    def _looked_at(self, entry: "os.DirEntry[str]") -> os.stat_result | None:
        """Hidden things are caches and half downloads; other files are no models."""
        if entry.name.startswith("."):
            return None
        try:
            is_model = entry.name[-5:].lower() == SUFFIX
            if not is_model and entry.is_file(follow_symlinks=False):
                return None
            found = entry.stat()
        except OSError as exc:  # a link to nothing, or in a circle
            self.skip(entry.path, exc)
            return None
        return found if is_model or stat.S_ISDIR(found.st_mode) else None


def version_of(found: os.stat_result) -> FileVersion:
    return FileVersion(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )
