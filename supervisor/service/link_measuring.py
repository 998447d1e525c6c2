"""Measures the link to a device, through an rpc-server that is started there for it alone."""

import asyncio
import contextlib
import logging
from typing import NoReturn, Protocol

from agents.contract import RpcServerSpec, WorkerState
from agents.errors import (
    MeasurementFailed,
    MeasurementInterrupted,
    ProjectError,
    StaleGeneration,
)
from agents.measure_link import LinkMeasurement
from supervisor.core.commands import LOOPBACK
from supervisor.core.entities import Device, LaunchId
from supervisor.core.wires import way
from supervisor.errors import AgentRefused, AgentUnreachable
from supervisor.ports import Links
from supervisor.service.links import measuring_job
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)

_METER_S = 15.0
_STOP_S = 8.0
_LOOK_EVERY_S = 0.02
"""A launch that takes the device waits for the end of our link."""

_NEWS_S = 0.2
"""For the link to say why it broke, when the meter knows only that it did."""


class LinkMeter(Protocol):
    """Measures the link to what answers there like an idle rpc-server."""

    async def __call__(self, host: str, port: int, *, deadline_s: float) -> LinkMeasurement: ...


class LinkMeasurer:
    """Starts, links, measures, stops; gives way to a launch at every step."""

    def __init__(self, tools: Tools, meter: LinkMeter) -> None:
        self._tools = tools
        self._registry = tools.registry
        self._meter = meter
        self._ready_s = tools.settings.worker_ready_s

    async def measure(self, device: Device, generation: LaunchId) -> LinkMeasurement:
        """Measure the link to a device; it and the rpc-server are ended again in any case.

        Raises:
            MeasurementInterrupted: A launch took the device.
            ProjectError: Why it failed.
        """
        try:
            await self._start(device, generation)
            self.raise_if_taken(device)  # never link to the rpc-server of a launch
            links = await self._tools.links.start(measuring_job(self._tools, device, generation))
            return await self._through(links, device)
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

    async def _start(self, device: Device, generation: LaunchId) -> None:
        """An rpc-server that only its own host reaches; the link leads there."""
        self.raise_if_taken(device)
        spec = RpcServerSpec(
            generation,
            LOOPBACK,
            main_host=self._tools.main_host.name,
            ready_deadline_s=self._ready_s,
        )
        agent = self._registry.agent(device.id)
        status = await agent.start_rpc_server(spec, wait_s=self._ready_s + 1)
        if status.generation != generation:
            raise _interrupted(device, f"launch {status.generation}")
        if status.state is not WorkerState.READY:
            raise MeasurementFailed(
                f"the rpc-server of {device.name} does not start: "
                f"{status.detail or f'it is {status.state}'}"
            )

    async def _through(self, links: Links, device: Device) -> LinkMeasurement:
        """Measure through ``links``, which are ended whatever happens."""
        metering = asyncio.create_task(self._metered(links, device))
        taken = asyncio.create_task(self._until_taken(device))
        try:
            await asyncio.wait({metering, taken}, return_when=asyncio.FIRST_COMPLETED)
            first = metering if metering.done() else taken
        finally:
            taken.cancel()
            # Before the meter, whose goodbye takes longer: a launch may wait for its turn.
            await self._unlink(links, device)
            metering.cancel()
            await asyncio.gather(metering, taken, return_exceptions=True)
        return first.result()

    async def _metered(self, links: Links, device: Device) -> LinkMeasurement:
        made = await links.ready(1, self._ready_s + 1)
        if note := made[device.id].note:
            self._registry.wire_failed(device.id, way(device).far, note)
        try:
            return await self._meter(LOOPBACK, made[device.id].port, deadline_s=_METER_S)
        except MeasurementFailed as exc:
            links.raise_if_lost()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_NEWS_S):
                    await links.changed()
            links.raise_if_lost()
            reason = links.stats()[device.id].detail
            raise MeasurementFailed(reason or f"{device.name}: {exc}") from exc

    async def _until_taken(self, device: Device) -> NoReturn:
        while True:
            self.raise_if_taken(device)
            await self._registry.wait_changed(_LOOK_EVERY_S)

    async def _unlink(self, links: Links, device: Device) -> None:
        try:
            async with asyncio.timeout(_STOP_S):
                await links.stop()
        except (ProjectError, TimeoutError) as exc:
            reason = str(exc) or f"not within {_STOP_S:g} s"
            log.warning("link.not_stopped", extra={"device": device.name, "reason": reason})

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
