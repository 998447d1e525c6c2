"""The one writer of deployments: closes the gap between what was asked and what is.

Each deployment has an actor (``service/actor.py``); this is who makes, finds and ends them.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from supervisor.core.entities import (
    AgentId,
    Deployment,
    DeploymentId,
    DeploymentSpec,
    Device,
    LaunchId,
    LaunchRecord,
    Plan,
)
from supervisor.core.lifecycle import LIVE_STATES, Event, State
from supervisor.core.model_reference import parse_reference
from supervisor.core.renaming import names_device, renamed
from supervisor.core.transport import warnings_of
from supervisor.errors import BadRequest, DeploymentExists, DeploymentUnknown, WorkerBusy
from supervisor.service.actor import TRUST_S, Actor
from supervisor.service.clock import timestamp
from supervisor.service.events import EventBus
from supervisor.service.model_settings import ModelSettingsBook
from supervisor.service.planning import Answer, Planner
from supervisor.service.tools import Tools
from supervisor.service.wishes import Relaunch

log = logging.getLogger(__name__)

_HOLDING = (State.STARTING, State.READY, State.DEGRADED)
"""States in which a plan's memory is in use."""


class Reconciler:
    """Starts, watches, repairs and stops deployments."""

    def __init__(self, tools: Tools, bus: EventBus) -> None:
        self._tools = tools
        self._bus = bus
        self.planner = Planner(tools)
        self.model_settings = ModelSettingsBook(tools)
        self._actors: dict[DeploymentId, Actor] = {}
        self._tasks: dict[DeploymentId, asyncio.Task[None]] = {}
        self._accepting = asyncio.Lock()
        self._may_launch = asyncio.Event()
        self._may_launch.set()
        self._replanning = asyncio.Lock()
        """Held while a plan is made that is to follow a running one, so that two such agree."""

    async def restore(self, may_adopt: Callable[[LaunchRecord], bool] = lambda _: True) -> None:
        """Go on with what was wanted before we were stopped or killed.

        What an earlier run started and that still runs is taken over; the rest of it is ended.
        """
        unfinished = await asyncio.to_thread(self._unfinished)
        actors = [self._actor_of(deployment) for deployment in self._tools.store.deployments()]
        await asyncio.gather(*(self._resume(a, unfinished, may_adopt) for a in actors))
        self._tools.engines.sweep(unfinished.values())
        self._tools.links.sweep()
        for record in unfinished.values():
            ended = {"outcome": "ended while the supervisor did not run", "ended_at": timestamp()}
            await self._tools.journal.save_launch(record.model_copy(update=ended))
        for actor in actors:
            self._run(actor)

    def _unfinished(self) -> dict[LaunchId, LaunchRecord]:
        """Launches of which nobody has seen the end."""
        records = self._tools.journal.launches()
        return {record.id: record for record in records if not record.ended_at}

    async def _resume(
        self,
        actor: Actor,
        unfinished: dict[LaunchId, LaunchRecord],
        may_adopt: Callable[[LaunchRecord], bool],
    ) -> None:
        """Let an actor take over its newest launch, or begin anew."""
        deployment = actor.deployment
        own = [i for i, record in unfinished.items() if record.deployment == deployment.id]
        may_serve = deployment.state in (State.STARTING, State.READY)
        if own:
            record = unfinished.pop(max(own))
            if await actor.resume(record, may_serve=may_serve and may_adopt(record)):
                return
        wants_to_run = deployment.state in LIVE_STATES
        state = State.PENDING if wants_to_run else deployment.state
        if deployment.state is State.STOPPING:
            state = State.STOPPED
        reset: dict[str, object] = {"state": state, "port": None, "phase": "", "plan": None}
        reset["pull"] = None
        reset["loads"] = reset["links"] = ()
        actor.awaited = deployment.plan if wants_to_run else None
        actor.deployment = deployment.model_copy(update=reset)

    async def create(self, spec: DeploymentSpec) -> Deployment:
        """Accept a deployment and begin to launch it.

        Raises:
            DeploymentExists: One of that name wants to run already.
            ProjectError: It cannot be planned at all (bad model, no devices, no memory).
        """
        spec = await asyncio.to_thread(self.model_settings.merged, spec)
        if self._tools.name_model is not None:
            spec = await asyncio.to_thread(self._tools.name_model, spec)
        name = DeploymentId(spec.name or _name_of(spec.model))
        self._refuse_running(name)
        asked_at_s = time.monotonic()
        await self._tools.registry.wait_trusted(TRUST_S)
        # Planned before it is accepted, so that a request which cannot work is refused at once.
        plan = await self.planner.plan(spec, name)
        async with self._accepting:
            self._refuse_running(name)  # planning took a moment; another request may have won
            deployment = Deployment(
                id=name, spec=spec, warnings=warnings_of(spec), since=timestamp(), plan=plan
            )
            await self._tools.journal.save_deployment_now(deployment)
            if name in self._actors:
                await self._end_actor(name)
            self._run(self._actor_of(deployment, asked_at_s))
        return deployment

    def _refuse_running(self, name: DeploymentId) -> None:
        actor = self._actors.get(name)
        if actor is not None and actor.deployment.state in (*LIVE_STATES, State.STOPPING):
            raise DeploymentExists(
                f"deployment {name} is {actor.deployment.state}; stop it first, or choose "
                "another --name"
            )

    async def stop(self, name: str, *, now: bool = False) -> Deployment:
        """Stop a deployment and wait until nothing of it runs.

        Running requests may end first, unless it has to be ``now``.
        """
        if now:
            self._actor(name).hurry()
        return await self._command(name, Event.STOP_REQUESTED)

    async def start(self, name: str) -> Deployment:
        """Start a stopped or failed deployment again."""
        return await self._command(name, Event.START_REQUESTED)

    # -- changing what runs ------------------------------------------------------------------

    async def replace(self, name: str, spec: DeploymentSpec) -> Deployment:
        """Launch a deployment anew as ``spec`` says. Requests that wait for it go on waiting.

        Returns:
            It, as soon as nothing of what ran before is left and the launch begins.

        Raises:
            DeploymentUnknown
            BadRequest: The spec has another name.
            ProjectError: It cannot be planned, and nothing was changed.
        """
        if spec.name not in (None, name):
            raise BadRequest(
                f"deployment {name} cannot take the name {spec.name!r}; launch another one of that "
                "name instead"
            )
        spec = await asyncio.to_thread(self.model_settings.merged, spec)
        spec = spec.model_copy(update={"name": name})
        async with self._replanning:
            await self._tools.registry.wait_trusted(TRUST_S)
            wish = await self._relaunch(self._actor(name), "relaunched with other settings", spec)
        return await self._command(name, wish)

    async def restart(self, name: str) -> Deployment:
        """Launch a deployment anew as it is, whatever state it has.

        Raises:
            DeploymentUnknown
            ProjectError: It cannot be planned, and nothing was changed.
        """
        async with self._replanning:
            await self._tools.registry.wait_trusted(TRUST_S)
            wish = await self._relaunch(self._actor(name), "relaunched because you asked for it")
        return await self._command(name, wish)

    async def hold(self, reason: str) -> tuple[DeploymentId, ...]:
        """Stop what runs, as ``restart`` does, and launch nothing until :meth:`go_on`.

        Returns:
            Those that served, or were about to, as soon as nothing of them is left.
        """
        self._may_launch.clear()
        actors = [a for a in self._actors.values() if a.deployment.state in LIVE_STATES]
        held = tuple(a.deployment.id for a in actors if a.deployment.state in _HOLDING)
        commands = [
            actor.command(Relaunch(reason, None, actor.deployment.spec, is_repair=True))
            for actor in actors
        ]
        for outcome in await asyncio.gather(*commands, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, DeploymentExists):
                raise outcome
        return held

    def go_on(self) -> None:
        """Launch again what :meth:`hold` stopped, and what was asked for meanwhile."""
        self._may_launch.set()

    async def answer(self, spec: DeploymentSpec, replaces: str | None = None) -> Answer:
        """The plan for a spec and what would change it, for a new or in place of a deployment.

        Raises:
            DeploymentUnknown
            ProjectError: There is no plan.
        """
        spec = await asyncio.to_thread(self.model_settings.merged, spec)
        if replaces is None:
            return await self.planner.answer(spec)
        deployment = self.get(replaces)
        return await self.planner.answer(spec, deployment.id, stopped=_running_plan(deployment))

    async def drain(self, device_name: str) -> Device:
        """Exclude a device; who uses it is launched anew without it.

        Returns:
            It, as soon as nobody uses it any more.

        Raises:
            DeviceUnknown, StoreUnusable
            ProjectError: A deployment cannot do without it, and nothing was changed.
        """
        registry = self._tools.registry
        device = registry.find(device_name)
        reason = f"relaunched without {device.name}, which you drain"
        async with self._replanning:
            wishes = [
                (actor, await self._relaunch(actor, reason, without=device.id))
                for actor in self._users(device.id)
            ]
            await registry.exclude(device.id, excluded=True)
        commands = [actor.command(wish) for actor, wish in wishes]
        for outcome in await asyncio.gather(*commands, return_exceptions=True):
            # One that was removed meanwhile does not use it either.
            if isinstance(outcome, BaseException) and not isinstance(outcome, DeploymentExists):
                raise outcome
        return registry.device(device.id)

    async def rename_device(self, device_name: str, name: str) -> Device:
        """Give a device another name. Specs that name it follow.

        Raises:
            DeviceUnknown, StoreUnusable
            BadRequest: No device can have that name, or another one has it.
            WorkerBusy: The old name is in use: in a plan that is followed, or in what it does.
        """
        registry = self._tools.registry
        device = registry.find(device_name)
        registry.check_name(device.id, name)
        async with self._replanning:
            self._refuse_rename(registry.device(device.id))
            after = await registry.rename(device.id, name)
            for actor in self._actors.values():
                if names_device(actor.deployment.spec, device.name):
                    await actor.take_spec(renamed(actor.deployment.spec, device.name, name))
        return after

    def _refuse_rename(self, device: Device) -> None:
        """Plans, logs and figures of what runs call the device by its name."""
        if device.doing:
            raise WorkerBusy(f"{device.name} is {device.doing}; rename it when it is idle")
        for actor in self._actors.values():
            deployment = actor.deployment
            is_up = deployment.state in (*LIVE_STATES, State.STOPPING)
            if is_up and (
                _uses(deployment, device.id) or names_device(deployment.spec, device.name)
            ):
                raise WorkerBusy(
                    f"{device.name} is named by deployment {deployment.id}; stop that first"
                )

    def _users(self, agent_id: AgentId) -> list[Actor]:
        """Those that use a device, or will as soon as they have started."""
        actors = self._actors.values()
        live = (actor for actor in actors if actor.deployment.state in LIVE_STATES)
        return [actor for actor in live if _uses(actor.deployment, agent_id)]

    async def _relaunch(
        self,
        actor: Actor,
        reason: str,
        spec: DeploymentSpec | None = None,
        *,
        without: AgentId | None = None,
    ) -> Relaunch:
        """Plan for a deployment in place of what runs of it; changes nothing.

        Raises:
            ProjectError: There is no plan.
        """
        deployment = actor.deployment
        planned_for = spec or deployment.spec
        # Who keeps its spec was running well: rather without a device that is gone meanwhile.
        is_repair = spec is None and deployment.state in LIVE_STATES
        plan = await self.planner.plan(
            planned_for,
            deployment.id,
            is_repair=is_repair,
            stopped=_running_plan(deployment),
            without=frozenset() if without is None else frozenset({without}),
        )
        return Relaunch(reason, plan, planned_for, takes_spec=spec is not None, is_repair=is_repair)

    async def remove(self, name: str) -> None:
        """Forget a deployment that does not run.

        Raises:
            DeploymentExists: It runs.
        """
        deployment = self.get(name)
        if deployment.state in (*LIVE_STATES, State.STOPPING):
            raise DeploymentExists(f"deployment {name} is {deployment.state}; stop it first")
        await self._end_actor(deployment.id)
        await self._tools.journal.delete_deployment(deployment.id)
        self._bus.publish("deployment_removed", {"id": deployment.id})

    def all(self) -> list[Deployment]:
        """Every deployment as it is now."""
        return [actor.deployment for actor in self._actors.values()]

    def get(self, name: str) -> Deployment:
        """One deployment.

        Raises:
            DeploymentUnknown: With the names that exist.
        """
        return self._actor(name).deployment

    def hurry(self) -> None:
        """Whatever ends, ends at once."""
        for actor in self._actors.values():
            actor.hurry()

    async def close(self) -> None:
        """End every actor and all that runs; what was wanted stays stored."""
        for name in list(self._tasks):
            self._tasks[name].cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    def _actor_of(self, deployment: Deployment, asked_at_s: float | None = None) -> Actor:
        return Actor(self._tools, self._bus, self.planner, deployment, asked_at_s, self._may_launch)

    def _run(self, actor: Actor) -> None:
        name = actor.deployment.id
        self._actors[name] = actor
        self._tasks[name] = asyncio.create_task(actor.run())
        actor.publish()

    async def _end_actor(self, name: DeploymentId) -> None:
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del self._actors[name]

    def _actor(self, name: str) -> "Actor":
        try:
            return self._actors[DeploymentId(name)]
        except KeyError:
            names = ", ".join(self._actors) or "none"
            raise DeploymentUnknown(f"no deployment {name!r}; known: {names}") from None

    async def _command(self, name: str, wish: Event | Relaunch) -> Deployment:
        actor = self._actor(name)
        await actor.command(wish)
        return actor.deployment


def _running_plan(deployment: Deployment) -> Plan | None:
    return deployment.plan if deployment.state in _HOLDING else None


def _uses(deployment: Deployment, agent_id: AgentId) -> bool:
    return deployment.plan is not None and agent_id in deployment.plan.agent_ids


def _name_of(model: str) -> str:
    """Deployment name from a model file: its stem, made safe for names.

    Of a reference to the hub: the repository and the quantisation, or the file's stem.
    """
    reference = parse_reference(model)
    stem = Path(model).stem
    if reference is not None and not reference.file:
        stem = f"{reference.repo.split('/')[1]}-{reference.quant}"
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in stem).strip("-_.")
    return safe[:63] or "model"
