"""How much of a model a device holds."""

from collections.abc import Collection, Iterable

from pydantic import Field

from agents.chunks import ChunkName
from supervisor.core.entities import ByteCount, FrozenModel


class HoldingView(FrozenModel):
    """One device and one model, in bytes of weights that are kept by name (64 KiB and more)."""

    device: str
    is_known: bool = Field(default=True, description="false: it did not answer")
    held_bytes: ByteCount = Field(default=0, description="of the whole model")
    total_bytes: ByteCount = Field(default=0, description="the whole model")
    needed_bytes: ByteCount = Field(default=0, description="what a launch now would give it")
    needed_held_bytes: ByteCount = Field(default=0, description="of that, what it holds")
    plan_problem: str = Field(default="", description="why a launch now would give it nothing")


def bytes_of(
    chunks: Iterable[tuple[ChunkName, int]], names: Collection[ChunkName] | None = None
) -> int:
    """Size of ``chunks``, or of those among them that are in ``names``."""
    return sum(size for name, size in chunks if names is None or name in names)
