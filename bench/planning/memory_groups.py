"""Memory groups of the kernel (cgroup v1), one per worker, to see what really fits under a limit.

Each is a folder below the group of this process, so that whatever limits this process still holds.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup/memory")
_REMOVE_S = 10.0

_ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
"""The shell joins the group and becomes the program, so all of its memory is counted."""


class GroupsUnusable(Exception):
    """This process may not make memory groups; the message says why and what to do."""


@dataclass(frozen=True)
class Counted:
    """What the kernel counted of a group. ``page_cache_bytes`` can be taken back at any time."""

    used_bytes: int
    most_bytes: int
    page_cache_bytes: int
    kernel_bytes: int
    kills: int


class MemoryGroup:
    """One group; ``remove`` must be called after its last process has ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def command(self, argv: Sequence[str]) -> list[str]:
        """``argv``, but started inside the group."""
        return ["/bin/sh", "-c", _ENTER, str(self._folder), *argv]

    def limit(self, limit_bytes: int) -> None:
        """Set the most that the group may use; swap does not help."""
        self._write("memory.limit_in_bytes", limit_bytes)
        if (self._folder / "memory.memsw.limit_in_bytes").exists():
            self._write("memory.memsw.limit_in_bytes", limit_bytes)

    def counted(self) -> Counted:
        stat = dict(line.split() for line in self._read("memory.stat").splitlines())
        kills = dict(line.split() for line in self._read("memory.oom_control").splitlines())
        return Counted(
            used_bytes=int(self._read("memory.usage_in_bytes")),
            most_bytes=int(self._read("memory.max_usage_in_bytes")),
            page_cache_bytes=int(stat["cache"]),
            kernel_bytes=int(self._read("memory.kmem.usage_in_bytes")),
            kills=int(kills.get("oom_kill", 0)),
        )

    def remove(self) -> None:
        """Remove the group; the kernel lets go of it a moment after its last process ended.

        Raises:
            OSError: Not within ten seconds.
        """
        deadline_s = time.monotonic() + _REMOVE_S
        while True:
            try:
                self._folder.rmdir()
            except OSError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.05)
            else:
                return

    def _read(self, name: str) -> str:
        return (self._folder / name).read_text()

    def _write(self, name: str, value: int) -> None:
        (self._folder / name).write_text(str(value))


def make_group(name: str) -> MemoryGroup:
    """A group below this process's own.

    Raises:
        GroupsUnusable: There is no such controller here, or it may not be written.
    """
    folder = own_folder() / f"{name}-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as exc:
        raise GroupsUnusable(
            f"cannot make the memory group {folder} ({exc.strerror}); "
            "run as root on a host with cgroup v1, or in a container that may write its own groups"
        ) from exc
    return MemoryGroup(folder)


def own_folder() -> Path:
    """The memory group that this process is in.

    Raises:
        GroupsUnusable: The kernel has no memory controller of cgroup v1.
    """
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        folder = ROOT / path.lstrip("/")
        if "memory" in controllers.split(",") and folder.is_dir():
            return folder
    raise GroupsUnusable(
        f"this kernel has no memory groups of cgroup v1 at {ROOT}; run this on a host that has"
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
