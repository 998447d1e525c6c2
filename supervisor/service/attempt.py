"""One launch: workers, verify, spawn, load, first token, watch, end."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping

from agents import environment, ports
from agents.contract import EngineFacts
from agents.errors import EngineMissing, EngineWithoutRpc, LinkLost, ProjectError
from agents.logfile import tail
from agents.process import describe_exit
from supervisor.core.commands import llama_server_argv, shell_command
from supervisor.core.diagnosis import explain_exit
from supervisor.core.entities import (
    AgentId,
    Deployment,
    EngineRecord,
    LaunchId,
    LaunchRecord,
    LinkView,
    MemorySample,
    Milestone,
    Plan,
    WorkerLoad,
    WorkerRecord,
)
from supervisor.core.refining import refined
from supervisor.errors import StoreUnusable
from supervisor.ports import EngineProcess, Links, ServerClient
from supervisor.service.clock import timestamp
from supervisor.service.links import LinkViews, launch_job
from supervisor.service.loading import EngineEnded, LoadWatch
from supervisor.service.memory_watch import MemoryWatch, own_memory
from supervisor.service.tools import Tools
from supervisor.service.workers import Workers

log = logging.getLogger(__name__)

SET_BY_US = {"GGML_NO_BACKTRACE": "1"}
"""Without it an abort forks a debugger and prints 60 lines after the one that matters."""

_SPEED_EVERY_S = 5.0
_LINKS_EVERY_S = 2.0
_LAST_WORDS_S = 0.5
_LOST_GRACE_S = 1.0

Report = Callable[..., None]
"""Tells the reconciler, the one writer, what changed in the deployment."""


class Attempt:
    """One launch from its plan to its end. ``close`` is always called, whatever happened."""

    def __init__(
        self, tools: Tools, deployment: Deployment, plan: Plan, report: Report, asked_at_s: float
    ) -> None:
        self._tools = tools
        self._deployment = deployment
        self._plan = plan
        self._report = report
        self._asked_at_s = asked_at_s
        self._timeline: list[Milestone] = []
        self._record: LaunchRecord | None = None
        self._process: EngineProcess | None = None
        self._client: ServerClient | None = None
        self._workers: Workers | None = None
        self._links: Links | None = None
        self._views = LinkViews(plan)
        self._looked_at_s = float("-inf")
        self._reservation: ports.Reservation | None = None
        self._memory = MemoryWatch(plan, self._own_memory)
        self._speed: float | None = None
        self._speed_read_at_s = float("-inf")

    async def start(self) -> None:
        """Everything up to READY.

        Raises:
            ProjectError: Names the phase, the worker and what to do.
        """
        engine = self._engine()
        self._milestone("planned")
        launch_id = await asyncio.to_thread(self._tools.store.next_launch_id)
        is_direct = self._deployment.spec.transport == "direct"
        workers = self._workers = Workers(self._tools, self._plan, launch_id, direct=is_direct)
        phase = "workers" if self._plan.shards else "connect"
        self._report(launch_id=launch_id, plan=self._plan, phase=phase, loads=self._loads({}))
        verified = await self._prepare(workers, engine, launch_id)
        await self._record_and_spawn(engine, launch_id, verified)
        await self._load(workers)
        await self._first_token()

    async def watch(self) -> None:
        """Wait until something of the launch is lost.

        Raises:
            ProjectError: What was lost. It never returns otherwise.
        """
        assert self._process is not None
        assert self._workers is not None
        exiting = asyncio.create_task(self._process.wait())
        noting = asyncio.create_task(self._note_ready(self._workers))
        try:
            while not exiting.done():
                self._raise_if_lost()
                await self._refresh_speed()
                self._refresh_links()
                news = [asyncio.create_task(self._tools.registry.wait_changed(5.0))]
                if self._links is not None:
                    news.append(asyncio.create_task(self._links.changed()))
                await asyncio.wait({exiting, *news}, return_when=asyncio.FIRST_COMPLETED)
                for each in news:
                    each.cancel()
                await asyncio.gather(*news, return_exceptions=True)
        finally:
            exiting.cancel()
            noting.cancel()
            await asyncio.gather(exiting, noting, return_exceptions=True)
        raise await self._explained("serving")

    async def close(self, outcome: str, error: ProjectError | None = None) -> None:
        """End llama-server, then the workers; complete the record. Leaves nothing running."""
        if self._links is not None:
            await self._links.fresh()
        links = self._look()
        if self._process is not None and self._workers is not None:
            self._memory.at_the_end(await self._workers.statuses_soon())
            if error is None:
                await self._learn()
            # A llama-server that lost a worker may hang and will not answer SIGTERM.
            grace_s = _LOST_GRACE_S if error else self._tools.settings.grace_s
            await self._process.stop(grace_s=grace_s)
        if self._client is not None:
            await self._client.close()
        if self._reservation is not None:
            self._reservation.release()
        if self._links is not None:
            await self._links.stop()
        if self._workers is not None:
            await self._workers.stop()
        self._tools.registry.release(self._deployment.id)
        if self._record is not None:
            await self._save_noted(
                timeline=tuple(self._timeline),
                memory=self._memory.record(),
                links=links,
                outcome=outcome,
                error_code=error.code if error else "",
                reason=str(error) if error else "",
                ended_at=timestamp(),
            )

    async def _save_noted(self, **changes: object) -> None:
        """Store what was found out of a launch; what runs does not depend on it."""
        assert self._record is not None
        self._record = self._record.model_copy(update=changes)
        try:
            await asyncio.to_thread(self._tools.store.save_launch, self._record)
        except StoreUnusable as exc:
            log.error("launch.not_stored", extra={"reason": str(exc)})

    # -- steps -------------------------------------------------------------------------------

    def _engine(self) -> EngineFacts:
        engine = self._tools.main_host.engine
        if engine is None or not engine.llama_server:
            raise EngineMissing(
                "no llama-server on the main host; install llama.cpp with RPC or set LLAMA_CPP_BIN"
            )
        if engine.problem:
            raise EngineWithoutRpc(engine.problem)
        return engine

    async def _prepare(
        self, workers: Workers, engine: EngineFacts, launch_id: LaunchId
    ) -> Mapping[AgentId, WorkerRecord]:
        if not self._plan.shards:
            return {}  # llama-server alone
        if self._deployment.spec.transport == "direct":
            statuses = await workers.start(self._deployment.id)
            self._milestone("workers ready")
            self._report(phase="verify")
            verified = await workers.verify(statuses, engine)
        else:
            # The links are made while the workers start; far ends wait for their rpc-servers.
            job = await launch_job(self._tools, self._plan, launch_id, engine)
            self._links = await self._tools.start_links(job)
            statuses = await workers.start(self._deployment.id)
            self._milestone("workers ready")
            self._report(phase="verify")
            made = await self._links.ready(len(job.workers), self._tools.settings.worker_ready_s)
            verified = workers.linked(statuses, made, engine)
        self._milestone("verified")
        return verified

    def _raise_if_lost(self) -> None:
        """The link knows first, and why; the agent may still be reachable."""
        if self._links is not None:
            self._links.raise_if_lost()
        if self._workers is not None:
            self._workers.raise_if_lost()

    async def _record_and_spawn(
        self, engine: EngineFacts, launch_id: LaunchId, workers: Mapping[AgentId, WorkerRecord]
    ) -> None:
        """The record is on disk before the process exists."""
        host = self._tools.main_host
        self._reservation = ports.reserve("127.0.0.1")
        port = self._reservation.port
        argv = llama_server_argv(
            engine.llama_server,
            self._plan,
            {agent_id: worker.endpoint for agent_id, worker in workers.items()},
            port=port,
            known=host.known_flags,
            alias=self._deployment.id,
        )
        # A private, empty configuration folder: a stray config.ini changes flags silently.
        ours = {**SET_BY_US, "XDG_CONFIG_HOME": str(host.folder / "empty-config")}
        environ = environment.for_engine(host.inherited, ours)
        log_path = host.folder / "logs" / f"llama-server-{launch_id}.log"
        record = LaunchRecord(
            id=launch_id,
            deployment=self._deployment.id,
            started_at=timestamp(),
            plan=self._plan,
            main_host=host.name,
            engine=EngineRecord(
                path=engine.llama_server,
                version=engine.version,
                build=engine.build,
                rpc_protocol=engine.rpc_protocol,
            ),
            workers=tuple(workers[a] for a in self._plan.agent_ids),
            argv=tuple(argv),
            environment=environment.relevant(environ),
            log_path=str(log_path),
            timeline=tuple(self._timeline),
            memory=self._memory.record(),
            links=self._look(),
            link_pid=self._links.pid if self._links else None,
            link_log_path=str(self._links.log_path) if self._links else "",
        )
        self._record = record
        await asyncio.to_thread(self._tools.store.save_launch, record)
        log.info("llama_server.starting", extra={"command": shell_command(argv)})
        self._process = await self._tools.start_engine(argv, environ, log_path)
        self._client = self._tools.connect_engine(port)
        self._record = record.model_copy(update={"pid": self._process.pid})
        self._report(phase="connect", port=port)

    async def _load(self, workers: Workers) -> None:
        assert self._process is not None
        assert self._client is not None
        watch = LoadWatch(
            self._tools.settings,
            self._process,
            self._client,
            workers.agents,
            workers.before,
            on_phase=self._reached,
            on_loaded=self._loaded,
            on_statuses=self._memory.while_loading,
            links=self._links,
        )
        try:
            await watch.until_listening()
        except EngineEnded:
            raise await self._explained("loading") from None
        self._milestone("loaded")

    def _loaded(self, loaded: Mapping[str, int]) -> None:
        links = {} if self._links is None else {"links": self._look()}
        self._report(loads=self._loads(loaded), **links)

    def _look(self) -> tuple[LinkView, ...]:
        return self._views.look(self._links.stats()) if self._links is not None else ()

    def _reached(self, phase: str) -> None:
        if phase == "load":
            self._milestone("connected")
            self._report(phase="load")

    async def _first_token(self) -> None:
        assert self._process is not None
        assert self._client is not None
        self._report(phase="first token")
        asking = asyncio.create_task(
            self._client.first_completion(self._tools.settings.first_token_s)
        )
        exiting = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({asking, exiting}, return_when=asyncio.FIRST_COMPLETED)
            if exiting.done():
                raise await self._explained("the first completion")
            await asking
        finally:
            asking.cancel()
            exiting.cancel()
            await asyncio.gather(asking, exiting, return_exceptions=True)
        self._milestone("first token")
        assert self._record is not None
        self._record = self._record.model_copy(
            update={"timeline": tuple(self._timeline), "outcome": "ready"}
        )
        await asyncio.to_thread(self._tools.store.save_launch, self._record)

    # -- helpers -----------------------------------------------------------------------------

    def _own_memory(self) -> MemorySample | None:
        running = self._process is not None and self._process.exit_status is None
        return own_memory(self._process.pid) if self._process and running else None

    async def _note_ready(self, workers: Workers) -> None:
        """After READY, which is not to wait for it.

        A short load is over before anybody has looked at it; nothing of it is freed yet.
        """
        statuses = await workers.statuses_soon()
        if self._links is not None:
            await self._links.fresh()
        self._memory.while_loading(statuses)
        self._memory.when_ready(statuses)
        await self._save_noted(memory=self._memory.record(), links=self._look())

    async def _refresh_speed(self) -> None:
        """Read the engine's speed now and then; news of devices come more often than that."""
        assert self._client is not None
        if time.monotonic() - self._speed_read_at_s < _SPEED_EVERY_S:
            return
        self._speed_read_at_s = time.monotonic()
        found = await self._client.generated()
        if found and found.tokens_per_second and found.tokens_per_second != self._speed:
            self._speed = found.tokens_per_second
            self._report(tokens_per_second=round(self._speed, 2))

    def _refresh_links(self) -> None:
        """Tell how the links do now and then; the link process says it twice a second."""
        if self._links is None or time.monotonic() - self._looked_at_s < _LINKS_EVERY_S:
            return
        self._looked_at_s = time.monotonic()
        self._report(links=self._look())

    async def _learn(self) -> None:
        """What this run took corrects what was measured of its devices."""
        found = await self._client.generated() if self._client else None
        if found is None:
            return
        store = self._tools.store
        try:
            known = {(m.agent_id, m.ggml_device): m for m in store.device_measurements()}
            for corrected in refined(self._plan, found.tokens, found.seconds, known):
                await asyncio.to_thread(store.save_measurement, corrected)
        except StoreUnusable as exc:  # the run is over; only its lesson is lost
            log.error("launch.not_learned_from", extra={"reason": str(exc)})

    async def _explained(self, phase: str) -> ProjectError:
        """Why llama-server ended; a worker that says it died itself is the better witness."""
        assert self._process is not None
        if self._links is not None:
            await self._raise_if_links_lost(self._links)
        if self._workers is not None and (lost := await self._workers.witness(phase)) is not None:
            return lost
        for stats in self._links.stats().values() if self._links is not None else ():
            if stats.detail:  # the link stands, but the rpc-server behind it hung up
                return LinkLost(stats.detail)
        how = describe_exit(self._process.exit_status)
        lines = await asyncio.to_thread(tail, self._process.log_path, 80)
        return explain_exit(how, lines, phase)

    async def _raise_if_links_lost(self, links: Links) -> None:
        """llama-server may be seen to end a moment before the link that cut it off says why."""
        deadline_s = time.monotonic() + _LAST_WORDS_S
        links.raise_if_lost()
        while (left_s := deadline_s - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await links.changed()
            links.raise_if_lost()

    def _milestone(self, name: str) -> None:
        at_s = time.monotonic() - self._asked_at_s
        before_s = self._timeline[-1].at_s if self._timeline else 0.0
        self._timeline.append(
            Milestone(name=name, at_s=round(at_s, 3), took_s=round(max(at_s - before_s, 0.0), 3))
        )
        self._report(timeline=tuple(self._timeline))

    def _loads(self, loaded: Mapping[str, int]) -> tuple[WorkerLoad, ...]:
        merged: dict[str, WorkerLoad] = {}
        for shard in self._plan.shards:
            before = merged.get(shard.device)
            layers = shard.layers + (before.layers if before else 0)
            weight_bytes = shard.weight_bytes + (before.weight_bytes if before else 0)
            merged[shard.device] = WorkerLoad(
                device=shard.device,
                layers=layers,
                weight_bytes=weight_bytes,
                loaded_bytes=min(loaded.get(shard.device, 0), weight_bytes),
            )
        return tuple(merged.values())
