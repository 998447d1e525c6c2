"""Predicted and measured memory of the processes of a launch, side by side."""

from collections.abc import Sequence
from typing import Final

from agents.contract import GgmlDevice, RpcServerStatus
from supervisor.core.entities import AgentId, MemorySample, Plan, ProcessMemory, Shard
from supervisor.core.workspace import LLAMA_SERVER_BYTES, RPC_SERVER_BYTES

LLAMA_SERVER: Final = "llama-server"


def worker_memory(plan: Plan, agent_id: AgentId) -> ProcessMemory:
    """The prediction for one rpc-server: all of an agent's shards are in the same process."""
    shards = [shard for shard in plan.shards if shard.agent_id == agent_id]
    needs = sum(shard.peak_bytes for shard in shards)
    return ProcessMemory(
        process=shards[0].device,
        predicted_bytes=needs + RPC_SERVER_BYTES if needs else 0,
        budget_bytes=sum(shard.budget_bytes for shard in shards),
        has_gpu=any(not _is_cpu(shard) for shard in shards),
    )


def _is_cpu(shard: Shard) -> bool:
    return GgmlDevice(shard.ggml_device).is_cpu


def host_memory(plan: Plan) -> ProcessMemory:
    """The prediction for llama-server; its weights are mapped, so they are pages of a file."""
    needs = plan.host.peak_bytes
    return ProcessMemory(
        process=LLAMA_SERVER,
        predicted_bytes=needs + LLAMA_SERVER_BYTES if needs else 0,
        budget_bytes=plan.host.budget_bytes,
    )


def worker_sample(status: RpcServerStatus) -> MemorySample | None:
    """What an agent says of its rpc-server, or nothing if that does not run."""
    if status.resident_bytes is None and status.peak_bytes is None:
        return None
    return MemorySample(resident_bytes=status.resident_bytes, peak_bytes=status.peak_bytes)


def greatest(one: MemorySample | None, other: MemorySample | None) -> MemorySample | None:
    """The most of each figure."""
    if one is None or other is None:
        return one or other
    return MemorySample(
        resident_bytes=_most([one.resident_bytes, other.resident_bytes]),
        peak_bytes=_most([one.peak_bytes, other.peak_bytes]),
        file_bytes=_most([one.file_bytes, other.file_bytes]),
    )


def summed_up(memory: ProcessMemory) -> ProcessMemory:
    """With the most that the process was seen to use and could not give back.

    Where pages of files are told apart, the peak is of no use: it counts them. Without, it is the
    best there is, since it misses nothing between two looks.
    """
    samples = [s for s in (memory.loading, memory.ready, memory.ended) if s is not None]
    figures = [sample.resident_bytes for sample in samples]
    figures += [sample.peak_bytes for sample in samples if sample.file_bytes is None]
    return memory.model_copy(update={"measured_bytes": _most(figures)})


def _most(figures: Sequence[int | None]) -> int | None:
    return max((figure for figure in figures if figure is not None), default=None)
