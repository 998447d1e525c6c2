"""Measures the wires to devices that are idle, and says which one carries their tensors.

A device is measured after it joined, when addresses changed, now and then, and again soon where a
wire did not work; never while a launch loads or the device serves.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from agents.contract import NetworkAddress
from agents.errors import ProjectError
from agents.interfaces import is_reachable
from supervisor.core.entities import AgentId, Device, Wire
from supervisor.core.membership import DeviceCondition
from supervisor.core.wires import Measured, Pair, in_use, pairs, why, wires
from supervisor.errors import DeviceUnknown, WorkerBusy
from supervisor.ports import WireMeter
from supervisor.service.registry import Registry

log = logging.getLogger(__name__)

AGAIN_S: Final = 4 * 3600.0
FIRST_RETRY_S: Final = 20.0
LONGEST_RETRY_S: Final = 3600.0
_LOOK_EVERY_S: Final = 1.0
_BUSY_PAUSE_S: Final = 5.0

DOING: Final = "measuring its wires"


@dataclass(slots=True)
class _Known:
    """What is known of one pair, and when it is looked at again."""

    measured: Measured
    due_s: float
    failures: int = 0


@dataclass(slots=True)
class _DeviceWires:
    """What is known of one device."""

    known: dict[tuple[str, str], _Known] = field(default_factory=dict)
    not_before_s: float = float("-inf")


class WireMeasurer:
    """Looks every second whether there is something to measure; one device at a time."""

    def __init__(
        self,
        registry: Registry,
        meter: WireMeter,
        own_addresses: Callable[[], Awaitable[Sequence[NetworkAddress]]],
        is_busy: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``is_busy`` says whether a deployment is starting, which a measurement would slow."""
        self._registry = registry
        self._meter = meter
        self._own_addresses = own_addresses
        self._is_busy = is_busy
        self._clock = clock
        self._devices: dict[AgentId, _DeviceWires] = {}

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self) -> None:
        """Tell what there is now, and measure the first device that needs it and is idle."""
        near = await self._own_addresses()
        devices = self._registry.devices()
        self._devices = {d.id: self._devices.get(d.id, _DeviceWires()) for d in devices}
        due = [found for d in devices if (found := self._looked_at(d, near)) is not None]
        if due and not self._is_busy():
            device, todo = due[0]
            with self._registry.doing([device.id], DOING):
                await self._measure(device, todo)
            self._tell(device.id, pairs_to(device, near))

    def _looked_at(
        self, device: Device, near: Sequence[NetworkAddress]
    ) -> tuple[Device, list[Pair]] | None:
        """The pairs of a device that are to be measured now, if any."""
        found, own = pairs_to(device, near), self._devices[device.id]
        now_s = self._clock()
        ends = {pair.ends for pair in found}
        own.known = {each: known for each, known in own.known.items() if each in ends}
        for far, reason in self._registry.take_wire_failures(device.id).items():
            for pair in found:
                if pair.far == far:
                    self._note(own, pair, Measured(problem=reason))
        self._tell(device.id, found)
        todo = [p for p in found if p.ends not in own.known or own.known[p.ends].due_s <= now_s]
        is_idle = device.state == DeviceCondition.READY and device.used_by is None
        if not todo or not is_idle or device.doing or now_s < own.not_before_s:
            return None
        return device, todo

    async def _measure(self, device: Device, todo: Sequence[Pair]) -> None:
        own = self._devices[device.id]
        for pair in todo:
            try:
                if self._registry.device(device.id).used_by is not None or self._is_busy():
                    return  # a launch goes first
                serial = self._registry.serial(device.id)
                measured = await self._meter(device, pair, serial)
            except WorkerBusy:
                own.not_before_s = self._clock() + _BUSY_PAUSE_S
                return
            except DeviceUnknown:
                return
            except ProjectError as exc:
                measured = Measured(problem=str(exc))
            self._note(own, pair, measured)
            extra = {"device": device.name, "near": pair.near, "far": pair.far, "kind": pair.kind}
            log.info("wire.measured", extra={**extra, **_figures(measured)})

    def _note(self, own: _DeviceWires, pair: Pair, measured: Measured) -> None:
        before = own.known.get(pair.ends)
        failures = (before.failures if before else 0) + 1 if measured.problem else 0
        wait_s = AGAIN_S
        if failures:
            wait_s = min(FIRST_RETRY_S * 2.0 ** (failures - 1), LONGEST_RETRY_S)
        own.known[pair.ends] = _Known(measured, self._clock() + wait_s, failures)

    def _tell(self, agent_id: AgentId, found: Sequence[Pair]) -> None:
        """Give the registry what is known now; a change of the wire in use is news."""
        try:
            device = self._registry.device(agent_id)
        except DeviceUnknown:
            return
        known = {ends: each.measured for ends, each in self._devices[agent_id].known.items()}
        now = wires(found, known, device.wire, device.wires)
        if now == device.wires:
            return
        self._registry.took_wires(agent_id, now)
        self._say_if_changed(device, now)

    def _say_if_changed(self, before: Device, now: tuple[Wire, ...]) -> None:
        old, new = in_use(before), next((wire for wire in now if wire.in_use), None)
        if (old and (old.near, old.far)) == (new and (new.near, new.far)):
            return
        after = before.model_copy(update={"wires": now})
        far = new.far if new is not None else before.address
        log.info("wire.chosen", extra={"device": before.name, "far": far, "why": why(after)})
        if len(now) > 1 or old is not None:
            self._registry.on_change(before.name, f"tensors over {far}", why(after))


def pairs_to(device: Device, near: Sequence[NetworkAddress]) -> tuple[Pair, ...]:
    """The pairs to one device; none to one on the main host, or behind a tunnel of its own."""
    facts = device.facts
    is_tunnelled = device.link_address not in ("", device.address)
    is_here = device.address in {each.address for each in near}
    if facts is None or is_tunnelled or is_here or not is_reachable(device.address):
        return ()
    return pairs(near, facts.addresses)


def _figures(measured: Measured) -> dict[str, object]:
    if measured.problem:
        return {"reason": measured.problem}
    trip_s, rate = measured.round_trip_s or 0.0, measured.up_bytes_per_s or 0.0
    return {"round_trip_ms": round(trip_s * 1e3, 2), "up_mb_per_s": round(rate / 1e6, 1)}
