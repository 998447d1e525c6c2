"""What the link process of a launch is told: who its workers are, and what it may use."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from agents.chunks import SMALLEST_TENSOR_BYTES
from agents.contract import EngineFacts
from agents.errors import LinkRefused
from supervisor.core.entities import AgentId, Device, LaunchId, LinkView, Plan
from supervisor.core.link_view import link_view
from supervisor.core.seeding import FileTensor, tensors_by_agent
from supervisor.core.wires import control_way, way
from supervisor.link.alloc_sizes import file_name
from supervisor.link.job import LinkJob, LinkStats, PlannedTensor, WorkerJob
from supervisor.service.tools import Tools


async def shares(
    tools: Tools, plan: Plan, *, whole: bool = False
) -> dict[AgentId, tuple[FileTensor, ...]]:
    """What each worker of a plan is to hold: its part, or the whole model."""
    model = await asyncio.to_thread(tools.read_model, plan.model.path)
    if not whole:
        return await asyncio.to_thread(tensors_by_agent, plan, model.tensors)
    agents = list(dict.fromkeys(plan.agent_ids))
    return {a: _turned(model.tensors, i / len(agents)) for i, a in enumerate(agents)}


def _turned(tensors: Sequence[FileTensor], part: float) -> tuple[FileTensor, ...]:
    """The large ones, beginning elsewhere for each device, so that they can help each other."""
    large = [tensor for tensor in tensors if tensor.size_bytes >= SMALLEST_TENSOR_BYTES]
    start_bytes, before_bytes = part * sum(t.size_bytes for t in large), 0
    for index, tensor in enumerate(large):
        if before_bytes >= start_bytes:
            return (*large[index:], *large[:index])
        before_bytes += tensor.size_bytes
    return tuple(large)


def push_job(tools: Tools, tensors: Mapping[AgentId, Sequence[FileTensor]]) -> LinkJob:
    """The links that fill the stores of devices, for no launch."""
    workers = [_pushed(tools, agent_id, tensors[agent_id]) for agent_id in tensors]
    limit_bytes_per_s = round(tools.settings.spread_limit_mib_s * (1 << 20))
    return replace(_job(tools, LaunchId(0), workers), limit_bytes_per_s=limit_bytes_per_s)


def question_job(tools: Tools, device: Device) -> LinkJob:
    """One link on which nothing is sent: only to ask what a device holds."""
    return _job(tools, LaunchId(0), [_over_its_wire(tools, device)])


def _reachable(tools: Tools, agent_id: AgentId) -> Device:
    """A device whose agent has a far end.

    Raises:
        LinkRefused: It is of an older version.
    """
    device = tools.registry.device(agent_id)
    if not device.link_port:
        raise LinkRefused(
            f"the agent of {device.name} offers no link; update it, or launch with "
            "--transport direct"
        )
    return device


def _pushed(tools: Tools, agent_id: AgentId, tensors: Sequence[FileTensor]) -> WorkerJob:
    device = _reachable(tools, agent_id)
    return replace(_over_its_wire(tools, device), tensors=_planned(tensors))


def _over_its_wire(tools: Tools, device: Device) -> WorkerJob:
    """The worker over the wire that carries its tensors, and over the steady one if that fails."""
    chosen, steady = way(device), control_way(device)
    job = WorkerJob(
        agent_id=device.id,
        name=device.name,
        address=chosen.far,
        link_port=chosen.port,
        serial=tools.registry.serial(device.id),
    )
    if chosen == steady:
        return job
    return replace(job, near=chosen.near, steady_address=steady.far, steady_port=steady.port)


def _machine(device: Device) -> str:
    facts = device.facts
    return f"{facts.platform} {facts.machine}" if facts else device.id


def _described(device: Device, name: str) -> str:
    known = device.facts.ggml_devices if device.facts else []
    return next((f"{name} {each.description}" for each in known if each.name == name), name)


def _planned(tensors: Sequence[FileTensor]) -> list[PlannedTensor]:
    return [PlannedTensor(str(t.file), t.offset_bytes, t.size_bytes) for t in tensors]


class LinkViews:
    """The links of a launch over time."""

    def __init__(self, plan: Plan) -> None:
        self._names: dict[AgentId, str] = {}
        self._planned: dict[AgentId, int] = {}
        for shard in plan.shards:
            self._names[shard.agent_id] = shard.device
            before_bytes = self._planned.get(shard.agent_id, 0)
            self._planned[shard.agent_id] = before_bytes + shard.weight_bytes
        self._seen: dict[AgentId, LinkView] = {}
        self._at_s = time.monotonic()

    def look(self, stats: Mapping[AgentId, LinkStats]) -> tuple[LinkView, ...]:
        """All of them now, in the order of ``--rpc``."""
        now_s = time.monotonic()
        elapsed_s, self._at_s = now_s - self._at_s, now_s
        self._seen = {
            a: link_view(name, self._planned[a], stats[a], self._seen.get(a), elapsed_s)
            for a, name in self._names.items()
            if a in stats
        }
        return tuple(self._seen.values())


async def launch_job(tools: Tools, plan: Plan, launch_id: LaunchId, engine: EngineFacts) -> LinkJob:
    """The links of one launch, and what can be sent ahead on each."""
    # Read while planning, and kept since.
    model = await asyncio.to_thread(tools.read_model, plan.model.path)
    tensors = await asyncio.to_thread(tensors_by_agent, plan, model.tensors)
    workers = [_worker(tools, plan, a, engine, tensors.get(a, ())) for a in plan.agent_ids]
    return _job(tools, launch_id, workers)


def measuring_job(tools: Tools, device: Device, launch_id: LaunchId) -> LinkJob:
    """One link on which everything travels as it is, and nothing is kept at either end."""
    worker = replace(_over_its_wire(tools, device), stores=False)
    return _job(tools, launch_id, [worker])


def _job(tools: Tools, launch_id: LaunchId, workers: list[WorkerJob]) -> LinkJob:
    settings, host = tools.settings, tools.main_host
    return LinkJob(
        launch=launch_id,
        main_host=host.name,
        silence_s=settings.link_silence_s,
        connect_s=settings.worker_ready_s,
        window_bytes=settings.link_window_mib << 20,
        certificate=str(tools.identity.certificate),
        key=str(tools.identity.key),
        authority=str(tools.identity.authority),
        folder=str(host.folder / "link"),
        workers=workers,
    )


def _worker(
    tools: Tools,
    plan: Plan,
    agent_id: AgentId,
    engine: EngineFacts,
    tensors: Sequence[FileTensor],
) -> WorkerJob:
    device = _reachable(tools, agent_id)
    shards = [shard for shard in plan.shards if shard.agent_id == agent_id]
    answers = file_name(
        _machine(device),
        engine.build,
        engine.rpc_protocol,
        [_described(device, shard.ggml_device) for shard in shards],
    )
    return replace(
        _over_its_wire(tools, device),
        answers_file=str(tools.main_host.folder / "link" / "answers" / answers),
        tensors=_planned(tensors),
    )
