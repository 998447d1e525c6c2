"""Sends a model's planned weights to the devices before any launch."""

import asyncio
import time
from collections.abc import Callable, Mapping

from supervisor.core.entities import AgentId, DeploymentSpec, PushView
from supervisor.errors import NothingToPush
from supervisor.link.job import DONE, LinkStats
from supervisor.ports import Links
from supervisor.service.links import push_job
from supervisor.service.planning import Planner
from supervisor.service.tools import Tools

Tell = Callable[[tuple[PushView, ...]], None]


class Pusher:
    """One push at a time or several; each has a link process of its own."""

    def __init__(self, tools: Tools, planner: Planner) -> None:
        self._tools = tools
        self._planner = planner

    async def push(self, spec: DeploymentSpec, tell: Tell) -> tuple[PushView, ...]:
        """Plan as a launch would, then fill the stores of its workers, all at once.

        What a worker has already is not sent again, so a push that was cut off goes on.

        Raises:
            NothingToPush: The plan has no worker.
            ProjectError: It cannot be planned, or a worker was lost; the others have got what
                they got.
        """
        plan = await self._planner.plan(spec)
        if not plan.shards:
            raise NothingToPush(
                f"{plan.model.name} runs on the main host alone; name the devices with --devices"
            )
        job = await push_job(self._tools, plan)
        names = {shard.agent_id: shard.device for shard in plan.shards}
        links = await self._tools.links.start(job)
        try:
            with self._tools.registry.doing(names, f"receiving weights of {plan.model.name}"):
                return await self._follow(links, names, tell)
        finally:
            await asyncio.shield(links.stop())

    async def _follow(
        self, links: Links, names: Mapping[AgentId, str], tell: Tell
    ) -> tuple[PushView, ...]:
        started_s = time.monotonic()
        while True:
            links.raise_if_lost()
            stats = links.stats()
            elapsed_s = time.monotonic() - started_s
            views = tuple(
                _view(name, stats[a], elapsed_s) for a, name in names.items() if a in stats
            )
            tell(views)
            if len(views) == len(names) and all(view.state == DONE for view in views):
                return views
            await links.changed()


def _view(device: str, stats: LinkStats, elapsed_s: float) -> PushView:
    rate = stats.sent_bytes / elapsed_s if elapsed_s > 0 else 0.0
    left_bytes = stats.seed_total_bytes - stats.seed_done_bytes
    return PushView(
        device=device,
        state=stats.state,
        total_bytes=stats.seed_total_bytes,
        done_bytes=stats.seed_done_bytes,
        sent_bytes=stats.seeded_bytes,
        bytes_per_s=round(rate),
        eta_s=round(left_bytes / rate, 1) if left_bytes and rate > 0 else None,
    )
