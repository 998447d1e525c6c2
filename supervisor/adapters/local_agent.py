"""The main host's own agent: a child of ours, started again when it ends."""

import asyncio
import itertools
import logging
import os
import signal
import sys
from collections.abc import Callable
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

    def __init__(self, settings: Settings, folder: Path, new_code: Callable[[], JoinCode]) -> None:
        self._settings = settings
        self._folder = folder
        self._new_code = new_code

    async def run(self) -> None:
        """Keep one agent running until cancelled."""
        for number in itertools.count(1):
            try:
                child = await self._start(number)
            except ProjectError as exc:  # such as a full disk: the cluster goes on without it
                log.error("local_agent.not_started", extra={"reason": str(exc)})
            else:
                await self._wait(child)
            await asyncio.sleep(_PAUSE_S)

    async def _wait(self, child: process.Child) -> None:
        try:
            how = process.describe_exit(await child.wait())
        except asyncio.CancelledError:
            await child.stop(grace_s=_GRACE_S)
            raise
        log.warning("local_agent.ended", extra={"how": how, "log": str(child.log_path)})

    async def _start(self, number: int) -> process.Child:
        argv = [sys.executable, "-m", "agents", "join", "-", "--data", str(self._folder / "agent")]
        # Its rpc-server is for the llama-server beside it, and nobody else's to reach.
        argv += ["--host", "127.0.0.1"]
        # The model's file is on this host; a copy of its chunks would only take disk.
        argv += ["--store-gib", "0"]
        if self._settings.engine_folder is not None:
            argv += ["--engine", str(self._settings.engine_folder)]
        if self._settings.log_format == "json":
            argv.append("--json-logs")
        return await process.spawn(
            "agent",
            argv,
            log_path=self._folder / "logs" / f"agent-{os.getpid()}.{number}.log",
            environment={**os.environ, CODE_VARIABLE: str(self._new_code())},
            # SIGTERM, not SIGKILL: the agent must still end its rpc-server.
            parent_death_signal=signal.SIGTERM,
        )
