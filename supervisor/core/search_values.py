"""What the exact search passes around, and its small steps."""

from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from typing import Generic, TypeVar

from supervisor.core.speed import Output

L = TypeVar("L")
Totals = list[list[float]]
"""By layers placed, the least of each of the sums that stand in for a cost."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A placement: device numbers in order, each with its first layer. Scores are compared."""

    score: float
    cost: float
    host_layers: int
    runs: tuple[tuple[int, int], ...]
    output: Output


@dataclass(slots=True)
class Best(Generic[L]):
    """The best placement over several searches, and the best of each other set of devices seen."""

    steps_left: int
    score: float = inf
    is_proven: bool = True
    seen: dict[tuple[object, ...], tuple[Solution, L]] = field(default_factory=dict)

    def add(self, solution: Solution, label: L) -> None:
        self.score = min(self.score, solution.score)
        devices = frozenset(device for device, _ in solution.runs)
        last = solution.runs[-1][0] if solution.runs else None
        key = devices, last, solution.output
        if key not in self.seen or solution.score < self.seen[key][0].score:
            self.seen[key] = solution, label

    def ranked(self) -> list[tuple[Solution, L]]:
        return sorted(self.seen.values(), key=lambda item: item[0].score)


def bits(devices: int) -> list[int]:
    """The numbers of the devices of a set."""
    return [device for device in range(devices.bit_length()) if devices >> device & 1]


def finite_range(costs: list[float]) -> tuple[int, int] | None:
    finite = [i for i, cost in enumerate(costs) if cost < inf]
    return (finite[0], finite[-1]) if finite else None


def window_minima(values: list[float], starts: list[int], start: int) -> list[float]:
    """The least of ``values[starts[i] - start : i + 1]`` for each ``i``; ``starts`` only rise."""
    if starts[-1] <= start:
        least = list(accumulate(values, min))
        return (least + [least[-1]] * (len(starts) - len(least)))[: len(starts)]
    ends = [*range(len(values)), *[len(values) - 1] * (len(starts) - len(values))][: len(starts)]
    windows = zip(starts, ends, strict=True)
    ordered = sorted(values)
    if ordered[::-1] == values:  # the least is the last of each window
        return [values[end] if first <= start + end else inf for first, end in windows]
    if ordered == values:
        return [
            values[max(first - start, 0)] if first <= start + end else inf for first, end in windows
        ]
    return _window_minima(values, starts, start)


def _window_minima(values: list[float], starts: list[int], start: int) -> list[float]:
    minima: list[float] = []
    window: deque[tuple[int, float]] = deque()
    for i, first in enumerate(starts):
        if i < len(values):
            value = values[i]
            while window and window[-1][1] >= value:
                window.pop()
            window.append((start + i, value))
        while window and window[0][0] < first:
            window.popleft()
        minima.append(window[0][1] if window else inf)
    return minima
