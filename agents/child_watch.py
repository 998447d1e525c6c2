"""What happens to a running child that nobody tells us: it is stopped, or the kernel kills it."""

import asyncio
import logging
from collections.abc import Callable

from agents import facts, process
from agents.oom import OomWatch

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


class ChildWatch:
    """Looks at one child from its start on; ``on_change`` is called when it stops or goes on."""

    def __init__(self, child: process.Child, launch: str, on_change: Callable[[], None]) -> None:
        self._child = child
        self._launch = launch
        self._on_change = on_change
        self._oom = OomWatch(child.pid)
        self._is_stopped = False

    async def outlast(self) -> None:
        """Wait for the child's end, with a look at it now and then."""
        ending = asyncio.create_task(self._child.wait())
        try:
            while not ending.done():
                if self.state() not in ("", "Z"):
                    self._oom.look()
                await asyncio.wait({ending}, timeout=_LOOK_EVERY_S)
        finally:
            ending.cancel()

    def state(self) -> str:
        """As ``/proc/PID/stat`` has it. A stopped child looks like a slow one to everybody else,
        so whoever sees the change first has it told.
        """
        if self._child.exit_status is not None:
            return ""
        state = facts.process_state(self._child.pid)
        is_stopped = state in facts.STOPPED_STATES
        if is_stopped != self._is_stopped and state not in ("", "Z"):
            self._is_stopped = is_stopped
            level = logging.WARNING if is_stopped else logging.INFO
            what = "rpc_server.frozen" if is_stopped else "rpc_server.continued"
            log.log(level, what, extra={"pid": self._child.pid, "launch": self._launch})
            self._on_change()
        return state

    def oom_kills(self) -> int | None:
        """Kills for want of memory since the child started, ``None`` if nothing tells."""
        return self._oom.kills(has_ended=self._child.exit_status is not None)
