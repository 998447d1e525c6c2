"""The data folder of one of our programs: made, writable, and used by one of them at a time."""

import asyncio
import contextlib
import fcntl
from collections.abc import AsyncIterator
from pathlib import Path

from agents.errors import FolderNotWritable, ProjectError


@contextlib.asynccontextmanager
async def held(
    folder: Path, lock_name: str, *, taken: ProjectError, patience_s: float = 0.0
) -> AsyncIterator[None]:
    """Make ``folder`` and hold its lock.

    Args:
        folder: Made with its parents if it is not there.
        lock_name: File in it that is locked; opening it also proves that we may write there.
        taken: Raised when another process keeps the lock for longer than ``patience_s``.
        patience_s: For a process that is just ending.

    Raises:
        FolderNotWritable: It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / lock_name).open("a")
    except OSError as exc:
        raise FolderNotWritable(
            f"cannot write the data folder {folder}: {exc.strerror}; choose another with --data"
        ) from exc
    deadline_s = asyncio.get_running_loop().time() + patience_s
    with lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if asyncio.get_running_loop().time() >= deadline_s:
                    raise taken from exc
            await asyncio.sleep(0.1)
        yield
