"""Short commands of the system: their output, or nothing. Missing, failing and hanging are alike.

Every one has a time limit, after which its whole process group is killed: a script may wait for a
program that hangs, and a phone lets an app have few processes.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Final

LIMIT_S: Final = 5.0
_END_S: Final = 1.0
"""For what was killed to be gone."""


def output(argv: Sequence[str], limit_s: float = LIMIT_S) -> str:
    """What a command prints within ``limit_s`` seconds, or nothing."""
    process = _start(argv)
    return _finish(process, limit_s) if process is not None else ""


async def output_soon(argv: Sequence[str], limit_s: float = LIMIT_S) -> str:
    """The same without holding anybody up; a cancelled one is killed."""
    process = _start(argv)
    if process is None:
        return ""
    try:
        return await asyncio.to_thread(_finish, process, limit_s)
    except asyncio.CancelledError:
        _kill(process)
        raise


def _start(argv: Sequence[str]) -> subprocess.Popen[str] | None:
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            process_group=0,
        )
    except OSError:
        return None


def _finish(process: subprocess.Popen[str], limit_s: float) -> str:
    try:
        return process.communicate(timeout=limit_s)[0]
    except subprocess.TimeoutExpired:
        return ""
    finally:
        if process.returncode is None:
            _kill(process)
        # Not "communicate" again: who left the group may hold the pipe open for ever.
        if process.stdout is not None:
            process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)


def _kill(process: subprocess.Popen[str]) -> None:
    """Its group, which outlives it where it started something that goes on."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
