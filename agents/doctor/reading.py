"""Readings of the outside world that end in time: commands, files, calls that may hang."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

T = TypeVar("T")

COMMAND_S: Final = 5.0
_REAP_S: Final = 1.0
_MOST_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Output:
    """What a command said. ``problem`` says why it said nothing; ``status`` is then None."""

    text: str = ""
    status: int | None = None
    problem: str = ""

    @property
    def is_missing(self) -> bool:
        return self.problem.endswith("is not installed")


async def command(
    *argv: str, limit_s: float = COMMAND_S, environment: Mapping[str, str] | None = None
) -> Output:
    """Output of a short command, both streams together. Its process group ends with the limit."""
    # A pipe of our own: asyncio's stays open for as long as any grandchild has it.
    reading_end, writing_end = os.pipe()
    with os.fdopen(reading_end, "rb") as pipe:
        try:
            running = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing_end,
                stderr=asyncio.subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                start_new_session=True,
            )
        except FileNotFoundError:
            return Output(problem=f"{argv[0]} is not installed")
        except OSError as exc:
            return Output(problem=f"{argv[0]} cannot be run: {exc.strerror or exc}")
        finally:
            os.close(writing_end)
        try:
            async with asyncio.timeout(limit_s):
                text = await _read_all(pipe)
                status = await running.wait()
        except TimeoutError:
            return Output(problem=f"{argv[0]} did not answer within {limit_s:g} s")
        finally:
            await _end(running)
    return Output(text.decode(errors="replace"), status)


async def _read_all(pipe: BinaryIO) -> bytes:
    """All of it; of a command without end, the beginning, while the rest is thrown away."""
    stream, kept = asyncio.StreamReader(), b""
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), pipe
    )
    try:
        while chunk := await stream.read(1 << 16):
            kept = (kept + chunk)[:_MOST_BYTES]
    finally:
        transport.close()
    return kept


async def _end(running: asyncio.subprocess.Process) -> None:
    """Kill the group as well after the command's own end: it may have left children."""
    with contextlib.suppress(OSError):
        os.killpg(running.pid, signal.SIGKILL)
    if running.returncode is None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REAP_S):
                await running.wait()


async def in_thread(call: Callable[[], T]) -> T:
    """Result of a call that may hang; the thread of one that does is given up.

    Not the event loop's own threads: who ends waits for those.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as exc:  # noqa: BLE001 - whoever waits gets it
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True, name="doctor").start()
    return await done


def text_of(path: Path) -> str | None:
    """What a small file holds; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode(errors="replace")
    except OSError:
        return None
