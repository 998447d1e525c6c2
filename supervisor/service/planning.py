"""Which devices may take part now, and the best plan over them. Starts nothing."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from supervisor.core import launch_plan
from supervisor.core.engine_defaults import engine_defaults
from supervisor.core.entities import AgentId, Cause, Deployment, DeploymentId, DeploymentSpec, Plan
from supervisor.core.explain import explain
from supervisor.core.lessons import Lesson
from supervisor.core.obeying import with_reasons
from supervisor.core.option_memory import with_adapter_bytes, with_host_options
from supervisor.core.planning import HOST, NoFit, Overrides, Planned, PlanRequest, Rules, WhatIf
from supervisor.core.repair import loosened
from supervisor.core.search import plan as search
from supervisor.core.what_if import what_if
from supervisor.core.wires import why
from supervisor.errors import (
    BadSplit,
    CapacityError,
    EngineToolMissing,
    EstimateFailed,
    InsufficientMemory,
    NoDevices,
    PeerError,
)
from supervisor.ports import ModelReader
from supervisor.service.eligibility import Asked, Eligibility, named_devices
from supervisor.service.learning import Learning
from supervisor.service.model_settings import ModelSettingsBook
from supervisor.service.tools import Tools
from supervisor.service.world import Wish, World, WorldReader

log = logging.getLogger(__name__)

LOOSENED = (
    "This is a repair that chooses among the devices you named: it does not fit on all of them, as "
    "you asked for, with what was learned of them."
)
_ROUNDS = 5
"""How often the engine may find a plan too large before we believe our own formulas instead."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A plan, and what would change it."""

    plan: Plan
    what_ifs: tuple[WhatIf, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """A plan, and what it was made from."""

    world: World
    planned: Planned
    plan: Plan
    defaults: tuple[str, ...]
    """Why llama-server is to keep of earlier conversations what it keeps."""

    def explained(self, what_ifs: Sequence[WhatIf] = ()) -> Plan:
        sentences = explain(self.world.request, self.planned, what_ifs)
        used = set(self.plan.agent_ids)
        places = self.world.places.values()
        devices = {p.device.id: p.device for p in places if p.device.id in used}
        over = (said for device in devices.values() if (said := why(device)))
        reasons = (*sentences, *self.defaults, *over, *self.world.remarks)
        return self.plan.model_copy(update={"reasons": reasons})


class Planner:
    """Chooses devices and makes a plan from fresh facts. Starts nothing."""

    def __init__(self, tools: Tools, wall_clock: Callable[[], float] = time.time) -> None:
        self._tools = tools
        self._learning = Learning(tools, wall_clock)
        self._reader = WorldReader(tools)
        self._settings = ModelSettingsBook(tools)

    async def plan(
        self,
        spec: DeploymentSpec,
        deployment: DeploymentId | None = None,
        *,
        is_repair: bool = False,
        stopped: Plan | None = None,
        without: frozenset[AgentId] = frozenset(),
    ) -> Plan:
        """The plan that a launch follows, for the devices that exist now.

        Args:
            spec: What was asked for.
            deployment: Devices that it uses already count as free.
            is_repair: Rather without a device that was named than not at all.
            stopped: What of that deployment runs now, and will not then: its memory is free, too.
            without: As if the operator had excluded these devices.

        Raises:
            ProjectError: The model, the devices or the wishes are not usable, or nothing fits;
                says which, why, and by how much.
        """
        asked = Asked(spec, deployment, is_repair, without)
        wish = Wish(asked, self._tools.read_model, stopped=stopped)
        return (await self._find(wish)).explained()

    async def answer(
        self,
        spec: DeploymentSpec,
        deployment: DeploymentId | None = None,
        *,
        stopped: Plan | None = None,
    ) -> Answer:
        """The same with what would change it; the model need not be downloaded."""
        asked, reader = Asked(spec, deployment), self._tools.read_any_model
        wish = Wish(asked, reader, is_launch=False, stopped=stopped)
        found = await self._find(wish)
        changes = await asyncio.to_thread(what_if, found.world.request, found.planned.best)
        return Answer(found.explained(changes), changes)

    async def preview(self, spec: DeploymentSpec, read_model: ModelReader) -> Plan:
        """The same alone, of a model that somebody else reads."""
        found = await self._find(Wish(Asked(spec), read_model, is_launch=False))
        return found.explained()

    # -- repair --------------------------------------------------------------------------------

    async def learn(self, cause: Cause, plan: Plan) -> Lesson | None:
        """Keep what a failure teaches of the device that it is about.

        Returns:
            The lesson, if there is a new one.
        """
        return await self._learning.learn(cause, plan)

    def usable(self, deployment: Deployment) -> frozenset[AgentId]:
        """The devices that a plan for a deployment could use now."""
        eligible = self._eligibility(Asked(deployment.spec, deployment.id))
        return frozenset(device.id for device in eligible.wanted())

    async def candidate(self, deployment: Deployment, current: Plan) -> tuple[Plan, Plan]:
        """What runs, as it is predicted today, and the best that could run in its place.

        Raises:
            ProjectError: As for ``plan``.
        """
        asked = Asked(deployment.spec, deployment.id, is_repair=True)
        found = await self._find(Wish(asked, self._tools.read_model, stopped=current))
        return await self._as_of_today(found.world, current), found.explained()

    async def _as_of_today(self, world: World, current: Plan) -> Plan:
        """A plan with a prediction that knows as much as one that is made now."""
        names = {(p.device.id, p.ggml.name): name for name, p in world.places.items()}
        order = [names.get((s.agent_id, s.ggml_device)) for s in current.shards]
        if None in order:
            return current  # a device of it is gone
        same = Overrides(
            order=(*([HOST] if current.host.layers else []), *(name for name in order if name)),
            ctx_tokens=current.ctx_tokens,
            kv_type=current.kv_type,
            ubatch=current.ubatch,
        )
        try:
            _, today = await self._searched(
                world, world.request.model_copy(update={"overrides": same})
            )
        except (InsufficientMemory, BadSplit, NoDevices):
            return current
        return current.model_copy(update={"prediction": today.prediction})

    # -- the search and the engine's word on it ------------------------------------------------

    async def _find(self, wish: Wish) -> _Found:
        """Without the projector beside the model, if nothing fits with it: nobody asked for it."""
        try:
            return await self._find_loosely(wish)
        except InsufficientMemory as exc:
            spec = wish.asked.spec
            name = "" if spec.mmproj is not None else await self._projector_of(spec.model)
            if not name:
                raise
            blind = replace(wish.asked, spec=spec.model_copy(update={"mmproj": ""}))
            try:
                found = await self._find_loosely(replace(wish, asked=blind))
            except InsufficientMemory:
                raise exc from None
        said = f"Without the projector {name} that lies beside the model: with it nothing fits."
        remarks = (*found.world.remarks, said)
        return replace(found, world=replace(found.world, remarks=remarks))

    async def _projector_of(self, model: str) -> str:
        """The name of the file that lies beside a model; empty if there is none."""
        if self._tools.projector_of is None:
            return ""
        return Path(await asyncio.to_thread(self._tools.projector_of, model)).name

    async def _find_loosely(self, wish: Wish) -> _Found:
        """In a repair with any of the named devices, if it does not fit on all of them."""
        spec, asked = wish.asked.spec, wish.asked
        try:
            return await self._find_with(wish)
        except InsufficientMemory:
            if not asked.is_repair or not named_devices(spec):
                raise
            loose = replace(asked, spec=loosened(spec, self._tools.registry.devices()))
            found = await self._find_with(replace(wish, asked=loose))
        said = (*found.world.remarks, LOOSENED)
        return replace(found, world=replace(found.world, remarks=said))

    async def _find_with(self, wish: Wish) -> _Found:
        """Without the devices that are set aside; with them if nothing is found otherwise."""
        eligible = self._eligibility(wish.asked)
        try:
            return await self._found(wish, eligible)
        except (CapacityError, PeerError):
            # Who names devices gets them anyhow, unless a repair may choose among them.
            is_strict = named_devices(wish.asked.spec) and not wish.asked.is_repair
            if is_strict or not eligible.aside():
                raise
        return await self._found(wish, replace(eligible, with_aside=True))

    async def _found(self, wish: Wish, eligible: Eligibility) -> _Found:
        world = await self._reader.read(wish, eligible)
        planned, plan = await self._planned(world, is_launch=wish.is_launch)
        defaults = engine_defaults(
            plan,
            world.request,
            planned.best,
            world.places,
            world.host,
            most_cache_mib=self._tools.settings.prompt_cache_mib,
        )
        chosen = {
            "cache_ram_mib": defaults.cache_ram_mib,
            "ctx_checkpoints": defaults.ctx_checkpoints,
            "option_words": world.options.words,
        }
        plan = with_host_options(plan.model_copy(update=chosen), world.options.memory)
        kept = await asyncio.to_thread(self._settings.remarks, wish.asked.spec)
        return _Found(world, planned, plan, (*defaults.reasons, *kept))

    def _eligibility(self, asked: Asked) -> Eligibility:
        registry = self._tools.registry
        devices = tuple(sorted(registry.devices(), key=lambda device: device.name))
        return Eligibility(asked, devices, registry.find, self._learning.lessons())

    async def _planned(self, world: World, *, is_launch: bool) -> tuple[Planned, Plan]:
        """Search, ask the engine, and search again with what it says, until both agree."""
        if self._tools.estimate_memory.is_there and not world.model.is_estimate:
            found = await self._agreed(world, is_launch=is_launch)
            if found is not None:
                return found
        request = world.request.model_copy(update={"rules": self._rules(is_checked=False)})
        return await self._searched(world, request)

    async def _agreed(self, world: World, *, is_launch: bool) -> tuple[Planned, Plan] | None:
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
            plan = with_adapter_bytes(plan, world.options.memory)
            overcharged = launch_plan.overcharged(plan, planned.best)
            if not overcharged:
                return planned, plan
            bytes_less |= overcharged
            request = launch_plan.with_less(whole, bytes_less)
        log.warning("plan.not_checked", extra={"reason": f"the engine needs more: {bytes_less}"})
        return None

    async def _searched(self, world: World, request: PlanRequest) -> tuple[Planned, Plan]:
        found = await asyncio.to_thread(search, request)
        if isinstance(found, NoFit):
            absent = [f"{left.name} is left out: {left.reason}." for left in world.absent]
            sentences = " ".join([*explain(request, found), *absent, *world.remarks])
            raise InsufficientMemory(sentences, found.model_dump(mode="json"))
        left_out = (*with_reasons(found, world.places, world.lessons), *world.left_out)
        found = found.model_copy(update={"left_out": left_out})
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
