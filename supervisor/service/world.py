"""Everything that a plan follows from, as it is now."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from agents.contract import DeviceFacts
from supervisor.core import device_remarks, launch_plan
from supervisor.core.entities import AgentId, DeploymentSpec, Device, LeftOut, Plan
from supervisor.core.measurements import why_stale
from supervisor.core.obeying import Lessons, obeying, remarks
from supervisor.core.offers import (
    HostFacts,
    Measurements,
    Place,
    as_if_stopped,
    device_offers,
    host_held_bytes,
    host_offer,
    is_host_itself,
    places_of,
)
from supervisor.core.option_memory import with_adapters
from supervisor.core.planning import HOST, PlanRequest
from supervisor.core.wires import chosen_far
from supervisor.errors import AgentRefused, AgentUnreachable, BadSplit, NoDevices
from supervisor.ports import Model
from supervisor.service.eligibility import Asked, Choice, Eligibility, named_devices
from supervisor.service.model_options import LaunchOptions, launch_options
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)

_FRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What is planned for, and how."""

    asked: Asked
    read_model: Callable[[str], Model]
    is_launch: bool = True
    stopped: Plan | None = None
    """What runs, and will not when the plan is carried out."""


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a plan follows from."""

    spec: DeploymentSpec
    model: Model
    host: HostFacts
    places: Mapping[str, Place]
    left_out: tuple[LeftOut, ...]
    absent: tuple[LeftOut, ...]
    """Those of them that cannot take part now."""
    request: PlanRequest
    lessons: Lessons
    options: LaunchOptions
    remarks: tuple[str, ...]
    """What there is to say of devices and wishes, whatever the plan."""


class WorldReader:
    """Asks devices, main host and store."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def read(self, wish: Wish, eligible: Eligibility) -> World:
        """The world for one plan.

        Raises:
            ProjectError: The model or a device that was named is not usable, or there is none.
        """
        choice = eligible.choose()
        (model, host), fresh = await asyncio.gather(
            asyncio.to_thread(
                lambda: (wish.read_model(wish.asked.spec.model), self._host_facts(wish.stopped))
            ),
            self._refreshed(choice, wish.asked),
        )
        options = await asyncio.to_thread(
            launch_options,
            choice.spec,
            model.facts.architecture,
            self._tools,
            model.facts.ctx_train_tokens,
        )
        model = replace(model, shape=with_adapters(model.shape, options.memory))
        host = replace(host, option_bytes=options.memory.host_bytes)
        if silent := frozenset(d.id for d in choice.devices if d.id not in fresh):
            eligible = replace(eligible, silent=silent)
            choice = eligible.choose()
        devices = [_with_facts(device, fresh) for device in choice.devices]
        if wish.stopped is not None:
            devices = [as_if_stopped(device, wish.stopped, host) for device in devices]
        everywhere = [place for device in devices for place in places_of(device)]
        offered, itself = _offered(everywhere, host, choice.spec)
        if not offered and not host.may_hold_layers:
            raise NoDevices(_why_none(eligible))
        places = {place.name: place for place in offered}
        request = self._request(choice.spec, model, host, offered, everywhere)
        request = obeying(request, places, host, eligible.lessons)
        return World(
            spec=choice.spec,
            model=model,
            host=host,
            places=places,
            left_out=(*choice.left_out, *itself),
            absent=choice.left_out,
            request=request,
            lessons=eligible.lessons,
            options=options,
            remarks=(
                *options.remarks,
                *choice.remarks,
                *device_remarks.remarks(devices),
                *remarks(request, places, eligible.lessons),
            ),
        )

    def _request(
        self,
        spec: DeploymentSpec,
        model: Model,
        host: HostFacts,
        places: Sequence[Place],
        everywhere: Sequence[Place],
    ) -> PlanRequest:
        measured = self._measurements(everywhere)
        joined = {name for d in self._tools.registry.devices() for name in (d.name, d.id)}
        return PlanRequest(
            shape=model.shape,
            devices=device_offers(places, host, measured, model.shape),
            host=host_offer(host, everywhere, measured, model.shape),
            wanted=launch_plan.wanted(spec),
            goal=launch_plan.goal(spec),
            overrides=launch_plan.overrides(spec, places, joined),
        )

    def _host_facts(self, stopped: Plan | None) -> HostFacts:
        host, settings = self._tools.main_host, self._tools.settings
        held_bytes = host_held_bytes(stopped) if stopped else 0
        return HostFacts(
            boot_id=host.boot_id,
            platform=host.platform,
            cores=host.cores,
            available_bytes=self._tools.host_available_bytes() + held_bytes,
            may_hold_layers=settings.host_layers,
        )

    def _measurements(self, places: Iterable[Place]) -> Measurements:
        """Those that were made with the engines of now; old ones are better than guesses."""
        engines = {place.device.id: place.facts.engine for place in places}
        devices = {}
        for found in self._tools.store.device_measurements():
            engine = engines.get(found.agent_id)
            if engine is None:
                continue
            stale = why_stale(
                found.taken_at,
                datetime.now(UTC),
                keeps=timedelta.max,
                build=(found.engine_build, engine.build),
                protocol=(found.rpc_protocol, engine.rpc_protocol),
            )
            if not stale:
                devices[found.agent_id, found.ggml_device] = found
        far = {place.device.id: chosen_far(place.device) for place in places}
        links = {
            found.agent_id: found
            for found in self._tools.store.link_measurements()
            if not found.far or far.get(found.agent_id) in ("", None, found.far)
        }
        return Measurements(devices, links)

    async def _refreshed(self, choice: Choice, asked: Asked) -> dict[AgentId, DeviceFacts | None]:
        """Facts of now, of all who answer.

        Raises:
            AgentUnreachable, AgentRefused: A device that was named does not.
        """
        is_needed = bool(named_devices(choice.spec)) and not asked.is_repair
        found = await asyncio.gather(*(self._facts(device, is_needed) for device in choice.devices))
        return {device_id: facts for answers in found for device_id, facts in answers}

    async def _facts(
        self, device: Device, is_needed: bool
    ) -> list[tuple[AgentId, DeviceFacts | None]]:
        if device.silent_s < _FRESH_S:
            return [(device.id, device.facts)]  # it spoke just now
        try:
            facts = await self._tools.registry.agent(device.id).facts()
        except (AgentUnreachable, AgentRefused) as exc:
            if is_needed:
                raise
            log.warning("device.left_out", extra={"device": device.name, "reason": str(exc)})
            return []
        self._tools.registry.took_facts(device.id, facts)
        return [(device.id, facts)]


def _with_facts(device: Device, fresh: Mapping[AgentId, DeviceFacts | None]) -> Device:
    return device.model_copy(update={"facts": fresh.get(device.id, device.facts)})


def _why_none(eligible: Eligibility) -> str:
    if not eligible.devices:
        return "no device has joined; run 'supervisor join CODE' on one (see 'supervisor invite')"
    why = "; ".join(f"{device.name}: {eligible.why_not(device)}" for device in eligible.devices)
    return f"no joined device is free and ready ({why})"


def _offered(
    places: Sequence[Place], host: HostFacts, spec: DeploymentSpec
) -> tuple[list[Place], list[LeftOut]]:
    """The places that may take layers. The main host's own processor needs no worker.

    Raises:
        BadSplit: The main host is named twice, as itself and as a device.
    """
    itself = [place for place in places if is_host_itself(place, host)]
    names = named_devices(spec)
    if not names:
        reason = f"it is the {HOST}, whose processor llama-server uses without a worker"
        others = [place for place in places if place not in itself]
        return others, [LeftOut(name=place.name, reason=reason) for place in itself]
    if itself and HOST in names:
        raise BadSplit(
            f"{itself[0].device.name} is the {HOST} itself, and both are named; name one of them"
        )
    return list(places), []
