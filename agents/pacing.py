"""Keeps what is sent within a rate, without bursts after a rest."""

import time
from collections.abc import Callable
from typing import Final

_MOST_SAVED_S: Final = 0.25
"""What a rest may be made up for; a limit is one also for who sends now and then."""


class Pace:
    """A rate in bytes per second, shared by all that ask; 0: no limit."""

    def __init__(
        self, bytes_per_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_s = clock()

    def wait_s(self, size_bytes: int) -> float:
        """How many seconds to wait before ``size_bytes`` may go; they count as gone then."""
        if self.bytes_per_s <= 0:
            return 0.0
        now_s = self._clock()
        start_s = max(self._free_s, now_s - _MOST_SAVED_S)
        self._free_s = start_s + size_bytes / self.bytes_per_s
        return max(start_s - now_s, 0.0)
