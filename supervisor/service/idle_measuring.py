"""Measures devices without being asked: one after another, while they are idle and it is needed."""

import asyncio
import logging
import time
from collections.abc import Callable

from agents.errors import MeasurementInterrupted, ProjectError
from supervisor.core.entities import AgentId, Device
from supervisor.core.membership import DeviceCondition
from supervisor.core.when_to_measure import why_not_now
from supervisor.errors import StoreUnusable, WorkerBusy
from supervisor.service.measuring import Measurer
from supervisor.service.registry import Registry
from supervisor.settings import Settings

log = logging.getLogger(__name__)

BACK_OFF_S = 30 * 60.0
"""Before a device that could not be measured is tried again."""

_LOOK_EVERY_S = 5.0
_LOOK_SOONEST_S = 0.2
_TAKEN = (MeasurementInterrupted.code, WorkerBusy.code)
"""No fault of the device: it is tried again as soon as it is idle."""


class IdleMeasurer:
    """Looks for idle devices now and then."""

    def __init__(
        self,
        measurer: Measurer,
        registry: Registry,
        settings: Settings,
        is_busy: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``is_busy`` says whether a deployment is starting, which a measurement would slow."""
        self._measurer = measurer
        self._registry = registry
        self._settings = settings
        self._is_busy = is_busy
        self._clock = clock
        self._idle_since_s: dict[AgentId, float] = {}
        self._not_before_s: dict[AgentId, float] = {}

    async def run(self) -> None:
        """Look for ever. Cancelled, it ends every measurement, those that were asked for too."""
        after_s = self._settings.measure_idle_after_s
        pause_s = min(max(after_s, _LOOK_SOONEST_S), _LOOK_EVERY_S)
        try:
            while True:
                if self._settings.measure_idle:
                    await self.look()
                await asyncio.sleep(pause_s)
        finally:
            await self._measurer.close()

    async def look(self) -> None:
        """Measure the first device that is idle and needs it, if there is one."""
        most_load = self._settings.measure_idle_load
        idle = self._long_idle()
        candidates = [d for d in idle if not why_not_now(d, most_load=most_load)]
        if not candidates or self._is_busy():
            return
        try:
            needed = await self._measurer.why_needed()
        except StoreUnusable as exc:
            self._put_off(candidates, exc)
            return
        for device in candidates:
            if reason := needed.get(device.id):
                await self._measure(device, reason)
                return

    async def _measure(self, device: Device, reason: str) -> None:
        log.debug("device.measuring", extra={"device": device.name, "reason": reason})
        try:
            await self._measurer.measure(device.id)
        except ProjectError as exc:
            if exc.code not in _TAKEN:
                self._put_off([device], exc)

    def _long_idle(self) -> list[Device]:
        """Devices that were ready and served nothing for long enough, the longest idle first."""
        now_s = self._clock()
        idle = {
            device.id: device
            for device in self._registry.devices()
            if device.state == DeviceCondition.READY and device.used_by is None
        }
        self._idle_since_s = {a: self._idle_since_s.get(a, now_s) for a in idle}
        long_idle = [
            agent_id
            for agent_id, since_s in sorted(self._idle_since_s.items(), key=lambda item: item[1])
            if now_s - since_s >= self._settings.measure_idle_after_s
            and now_s >= self._not_before_s.get(agent_id, now_s)
        ]
        return [idle[agent_id] for agent_id in long_idle]

    def _put_off(self, devices: list[Device], error: ProjectError) -> None:
        for device in devices:
            self._not_before_s[device.id] = self._clock() + BACK_OFF_S
        names = ", ".join(device.name for device in devices)
        again_min = BACK_OFF_S / 60
        extra = {"device": names, "reason": str(error), "again_in_min": again_min}
        log.warning("device.not_measured", extra=extra)
