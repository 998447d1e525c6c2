"""Measures the link to a device through an rpc-server that is started there for it alone."""

import asyncio
import logging
from typing import Protocol

from agents.contract import RpcServerSpec, RpcServerStatus, WorkerState
from agents.errors import (
    MeasurementFailed,
    MeasurementInterrupted,
    ProjectError,
    StaleGeneration,
)
from agents.measure_link import LinkMeasurement
from supervisor.core.entities import Device, LaunchId
from supervisor.errors import AgentRefused, AgentUnreachable
from supervisor.service.registry import Registry

log = logging.getLogger(__name__)

_LINK_S = 15.0
_STOP_S = 8.0


class LinkMeter(Protocol):
    """Measures the link from here to an idle rpc-server."""

    async def __call__(self, host: str, port: int, *, deadline_s: float) -> LinkMeasurement: ...


class LinkMeasurer:
    """Starts, measures, stops; gives way to a launch at every step."""

    def __init__(self, registry: Registry, meter: LinkMeter, worker_ready_s: float) -> None:
        self._registry = registry
        self._meter = meter
        self._worker_ready_s = worker_ready_s

    async def measure(self, device: Device, generation: LaunchId) -> LinkMeasurement:
        """Measure the link to a device, whose rpc-server is ended again in any case.

        Raises:
            MeasurementInterrupted: A launch took the device.
            ProjectError: Why it failed.
        """
        try:
            status = await self._start(device, generation)
            self.raise_if_taken(device)  # never connect to the rpc-server of a launch
            return await self._meter(status.host, status.port, deadline_s=_LINK_S)
        except ProjectError:
            await self._raise_if_overtaken(device, generation)
            raise
        finally:
            await self.stop(device, generation)

    async def stop(self, device: Device, generation: int) -> None:
        """End an rpc-server of ours; one of a later launch is left alone by the agent."""
        try:
            async with asyncio.timeout(_STOP_S):
                await self._registry.agent(device.id).stop_rpc_server(generation)
        except (ProjectError, TimeoutError) as exc:
            if isinstance(exc, ProjectError) and exc.code == StaleGeneration.code:
                return
            reason = str(exc) or f"no answer within {_STOP_S:g} s"
            log.warning("worker.not_stopped", extra={"device": device.name, "reason": reason})

    def raise_if_taken(self, device: Device) -> None:
        """Give way.

        Raises:
            MeasurementInterrupted: A deployment has the device now.
            DeviceUnknown: It was removed.
        """
        if (used_by := self._registry.device(device.id).used_by) is not None:
            raise _interrupted(device, f"deployment {used_by}")

    async def _start(self, device: Device, generation: LaunchId) -> RpcServerStatus:
        self.raise_if_taken(device)
        spec = RpcServerSpec(generation, device.address, ready_deadline_s=self._worker_ready_s)
        agent = self._registry.agent(device.id)
        status = await agent.start_rpc_server(spec, wait_s=self._worker_ready_s + 1)
        if status.generation != generation:
            raise _interrupted(device, f"launch {status.generation}")
        if status.state is not WorkerState.READY:
            raise MeasurementFailed(
                f"the rpc-server of {device.name} does not start: "
                f"{status.detail or f'it is {status.state}'}"
            )
        return status

    async def _raise_if_overtaken(self, device: Device, generation: LaunchId) -> None:
        """Tell a launch that took the device from a failure of the device."""
        self.raise_if_taken(device)
        try:
            status = await self._registry.agent(device.id).rpc_server()
        except (AgentUnreachable, AgentRefused):
            return  # what failed before says more
        if status.generation > generation:
            raise _interrupted(device, f"launch {status.generation}")


def _interrupted(device: Device, by: str) -> MeasurementInterrupted:
    return MeasurementInterrupted(
        f"{device.name}: the measurement was interrupted by {by}; measure again when the device "
        "is idle"
    )
