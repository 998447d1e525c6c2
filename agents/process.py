"""Child processes: started so that they cannot outlive us unseen, logged to files, reaped.

Shared by the agent (rpc-server) and the supervisor (llama-server, the main host's own agent).
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from agents import logfile, mac_figures, privatefile
from agents.errors import EngineMissing, EngineUnusable, FolderNotWritable

log = logging.getLogger(__name__)

# Both guards become the program by exec, so they cost no process. They ask Linux to signal the
# child when its parent dies, which covers kill -9 of the parent. preexec_fn could do the same but
# is unsafe in a process with threads. Elsewhere the record of children is swept at next start.
# setpriv (util-linux) takes 1 ms, Python 9 ms. Android may forbid to ask, which must not keep the
# program from starting.
_LAUNCHER = """\
import os, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, int(sys.argv[2]), 0, 0, 0)
except Exception: pass
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execv(sys.argv[3], sys.argv[3:])
"""
_IS_ANDROID = sys.platform == "android" or hasattr(sys, "getandroidapilevel")
_SETPRIV = None if _IS_ANDROID else shutil.which("setpriv")

STOPPED: Final = ("T", "t")
"""States of a process that somebody stopped, or debugs."""

_LOOK_EVERY_S: Final = 0.1
"""At a process that is not our child, whose end nobody tells us."""


@dataclass(frozen=True, slots=True)
class ChildRecord:
    """Identity of a child that survives our restart: a pid alone may be someone else's by now."""

    name: str
    pid: int
    start_mark: str
    argv: list[str]
    log_path: str = ""
    boot_id: str = ""


class Running(Protocol):
    """A process of ours, whether we started it or an earlier run of us did."""

    argv: list[str]
    log_path: Path

    @property
    def pid(self) -> int: ...

    @property
    def is_alive(self) -> bool: ...

    @property
    def exit_status(self) -> int | None: ...

    async def wait(self) -> int | None: ...

    async def stop(self, *, grace_s: float) -> int | None: ...


class Child:
    """One running child process and how it ended."""

    def __init__(
        self, name: str, argv: Sequence[str], log_path: Path, process: asyncio.subprocess.Process
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log_path = log_path
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    @property
    def exit_status(self) -> int | None:
        """``None`` while it runs; negative for a signal."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for the end. The caller bounds it."""
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Signal the child's whole process group; a child that is gone is no error."""
        if self.exit_status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def stop(self, *, grace_s: float) -> int:
        """End it: SIGTERM to the group, SIGKILL after ``grace_s`` seconds, then reap."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_grace_s(self.pid, grace_s)):
                return await self._process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            return await self._process.wait()
        except asyncio.CancelledError:
            # Whoever cancels us must still not leave an orphan behind.
            self.signal(signal.SIGKILL)
            raise


def _grace_s(pid: int, grace_s: float) -> float:
    """A process that is stopped hears no SIGTERM."""
    return 0.0 if state_letter(pid) in STOPPED else grace_s


class Adopted:
    """A process that an earlier run of us started. How it ends nobody can tell us."""

    exit_status: int | None = None

    def __init__(self, record: ChildRecord) -> None:
        self._record = record
        self.argv = record.argv
        self.log_path = Path(record.log_path)

    @property
    def pid(self) -> int:
        return self._record.pid

    @property
    def is_alive(self) -> bool:
        return _is_running(self._record)

    async def wait(self) -> int | None:
        """Wait for the end. The caller bounds it."""
        while self.is_alive:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(_LOOK_EVERY_S)
        return None

    async def stop(self, *, grace_s: float) -> int | None:
        """End it: SIGTERM to its group, SIGKILL after ``grace_s`` seconds."""
        try:
            self._signal(signal.SIGTERM)
            async with asyncio.timeout(_grace_s(self.pid, grace_s)):
                return await self.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            return await self.wait()
        except asyncio.CancelledError:
            self._signal(signal.SIGKILL)
            raise

    def _signal(self, number: signal.Signals) -> None:
        if self.is_alive:  # looked at just before, since the number may be another's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)


async def spawn(
    name: str,
    argv: Sequence[str],
    *,
    log_path: Path,
    environment: Mapping[str, str],
    parent_death_signal: signal.Signals | None = signal.SIGKILL,
) -> Child:
    """Start ``argv`` in a process group of its own with its output in ``log_path``.

    Without ``parent_death_signal`` it goes on when we end; the ledger finds it then.

    A file, not a pipe: a pipe would block or kill the child when we lag or die. SIGPIPE stays
    ignored across exec (``restore_signals=False``), because rpc-server dies of it.

    Raises:
        EngineMissing: The program does not exist.
        EngineUnusable: It cannot be executed.
        FolderNotWritable: The log file cannot be made.
    """
    program = Path(argv[0])
    if not program.is_file():
        raise EngineMissing(f"{program} does not exist; install llama.cpp or set LLAMA_CPP_BIN")
    if not os.access(program, os.X_OK):
        raise EngineUnusable(f"{program} is not executable; run chmod +x on it")
    command = list(argv)
    if (sys.platform == "linux" or _IS_ANDROID) and parent_death_signal is not None:
        command = [*_guard(parent_death_signal), *argv]
    with _open_log(log_path) as log_file:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log_file,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
            process_group=0,
            restore_signals=False,
        )
    return Child(name, argv, log_path, process)


def _guard(parent_death_signal: signal.Signals) -> list[str]:
    if _SETPRIV is not None:
        name = parent_death_signal.name.removeprefix("SIG")
        return [_SETPRIV, "--pdeathsig", name, "--"]
    number = str(int(parent_death_signal))
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), number]


def describe_exit(status: int | None) -> str:
    """``ended with status 0`` or ``was killed by SIGKILL``."""
    if status is None or status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _open_log(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        logfile.prune(path.parent, path.name.rsplit("-", 1)[0])
        return path.open("ab")
    except OSError as exc:
        raise FolderNotWritable(
            f"cannot write the log {path}: {exc.strerror}; free space or choose another folder"
        ) from exc


def start_mark(pid: int) -> str:
    """Something that differs between two processes which had the same pid; empty if unknown.

    Linux and Android: start time in clock ticks since boot, field 22 of ``/proc/PID/stat`` (wall
    clock figures shift when the clock is set). Elsewhere: psutil, or ``ps`` of a Mac.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    try:
        import psutil

        return str(psutil.Process(pid).create_time())
    except Exception:  # noqa: BLE001 - psutil raises its own types, and may be absent
        figures = mac_figures_of(pid)
        return figures.started if figures else ""


def mac_figures_of(pid: int) -> mac_figures.Figures | None:
    """What a Mac tells of a process without psutil; elsewhere nothing."""
    return mac_figures.process(pid) if sys.platform == "darwin" else None


def state_letter(pid: int) -> str:
    """What a process does, as ``/proc/PID/stat`` says it (``T``: stopped); empty if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        figures = mac_figures_of(pid)
        return figures.state if figures else ""


def _is_running(record: ChildRecord) -> bool:
    """The very process; not its number used again, and not what is left of it unreaped."""
    return (
        bool(record.start_mark)
        and start_mark(record.pid) == record.start_mark
        and state_letter(record.pid) != "Z"
    )


class ChildLedger:
    """File of the children we started: the next start of us adopts or ends what was left."""

    def __init__(self, path: Path, boot_id: str = "") -> None:
        """``boot_id`` of now: processes of another boot are gone, whatever their numbers."""
        self._path = path
        self._boot_id = boot_id
        self._earlier = self._alive()

    async def spawn(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log_path: Path,
        environment: Mapping[str, str],
        parent_death_signal: signal.Signals | None = signal.SIGKILL,
    ) -> Child:
        """Start a child and remember it; one that may outlive us unremembered is ended again.

        Raises:
            EngineMissing, EngineUnusable: As :func:`spawn`.
            FolderNotWritable: Its log or this file cannot be written.
        """
        child = await spawn(
            name,
            argv,
            log_path=log_path,
            environment=environment,
            parent_death_signal=parent_death_signal,
        )
        try:
            self.add(child)
        except FolderNotWritable as exc:
            if sys.platform != "linux" or parent_death_signal is None:
                await child.stop(grace_s=0)
                raise
            # A full disk: the kernel sees to it that it does not outlive us.
            log.warning("child.not_noted", extra={"child": name, "reason": str(exc)})
        return child

    def add(self, child: Child) -> None:
        """Remember a child, and forget those that have ended.

        Raises:
            FolderNotWritable: The file cannot be written.
        """
        mark = start_mark(child.pid)
        path = str(child.log_path)
        record = ChildRecord(child.name, child.pid, mark, child.argv, path, self._boot_id)
        self._write([*self._alive(), record])

    def adopt(self, is_it: Callable[[ChildRecord], bool]) -> Adopted | None:
        """The child of an earlier run for which that holds, if it still runs."""
        for record in self._earlier:
            if is_it(record) and _is_running(record):
                self._earlier.remove(record)
                return Adopted(record)
        return None

    def sweep(self) -> list[ChildRecord]:
        """Kill children of an earlier run that nobody adopted; returns them."""
        left, self._earlier = [r for r in self._earlier if _is_running(r)], []
        for record in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(record.pid, signal.SIGKILL)
        return left

    def _alive(self) -> list[ChildRecord]:
        return [r for r in self._read() if r.boot_id == self._boot_id and _is_running(r)]

    def _read(self) -> list[ChildRecord]:
        try:
            return [ChildRecord(**item) for item in json.loads(self._path.read_text())]
        except (OSError, ValueError, TypeError):
            return []

    def _write(self, records: list[ChildRecord]) -> None:
        try:
            privatefile.write(self._path, json.dumps([asdict(record) for record in records]))
        except OSError as exc:
            raise FolderNotWritable(
                f"cannot write {self._path}: {exc.strerror}; free space or choose another folder"
            ) from exc
