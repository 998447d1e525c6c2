"""Ends rpc-servers that nobody wants any more, and whose agents cannot know that.

Such as one whose agent was out of reach when its launch ended, and came back later.
"""

import asyncio
import logging
import time
from typing import Final

from agents.contract import WorkerState
from agents.errors import ProjectError
from supervisor.core.entities import AgentId, Device
from supervisor.service.registry import Registry

log = logging.getLogger(__name__)

_EVERY_S: Final = 2.0
_UNWANTED_S: Final = 20.0
"""Longer than a launch, or the measurement of a link, leaves its rpc-server without a client."""
_STOP_S: Final = 5.0


class Tidier:
    """Looks at what the heartbeats tell."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._since_s: dict[tuple[AgentId, int], float] = {}

    async def run(self) -> None:
        """Look after all devices. Runs for ever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            now_s = time.monotonic()
            unwanted = {_key(d): d for d in self._registry.devices() if _is_unwanted(d)}
            self._since_s = {key: self._since_s.get(key, now_s) for key in unwanted}
            late = [k for k, since_s in self._since_s.items() if now_s - since_s >= _UNWANTED_S]
            await asyncio.gather(*(self._stop(unwanted[key]) for key in late))

    async def _stop(self, device: Device) -> None:
        assert device.rpc_server is not None
        generation = device.rpc_server.generation
        log.info("worker.unwanted", extra={"device": device.name, "generation": generation})
        try:
            async with asyncio.timeout(_STOP_S):
                await self._registry.agent(device.id).stop_rpc_server(generation)
        except (ProjectError, TimeoutError) as exc:
            reason = str(exc) or f"no answer within {_STOP_S:g} s"
            log.warning("worker.not_stopped", extra={"device": device.name, "reason": reason})


def _key(device: Device) -> tuple[AgentId, int]:
    return device.id, device.rpc_server.generation if device.rpc_server else 0


def _is_unwanted(device: Device) -> bool:
    status = device.rpc_server
    return (
        status is not None
        and status.state is WorkerState.READY
        and device.used_by is None
        and not status.is_measuring
        and status.clients_accepted == status.clients_closed
    )
