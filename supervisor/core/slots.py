"""Slots of llama-server as ``GET /slots`` shows them: what of its work can be counted."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SlotState:
    """One parallel sequence. The prompt itself and its answer are never kept.

    ``task`` is -1 before the first one. How long a prompt is nobody tells: ``prompt_tokens`` have
    been taken up by now and were not in the cache, in steps of a batch; of them
    ``prompt_done_tokens`` are handed to the devices, which may still compute. Both are 0 for
    older engines, which do not tell.
    """

    id: int
    task: int
    is_busy: bool
    decoded_tokens: int = 0
    prompt_tokens: int = 0
    prompt_done_tokens: int = 0

    @property
    def reads_prompt(self) -> bool:
        """Busy, and no token came yet."""
        return self.is_busy and self.decoded_tokens == 0

    @property
    def counted(self) -> int:
        """Grows with everything that its request gets."""
        return self.decoded_tokens + self.prompt_done_tokens


def busy(slots: Sequence[SlotState] | None) -> list[SlotState]:
    """Those with a request."""
    return [slot for slot in slots or () if slot.is_busy]
