"""Notices when a device that joined or came back is worth a relaunch of what serves."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NoReturn

from agents.errors import ProjectError
from supervisor.core.entities import AgentId, Deployment, Plan
from supervisor.core.repair import rejoin_allowed, relaunch_reason, worth_planning
from supervisor.errors import DeviceReturned
from supervisor.service.planning import Planner
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0
_SETTLE_S: Final = 3.0
"""A device that has just come may be followed by others, or leave again."""


class Rejoining:
    """Of one deployment that serves."""

    def __init__(
        self,
        tools: Tools,
        planner: Planner,
        deployment: Deployment,
        known: frozenset[AgentId],
    ) -> None:
        """``known``: the devices that could take part when the present plan was made."""
        self._tools = tools
        self._planner = planner
        self._deployment = deployment
        self._known = known

    async def until_worth_it(self, is_idle: Callable[[], bool]) -> NoReturn:
        """Wait until a relaunch pays and may be done.

        Raises:
            DeviceReturned: Now, and why.
        """
        plan = self._deployment.plan
        assert plan is not None
        while True:
            await self._tools.registry.wait_changed(_LOOK_EVERY_S)
            usable = self._planner.usable(self._deployment)
            self._known &= usable
            if not worth_planning(self._known, usable, plan) or not self._may(is_idle):
                continue
            await asyncio.sleep(_SETTLE_S)
            usable = self._planner.usable(self._deployment)
            reason = await self._reason(plan)
            if reason and self._may(is_idle):
                raise DeviceReturned(reason)
            if reason is None:
                self._known |= usable  # not worth it; whoever comes next may be

    def _may(self, is_idle: Callable[[], bool]) -> bool:
        return rejoin_allowed(self._tools.settings.rejoin, is_idle=is_idle())

    async def _reason(self, plan: Plan) -> str | None:
        try:
            current, candidate = await self._planner.candidate(self._deployment, plan)
        except ProjectError as exc:
            log.info("rejoin.not_planned", extra={"reason": str(exc)})
            return None
        load_s = candidate.prediction.load_s if candidate.prediction else 0.0
        return relaunch_reason(
            current,
            candidate,
            self._deployment.spec,
            min_gain=self._tools.settings.rejoin_gain,
            load_s=load_s,
        )
