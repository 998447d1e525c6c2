"""One launch: workers, verify, spawn, load, first token, watch, examine, drain, end."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from agents import environment, ports
from agents.contract import EngineFacts
from agents.errors import EngineMissing, EngineWithoutRpc, ProjectError
from agents.oom import OomWatch
from agents.process import Running
from supervisor.core.commands import llama_server_argv, shell_command
from supervisor.core.entities import (
    AgentId,
    Cause,
    Deployment,
    EngineRecord,
    LaunchId,
    LaunchRecord,
    LinkView,
    MemorySample,
    Milestone,
    Plan,
    WorkerRecord,
)
from supervisor.core.evidence import Evidence
from supervisor.core.link_view import worker_loads
from supervisor.core.rdma import NO_RDMA
from supervisor.core.refining import refined
from supervisor.core.slots import busy
from supervisor.errors import StoreUnusable
from supervisor.ports import Health, Links, ServerClient
from supervisor.service import model_files
from supervisor.service.clock import timestamp
from supervisor.service.examining import Launched, examine
from supervisor.service.links import LinkViews, launch_job
from supervisor.service.loading import EngineEnded, LoadWatch
from supervisor.service.memory_watch import MemoryWatch, own_memory
from supervisor.service.spreading import Spreader
from supervisor.service.tools import Tools
from supervisor.service.watching import Watch
from supervisor.service.workers import Workers

log = logging.getLogger(__name__)

SET_BY_US = {"GGML_NO_BACKTRACE": "1"}
"""Without it an abort forks a debugger and prints 60 lines after the one that matters."""

_LOST_GRACE_S = 1.0
_ADOPT_S = 2.0
_DRAIN_EVERY_S = 0.2

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
        self._process: Running | None = None
        self._client: ServerClient | None = None
        self._workers: Workers | None = None
        self._links: Links | None = None
        self._views = LinkViews(plan)
        self._reservation: ports.Reservation | None = None
        self._memory = MemoryWatch(plan, self._own_memory)
        self._phase = "workers" if plan.shards else "connect"
        self._oom: OomWatch | None = None
        self._watch: Watch | None = None
        self._is_busy = False
        self._closing: asyncio.Task[None] | None = None

    # -- from plan to READY ------------------------------------------------------------------

    async def start(self) -> None:
        """Everything up to READY.

        Raises:
            ProjectError: What our own watching found.
            EngineEnded: llama-server ended by itself; :meth:`examine` gathers why.
        """
        engine = self._engine()
        self._milestone("planned")
        launch_id = await asyncio.to_thread(self._tools.store.next_launch_id)
        workers = self._make_workers(launch_id)
        self._record = self._new_record(launch_id, engine)
        await self._tools.journal.save_launch(self._record)
        phase = "workers" if self._plan.shards else "connect"
        loads = worker_loads(self._plan, {})
        self._report(launch_id=launch_id, plan=self._plan, phase=phase, loads=loads)
        verified = await self._prepare(workers, engine, launch_id)
        await self._record_and_spawn(engine, verified)
        await self.finish()

    async def finish(self) -> None:
        """The rest of a start, once llama-server runs.

        Raises:
            ProjectError, EngineEnded: As :meth:`start`.
        """
        assert self._workers is not None
        async with Spreader(self._tools).helping(self._plan, self._links):
            await self._load(self._workers)
        await self._first_token()

    async def resume(self, record: LaunchRecord) -> bool:
        """Take over what an earlier run of us started: all of it, or nothing is left of it.

        Returns:
            Whether llama-server and its links run and answer.
        """
        self._record = record
        self._timeline = list(record.timeline)
        self._process = self._tools.engines.adopt(record)
        if record.link_pid is not None:
            self._links = await self._tools.links.adopt(record.link_pid)
        try:
            self._make_workers(record.id).resume(self._deployment.id, record.workers)
            is_whole = await self._is_whole(record)
        except ProjectError as exc:
            log.warning("launch.not_adopted", extra={"launch": record.id, "reason": str(exc)})
            is_whole = False
        if not is_whole:
            hurry = asyncio.Event()
            hurry.set()
            await self.close("ended while the supervisor did not run", None, hurry)
            return False
        assert self._process is not None
        self._record = record.model_copy(update={"pid": self._process.pid})
        self._oom = OomWatch(self._process.pid)
        log.info("launch.adopted", extra={"launch": record.id, "pid": self._process.pid})
        return True

    @property
    def was_ready(self) -> bool:
        """A completion of it has returned a token."""
        return self._record is not None and self._record.outcome == "ready"

    async def _is_whole(self, record: LaunchRecord) -> bool:
        if self._process is None or (record.link_pid is not None and self._links is None):
            return False
        if self._links is not None:
            self._links.raise_if_lost()
        self._reservation = ports.hold(record.port)
        self._client = self._tools.connect_engine(record.port)
        if record.outcome != "ready":
            return True  # still loading: whether it gets there is watched as always
        if await self._client.health(_ADOPT_S) is not Health.READY:
            return False
        # The key may have been replaced meanwhile; one that wants another is of no use to anybody.
        return not await self._client.refuses_us(_ADOPT_S)

    # -- while it serves ---------------------------------------------------------------------

    async def watch(self) -> None:
        """Wait until something of the launch is lost.

        Raises:
            ProjectError, EngineEnded: What was lost. It never returns otherwise.
        """
        assert self._process is not None
        assert self._workers is not None
        assert self._client is not None
        assert self._record is not None
        self._phase = "ready"
        watch = self._watch = Watch(
            self._tools,
            self._record,
            self._process,
            self._client,
            self._links,
            self._workers,
            self._report,
            self._look,
        )
        noting = asyncio.create_task(self._note_ready(self._workers))
        try:
            await watch.until_ended()
        finally:
            noting.cancel()
            await asyncio.gather(noting, return_exceptions=True)
        raise EngineEnded

    @property
    def is_idle(self) -> bool:
        """No request runs, as far as anybody knows."""
        return self._watch is not None and self._watch.is_idle

    async def drain(self, limit_s: float) -> None:
        """Let running requests end, for at most ``limit_s``."""
        if self._client is None or self._watch is None:
            return
        deadline_s = time.monotonic() + limit_s
        while self._process is not None and self._process.is_alive:
            slots = await self._client.slots(1.0)
            self._is_busy = slots is None or bool(busy(slots))
            if not self._is_busy or time.monotonic() >= deadline_s:
                return
            await asyncio.sleep(_DRAIN_EVERY_S)

    async def examine(self, found: ProjectError | None) -> Evidence:
        """What can be seen of it, before anything is stopped."""
        has_ended = self._process is not None and not self._process.is_alive
        kills = self._oom.kills(has_ended=has_ended) if self._oom else None
        launched = Launched(self._record, self._process, self._links, self._workers, kills)
        return await examine(self._tools, launched, self._phase, found, was_ready=self.was_ready)

    # -- the end -----------------------------------------------------------------------------

    async def close(self, outcome: str, cause: Cause | None, hurry: asyncio.Event) -> None:
        """End llama-server, then the links, then the workers; complete the record.

        Leaves nothing running, even if the caller is cancelled meanwhile. Once ``hurry`` is set,
        nothing is given any grace.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(outcome, cause, hurry))
        await asyncio.shield(self._closing)

    async def _close(self, outcome: str, cause: Cause | None, hurry: asyncio.Event) -> None:
        is_hurried = hurry.is_set()
        if self._links is not None and not is_hurried:
            await self._links.fresh()
        links = self._look()
        if self._process is not None and self._workers is not None and not is_hurried:
            self._memory.at_the_end(await self._workers.statuses_soon())
            if cause is None:
                await self._learn()
        if self._process is not None:
            # One that lost a worker may hang and not answer SIGTERM; one whose requests have had
            # their time would go on with them.
            has_no_more_time = cause is not None or self._is_busy
            grace_s = _LOST_GRACE_S if has_no_more_time else self._tools.settings.grace_s
            await _stop(self._process, grace_s, hurry)
        if self._client is not None:
            await self._client.close()
        if self._reservation is not None:
            self._reservation.release()
        if self._links is not None:
            await self._links.stop()
        if self._workers is not None:
            # After a failure nobody waits for a device that may be out of reach: the repair is due.
            await self._workers.stop(is_hurried=hurry.is_set() or cause is not None)
        self._tools.registry.release(self._deployment.id)
        if self._record is not None:
            await self._save_noted(
                timeline=tuple(self._timeline),
                memory=self._memory.record(),
                links=links,
                outcome=outcome,
                error_code=cause.code if cause else "",
                reason=cause.text if cause else "",
                cause=cause,
                transitions=tuple(await self._tools.journal.events(0, launch_id=self._record.id)),
                ended_at=timestamp(),
            )

    async def _save_noted(self, **changes: object) -> None:
        """Store what was found out of a launch; what runs does not depend on it."""
        assert self._record is not None
        self._record = self._record.model_copy(update=changes)
        await self._tools.journal.save_launch(self._record)

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
            self._phase = "verify"
            self._report(phase="verify")
            verified = await workers.verify(statuses, engine)
        else:
            # The links are made while the workers start; far ends wait for their rpc-servers.
            job = await launch_job(self._tools, self._plan, launch_id, engine)
            self._links = await self._tools.links.start(job)
            statuses = await workers.start(self._deployment.id)
            self._milestone("workers ready")
            self._phase = "verify"
            self._report(phase="verify")
            made = await self._links.ready(len(job.workers), self._tools.settings.worker_ready_s)
            verified = workers.linked(statuses, made, engine)
        self._milestone("verified")
        return verified

    def _make_workers(self, launch_id: LaunchId) -> Workers:
        is_direct = self._deployment.spec.transport == "direct"
        self._workers = Workers(self._tools, self._plan, launch_id, direct=is_direct)
        return self._workers

    def _new_record(self, launch_id: LaunchId, engine: EngineFacts) -> LaunchRecord:
        return LaunchRecord(
            id=launch_id,
            deployment=self._deployment.id,
            started_at=timestamp(),
            plan=self._plan,
            main_host=self._tools.main_host.name,
            engine=EngineRecord(
                path=engine.llama_server,
                version=engine.version,
                build=engine.build,
                rpc_protocol=engine.rpc_protocol,
            ),
        )

    async def _record_and_spawn(
        self, engine: EngineFacts, workers: Mapping[AgentId, WorkerRecord]
    ) -> None:
        """The record is on disk before the process exists."""
        assert self._record is not None
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
            key_file=str(host.key_file),
        )
        # A private, empty configuration folder: a stray config.ini changes flags silently.
        ours = {**SET_BY_US, "XDG_CONFIG_HOME": str(host.folder / "empty-config")}
        if self._workers is None or not self._workers.wires.uses_rdma:
            ours |= NO_RDMA
        environ = environment.for_engine(host.inherited, ours)
        log_path = host.folder / "logs" / f"llama-server-{self._record.id}.log"
        self._record = self._record.model_copy(
            update={
                "workers": tuple(workers[a] for a in self._plan.agent_ids),
                "argv": tuple(argv),
                "environment": environment.relevant(environ),
                "log_path": str(log_path),
                "port": port,
                "model_files": await asyncio.to_thread(self._model_files),
                "timeline": tuple(self._timeline),
                "memory": self._memory.record(),
                "links": self._look(),
                "link_pid": self._links.pid if self._links else None,
                "link_log_path": str(self._links.log_path) if self._links else "",
            }
        )
        await self._tools.journal.save_launch_now(self._record)
        log.info("llama_server.starting", extra={"command": shell_command(argv)})
        self._process = await self._tools.engines.start(argv, environ, log_path)
        self._client = self._tools.connect_engine(port)
        self._oom = OomWatch(self._process.pid)
        self._record = self._record.model_copy(update={"pid": self._process.pid})
        self._phase = "connect"
        self._report(phase="connect", port=port)

    def _model_files(self) -> dict[str, str]:
        path = self._plan.model.path
        parts = {str(tensor.file) for tensor in self._tools.read_model(path).tensors}
        return model_files.marks(sorted({path, *parts}))

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
        await watch.until_listening()
        self._milestone("loaded")

    def _loaded(self, loaded: Mapping[str, int]) -> None:
        links = {} if self._links is None else {"links": self._look()}
        self._report(loads=worker_loads(self._plan, loaded), **links)

    def _look(self) -> tuple[LinkView, ...]:
        return self._views.look(self._links.stats()) if self._links is not None else ()

    def _reached(self, phase: str) -> None:
        self._phase = phase
        if phase == "load":
            self._milestone("connected")
            self._report(phase="load")

    async def _first_token(self) -> None:
        assert self._process is not None
        assert self._client is not None
        self._phase = "first token"
        self._report(phase="first token")
        asking = asyncio.create_task(
            self._client.first_completion(self._tools.settings.first_token_s)
        )
        exiting = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({asking, exiting}, return_when=asyncio.FIRST_COMPLETED)
            if exiting.done():
                raise EngineEnded
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
        await self._tools.journal.save_launch(self._record)

    # -- helpers -----------------------------------------------------------------------------

    def _own_memory(self) -> MemorySample | None:
        process = self._process
        return own_memory(process.pid) if process is not None and process.is_alive else None

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

    def _milestone(self, name: str) -> None:
        at_s = time.monotonic() - self._asked_at_s
        before_s = self._timeline[-1].at_s if self._timeline else 0.0
        self._timeline.append(
            Milestone(name=name, at_s=round(at_s, 3), took_s=round(max(at_s - before_s, 0.0), 3))
        )
        self._report(timeline=tuple(self._timeline))


async def _stop(process: Running, grace_s: float, hurry: asyncio.Event) -> None:
    """End llama-server within its grace, or at once as soon as somebody is in a hurry."""
    stopping = asyncio.create_task(process.stop(grace_s=grace_s))
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        await process.stop(grace_s=0.0)
    hurried.cancel()
    await asyncio.gather(stopping, hurried, return_exceptions=True)
