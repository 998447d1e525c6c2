"""Launches for a request, and stops again what nobody uses."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from supervisor.core.entities import Deployment, DeploymentId, DeploymentSpec
from supervisor.core.library import LibraryModel, requested_spec
from supervisor.core.lifecycle import State
from supervisor.core.routing import asked_for, names_of_model, to_start
from supervisor.service.lanes import Lane, Lanes
from supervisor.settings import Settings

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0


class Launcher(Protocol):
    """What is needed of the reconciler."""

    def all(self) -> list[Deployment]: ...

    async def create(self, spec: DeploymentSpec) -> Deployment: ...

    async def start(self, name: str) -> Deployment: ...

    async def stop(self, name: str) -> Deployment: ...


class OnDemand:
    """Deployments that come with a request and go without."""

    def __init__(
        self,
        settings: Settings,
        launcher: Launcher,
        find_model: Callable[[str], LibraryModel | None],
        with_kept: Callable[[DeploymentSpec], DeploymentSpec],
    ) -> None:
        self._settings = settings
        self._launcher = launcher
        self._find_model = find_model
        self._with_kept = with_kept
        self._ready_since_s: dict[DeploymentId, float] = {}
        self._one_at_a_time = asyncio.Lock()

    async def started(
        self, model: str | None, candidates: Sequence[Deployment]
    ) -> Deployment | None:
        """A deployment that was started for a request; ``None`` if none may be.

        Raises:
            ProjectError: It cannot be launched; says why.
        """
        deployment = to_start(candidates)
        if deployment is not None:
            return await asyncio.shield(self._launcher.start(deployment.id))
        if candidates or not model or not self._settings.on_demand_models:
            return None
        async with self._one_at_a_time:
            if made := asked_for(model, self._launcher.all()):
                return made[0]  # another request was faster
            found = await asyncio.to_thread(self._find_model, model)
            if found is None or found.is_companion:
                return None
            return await asyncio.shield(self._created(model, found))

    async def _created(self, asked: str, found: LibraryModel) -> Deployment:
        spec = DeploymentSpec(model=found.path, on_demand=True)
        spec = await asyncio.to_thread(self._with_kept, spec)
        if spec.ttl_s is None:
            spec = spec.model_copy(update={"ttl_s": self._settings.on_demand_ttl_s})
        if asked.lower() not in _names(found.path):  # else its requests would not find it again
            spec = requested_spec(spec, found, asked)
        return await self._launcher.create(spec)

    async def run(self, lanes: Lanes) -> None:
        """Stop what was idle for its time, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for deployment in self._launcher.all():
                idle_s = self._idle_s(deployment, lanes.of(deployment.id))
                if deployment.spec.ttl_s is not None and idle_s >= deployment.spec.ttl_s:
                    extra = {"deployment": deployment.id, "idle_s": round(idle_s)}
                    log.info("deployment.idle", extra=extra)
                    await self._stop(deployment.id)

    async def _stop(self, name: DeploymentId) -> None:
        """Somebody may remove it at the same moment, which is no reason to end."""
        (outcome,) = await asyncio.gather(self._launcher.stop(name), return_exceptions=True)
        if isinstance(outcome, BaseException):
            extra = {"deployment": name, "reason": repr(outcome)}
            log.warning("deployment.idle_not_stopped", extra=extra)

    def _idle_s(self, deployment: Deployment, lane: Lane) -> float:
        """Since the last request, or since it became ready."""
        now_s = time.monotonic()
        if deployment.state is not State.READY:
            self._ready_since_s.pop(deployment.id, None)
            return 0.0
        ready_since_s = self._ready_since_s.setdefault(deployment.id, now_s)
        if lane.active or lane.waiting:
            return 0.0
        return now_s - max(ready_since_s, lane.idle_since_s)


def _names(path: str) -> frozenset[str]:
    return frozenset(name.lower() for name in {path, *names_of_model(path)})
