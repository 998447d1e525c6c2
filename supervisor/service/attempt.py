"""One launch: workers, verify, spawn, load, first token, watch, end."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from agents import environment, ports
from agents.contract import EngineFacts, RpcServerSpec, RpcServerStatus, WorkerState
from agents.errors import EngineMissing, EngineWithoutRpc, ProjectError
from agents.logfile import tail
from agents.process import describe_exit
from agents.rpc_protocol import Outcome, ProbeResult, Triple
from supervisor.core.commands import llama_server_argv, shell_command
from supervisor.core.diagnosis import explain_exit
from supervisor.core.entities import (
    AgentId,
    Deployment,
    EngineRecord,
    LaunchId,
    LaunchRecord,
    Milestone,
    Plan,
    WorkerLoad,
    WorkerRecord,
)
from supervisor.core.membership import DeviceCondition
from supervisor.errors import (
    AgentRefused,
    AgentUnreachable,
    DeviceUnknown,
    StoreUnusable,
    WorkerBusy,
    WorkerIncompatible,
    WorkerLost,
    WorkerNotRpcServer,
    WorkerUnreachable,
)
from supervisor.ports import (
    EngineProcess,
    ServerClient,
)
from supervisor.service.loading import EngineEnded, LoadWatch
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)

T = TypeVar("T")

SET_BY_US = {"GGML_NO_BACKTRACE": "1"}
"""Without it an abort forks a debugger and prints 60 lines after the one that matters."""

_SPEED_EVERY_S = 5.0
_LOST_GRACE_S = 1.0
_STOP_WORKER_S = 8.0
"""Longer than an agent's own grace for its rpc-server; a lost device is not waited for longer."""

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
        self._launch_id: LaunchId | None = None
        self._reservation: ports.Reservation | None = None
        self._name = {shard.agent_id: shard.device for shard in plan.shards}
        self._started: list[AgentId] = []
        self._speed: float | None = None
        self._speed_read_at_s = float("-inf")
        self._before: dict[AgentId, RpcServerStatus] = {}

    async def start(self) -> None:
        """Everything up to READY.

        Raises:
            ProjectError: Names the phase, the worker and what to do.
        """
        engine = self._engine()
        self._milestone("planned")
        launch_id = self._launch_id = await asyncio.to_thread(self._tools.store.next_launch_id)
        self._report(launch_id=launch_id, plan=self._plan, phase="workers", loads=self._loads({}))
        for agent_id in self._plan.agent_ids:
            self._tools.registry.reserve(agent_id, self._deployment.id)
        statuses = await self._all(self._start_worker)
        self._milestone("workers ready")
        self._report(phase="verify")
        workers = await self._all(lambda a: self._verify(a, statuses[a], engine))
        self._milestone("verified")
        await self._record_and_spawn(engine, launch_id, workers)
        await self._load()
        await self._first_token()

    async def watch(self) -> None:
        """Wait until something of the launch is lost.

        Raises:
            ProjectError: What was lost. It never returns otherwise.
        """
        assert self._process is not None
        exiting = asyncio.create_task(self._process.wait())
        try:
            while not exiting.done():
                for agent_id in self._plan.agent_ids:
                    self._raise_if_lost(agent_id)
                await self._refresh_speed()
                changed = asyncio.create_task(self._tools.registry.wait_changed(5.0))
                await asyncio.wait({exiting, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                await asyncio.gather(changed, return_exceptions=True)
        finally:
            exiting.cancel()
            await asyncio.gather(exiting, return_exceptions=True)
        raise await self._explained("serving")

    async def close(self, outcome: str, error: ProjectError | None = None) -> None:
        """End llama-server, then the workers; complete the record. Leaves nothing running."""
        if self._process is not None:
            # A llama-server that lost a worker may hang and will not answer SIGTERM.
            grace_s = _LOST_GRACE_S if error else self._tools.settings.grace_s
            await self._process.stop(grace_s=grace_s)
        if self._client is not None:
            await self._client.close()
        if self._reservation is not None:
            self._reservation.release()
        if self._launch_id is not None:
            await asyncio.gather(*(self._stop_worker(a) for a in self._started))
        self._tools.registry.release(self._deployment.id)
        if self._record is not None:
            self._record = self._record.model_copy(
                update={
                    "timeline": tuple(self._timeline),
                    "outcome": outcome,
                    "error_code": error.code if error else "",
                    "reason": str(error) if error else "",
                    "ended_at": _now(),
                }
            )
            await self._save_ended(self._record)

    async def _save_ended(self, record: LaunchRecord) -> None:
        try:
            await asyncio.to_thread(self._tools.store.save_launch, record)
        except StoreUnusable as exc:  # everything is ended already; only the note of it is missing
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

    async def _start_worker(self, agent_id: AgentId) -> RpcServerStatus:
        assert self._launch_id is not None
        agent = self._tools.registry.agent(agent_id)
        limit_s = self._tools.settings.worker_ready_s
        spec = RpcServerSpec(
            generation=self._launch_id,
            host=self._tools.registry.device(agent_id).address,
            launch=str(self._launch_id),
            devices=[s.ggml_device for s in self._plan.shards if s.agent_id == agent_id],
            ready_deadline_s=limit_s,
        )
        self._started.append(agent_id)
        status = await agent.start_rpc_server(spec, wait_s=limit_s + 1)
        if status.state is not WorkerState.READY:
            raise AgentRefused(
                f"{self._name[agent_id]}: {status.detail or f'rpc-server is {status.state}'}",
                status.error_code or "rpc_server_silent",
            )
        return status

    async def _verify(
        self, agent_id: AgentId, status: RpcServerStatus, engine: EngineFacts
    ) -> WorkerRecord:
        """One probe from here, once, while the worker is idle. From now on nobody touches it."""
        name, device = self._name[agent_id], self._tools.registry.device(agent_id)
        expected = Triple.parse(engine.rpc_protocol) if engine.rpc_protocol else None
        result = await self._tools.probe(
            status.host, status.port, deadline_s=self._tools.settings.verify_s, expected=expected
        )
        _check_probe(name, f"{status.host}:{status.port}", result)
        build = device.facts.engine.build if device.facts and device.facts.engine else ""
        if build and engine.build and build != engine.build:
            raise WorkerIncompatible(
                f"{name} runs llama.cpp {build}, the main host {engine.build}; mixed builds give "
                "wrong results without a word: install the same build on both"
            )
        # How many clients it had before llama-server, our probe included: tells later who was never
        # connected to.
        self._before[agent_id] = replace(
            status,
            clients_accepted=status.clients_accepted + 1,
            clients_closed=status.clients_closed + 1,
        )
        self._tools.registry.took_round_trip(agent_id, round(result.round_trip_s * 1e3, 2))
        return WorkerRecord(
            agent_id=agent_id,
            device=name,
            host=status.host,
            port=status.port,
            rpc_protocol=str(result.triple or ""),
            engine_build=build,
            round_trip_ms=round(result.round_trip_s * 1e3, 3),
            argv=tuple(status.argv),
            environment=status.environment,
        )

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
            started_at=_now(),
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
        )
        self._record = record
        await asyncio.to_thread(self._tools.store.save_launch, record)
        log.info("llama_server.starting", extra={"command": shell_command(argv)})
        self._process = await self._tools.start_engine(argv, environ, log_path)
        self._client = self._tools.connect_engine(port)
        self._record = record.model_copy(update={"pid": self._process.pid})
        self._report(phase="connect", port=port)

    async def _load(self) -> None:
        assert self._process is not None
        assert self._client is not None
        watch = LoadWatch(
            self._tools.settings,
            self._process,
            self._client,
            {a: (self._name[a], self._tools.registry.agent(a)) for a in self._plan.agent_ids},
            self._before,
            on_phase=self._reached,
            on_loaded=lambda loaded: self._report(loads=self._loads(loaded)),
        )
        try:
            await watch.until_listening()
        except EngineEnded:
            raise await self._explained("loading") from None
        self._milestone("loaded")

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

    async def _stop_worker(self, agent_id: AgentId) -> None:
        """End a worker of ours. One that cannot be reached ends itself with its agent."""
        assert self._launch_id is not None
        try:
            async with asyncio.timeout(_STOP_WORKER_S):
                await self._tools.registry.agent(agent_id).stop_rpc_server(self._launch_id)
        except (AgentUnreachable, AgentRefused, DeviceUnknown, TimeoutError) as exc:
            reason = str(exc) or f"no answer within {_STOP_WORKER_S:g} s"
            extra = {"device": self._name[agent_id], "reason": reason}
            log.warning("worker.not_stopped", extra=extra)

    def _raise_if_lost(self, agent_id: AgentId) -> None:
        name = self._name[agent_id]
        try:
            device = self._tools.registry.device(agent_id)
        except DeviceUnknown:
            raise WorkerLost(f"{name} was removed from the cluster while it served") from None
        if device.state == DeviceCondition.LOST:
            raise WorkerLost(f"{name}: {device.reason}")
        status = device.rpc_server
        launch_id = self._launch_id or 0
        if status is None or status.generation < launch_id:
            return  # its last heartbeat is older than this launch
        if status.generation > launch_id:
            raise WorkerLost(f"{name} was taken over by launch {status.generation}")
        if status.state in (WorkerState.FAILED, WorkerState.STOPPED):
            why = status.detail or f"its rpc-server is {status.state}; was its agent restarted?"
            raise WorkerLost(f"{name}: {why}")

    async def _refresh_speed(self) -> None:
        """Read the engine's speed now and then; news of devices come more often than that."""
        assert self._client is not None
        if time.monotonic() - self._speed_read_at_s < _SPEED_EVERY_S:
            return
        self._speed_read_at_s = time.monotonic()
        speed = await self._client.tokens_per_second()
        if speed and speed != self._speed:
            self._speed = speed
            self._report(tokens_per_second=round(speed, 2))

    async def _explained(self, phase: str) -> ProjectError:
        """Why llama-server ended; a worker that says it died itself is the better witness."""
        assert self._process is not None
        for agent_id in self._plan.agent_ids:
            try:
                status = await self._tools.registry.agent(agent_id).rpc_server()
            except (AgentUnreachable, AgentRefused) as exc:
                return WorkerLost(f"llama-server lost a worker during {phase}: {exc}")
            if status.state is WorkerState.FAILED:
                return WorkerLost(
                    f"llama-server lost {self._name[agent_id]} during {phase}: {status.detail}"
                )
        how = describe_exit(self._process.exit_status)
        lines = await asyncio.to_thread(tail, self._process.log_path, 80)
        return explain_exit(how, lines, phase)

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

    async def _all(self, step: Callable[[AgentId], Awaitable[T]]) -> dict[AgentId, T]:
        """Do one step for every worker at once; the first failure cancels the others."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    agent_id: group.create_task(_awaited(step(agent_id)))
                    for agent_id in self._plan.agent_ids
                }
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return {agent_id: task.result() for agent_id, task in tasks.items()}


async def _awaited(step: Awaitable[T]) -> T:
    return await step


def _check_probe(name: str, endpoint: str, result: ProbeResult) -> None:
    match result.outcome:
        case Outcome.READY:
            return
        case Outcome.BUSY:
            raise WorkerBusy(
                f"the rpc-server of {name} at {endpoint} accepts connections but does not answer: "
                "somebody else is connected to it, and it serves one client at a time; "
                "close that client (another llama-server, or a port probe)"
            )
        case Outcome.INCOMPATIBLE:
            raise WorkerIncompatible(
                f"{name} at {endpoint}: {result.detail}; install the same llama.cpp build on both"
            )
        case Outcome.NOT_RPC_SERVER:
            raise WorkerNotRpcServer(
                f"what listens on {endpoint} of {name} is not an rpc-server ({result.detail}); "
                "stop it, or let the agent choose another port"
            )
        case Outcome.REFUSED | Outcome.UNREACHABLE:
            raise WorkerUnreachable(
                f"the main host cannot reach the rpc-server of {name} at {endpoint} "
                f"({result.detail}), though its agent says that it is ready; check the firewall "
                "of that device and the network between both"
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
