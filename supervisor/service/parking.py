"""Moves what serves off a device that wants no work any more, if there is a plan without it."""

import logging
import time
from collections.abc import Callable
from typing import Final, NoReturn

from agents.errors import ProjectError
from supervisor.core.entities import AgentId, Cause, Deployment, Device
from supervisor.core.explain_words import listed
from supervisor.core.transport import warnings_of
from supervisor.errors import DeviceParked, DeviceUnknown, StoreUnusable
from supervisor.service.planning import Planner
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0
_AGAIN_S: Final = 60.0
"""After a search for another plan that found none; sooner if other devices come or go."""


class Parking:
    """Of one deployment that serves."""

    def __init__(
        self,
        tools: Tools,
        planner: Planner,
        deployment: Deployment,
        report: Callable[..., None],
    ) -> None:
        """``report`` takes changes of the deployment."""
        self._tools = tools
        self._planner = planner
        self._deployment = deployment
        self._report = report
        self._usual = warnings_of(deployment.spec)
        self._said = deployment.warnings
        self._tried: tuple[frozenset[AgentId], frozenset[AgentId]] | None = None
        self._tried_at_s = 0.0

    async def until_moved(self) -> NoReturn:
        """Wait until a device of the plan is parked and there is a plan without it.

        While there is none, the deployment goes on, with a warning: a slow end is better than no
        service.

        Raises:
            DeviceParked: Now, and why.
        """
        self._warn("")
        try:
            while True:
                await self._look()
                await self._tools.registry.wait_changed(_LOOK_EVERY_S)
        finally:
            self._warn("")

    async def _look(self) -> None:
        parked = self._parked()
        if not parked:
            self._tried = None
            self._warn("")
            return
        state = frozenset(device.id for device in parked), self._planner.usable(self._deployment)
        if state == self._tried and time.monotonic() - self._tried_at_s < _AGAIN_S:
            return
        why = await self._why_stay()
        self._tried, self._tried_at_s = state, time.monotonic()
        names, reasons = listed([device.name for device in parked]), _reasons(parked)
        if not why:
            await self._learn(parked)
            raise DeviceParked(f"{reasons}; launching again without {names}")
        self._warn(f"{reasons}; this goes on there, as there is no plan without {names}: {why}")

    def _parked(self) -> list[Device]:
        plan = self._deployment.plan
        found = []
        for agent_id in plan.agent_ids if plan is not None else ():
            try:
                device = self._tools.registry.device(agent_id)
            except DeviceUnknown:
                continue  # whoever watches the workers sees that, too
            if device.facts is not None and device.facts.parked:
                found.append(device)
        return found

    async def _why_stay(self) -> str:
        """Why there is no plan for the other devices; nothing if there is one."""
        spec, name, plan = self._deployment.spec, self._deployment.id, self._deployment.plan
        try:
            await self._planner.plan(spec, name, is_repair=True, stopped=plan)
        except ProjectError as exc:
            log.info("parking.not_planned", extra={"deployment": name, "reason": str(exc)})
            return str(exc)
        return ""

    async def _learn(self, parked: list[Device]) -> None:
        """A device that gets hot whenever it serves is not taken back as soon as it has cooled."""
        plan = self._deployment.plan
        assert plan is not None  # it is about the devices of one
        for device in parked:
            why = device.facts.parked if device.facts is not None else ""
            cause = Cause(
                code=DeviceParked.code, sentence=why, agent_id=device.id, device=device.name
            )
            try:
                await self._planner.learn(cause, plan)
            except StoreUnusable as exc:
                log.error("parking.lesson_lost", extra={"reason": str(exc)})

    def _warn(self, text: str) -> None:
        warnings = (*self._usual, *([text] if text else []))
        if warnings == self._said:
            return
        if text:
            self._tools.journal.note(
                "deployment",
                self._deployment.id,
                "device parked",
                launch_id=self._deployment.launch_id,
                code=DeviceParked.code,
                text=text,
            )
        self._said = warnings
        self._report(warnings=warnings)


def _reasons(parked: list[Device]) -> str:
    return "; ".join(f"{d.name}: {d.facts.parked}" for d in parked if d.facts is not None)
