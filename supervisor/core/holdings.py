"""How much of a model a device holds."""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from pydantic import Field

from agents.chunks import ChunkName
from supervisor.core.entities import (
    AgentId,
    ByteCount,
    Deployment,
    DeploymentId,
    FrozenModel,
    Plan,
)
from supervisor.core.lifecycle import State

_PLACED: Final = (State.STARTING, State.READY, State.DEGRADED)
"""Its plan is where its weights are, or are going."""


class HoldingView(FrozenModel):
    """One device and one model, in bytes of weights that are kept by name (64 KiB and more)."""

    device: str
    is_known: bool = Field(default=True, description="false: it did not answer")
    held_bytes: ByteCount = Field(default=0, description="of the whole model")
    total_bytes: ByteCount = Field(default=0, description="the whole model")
    needed_bytes: ByteCount = Field(
        default=0, description="what its deployment, or a launch now, gives it"
    )
    needed_held_bytes: ByteCount = Field(default=0, description="of that, what it holds")
    plan_problem: str = Field(default="", description="why a launch now would give it nothing")


def plan_in_use(deployments: Iterable[Deployment]) -> Plan | None:
    """The plan of the first of these that runs now; None: none does."""
    plans = (each.plan for each in deployments if each.state in _PLACED)
    return next((plan for plan in plans if plan is not None), None)


def loading_on(deployments: Sequence[Deployment], path: str) -> dict[AgentId, DeploymentId]:
    """Devices that a launch of a model is sending its weights to now, and whose launch it is."""
    loading = [each for each in deployments if each.state is State.STARTING and each.plan]
    return {
        agent_id: each.id
        for each in loading
        if each.plan is not None and each.plan.model.path == path
        for agent_id in each.plan.agent_ids
    }


def bytes_of(
    chunks: Iterable[tuple[ChunkName, int]], names: Collection[ChunkName] | None = None
) -> int:
    """Size of ``chunks``, or of those among them that are in ``names``."""
    return sum(size for name, size in chunks if names is None or name in names)
