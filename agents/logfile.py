"""Reading log files of children: their end, what was appended, and throwing old ones away."""

import asyncio
import os
from pathlib import Path

_SHORTEST_PAUSE_S = 0.004
_LONGEST_PAUSE_S = 0.1

KEPT_LOGS = 20
"""Log files kept per child name; every start has a file of its own."""


def tail(path: Path, lines: int = 40, limit_bytes: int = 64 * 1024) -> list[str]:
    """Last lines of a log; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - limit_bytes, 0))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def read_from(path: Path, offset: int, limit_bytes: int = 256 * 1024) -> tuple[str, int]:
    """Text from ``offset`` (negative: the end of the file), and the offset to go on from."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(size - limit_bytes, 0) if offset < 0 else min(offset, size)
            file.seek(start)
            data = file.read(limit_bytes)
    except OSError:
        return "", max(offset, 0)
    return data.decode(errors="replace"), start + len(data)


def prune(folder: Path, stem: str, keep: int = KEPT_LOGS) -> None:
    """Delete the oldest logs named ``stem-*.log`` beyond ``keep``."""
    logs = sorted(folder.glob(f"{stem}-*.log"), key=lambda path: path.stat().st_mtime)
    for path in logs[: max(len(logs) - keep, 0)]:
        path.unlink(missing_ok=True)


class LogTail:
    """Reads what was appended to a log since the last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def lines(self) -> list[str]:
        """Whole new lines; an unfinished one waits for its end."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(1 << 20)
        except OSError:
            return []
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    async def wait_for_lines(self) -> list[str]:
        """Wait until the log grew; the caller sets the deadline.

        A file cannot wake us, so it is looked at: often while lines come, ten times a second while
        nothing happens.
        """
        pause_s = _SHORTEST_PAUSE_S
        while not (lines := self.lines()):
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.2, _LONGEST_PAUSE_S)
        return lines
