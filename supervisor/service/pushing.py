"""Sends a model's planned weights to the devices before any launch."""

import asyncio
import time
from collections.abc import Callable, Mapping

from supervisor.core.entities import AgentId, DeploymentSpec, PushView
from supervisor.core.model_reference import parse_reference
from supervisor.errors import ModelMissing, NothingToPush
from supervisor.link.job import DONE, LinkStats
from supervisor.ports import Links
from supervisor.service.links import push_job, shares
from supervisor.service.planning import Planner
from supervisor.service.spreading import Spreader
from supervisor.service.tools import Tools

Tell = Callable[[tuple[PushView, ...]], None]

NAMING = "naming"
"""State of a push while the main host hashes the model, once, to know who holds what of it."""


class Pusher:
    """One push at a time or several; each has a link process of its own."""

    def __init__(self, tools: Tools, planner: Planner, spreader: Spreader) -> None:
        self._tools = tools
        self._planner = planner
        self._spreader = spreader

    async def push(
        self, spec: DeploymentSpec, tell: Tell, *, whole: bool = False
    ) -> tuple[PushView, ...]:
        """Plan as a launch would, then fill the stores of its workers, all at once.

        What a worker has already is not sent again, so a push that was cut off goes on. What
        another device has comes from there where that is faster.

        Args:
            spec: What is to be launched.
            tell: Takes the state now and then.
            whole: Every worker of the plan gets all of the model, for plans to come.

        Raises:
            NothingToPush: The plan has no worker.
            ProjectError: It cannot be planned, or a worker was lost; the others have got what
                they got.
        """
        plan = await self._planner.plan(spec)
        if parse_reference(plan.model.path) is not None:
            raise ModelMissing(
                f"{plan.model.path} is on the hub, and not on this host; fetch it with 'supervisor"
                " models pull' first"
            )
        if not plan.shards:
            raise NothingToPush(
                f"{plan.model.name} runs on the main host alone; name the devices with --devices"
            )
        tensors = await shares(self._tools, plan, whole=whole)
        job = push_job(self._tools, tensors)
        names = {shard.agent_id: shard.device for shard in plan.shards}

        def tell_naming(done_bytes: int, total_bytes: int) -> None:
            found = PushView(
                device="", state=NAMING, done_bytes=done_bytes, total_bytes=total_bytes
            )
            tell(tuple(found.model_copy(update={"device": name}) for name in names.values()))

        with self._tools.registry.doing(names, f"receiving weights of {plan.model.name}"):
            spread = await self._spreader.prepare(tensors, tell_naming)
            links = await self._tools.links.start(job)
            try:
                async with self._spreader.working(spread, links):
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
    rate = (stats.sent_bytes + stats.peer_bytes) / elapsed_s if elapsed_s > 0 else 0.0
    left_bytes = stats.seed_total_bytes - stats.seed_done_bytes
    return PushView(
        device=device,
        state=stats.state,
        total_bytes=stats.seed_total_bytes,
        done_bytes=stats.seed_done_bytes,
        sent_bytes=stats.seeded_bytes,
        from_peers_bytes=stats.peer_bytes,
        bytes_per_s=round(rate),
        eta_s=round(left_bytes / rate, 1) if left_bytes and rate > 0 else None,
    )
