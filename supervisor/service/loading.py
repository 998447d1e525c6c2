"""Watches one load without disturbing it: log, health polls that back off, workers' own word."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tenacity import AsyncRetrying, retry_if_result, wait_exponential

from agents.contract import RpcServerStatus
from agents.logfile import LogTail
from agents.process import Running
from supervisor.core import load as core
from supervisor.core.entities import AgentId
from supervisor.errors import AgentRefused, AgentUnreachable, ConnectStalled, LoadStalled
from supervisor.ports import AgentPort, Health, Links, ServerClient
from supervisor.settings import Settings

_WORKERS_EVERY_S = 1.0
_DEADLINE_SLACK_S = 0.05
_AFTER_LISTENING_S = 0.01


class EngineEnded(Exception):
    """llama-server ended while it loaded."""


class LoadWatch:
    """From spawn to "listening". Nothing here connects to an rpc port."""

    def __init__(
        self,
        settings: Settings,
        process: Running,
        client: ServerClient,
        workers: Mapping[AgentId, tuple[str, AgentPort]],
        before: Mapping[AgentId, RpcServerStatus],
        *,
        on_phase: Callable[[str], None],
        on_loaded: Callable[[Mapping[str, int]], None],
        on_statuses: Callable[[Mapping[AgentId, RpcServerStatus]], None] = lambda _: None,
        links: Links | None = None,
    ) -> None:
        self._settings = settings
        self._process = process
        self._client = client
        self._workers = workers
        self._on_phase = on_phase
        self._on_loaded = on_loaded
        self._on_statuses = on_statuses
        self._links = links
        self._limits = core.Limits(settings.connect_s, settings.stall_s)
        self._load = core.begin(time.monotonic())
        self._listening = asyncio.Event()
        self._phase_changed = asyncio.Event()
        self._before = before
        self._first_resident = {
            workers[a][0]: status.resident_bytes or 0 for a, status in before.items()
        }

    async def until_listening(self) -> None:
        """Return when llama-server is healthy.

        Raises:
            EngineEnded: It ended.
            ConnectStalled: It did not open its port in time.
            LoadStalled: Nothing moved for too long.
            ProjectError: A link was lost.
        """
        healthy = asyncio.create_task(self._poll_health())
        exiting = asyncio.create_task(self._process.wait())
        others = [
            asyncio.create_task(self._follow_log()),
            asyncio.create_task(self._follow_workers()),
            asyncio.create_task(self._follow_links()),
            asyncio.create_task(self._guard()),
        ]
        tasks: list[asyncio.Task[Any]] = [healthy, exiting, *others]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if exiting in done:
                raise EngineEnded  # the caller asks the links first
            for task in done:
                task.result()
        finally:
            await _cancel_all(tasks)
        self._enter_load_phase()

    async def _poll_health(self) -> None:
        """One poll after another, further and further apart; the log's "listening" wakes us."""
        policy = AsyncRetrying(
            retry=retry_if_result(lambda health: health is not Health.READY),
            wait=wait_exponential(
                multiplier=self._settings.health_first_s, max=self._settings.health_longest_s
            ),
            sleep=self._pause,
        )
        await policy(self._health_once)

    async def _health_once(self) -> Health:
        health = await self._client.health(self._settings.health_timeout_s)
        if health is Health.LOADING:
            self._update(core.observe_port_open(self._load, time.monotonic()))
        return health

    async def _pause(self, seconds: float) -> None:
        if self._listening.is_set():
            # The line is printed a moment before the first 200; look again soon, not at once.
            await asyncio.sleep(min(seconds, _AFTER_LISTENING_S))
            return
        try:
            async with asyncio.timeout(seconds):
                await self._listening.wait()
        except TimeoutError:
            pass

    async def _follow_log(self) -> None:
        tail = LogTail(self._process.log_path)
        while True:
            for line in await tail.wait_for_lines():
                self._update(core.observe_line(self._load, line, time.monotonic()))

    async def _follow_workers(self) -> None:
        """Ask the agents, never the rpc ports, whether their rpc-servers receive anything."""
        while True:
            await asyncio.sleep(_WORKERS_EVERY_S)
            asked = await asyncio.gather(
                *(self._ask(name, agent) for name, agent in self._workers.values())
            )
            found = zip(self._workers, asked, strict=True)
            self._on_statuses({a: status for a, status in found if status is not None})
            if self._links is None:
                self._on_loaded(
                    {
                        name: max(bytes_ - self._first_resident.get(name, 0), 0)
                        for name, bytes_ in self._load.resident_bytes
                    }
                )

    async def _follow_links(self) -> None:
        """What arrived on each link is the truth about progress; a lost one ends the load."""
        if self._links is None:
            await asyncio.Event().wait()
            return
        while True:
            self._links.raise_if_lost()
            for agent_id, stats in self._links.stats().items():
                name, _ = self._workers[agent_id]
                now_s = time.monotonic()
                self._update(core.observe_link(self._load, name, stats.weight_bytes, now_s))
            self._on_loaded(
                {self._workers[a][0]: s.weight_bytes for a, s in self._links.stats().items()}
            )
            await self._links.changed()

    async def _ask(self, name: str, agent: AgentPort) -> RpcServerStatus | None:
        try:
            status = await agent.rpc_server()
        except (AgentUnreachable, AgentRefused):
            return None  # no news is no progress; the guard decides
        resident_bytes = status.resident_bytes if self._links is None else None
        self._update(
            core.observe_worker(self._load, name, resident_bytes, status.cpu_s, time.monotonic())
        )
        return status

    async def _guard(self) -> None:
        """Raise when a deadline has passed; sleep until the next one could."""
        while True:
            now_s = time.monotonic()
            if (late := core.overdue(self._load, self._limits, now_s)) is not None:
                raise await self._stalled(late)
            if self._load.phase is core.Phase.LISTENING:
                await asyncio.sleep(self._limits.stall_s)
                raise LoadStalled(
                    f"llama-server says that it listens, but /health did not answer 200 within "
                    f"{self._limits.stall_s:g} s; see its log"
                )
            due_s = core.next_deadline_s(self._load, self._limits)
            # A new phase has a deadline of its own, which may be the earlier one.
            self._phase_changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(due_s - now_s, 0.0) + _DEADLINE_SLACK_S):
                    await self._phase_changed.wait()

    async def _stalled(self, late: core.Overdue) -> Exception:
        seen = f"last seen: {late.last_seen}"
        if not self._workers:
            return _stalled_alone(late, seen)
        suspect = await self._suspect(late.phase)
        if late.phase is core.Phase.CONNECT:
            return ConnectStalled(
                "llama-server did not finish connecting to its workers within "
                f"{late.waited_s:.0f} s (phase: connect; {suspect}; {seen}); something else may "
                "hold that worker's rpc port, or its network drops packets; restart its agent"
            )
        return LoadStalled(
            f"loading made no progress for {late.waited_s:.0f} s (phase: load; {suspect}; {seen}); "
            "check that device's power, memory and network, or raise the setting stall_s"
        )

    async def _suspect(self, phase: core.Phase) -> str:
        """Name the worker that the evidence points at.

        llama-server connects in order and leaves each worker again, so the first one that it has
        not left is the silent one.
        While loading, it is the first one whose agent or rpc-server does not answer or grow.
        """
        for agent_id, (name, agent) in self._workers.items():
            try:
                status = await agent.rpc_server()
            except (AgentUnreachable, AgentRefused) as exc:
                return f"worker {name}: {exc}"
            if phase is not core.Phase.CONNECT:
                continue
            before = self._before.get(agent_id, status)
            if status.clients_accepted <= before.clients_accepted:
                return f"worker {name} accepted no connection of llama-server"
            if status.clients_closed <= before.clients_closed:
                return f"worker {name} took llama-server's connection and does not answer it"
        names = ", ".join(name for name, _ in self._workers.values())
        idle = self._idle_workers()
        return f"worker {idle[0]} received nothing lately" if idle else f"workers: {names}"

    def _idle_workers(self) -> list[str]:
        """Workers by how little arrived, the least first."""
        resident = dict(self._load.resident_bytes)
        names = [name for name, _ in self._workers.values()]
        return sorted(names, key=lambda n: resident.get(n, 0) - self._first_resident.get(n, 0))

    def _update(self, load: core.Load) -> None:
        was = self._load.phase
        self._load = load
        if load.phase is not was:
            self._phase_changed.set()
        if was is core.Phase.CONNECT and load.phase is not core.Phase.CONNECT:
            self._on_phase("load")
        if load.phase is core.Phase.LISTENING:
            self._listening.set()

    def _enter_load_phase(self) -> None:
        if self._load.phase is core.Phase.CONNECT:
            self._update(core.observe_port_open(self._load, time.monotonic()))


def _stalled_alone(late: core.Overdue, seen: str) -> Exception:
    """The same without workers: only this host can be the reason."""
    if late.phase is core.Phase.CONNECT:
        return ConnectStalled(
            f"llama-server did not open its port within {late.waited_s:.0f} s (phase: connect; "
            f"it has no workers; {seen}); see its log, and whether this host is overloaded"
        )
    return LoadStalled(
        f"loading made no progress for {late.waited_s:.0f} s (phase: load; it has no workers; "
        f"{seen}); check the disk and memory of this host, or raise the setting stall_s"
    )


async def _cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
