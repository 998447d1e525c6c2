"""How many processes the kernel has killed for want of memory since one of ours started.

The kernel counts a victim in the memory group that it was in, which tells ours from all others of
the host. The count of the whole host is the next best: where groups cannot be read, and for a
process that changed its group after we had looked. Android forbids both.
"""

import os
from pathlib import Path
from typing import Final

_HOST: Final = Path("/proc/vmstat")
_GROUPS: Final = Path("/sys/fs/cgroup")


def kills_so_far() -> int | None:
    """Kills on this host since it started, or in our own memory group; ``None``: unknown."""
    if (kills := _read(_HOST)) is not None:
        return kills
    own = _group_file(os.getpid())
    return _read(own) if own else None


class OomWatch:
    """Watches for the kernel's kills from the start of one process on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._host = _Counter(_HOST)
        self._host_before = 0
        self._groups: dict[Path, _Counter] = {}
        self.look()

    def look(self) -> None:
        """See which memory group the process is in. Costs two short reads; for every second."""
        path = _group_file(self._pid)
        if path is not None and path not in self._groups:
            counter = _Counter(path)
            if counter.is_known:
                self._groups[path] = counter
        self._host_before = self._host.rise()

    def kills(self, *, has_ended: bool = False) -> int | None:
        """Kills so far, ``None`` if nothing tells.

        Once the process ``has_ended``, kills on the host since we looked last count too, as it may
        have been in another group by then.
        """
        host = self._host.rise()
        if not self._groups:
            return host if self._host.is_known else None
        in_groups = sum(counter.rise() for counter in self._groups.values())
        return max(in_groups, host - self._host_before) if has_ended else in_groups


class _Counter:
    """``oom_kill`` of one file, which may vanish with its group; then its last figure stays."""

    def __init__(self, path: Path) -> None:
        self._path = path
        first = _read(path)
        self.is_known = first is not None
        self._first = self._last = first or 0

    def rise(self) -> int:
        if self.is_known and (now := _read(self._path)) is not None:
            self._last = now
        return self._last - self._first


def _read(path: Path) -> int | None:
    try:
        fields = (line.partition(" ") for line in path.read_text().splitlines())
        return next(int(value) for name, _, value in fields if name == "oom_kill")
    except (OSError, ValueError, StopIteration):
        return None


def _group_file(pid: int) -> Path | None:
    """Where the kernel counts for the memory group of a process (cgroup v2, else v1)."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        file = None
        if controllers == "":
            file = _GROUPS / path.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            file = _GROUPS / "memory" / path.lstrip("/") / "memory.oom_control"
        if file is not None and file.is_file():
            return file
    return None
