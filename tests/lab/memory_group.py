"""A memory group of the kernel, to see what really happens at its limit."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_ROOT: Final = Path("/sys/fs/cgroup/memory")
_REMOVE_S: Final = 10.0
ENTER: Final = ("/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"')
"""Put before the folder of a group and a command: the shell joins it and becomes the command."""


@contextmanager
def memory_group(name: str, limit_bytes: int) -> Iterator[Path]:
    """Folder of a group below our own; the test is skipped where groups cannot be made."""
    folder = _own_folder() / name
    try:
        folder.mkdir()
        for file in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
            if (folder / file).exists():
                (folder / file).write_text(str(limit_bytes))
    except OSError as exc:
        pytest.skip(f"not permitted here: a memory group at {folder} ({exc.strerror})")
    try:
        yield folder
    finally:
        _remove(folder)


def _own_folder() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        folder = _ROOT / path.lstrip("/")
        if "memory" in controllers.split(",") and folder.is_dir():
            return folder
    pytest.skip("not permitted here: no memory groups of cgroup v1")


def _remove(folder: Path) -> None:
    """The kernel lets go of a group a moment after its last process has ended."""
    deadline_s = time.monotonic() + _REMOVE_S
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
        else:
            return
