"""What installing a service did, and what a service does; and the commands that tell."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agents.errors import ServiceRefused

_COMMAND_S: Final = 60.0
"""Starting a unit takes a moment; stopping one may take longer, and says so itself."""
_REAP_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of an install or uninstall."""

    done: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    """For a person to type: they need root, and we may not."""


@dataclass(frozen=True, slots=True)
class Status:
    """One service as its manager sees it. What is unknown is ``None`` or empty."""

    name: str
    manager: str
    """``systemd`` or ``launchd``."""
    is_installed: bool = False
    is_enabled: bool = False
    """It starts at boot."""
    is_running: bool = False
    pid: int | None = None
    since: str = ""
    """UTC, ISO 8601."""
    restarts: int | None = None
    last_exit: str = ""
    file: str = ""
    logs: str = ""
    """A path, or the command that shows them."""
    notes: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """For people, one fact each."""
        if not self.is_installed:
            yield f"the {self.name} is not installed as a service"
            return
        since = f" since {self.since}" if self.since else ""
        pid = f" (pid {self.pid})" if self.pid else ""
        yield f"running:  {f'yes{since}{pid}' if self.is_running else 'no'}"
        yield f"at boot:  {'yes' if self.is_enabled else 'no'}"
        yield f"last end: {self.last_exit or 'none known'}"
        if self.restarts:
            yield f"restarts: {self.restarts}"
        yield f"logs:     {self.logs}"
        yield f"file:     {self.file}"
        for note in self.notes:
            yield f"note: {note}"


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended; ``status`` is ``None`` if it is not there or took too long."""

    status: int | None
    text: str

    @property
    def is_fine(self) -> bool:
        return self.status == 0


def run(argv: Sequence[str], environ: Mapping[str, str], deadline_s: float = _COMMAND_S) -> Ran:
    """Run a short command without a terminal; its process group is ended after the deadline."""
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**environ, "LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,
        )
    except OSError as exc:
        return Ran(None, f"{argv[0]}: {exc.strerror}")
    try:
        text, _ = child.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        _end(child)
        return Ran(None, f"no answer for {deadline_s:g} s")
    return Ran(child.returncode, " ".join(text.split()) if child.returncode else text)


def _end(child: subprocess.Popen[str]) -> None:
    """One that sudo runs as root cannot be ended by us, and is not waited for."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_REAP_S)
    if child.stdout is not None:
        child.stdout.close()


def needed(argv: Sequence[str], environ: Mapping[str, str], deadline_s: float = _COMMAND_S) -> str:
    """The output of a command that has to succeed.

    Raises:
        ServiceRefused: It did not.
    """
    ran = run(argv, environ, deadline_s)
    if not ran.is_fine:
        why = ran.text or f"status {ran.status}"
        raise ServiceRefused(f"{' '.join(argv)} failed: {why}")
    return ran.text
