"""Keeps a Mac from idle sleep while a program of ours serves.

``caffeinate -w`` ends with the process it watches, however that ends, so nothing is left behind. A
closed lid puts a Mac to sleep all the same. Linux is left as it is: there, only a person who sits
at the machine may hold off sleep without being asked for a password; the doctor tells of it.
"""

import asyncio
import contextlib
import logging
import shutil
from typing import Final

from agents import facts

log = logging.getLogger(__name__)

_END_S: Final = 2.0


class Awake:
    """At most one ``caffeinate``, for one process."""

    def __init__(self, platform: str = "") -> None:
        """``platform``: as ``facts.platform_name`` has it, which is the default."""
        self._platform = platform or facts.platform_name()
        self._holder: asyncio.subprocess.Process | None = None

    @property
    def is_held(self) -> bool:
        """It runs, and so does what it watches."""
        return self._holder is not None and self._holder.returncode is None

    async def hold(self, pid: int) -> None:
        """Keep this host awake while ``pid`` runs. Where that is not possible, it may sleep."""
        await self.release()
        program = shutil.which("caffeinate") if self._platform == "macos" else None
        if program is None:
            return
        # -s counts on mains power alone; -i holds off idle sleep on battery as well.
        argv = [program, "-i", "-s", "-w", str(pid)]
        try:
            self._holder = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as exc:
            log.warning("sleep.not_held_off", extra={"reason": str(exc)})

    async def release(self) -> None:
        """End it, if it has not ended with what it watched, and reap it."""
        holder, self._holder = self._holder, None
        if holder is None:
            return
        if holder.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                holder.terminate()
        try:
            async with asyncio.timeout(_END_S):
                await holder.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                holder.kill()
            await holder.wait()
