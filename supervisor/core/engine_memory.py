"""What llama.cpp itself says that a placement needs."""

from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class EngineUse:
    """One device, or the main host: weights, KV cache and state, compute buffers."""

    name: str
    model_bytes: int
    context_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        """An upper bound: each figure was rounded down to a MiB."""
        parts = (self.model_bytes, self.context_bytes, self.compute_bytes)
        return sum(part + MIB for part in parts)


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """The devices in the order of the workers, and the main host."""

    devices: tuple[EngineUse, ...]
    host: EngineUse
