"""Devices that were lost get no new work until they can be reached again, by heartbeat and link.

An agent that answers says nothing of its link, which may take another way and drop every packet.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from supervisor.core.entities import AgentId, Cause, Device
from supervisor.service.registry import Registry

_EVERY_S: Final = 0.5

SILENT: Final = frozenset({"worker_unreachable", "agent_unreachable"})
"""Codes of causes after which nothing may be heard of a device."""
CUT_OFF: Final = frozenset({"link_black_hole", "link_lost"})
"""And those after which its link may not stand, though its agent answers."""


class Doubts:
    """Ends doubts about devices."""

    def __init__(self, registry: Registry, reaches: Callable[[Device], Awaitable[bool]]) -> None:
        """``reaches`` tries the far end of a device's link, within a short time."""
        self._registry = registry
        self._reaches = reaches

    async def run(self) -> None:
        """Look after devices in doubt. Runs for ever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            doubted = self._registry.doubted()
            reached = await asyncio.gather(*(self._reaches(device) for device in doubted))
            for device, is_reached in zip(doubted, reached, strict=True):
                if is_reached:
                    await self._registry.trust(device.id)


def doubt(registry: Registry, cause: Cause) -> None:
    """Doubt the device that a cause is about, if it may be out of reach."""
    if cause.agent_id and cause.code in SILENT | CUT_OFF:
        why = f"{cause.sentence}; waits until it can be reached again"
        registry.doubt(AgentId(cause.agent_id), why, until_heard=cause.code in SILENT)
