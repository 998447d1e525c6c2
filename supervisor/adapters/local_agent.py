"""The main host's own agent: started again when it ends, and found again when we were killed."""

import asyncio
import itertools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from agents import process
from agents.cli import CODE_VARIABLE
from agents.errors import ProjectError
from agents.join import JoinCode
from supervisor.settings import Settings

log = logging.getLogger(__name__)

_GRACE_S: Final = 8.0
_PAUSE_S: Final = 3.0


class LocalAgent:
    """Keeps one agent running beside the supervisor."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        boot_id: str,
        endpoints: Sequence[str],
        new_code: Callable[[], JoinCode],
    ) -> None:
        """``endpoints``: where it finds us; ``new_code`` makes what it joins with."""
        self._settings = settings
        self._folder = folder
        self._name = f"agent of {' '.join(endpoints)}"
        self._new_code = new_code
        self._ledger = process.ChildLedger(folder / "agent-child.json", boot_id)

    async def run(self) -> None:
        """Keep one agent running until cancelled."""
        wanted = (self._name, self._argv())
        adopted = self._ledger.adopt(lambda child: (child.name, child.argv) == wanted)
        for left in self._ledger.sweep():
            log.warning("local_agent.orphan_killed", extra={"pid": left.pid})
        if adopted is not None:
            log.info("local_agent.adopted", extra={"pid": adopted.pid})
            await self._wait(adopted)
        for number in itertools.count(1):
            try:
                child = await self._start(number)
            except ProjectError as exc:  # such as a full disk: the cluster goes on without it
                log.error("local_agent.not_started", extra={"reason": str(exc)})
            else:
                await self._wait(child)
            await asyncio.sleep(_PAUSE_S)

    async def _wait(self, child: process.Running) -> None:
        try:
            how = process.describe_exit(await child.wait())
        except asyncio.CancelledError:
            await child.stop(grace_s=_GRACE_S)
            raise
        log.warning("local_agent.ended", extra={"how": how, "log": str(child.log_path)})

    def _argv(self) -> list[str]:
        argv = [sys.executable, "-m", "agents", "join", "-", "--data", str(self._folder / "agent")]
        # Its rpc-server is for the llama-server beside it, and nobody else's to reach.
        argv += ["--host", "127.0.0.1"]
        # The model's file is on this host; a copy of its chunks would only take disk.
        argv += ["--store-gib", "0"]
        if self._settings.engine_folder is not None:
            argv += ["--engine", str(self._settings.engine_folder)]
        if self._settings.log_format == "json":
            argv.append("--json-logs")
        return argv

    async def _start(self, number: int) -> process.Child:
        return await self._ledger.spawn(
            self._name,
            self._argv(),
            log_path=self._folder / "logs" / f"agent-{os.getpid()}.{number}.log",
            environment={**os.environ, CODE_VARIABLE: str(self._new_code())},
            # Its rpc-server may serve a launch that goes on without us.
            parent_death_signal=None,
        )
