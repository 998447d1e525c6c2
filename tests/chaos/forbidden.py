"""What only some machines permit: small disks, memory limits, false clocks."""

import contextlib
import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup/memory")
GROUP_BYTES = 4 << 20
"""So little that what takes it all is smaller than an rpc-server, which is killed first."""

REMOVE_S = 10.0
FILL_BYTES = 1 << 20


class NotPermitted(Exception):
    """This machine forbids what a row needs; the message says what."""


# -- disks ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """A file system of its own at ``folder``.

    Raises:
        NotPermitted: Mounting is.
    """
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPermitted(f"mounting: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the space that is left; the file gives it back when it is removed."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        size_bytes = FILL_BYTES
        while size_bytes:
            try:
                file.write(bytes(size_bytes))
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
                size_bytes //= 2
    return ballast


# -- memory ---------------------------------------------------------------------------------------

HOG = """
import sys
open("/proc/self/oom_score_adj", "w").write("-900")
open(sys.argv[1], "w").write("0")
b"x" * (1 << 30)
"""
"""Joins a memory group and takes all of its memory; others are killed for that first."""


@contextlib.contextmanager
def memory_limit(name: str) -> Iterator[Path]:
    """A memory group of the kernel that holds little.

    Raises:
        NotPermitted: There are no such groups (cgroup v1), or they cannot be made.
    """
    own = _own_group()
    folder = own / f"{name}-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as exc:
        raise NotPermitted(f"a memory group at {folder}: {exc.strerror}") from exc
    try:
        (folder / "memory.limit_in_bytes").write_text(str(GROUP_BYTES))
        yield folder
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (own / "cgroup.procs").write_text(pid)
        _remove(folder)


def kill_for_memory(group: Path, pid: int) -> None:
    """Have the kernel kill a process, since another one takes the memory of its group.

    A lower limit would not do: memory that a process has is never taken back, and it may get along
    with that for long.
    """
    members = group / "cgroup.procs"
    members.write_text(str(pid))
    argv = [sys.executable, "-IS", "-c", HOG, str(members)]
    subprocess.run(argv, capture_output=True, timeout=30, check=False)


def _own_group() -> Path:
    """The memory group that this process is in."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            folder = CGROUPS / path.lstrip("/")
            if "memory" in controllers.split(",") and folder.is_dir():
                return folder
    raise NotPermitted(f"no memory groups of cgroup v1 at {CGROUPS}")


def _remove(folder: Path) -> None:
    """The kernel lets go of a group a moment after its last process ended."""
    deadline_s = time.monotonic() + REMOVE_S
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
        else:
            return


# -- clocks ---------------------------------------------------------------------------------------


class Clock:
    """The wall clock of the programs that are started with ``environment``; others keep theirs."""

    def __init__(self, file: Path) -> None:
        """Nothing is changed yet.

        Raises:
            NotPermitted: libfaketime is not here (Debian: package faketime).
        """
        libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not libraries:
            raise NotPermitted("setting a clock: libfaketime is missing")
        self._file = file
        self.set_back(0)
        self.environment = {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set_back(self, seconds: float) -> None:
        """From now on, ``seconds`` behind the true time; known at once."""
        new = self._file.with_suffix(".new")
        new.write_text(f"-{seconds:g}\n")
        new.replace(self._file)
