"""Sends a model's planned weights to the devices before any launch."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Final

from agents.errors import LinkLost
from agents.process import STOPPED, state_letter
from supervisor.core.entities import AgentId, Deployment, DeploymentSpec, PushView
from supervisor.core.holdings import loading_on
from supervisor.core.model_reference import parse_reference
from supervisor.errors import LinkProcessFrozen, ModelMissing, NothingToPush
from supervisor.link.job import DONE, LOST, LinkJob, LinkStats
from supervisor.ports import LendingLinks, Links
from supervisor.service.links import push_job, shares
from supervisor.service.planning import Planner
from supervisor.service.spreading import Spreader
from supervisor.service.tools import Tools

Tell = Callable[[tuple[PushView, ...]], None]

Notes = Mapping[str, Sequence[str]]
"""Why other devices cannot help, by agent id."""

NAMING: Final = "naming"
"""State of a push while the main host hashes the model, once, to know who holds what of it."""
WAITING: Final = "waiting"
"""Another push of the model goes on; this one would send what is on its way."""


class Pusher:
    """One push of a model at a time; each has a link process of its own."""

    def __init__(
        self,
        tools: Tools,
        planner: Planner,
        spreader: Spreader,
        deployments: Callable[[], Sequence[Deployment]],
    ) -> None:
        self._tools = tools
        self._planner = planner
        self._spreader = spreader
        self._deployments = deployments
        self._turns: dict[str, asyncio.Lock] = {}
        self._running: list[LendingLinks] = []

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
            ProjectError: It cannot be planned, or a worker was lost; the others have all of it.
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
        names = {shard.agent_id: shard.device for shard in plan.shards}

        def tell_all(state: str, done_bytes: int = 0, total_bytes: int = 0) -> None:
            of = {"state": state, "done_bytes": done_bytes, "total_bytes": total_bytes}
            tell(tuple(PushView.model_validate({"device": n} | of) for n in names.values()))

        turn = self._turns.setdefault(plan.model.path, asyncio.Lock())
        if turn.locked():
            tell_all(WAITING)
        async with turn:
            with self._tools.registry.doing(names, f"receiving weights of {plan.model.name}"):
                spread = await self._spreader.prepare(
                    tensors, lambda done, total: tell_all(NAMING, done, total)
                )
                async with (
                    self._links(push_job(self._tools, tensors)) as links,
                    self._spreader.working(spread, links) as notes,
                ):
                    return await self._follow(links, plan.model.path, names, notes, tell)

    @contextlib.asynccontextmanager
    async def _links(self, job: LinkJob) -> AsyncIterator[Links]:
        """The links of one push, which shares the limit with the others that run."""
        links = await self._tools.links.start(job)
        try:
            with self._sharing(links):
                yield links
        finally:
            await asyncio.shield(links.stop())

    @contextlib.contextmanager
    def _sharing(self, links: Links) -> Iterator[None]:
        if not isinstance(links, LendingLinks) or not self._tools.settings.spread_limit_mib_s:
            yield
            return
        self._running.append(links)
        self._share_limit()
        try:
            yield
        finally:
            self._running.remove(links)
            self._share_limit()

    def _share_limit(self) -> None:
        limit_bytes_per_s = self._tools.settings.spread_limit_mib_s * (1 << 20)
        for each in self._running:
            each.limit(max(round(limit_bytes_per_s / len(self._running)), 1))

    async def _follow(
        self, links: Links, path: str, names: Mapping[AgentId, str], notes: Notes, tell: Tell
    ) -> tuple[PushView, ...]:
        """Until every device has its part, or was lost; one that is lost does not end the rest."""
        started_s = time.monotonic()
        while True:
            stats = links.stats()
            elapsed_s = time.monotonic() - started_s
            views = tuple(
                _view(name, stats[a], elapsed_s, notes.get(a, ()))
                for a, name in names.items()
                if a in stats
            )
            tell(views)
            if len(views) == len(names) and all(view.state in (DONE, LOST) for view in views):
                _raise_if_lost(stats)
                return views
            self._leave_to_launches(links, path, stats)
            await self._news(links)

    def _leave_to_launches(
        self, links: Links, path: str, stats: Mapping[AgentId, LinkStats]
    ) -> None:
        """A launch of the model sends the same; both together would send it twice."""
        for agent_id, deployment in loading_on(self._deployments(), path).items():
            is_running = agent_id in stats and stats[agent_id].state not in (DONE, LOST)
            if is_running and isinstance(links, LendingLinks):
                links.leave(
                    agent_id,
                    f"deployment {deployment} is loading the model there; push again when it is "
                    "ready, if anything is missing then",
                )

    async def _news(self, links: Links) -> None:
        """Wait for the link process's next word.

        Raises:
            ProjectError: It has ended, or somebody stopped it.
        """
        patience_s = self._tools.settings.frozen_after_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await links.changed()
        if not links.is_alive:
            links.raise_if_lost()
        if links.silent_s >= patience_s and state_letter(links.pid) in STOPPED:
            raise LinkProcessFrozen(
                f"the link process {links.pid} is stopped (state T) and silent for "
                f"{links.silent_s:.1f} s; who sent it SIGSTOP?"
            )


def _raise_if_lost(stats: Mapping[AgentId, LinkStats]) -> None:
    lost = [each for each in stats.values() if each.state == LOST]
    if lost:
        told = "; ".join(each.detail for each in lost)
        others = len(stats) - len(lost)
        error = LinkLost(f"{told} ({others} other devices have all of it)" if others else told)
        error.code = lost[0].error_code or LinkLost.code
        raise error


def _view(device: str, stats: LinkStats, elapsed_s: float, notes: Sequence[str]) -> PushView:
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
        problem=stats.detail if stats.state == LOST else "",
        note="; ".join(notes),
    )
