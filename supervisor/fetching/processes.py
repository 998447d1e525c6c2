"""The processes that fetch, started by the supervisor."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from agents import privatefile, process
from agents.errors import FolderNotWritable
from agents.logfile import LogTail
from supervisor.core.pulling import Job, PullPart, Step

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.2
_GRACE_S: Final = 3.0


class FetchProcess:
    """One running process that fetches, and what it says."""

    def __init__(self, child: process.Child, job: Path) -> None:
        self._child = child
        self._job = job

    @property
    def exit_status(self) -> int | None:
        return self._child.exit_status

    @property
    def log_path(self) -> Path:
        return self._child.log_path

    async def steps(self) -> AsyncIterator[Step]:
        """What it says, until it has ended and was reaped."""
        tail, is_over = LogTail(self._child.log_path), False
        while True:
            lines = tail.lines()
            for line in lines:
                if line.startswith("{"):
                    try:
                        yield Step.model_validate_json(line)
                    except ValidationError:
                        log.warning("pull.strange_line", extra={"line": line[:200]})
            if is_over and not lines:
                break
            is_over = not self._child.is_alive
            if not is_over:
                await _end_within(self._child, _LOOK_S)
        self._job.unlink(missing_ok=True)

    async def stop(self) -> None:
        """End it; what came is kept."""
        await self._child.stop(grace_s=_GRACE_S)
        self._job.unlink(missing_ok=True)


class FetchProcesses:
    """Starts them; one that outlived an earlier supervisor is ended first."""

    def __init__(self, folder: Path, boot_id: str, environment: Mapping[str, str] | None = None):
        self._folder = folder / "pulls"
        self._ledger = process.ChildLedger(folder / "pulls.children.json", boot_id)
        self._environment = dict(os.environ if environment is None else environment)

    def sweep(self) -> None:
        """End what an earlier run left."""
        self._ledger.sweep()

    async def start(
        self, name: str, parts: Iterable[PullPart], promised_bytes: int = 0
    ) -> FetchProcess:
        """Raises:
        FolderNotWritable, EngineMissing, EngineUnusable: It cannot be started.
        """
        job = self._folder / f"{name}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            wanted = Job(parts=tuple(parts), promised_bytes=promised_bytes)
            privatefile.write(job, wanted.model_dump_json())
        except OSError as exc:
            raise FolderNotWritable(
                f"cannot write {job}: {exc.strerror}; free space or choose another folder"
            ) from exc
        child = await self._ledger.spawn(
            f"pull {name}",
            command(job),
            log_path=self._folder / f"pull-{name}_{time.time_ns()}.log",
            environment=self._environment,
        )
        return FetchProcess(child, job)


def command(job: Path) -> list[str]:
    """What fetches."""
    return [sys.executable, "-m", "supervisor.fetching", str(job)]


async def _end_within(child: process.Child, within_s: float) -> None:
    """Wait for a child's end, but not long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await child.wait()
