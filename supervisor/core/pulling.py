"""What a pull is: the files of a model in exactly one version, and how far they are."""

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from supervisor.core.entities import ByteCount, FrozenModel, PullView
from supervisor.core.model_reference import RepoFile, RepoModel

__all__ = [
    "Job",
    "Meter",
    "PullPart",
    "PullView",
    "Step",
    "is_within",
    "key_of",
    "label_of",
    "total_bytes",
]

RATE_OVER_S: Final = 5.0
_PART: Final = re.compile(r"-\d{5}-of-\d{5}$")


class PullPart(FrozenModel):
    """One file of a model on the hub, in exactly one version."""

    repo: str
    revision: str
    path: str
    size_bytes: ByteCount
    etag: str


class Job(FrozenModel):
    """What a fetching process is to do."""

    parts: tuple[PullPart, ...]
    cache: str = ""
    """Folder of the hub's cache; empty: as the environment says."""
    at_once: int = 4
    """Connections side by side."""
    promised_bytes: ByteCount = 0
    """Of the room on the cache's disk, for other pulls."""
    tries: int = 8
    """In a row without any progress."""


class Step(FrozenModel):
    """A line that a fetching process says. ``done`` holds what changed, by the file's number."""

    event: str
    """``progress``, ``done``, ``failed`` or ``stopped``."""
    is_checking: bool = False
    done: Mapping[int, int] = {}
    path: str = ""
    code: str = ""
    detail: str = ""


class Meter:
    """The rate of the last seconds, and what is left at that rate. The caller has the clock."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, now_s: float, done_bytes: int) -> None:
        """So many bytes are there now."""
        if self._seen and done_bytes < self._seen[-1][1]:
            self._seen.clear()  # a file had to begin anew
        self._seen.append((now_s, done_bytes))
        while len(self._seen) > 2 and now_s - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()

    def clear(self) -> None:
        """Forget what was: a pause is no slowness."""
        self._seen.clear()

    @property
    def bytes_per_s(self) -> int:
        if len(self._seen) < 2:
            return 0
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return round((last - first) / (last_s - first_s)) if last_s > first_s else 0

    def eta_s(self, left_bytes: int) -> float | None:
        """Seconds until so many more bytes are there; None: unknown."""
        rate = self.bytes_per_s
        return round(left_bytes / rate, 1) if rate > 0 and left_bytes else None


def key_of(parts: Sequence[PullPart]) -> tuple[str, ...]:
    """Equal for those that are the same files of the hub's cache, however they were asked for."""
    return (parts[0].repo, *sorted(f"{part.path}\0{part.etag or part.revision}" for part in parts))


def is_within(path: str) -> bool:
    """Whether a file of that name lies below the folder of its repository, on every system."""
    steps = path.split("/")
    return not {"", ".", ".."} & set(steps) and not set("\\\0") & set(path)


def label_of(parts: Sequence[PullPart]) -> str:
    """The quantisation that the name tells, or the name itself."""
    stem = _PART.sub("", parts[0].path.rsplit(".", 1)[0])
    files = tuple(RepoFile(path=part.path, size_bytes=part.size_bytes) for part in parts)
    return RepoModel(stem=stem, parts=files).label or stem.rsplit("/", 1)[-1]


def total_bytes(parts: Iterable[PullPart]) -> int:
    """Of all files."""
    return sum(part.size_bytes for part in parts)
