"""The workers of one launch: started, verified once while idle, watched, and stopped."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from agents.contract import EngineFacts, RpcServerSpec, RpcServerStatus, WorkerState
from agents.rpc_protocol import Outcome, ProbeResult, Triple
from supervisor.core.commands import LOOPBACK
from supervisor.core.entities import (
    AgentId,
    DeploymentId,
    Device,
    LaunchId,
    Plan,
    WorkerRecord,
)
from supervisor.core.membership import DeviceCondition, is_same_build
from supervisor.core.wires import direct_host, way, why
from supervisor.errors import (
    AgentRefused,
    AgentUnreachable,
    DeviceUnknown,
    WorkerBusy,
    WorkerIncompatible,
    WorkerLost,
    WorkerNotRpcServer,
    WorkerUnreachable,
)
from supervisor.link.job import LinkStats
from supervisor.ports import AgentPort
from supervisor.service.launch_wires import LaunchWires
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)

T = TypeVar("T")

_STOP_S = 8.0
"""Longer than an agent's own grace for its rpc-server; a lost device is not waited for longer."""

_HURRY_S = 1.0
"""When nobody waits for a graceful end."""

_SOON_S = 0.5
"""For a status that is nice to have; after that the last heartbeat has to do."""


class Workers:
    """The rpc-servers of a plan, through their agents. A plan without devices has none."""

    def __init__(self, tools: Tools, plan: Plan, launch_id: LaunchId, *, direct: bool) -> None:
        self._tools = tools
        self._registry = tools.registry
        self._plan = plan
        self._direct = direct
        self.wires = LaunchWires(tools, plan, direct=direct)
        self._name = {shard.agent_id: shard.device for shard in plan.shards}
        self._started: list[AgentId] = []
        self._endpoints: dict[AgentId, str] = {}
        self._since_s = time.monotonic()
        self.launch_id = launch_id
        self.before: dict[AgentId, RpcServerStatus] = {}
        """Each worker as it was just before llama-server."""
        self.agent_starts: dict[AgentId, str] = {}
        """Tells an agent from the one that is started in its place."""

    @property
    def ids(self) -> tuple[AgentId, ...]:
        return self._plan.agent_ids

    def endpoint(self, agent_id: AgentId) -> str:
        """Where llama-server was told to find it."""
        return self._endpoints.get(agent_id, "")

    def resume(self, deployment: DeploymentId, records: Iterable[WorkerRecord]) -> None:
        """Take over those that an earlier run of us started.

        Raises:
            WorkerBusy, DeviceUnknown: It is another's now, or was removed.
        """
        for agent_id in self._plan.agent_ids:
            self._registry.reserve(agent_id, deployment)
            self._started.append(agent_id)
        self._endpoints = {record.agent_id: record.endpoint for record in records}

    @property
    def agents(self) -> dict[AgentId, tuple[str, AgentPort]]:
        """Names and agents, in the order of ``--rpc``."""
        return {a: (self._name[a], self._registry.agent(a)) for a in self._plan.agent_ids}

    # -- before llama-server -----------------------------------------------------------------

    async def start(self, deployment: DeploymentId) -> dict[AgentId, RpcServerStatus]:
        """Reserve the devices and start every rpc-server, all at once.

        Raises:
            ProjectError: The first that failed; the others are cancelled.
        """
        for agent_id in self._plan.agent_ids:
            self._registry.reserve(agent_id, deployment)
            facts = self._registry.device(agent_id).facts
            self.agent_starts[agent_id] = facts.agent_start if facts else ""
        await self.wires.decide()
        return await self._all(self._start)

    async def verify(
        self, statuses: Mapping[AgentId, RpcServerStatus], engine: EngineFacts
    ) -> dict[AgentId, WorkerRecord]:
        """One probe of each from here, once, while it is idle. From now on nobody touches it.

        Raises:
            ProjectError: The first that is not usable.
        """
        return await self._all(lambda a: self._verify(a, statuses[a], engine))

    def linked(
        self,
        statuses: Mapping[AgentId, RpcServerStatus],
        links: Mapping[AgentId, LinkStats],
        engine: EngineFacts,
    ) -> dict[AgentId, WorkerRecord]:
        """The same through links, whose far ends have proved their rpc-servers already.

        Raises:
            WorkerIncompatible: A version or build differs from the main host's.
        """
        return {a: self._linked(a, statuses[a], links[a], engine) for a in self._plan.agent_ids}

    async def _start(self, agent_id: AgentId) -> RpcServerStatus:
        limit_s = self._tools.settings.worker_ready_s
        spec = RpcServerSpec(
            generation=self.launch_id,
            host=self.wires.of(agent_id).host if self._direct else LOOPBACK,
            rdma=self.wires.of(agent_id).rdma.is_used,
            launch=str(self.launch_id),
            main_host=self._tools.main_host.name,
            devices=[s.ggml_device for s in self._plan.shards if s.agent_id == agent_id],
            ready_deadline_s=limit_s,
        )
        agent = self._registry.agent(agent_id)
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
        name, device = self._name[agent_id], self._registry.device(agent_id)
        expected = Triple.parse(engine.rpc_protocol) if engine.rpc_protocol else None
        result = await self._tools.probe(
            status.host, status.port, deadline_s=self._tools.settings.verify_s, expected=expected
        )
        _check_probe(name, f"{status.host}:{status.port}", result)
        build = _checked_build(device, engine)
        self._endpoints[agent_id] = f"{status.host}:{status.port}"
        # How many clients it had before llama-server, our probe included: tells later who was never
        # connected to.
        self.before[agent_id] = replace(
            status,
            clients_accepted=status.clients_accepted + 1,
            clients_closed=status.clients_closed + 1,
        )
        self._registry.took_round_trip(agent_id, round(result.round_trip_s * 1e3, 2))
        return WorkerRecord(
            agent_id=agent_id,
            device=name,
            host=status.host,
            port=status.port,
            wire=self.wires.of(agent_id).why,
            rdma=self.wires.of(agent_id).rdma.why,
            rpc_protocol=str(result.triple or ""),
            engine_build=build,
            round_trip_ms=round(result.round_trip_s * 1e3, 3),
            argv=tuple(status.argv),
            environment=status.environment,
        )

    def _linked(
        self, agent_id: AgentId, status: RpcServerStatus, link: LinkStats, engine: EngineFacts
    ) -> WorkerRecord:
        device = self._registry.device(agent_id)
        build = _checked_build(device, engine)
        if engine.rpc_protocol and link.rpc_protocol != engine.rpc_protocol:
            raise WorkerIncompatible(
                f"{device.name} speaks RPC {link.rpc_protocol}, the main host "
                f"{engine.rpc_protocol}; install the same llama.cpp build on both"
            )
        if link.note:
            self._registry.wire_failed(agent_id, way(device).far, link.note)
        self.before[agent_id] = status
        self._endpoints[agent_id] = f"{LOOPBACK}:{link.port}"
        round_trip_ms = (link.round_trip_s or 0.0) * 1e3
        if link.round_trip_s is not None:
            self._registry.took_round_trip(agent_id, round(round_trip_ms, 2))
        return WorkerRecord(
            agent_id=agent_id,
            device=device.name,
            host=LOOPBACK,
            port=link.port,
            link=link.where or device.link_endpoint,
            wire=f"{device.name}: {link.note}." if link.note else why(device),
            rdma=self.wires.of(agent_id).rdma.why,
            address=device.address if link.note else direct_host(device),
            rpc_protocol=link.rpc_protocol,
            engine_build=build,
            round_trip_ms=round(round_trip_ms, 3),
            argv=tuple(status.argv),
            environment=status.environment,
        )

    # -- while it serves ---------------------------------------------------------------------

    def raise_if_lost(self) -> None:
        """Look at the last heartbeats.

        Raises:
            WorkerLost: Names the device and what happened to it.
        """
        for agent_id in self._plan.agent_ids:
            self._raise_if_lost(agent_id)

    async def statuses_soon(self) -> dict[AgentId, RpcServerStatus]:
        """What each agent says now; of one that does not answer at once, its last heartbeat."""
        asked = await self.statuses_now(self.ids)
        either = ((a, asked.get(a) or self.last_word(a)[0]) for a in self.ids)
        return {agent_id: status for agent_id, status in either if status is not None}

    async def statuses_now(self, of: Iterable[AgentId]) -> dict[AgentId, RpcServerStatus]:
        """What some agents say now; those that do not answer at once are missing."""
        asked = tuple(of)
        found = await asyncio.gather(*(self._status_now(a) for a in asked))
        pairs = zip(asked, found, strict=True)
        return {agent_id: status for agent_id, status in pairs if status is not None}

    async def _status_now(self, agent_id: AgentId) -> RpcServerStatus | None:
        with contextlib.suppress(AgentUnreachable, AgentRefused, TimeoutError, DeviceUnknown):
            async with asyncio.timeout(_SOON_S):
                return self._ours(await self._registry.agent(agent_id).rpc_server())
        return None

    def last_word(self, agent_id: AgentId) -> tuple[RpcServerStatus | None, float]:
        """The last heartbeat's, and how long ago it came, in seconds."""
        try:
            device = self._registry.device(agent_id)
        except DeviceUnknown:
            return None, 0.0
        return self._ours(device.rpc_server), device.silent_s

    def _ours(self, status: RpcServerStatus | None) -> RpcServerStatus | None:
        return status if status and status.generation == self.launch_id else None

    def name(self, agent_id: AgentId) -> str:
        """Of its device."""
        return self._name.get(agent_id, agent_id)

    def _raise_if_lost(self, agent_id: AgentId) -> None:
        name = self._name[agent_id]
        try:
            device = self._registry.device(agent_id)
        except DeviceUnknown:
            raise WorkerLost(f"{name} was removed from the cluster while it served") from None
        if device.state == DeviceCondition.LOST and not self._may_be_unheard(device):
            raise WorkerLost(f"{name}: {device.reason}")
        status = device.rpc_server
        if status is None or status.generation < self.launch_id:
            return  # its last heartbeat is older than this launch
        if status.generation > self.launch_id:
            raise WorkerLost(f"{name} was taken over by launch {status.generation}")
        if status.state in (WorkerState.FAILED, WorkerState.STOPPED):
            why = status.detail or f"its rpc-server is {status.state}; was its agent restarted?"
            raise WorkerLost(f"{name}: {why}")

    def _may_be_unheard(self, device: Device) -> bool:
        """After our own restart every device is given the time in which it would be lost."""
        waited_s = time.monotonic() - self._since_s
        return device.facts is None and waited_s < self._tools.settings.stale_after_s

    # -- the end -----------------------------------------------------------------------------

    async def stop(self, *, is_hurried: bool = False) -> None:
        """End every worker that was started. One out of reach ends itself with its lease."""
        limit_s = _HURRY_S if is_hurried else _STOP_S
        await asyncio.gather(*(self._stop(agent_id, limit_s) for agent_id in self._started))

    async def _stop(self, agent_id: AgentId, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._registry.agent(agent_id).stop_rpc_server(self.launch_id)
        except (AgentUnreachable, AgentRefused, DeviceUnknown, TimeoutError) as exc:
            reason = str(exc) or f"no answer within {limit_s:g} s"
            extra = {"device": self._name[agent_id], "reason": reason}
            log.warning("worker.not_stopped", extra=extra)

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


def _checked_build(device: Device, engine: EngineFacts) -> str:
    build = device.facts.engine.build if device.facts and device.facts.engine else ""
    if not is_same_build(build, engine.build):
        raise WorkerIncompatible(
            f"{device.name} runs llama.cpp {build}, the main host {engine.build}; mixed builds "
            "give wrong results without a word: install the same build on both"
        )
    return build


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
