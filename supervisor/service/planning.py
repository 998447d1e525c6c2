"""Which devices may take part now, and the best plan over them. Starts nothing."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from supervisor.core import launch_plan
from supervisor.core.entities import DeploymentId, DeploymentSpec, Device, LeftOut, Plan
from supervisor.core.explain import explain
from supervisor.core.measurements import why_stale
from supervisor.core.membership import DeviceCondition
from supervisor.core.offers import (
    HostFacts,
    Measurements,
    Place,
    device_offers,
    host_offer,
    is_host_itself,
    places_of,
)
from supervisor.core.planning import HOST, NoFit, Planned, PlanRequest, Rules, WhatIf
from supervisor.core.search import plan as search
from supervisor.core.what_if import what_if
from supervisor.errors import (
    AgentRefused,
    AgentUnreachable,
    BadSplit,
    EngineToolMissing,
    EstimateFailed,
    InsufficientMemory,
    NoDevices,
    WorkerBusy,
    WorkerIncompatible,
)
from supervisor.ports import Model
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)

_FRESH_S = 1.0
_ROUNDS = 5
"""How often the engine may find a plan too large before we believe our own formulas instead."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A plan, and what would change it."""

    plan: Plan
    what_ifs: tuple[WhatIf, ...]


@dataclass(frozen=True, slots=True)
class _World:
    """Everything that a plan follows from."""

    spec: DeploymentSpec
    model: Model
    host: HostFacts
    places: Mapping[str, Place]
    left_out: tuple[LeftOut, ...]
    request: PlanRequest


class Planner:
    """Chooses devices and makes a plan from fresh facts. Starts nothing."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def plan(self, spec: DeploymentSpec, deployment: DeploymentId | None = None) -> Plan:
        """The plan that a launch follows, for the devices that exist now.

        Raises:
            ProjectError: The model, the devices or the wishes are not usable, or nothing fits;
                says which, why, and by how much.
        """
        world = await self._world(spec, self._tools.read_model, deployment)
        planned, plan = await self._planned(world, is_launch=True)
        return plan.model_copy(update={"reasons": tuple(explain(world.request, planned))})

    async def answer(self, spec: DeploymentSpec) -> Answer:
        """The same with what would change it; the model need not be downloaded."""
        world = await self._world(spec, self._tools.read_any_model, None)
        planned, plan = await self._planned(world, is_launch=False)
        changes = await asyncio.to_thread(what_if, world.request, planned.best)
        sentences = tuple(explain(world.request, planned, changes))
        return Answer(plan.model_copy(update={"reasons": sentences}), changes)

    # -- the search and the engine's word on it ------------------------------------------------

    async def _planned(self, world: _World, *, is_launch: bool) -> tuple[Planned, Plan]:
        """Search, ask the engine, and search again with what it says, until both agree."""
        if self._tools.estimate_memory.is_there:
            found = await self._agreed(world, is_launch=is_launch)
            if found is not None:
                return found
        request = world.request.model_copy(update={"rules": self._rules(is_checked=False)})
        return await self._searched(world, request)

    async def _agreed(self, world: _World, *, is_launch: bool) -> tuple[Planned, Plan] | None:
        """A plan that the engine agrees with; ``None`` if it cannot say.

        A launch does not wait for the engine's word where that could change nothing.
        """
        whole = world.request.model_copy(update={"rules": self._rules(is_checked=True)})
        request, bytes_less = whole, dict[str, int]()
        for _ in range(_ROUNDS):
            planned, plan = await self._searched(world, request)
            if is_launch and launch_plan.is_roomy(plan, world.model.shape):
                return planned, plan
            try:
                found = await self._tools.estimate_memory(world.model, plan)
            except (EngineToolMissing, EstimateFailed) as exc:
                log.warning("plan.not_checked", extra={"reason": str(exc)})
                return None
            plan = launch_plan.with_engine_memory(plan, world.model.shape, found)
            overcharged = launch_plan.overcharged(plan, planned.best)
            if not overcharged:
                return planned, plan
            bytes_less |= overcharged
            request = launch_plan.with_less(whole, bytes_less)
        log.warning("plan.not_checked", extra={"reason": f"the engine needs more: {bytes_less}"})
        return None

    async def _searched(self, world: _World, request: PlanRequest) -> tuple[Planned, Plan]:
        found = await asyncio.to_thread(search, request)
        if isinstance(found, NoFit):
            sentences = " ".join(explain(request, found))
            raise InsufficientMemory(sentences, found.model_dump(mode="json"))
        found = found.model_copy(update={"left_out": (*found.left_out, *world.left_out)})
        plan = launch_plan.launch_plan(
            world.model.facts, world.spec, world.request, found.best, world.places
        )
        return found, plan.model_copy(update={"left_out": found.left_out})

    def _rules(self, *, is_checked: bool) -> Rules:
        settings = self._tools.settings
        return launch_plan.rules(
            floor_bytes=settings.head_room_mib << 20,
            sampling=settings.backend_sampling,
            is_checked=is_checked,
        )

    # -- what there is -------------------------------------------------------------------------

    async def _world(
        self,
        spec: DeploymentSpec,
        read_model: Callable[[str], Model],
        deployment: DeploymentId | None,
    ) -> _World:
        devices, absent = self._devices(spec, deployment)
        is_needed = bool(_named(spec))
        (model, host), fresh = await asyncio.gather(
            asyncio.to_thread(lambda: (read_model(spec.model), self._host_facts())),
            asyncio.gather(*(self._refreshed(device, is_needed) for device in devices)),
        )
        silent = [
            LeftOut(name=device.name, reason="its agent does not answer")
            for device, found in zip(devices, fresh, strict=True)
            if found is None
        ]
        everywhere = [place for device in fresh if device for place in places_of(device)]
        places, itself = _offered(everywhere, host, spec)
        if not places and not host.may_hold_layers:
            raise NoDevices(self._why_none())
        return _World(
            spec=spec,
            model=model,
            host=host,
            places={place.name: place for place in places},
            left_out=(*absent, *silent, *itself),
            request=self._request(spec, model, host, places, everywhere),
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

    def _host_facts(self) -> HostFacts:
        host, settings = self._tools.main_host, self._tools.settings
        return HostFacts(
            boot_id=host.boot_id,
            platform=host.platform,
            cores=host.cores,
            available_bytes=self._tools.host_available_bytes(),
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
        links = {found.agent_id: found for found in self._tools.store.link_measurements()}
        return Measurements(devices, links)

    def _devices(
        self, spec: DeploymentSpec, deployment: DeploymentId | None
    ) -> tuple[list[Device], list[LeftOut]]:
        """The devices to choose from, and those that cannot take part now."""
        registry = self._tools.registry
        if names := _named(spec):
            chosen = [registry.find(_device_name(name)) for name in names if name != HOST]
            for device in chosen:
                _refuse_unusable(device, deployment)
            return list({device.id: device for device in chosen}.values()), []
        free, absent = [], []
        for device in sorted(registry.devices(), key=lambda d: d.name):
            if device.state == DeviceCondition.READY and device.used_by in (None, deployment):
                free.append(device)
            else:
                absent.append(LeftOut(name=device.name, reason=_why_absent(device)))
        return free, absent

    def _why_none(self) -> str:
        devices = self._tools.registry.devices()
        if not devices:
            return (
                "no device has joined; run 'supervisor join CODE' on one (see 'supervisor invite')"
            )
        why = "; ".join(f"{device.name}: {_why_absent(device)}" for device in devices)
        return f"no joined device is free and ready ({why})"

    async def _refreshed(self, device: Device, is_needed: bool) -> Device | None:
        if device.silent_s < _FRESH_S:
            return device  # it spoke just now
        try:
            facts = await self._tools.registry.agent(device.id).facts()
        except (AgentUnreachable, AgentRefused) as exc:
            if is_needed:
                raise
            log.warning("device.left_out", extra={"device": device.name, "reason": str(exc)})
            return None
        self._tools.registry.took_facts(device.id, facts)
        return device.model_copy(update={"facts": facts})


def _named(spec: DeploymentSpec) -> tuple[str, ...]:
    return spec.devices or spec.order


def _device_name(name: str) -> str:
    """``desktop/CUDA0`` is a ggml device of ``desktop``."""
    return name.partition("/")[0]


def _offered(
    places: Sequence[Place], host: HostFacts, spec: DeploymentSpec
) -> tuple[list[Place], list[LeftOut]]:
    """The places that may take layers. The main host's own processor needs no worker.

    Raises:
        BadSplit: The main host is named twice, as itself and as a device.
    """
    itself = [place for place in places if is_host_itself(place, host)]
    names = _named(spec)
    if not names:
        reason = f"it is the {HOST}, whose processor llama-server uses without a worker"
        others = [place for place in places if place not in itself]
        return others, [LeftOut(name=place.name, reason=reason) for place in itself]
    if itself and HOST in names:
        raise BadSplit(
            f"{itself[0].device.name} is the {HOST} itself, and both are named; name one of them"
        )
    return list(places), []


def _why_absent(device: Device) -> str:
    if device.used_by:
        return f"it serves deployment {device.used_by}"
    return device.reason or f"it is {device.state}"


def _refuse_unusable(device: Device, deployment: DeploymentId | None) -> None:
    if device.state in (DeviceCondition.INCOMPATIBLE, DeviceCondition.UNUSABLE):
        raise WorkerIncompatible(f"{device.name} cannot take part: {device.reason}")
    if device.state != DeviceCondition.READY:
        raise AgentUnreachable(f"{device.name} cannot take part: {device.reason}")
    if device.used_by not in (None, deployment):
        raise WorkerBusy(f"{device.name} is in use by deployment {device.used_by}; stop that first")
