"""Measures devices and the links to them.

A launch never waits for a measurement. It takes the device as if it were free; the agent then ends
the measurement, which fails here as interrupted and leaves nothing behind.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from agents.contract import (
    MeasuredGgmlDevice,
    MeasurementProgress,
    MeasurementResult,
    MeasurementSpec,
    WorkerState,
)
from agents.errors import BadMessage, MeasurementFailed, MeasurementInterrupted, ProjectError
from agents.measure import DEFAULT_TYPES
from agents.measure_link import LinkMeasurement, measure_link
from supervisor.core.entities import AgentId, Device, FrozenModel
from supervisor.core.measurements import DeviceMeasured, LinkMeasured
from supervisor.core.membership import DeviceCondition
from supervisor.core.when_to_measure import Known, why_needed
from supervisor.core.wires import chosen_far
from supervisor.errors import (
    AgentRefused,
    AgentUnreachable,
    DeviceParked,
    WorkerBusy,
    WorkerIncompatible,
)
from supervisor.service.events import EventBus
from supervisor.service.link_measuring import LinkMeasurer, LinkMeter
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)

_DEVICE_S = 90.0
_PHONE_SUSTAINED_S = 60.0
"""Phones throttle after about a minute of work; what counts is what is left then."""

"""For one ggml device. Computers take 4 to 12 s, the latter under load."""

_MOST_S = 600.0
_SLACK_S = 15.0
_LINK_PART = 0.9

Progress = Callable[[MeasurementProgress], None]


class MeasureResult(FrozenModel):
    """What was measured of one device."""

    agent_id: AgentId
    device: str
    devices: tuple[DeviceMeasured, ...]
    link: LinkMeasured


class Measurer:
    """Makes one measurement at a time, each in a task of its own that nobody else can cut short."""

    def __init__(
        self,
        tools: Tools,
        bus: EventBus,
        *,
        meter: LinkMeter = measure_link,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = tools.settings
        self._registry = tools.registry
        self._store = tools.store
        self._bus = bus
        self._links = LinkMeasurer(tools, meter)
        self._now = now
        self._one_at_a_time = asyncio.Lock()
        self._tasks: set[asyncio.Task[MeasureResult]] = set()

    # -- asking ------------------------------------------------------------------------------

    def admit(self, device_name: str) -> Device:
        """The device, if it may be measured now.

        Raises:
            DeviceUnknown: It never joined.
            WorkerBusy: A deployment uses it.
            DeviceParked: It wants no work for now.
            WorkerIncompatible, AgentUnreachable: It cannot be used at all.
        """
        device = self._registry.find(device_name)
        if device.state in (DeviceCondition.INCOMPATIBLE, DeviceCondition.UNUSABLE):
            raise WorkerIncompatible(f"{device.name} cannot be measured: {device.reason}")
        if device.state == DeviceCondition.PARKED:
            raise DeviceParked(f"{device.name} cannot be measured: {device.reason}")
        if device.state != DeviceCondition.READY or device.facts is None:
            raise AgentUnreachable(f"{device.name} cannot be measured: {device.reason}")
        if device.used_by is not None:
            raise WorkerBusy(
                f"{device.name} is in use by deployment {device.used_by}; stop that first, and "
                "measure when it is idle"
            )
        return device

    async def known(self) -> Known:
        """Everything that was measured so far.

        Raises:
            StoreUnusable
        """
        devices, links = await asyncio.gather(
            asyncio.to_thread(self._store.device_measurements),
            asyncio.to_thread(self._store.link_measurements),
        )
        return Known(tuple(devices), tuple(links))

    async def why_needed(self) -> dict[AgentId, str]:
        """Devices that have to be measured, and why; of the others, all that is known counts.

        An excluded device does not have to: there are no plans with it.

        Raises:
            StoreUnusable
        """
        known = await self.known()
        keeps = timedelta(days=self._settings.measure_keeps_days)
        reasons = {
            device.id: why_needed(device, known, self._now(), keeps)
            for device in self._registry.devices()
            if not device.excluded
        }
        return {agent_id: reason for agent_id, reason in reasons.items() if reason}

    # -- measuring ---------------------------------------------------------------------------

    async def measure(self, device_name: str, progress: Progress = lambda _: None) -> MeasureResult:
        """Measure a device and the link to it, and keep both results.

        Raises:
            MeasurementInterrupted: A launch took the device, or the supervisor ends.
            ProjectError: See ``admit``; or why it failed, with nothing kept.
        """
        self.admit(device_name)
        task = asyncio.create_task(self._measure_in_turn(device_name, progress))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        try:
            # Not awaited itself: whoever is cancelled here, again and again even, must not keep
            # the task from ending what it started on the device.
            await asyncio.wait({task})
        finally:
            _cancel_once(task)
        if task.cancelled():
            raise MeasurementInterrupted("the supervisor ended; measure again when it is back")
        return task.result()

    async def close(self) -> None:
        """End what is being measured, and wait until nothing of it runs."""
        tasks = set(self._tasks)
        for task in tasks:
            _cancel_once(task)
        if tasks:
            await asyncio.wait(tasks)

    def _forget(self, task: "asyncio.Task[MeasureResult]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever asked may have gone, and then nobody else looks at it

    async def _measure_in_turn(self, device_name: str, progress: Progress) -> MeasureResult:
        if self._one_at_a_time.locked():
            progress(MeasurementProgress("waiting for another measurement", 0.0))
        async with self._one_at_a_time:
            device = self.admit(device_name)  # it may have been taken meanwhile
            with self._registry.doing([device.id], "being measured"):
                result = await self._measure(device, progress)
            for found in result.devices:
                await asyncio.to_thread(self._store.save_measurement, found)
            await asyncio.to_thread(self._store.save_measurement, result.link)
        self._registry.took_measurement(device.id, result.devices, result.link)
        log.info("device.measured", extra=_figures(result))
        self._bus.publish("measured", result.model_dump(mode="json"))
        return result

    async def _measure(self, device: Device, progress: Progress) -> MeasureResult:
        await self._end_leftover(device)
        # Taken before anything else: every launch from now on has a higher number, and so goes
        # first wherever the two meet.
        generation = await asyncio.to_thread(self._store.next_launch_id)
        try:
            measured = await self._measure_devices(device, progress)
        except ProjectError:
            self._links.raise_if_taken(device)
            raise
        progress(MeasurementProgress("link", _LINK_PART))
        link = await self._links.measure(device, generation)
        self._registry.took_round_trip(device.id, round(link.round_trip_p50_s * 1e3, 2))
        return self._result(device, measured, link)

    async def _end_leftover(self, device: Device) -> None:
        """An rpc-server that no deployment uses belonged to a supervisor that was killed."""
        status = device.rpc_server
        if status is not None and status.state in (WorkerState.STARTING, WorkerState.READY):
            await self._links.stop(device, status.generation)

    async def _measure_devices(
        self, device: Device, progress: Progress
    ) -> list[MeasuredGgmlDevice]:
        names = [ggml.name for ggml in device.facts.ggml_devices] if device.facts else []
        if not names:
            raise MeasurementFailed(
                f"{device.name} offers no ggml device; see the log of its agent"
            )
        is_phone = device.facts is not None and device.facts.platform == "android"
        sustained_s = _PHONE_SUSTAINED_S if is_phone else 0.0
        deadline_s = min((_DEVICE_S + 2 * sustained_s) * len(names), _MOST_S)
        spec = MeasurementSpec(
            types=list(DEFAULT_TYPES), deadline_s=deadline_s, sustained_s=sustained_s
        )
        try:
            async with (
                asyncio.timeout(deadline_s + _SLACK_S),
                contextlib.aclosing(self._registry.agent(device.id).measure(spec)) as updates,
            ):
                async for update in updates:
                    if isinstance(update, MeasurementResult):
                        return [_checked(device, found) for found in update.devices]
                    part = update.part * _LINK_PART
                    progress(MeasurementProgress(update.step, part, update.device))
        except TimeoutError as exc:
            raise MeasurementFailed(
                f"{device.name} was not measured within {deadline_s:g} s; try when it is idle"
            ) from exc
        raise AssertionError("an agent's updates end with a result or an error")

    def _result(
        self, device: Device, measured: list[MeasuredGgmlDevice], link: LinkMeasurement
    ) -> MeasureResult:
        taken_at = self._now().isoformat(timespec="seconds")
        engine = device.facts.engine if device.facts else None
        build = engine.build if engine else ""
        return MeasureResult(
            agent_id=device.id,
            device=device.name,
            devices=tuple(_entity(device.id, found, taken_at, build) for found in measured),
            link=LinkMeasured(
                agent_id=device.id,
                taken_at=taken_at,
                rtt_p50_s=link.round_trip_p50_s,
                rtt_p90_s=link.round_trip_p90_s,
                up_bytes_per_s=link.up_bytes_per_s,
                down_bytes_per_s=link.down_bytes_per_s,
                far=chosen_far(device),
            ),
        )


def _cancel_once(task: "asyncio.Task[MeasureResult]") -> None:
    """A second one would cut short how it ends what it started on the device."""
    if not task.cancelling():
        task.cancel()


def _checked(device: Device, found: MeasuredGgmlDevice) -> MeasuredGgmlDevice:
    """Plans divide by these figures.

    Raises:
        AgentRefused: One of them is not a number above zero.
    """
    speeds = [*found.decode_bytes_per_s.values(), *found.prefill_flop_per_s.values()]
    times = (found.op_overhead_s, found.hop_overhead_s)
    if not speeds or not all(0 < speed < math.inf for speed in speeds):
        raise AgentRefused(
            f"{device.name} measured impossible speeds of {found.name} ({speeds}); measure again",
            BadMessage.code,
        )
    if not all(0 <= time_s < math.inf for time_s in times):
        raise AgentRefused(
            f"{device.name} measured impossible times of {found.name} ({times}); measure again",
            BadMessage.code,
        )
    return found


def _entity(
    agent_id: AgentId, found: MeasuredGgmlDevice, taken_at: str, engine_build: str
) -> DeviceMeasured:
    after_c, before_c = found.temperature_after_c, found.temperature_before_c
    return DeviceMeasured(
        agent_id=agent_id,
        ggml_device=found.name,
        taken_at=taken_at,
        rpc_protocol=found.rpc_protocol,
        engine_build=engine_build,
        temperature_c=before_c if after_c is None else after_c,
        decode_bytes_per_s=found.decode_bytes_per_s,
        prefill_flop_per_s=found.prefill_flop_per_s,
        op_overhead_s=found.op_overhead_s,
        hop_overhead_s=found.hop_overhead_s,
        sustained_factor=found.sustained_factor,
        attention_flop_per_s=found.attention_flop_per_s,
        cache_bytes_per_s=found.cache_bytes_per_s,
        prefill_attention_flop_per_s=found.prefill_attention_flop_per_s,
    )


def _figures(result: MeasureResult) -> dict[str, object]:
    link = result.link
    return {
        "device": result.device,
        "measured": ", ".join(found.ggml_device for found in result.devices),
        "round_trip_ms": round(link.rtt_p50_s * 1e3, 2),
        "up_mb_per_s": round(link.up_bytes_per_s / 1e6, 1),
        "down_mb_per_s": round(link.down_bytes_per_s / 1e6, 1),
    }
