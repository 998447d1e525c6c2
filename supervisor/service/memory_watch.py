"""Notes what the processes of a launch use: while loading, when ready, and at the end.

The agents' statuses are handed in by whoever asks them anyway; nothing here polls.
"""

from collections.abc import Callable, Mapping

from agents import facts
from agents.contract import RpcServerStatus
from supervisor.core.entities import AgentId, MemorySample, Plan, ProcessMemory
from supervisor.core.process_memory import (
    greatest,
    host_memory,
    summed_up,
    worker_memory,
    worker_sample,
)

Statuses = Mapping[AgentId, RpcServerStatus]
Moment = str
"""``ready`` or ``ended``: a field of ``ProcessMemory``."""


def own_memory(pid: int) -> MemorySample | None:
    """Memory of a process of this host; pages of files apart, where the system tells."""
    resident, mapped = facts.resident_bytes(pid), facts.file_bytes(pid)
    if resident is None:
        return None
    return MemorySample(
        resident_bytes=max(resident - (mapped or 0), 0),
        peak_bytes=facts.peak_resident_bytes(pid),
        file_bytes=mapped,
    )


class MemoryWatch:
    """The memory part of one launch's record."""

    def __init__(self, plan: Plan, read_own: Callable[[], MemorySample | None]) -> None:
        self._read_own = read_own
        self._own = host_memory(plan)
        self._workers = {a: worker_memory(plan, a) for a in plan.agent_ids}

    def record(self) -> tuple[ProcessMemory, ...]:
        """Every process: the workers in the order of the plan, llama-server last."""
        return tuple(summed_up(memory) for memory in (*self._workers.values(), self._own))

    def while_loading(self, statuses: Statuses) -> None:
        """Keep the most that was seen of each figure."""
        own = greatest(self._own.loading, self._read_own())
        self._own = self._own.model_copy(update={"loading": own})
        for agent_id, status in statuses.items():
            memory = self._workers[agent_id]
            seen = greatest(memory.loading, worker_sample(status))
            self._workers[agent_id] = memory.model_copy(update={"loading": seen})

    def when_ready(self, statuses: Statuses) -> None:
        self._note("ready", statuses)

    def at_the_end(self, statuses: Statuses) -> None:
        """Before anything is stopped; a process that has ended already has no sample."""
        self._note("ended", statuses)

    def _note(self, moment: Moment, statuses: Statuses) -> None:
        self._own = self._own.model_copy(update={moment: self._read_own()})
        for agent_id, status in statuses.items():
            sample = worker_sample(status)
            memory = self._workers[agent_id]
            self._workers[agent_id] = memory.model_copy(update={moment: sample})
