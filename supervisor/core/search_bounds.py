"""What devices cost at least: lines below their costs, filled the lowest first."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from math import inf
from operator import sub
from typing import NamedTuple

from supervisor.core.search_tables import Option, Problem
from supervisor.core.search_values import bits

SLACK = 1 + 1e-9
FIRST, SECOND, MEAN = range(3)
"""The two sums that stand in for a cost, and their mean."""

Segment = tuple[float, float]
"""Cost per unit of layers, and for how many units."""


class Floor(NamedTuple):
    """The least that runs of layers cost: ``fixed``, and then the segments, the lowest first."""

    fixed: float
    segments: tuple[Segment, ...]

    @property
    def capacity(self) -> float:
        return sum(units for _, units in self.segments)


class _Slopes(NamedTuple):
    """What layers on a device cost at least: each of them, and many of them less a dip."""

    least: float
    average: float
    dip: float

    def segments(self, held: float, begun: float = 0.0) -> tuple[Segment, ...]:
        """Both lines together, from what is there already up to what the device holds."""
        rise = self.average - self.least
        if self.dip >= rise * held:
            return ((self.least, max(0.0, held * SLACK - begun)),)
        first = self.dip / rise
        return (self.least, max(0.0, first - begun)), (self.average, (held - first) * SLACK)


class Sums:
    """The costs of runs of layers as three sums see them, which differ in counting prefill."""

    def __init__(self, problem: Problem) -> None:
        options = problem.options
        one, all_, mean = 1.0, float(problem.ubatches), (1 + problem.ubatches) / 2
        self.weights = one, all_, mean
        self.last_weights = all_, one, mean
        self.costs = [
            [[w + weight * p for w, p in zip(o.work, o.prefill, strict=True)] for o in options]
            for weight in self.weights
        ]
        self.units = _units(self.costs[MEAN], problem.n_layers)
        self.smallest = min(map(sub, self.units[1:], self.units))
        self.held = [self._most_held(option) for option in options]
        self.slopes = [[self._slopes(cost) for cost in costs] for costs in self.costs]

    def _most_held(self, option: Option) -> float:
        """Units of the longest run that fits."""
        return max(end - self.units[a] for end, a in zip(self.units, option.starts, strict=True))

    def _slopes(self, costs: list[float]) -> _Slopes:
        units = self.units
        average = costs[-1] / units[-1]
        above = [cost - average * before for cost, before in zip(costs, units, strict=True)]
        dip = -min(map(sub, above[1:], accumulate(above, max)))
        return _Slopes(min(average, _least_slope(costs, units)), average, max(0.0, dip))


class Bounds:
    """Lower bounds for the sums of ``ExactSearch``.

    All layers are measured in one unit, and each device's costs are replaced by a convex line
    below them. Then filling the lowest segments first is optimal, and what that costs is a bound.
    """

    def __init__(self, problem: Problem, sums: Sums) -> None:
        self.problem, self.sums, self.units = problem, sums, sums.units
        # The sum that counts a middle stage often counts the last one once, and the reverse.
        self.middle = [self._middle(number) for number in (FIRST, SECOND, MEAN)]
        self.last = [self._last(number) for number in (SECOND, FIRST, MEAN)]
        self.host = self._host()
        self.need = self.units[-1] - self.units[problem.host_blocks.start]
        self._floors: dict[tuple[int, int, int], tuple[float, list[Segment]]] = {}

    def orders(self, allowed: int) -> list[tuple[int, ...]]:
        """Orders of devices whose beginnings are likely to be good sets."""
        floors, slopes = self.middle[MEAN], self.sums.slopes[MEAN]
        held = [floor.capacity for floor in floors]
        rates = (
            slope.average + floor.fixed / units if units else inf
            for slope, floor, units in zip(slopes, floors, held, strict=True)
        )
        keys = (
            list(rates),
            [slope.average for slope in slopes],
            [-units for units in held],
        )
        orders = [tuple(sorted(bits(allowed), key=key.__getitem__)) for key in keys]
        return list(dict.fromkeys(orders))

    def needs(self, first: int, end: int) -> list[float]:
        """Units of the layers that are left, with ``end`` down to ``first`` of them placed."""
        total = self.units[-1]
        return [total - placed for placed in self.units[first : end + 1]][::-1]

    def remaining(self, number: int, rest: int, last: int, needs: Sequence[float]) -> list[float]:
        """The least that all of ``rest``, with ``last`` as the last, cost for rising needs."""
        key = number, rest, last
        if key not in self._floors:
            floors = [self.middle[number][device] for device in bits(rest & ~(1 << last))]
            floors.append(self.last[number][last])
            segments = sorted(segment for floor in floors for segment in floor.segments)
            self._floors[key] = sum(floor.fixed for floor in floors), segments
        fixed, segments = self._floors[key]
        begun = self.sums.smallest * (rest.bit_count() - 1)
        return _fill(fixed, segments, needs, begun)

    def _middle(self, number: int) -> list[Floor]:
        """By device; the smallest layer, without which none takes part, is in ``fixed``."""
        sums, weight, smallest = self.sums, self.sums.weights[number], self.sums.smallest
        floors: list[Floor] = []
        devices = zip(self.problem.options, sums.slopes[number], sums.held, strict=True)
        for option, slopes, held in devices:
            fixed = option.work_fixed + weight * option.prefill_fixed + slopes.least * smallest
            floors.append(Floor(fixed, slopes.segments(held, smallest)))
        return floors

    def _last(self, number: int) -> list[Floor]:
        units, weight = self.units, self.sums.weights[number]
        floors: list[Floor] = []
        for option, slopes in zip(self.problem.options, self.sums.slopes[number], strict=True):
            held = units[-1] - units[min(option.last_start, len(units) - 1)]
            fixed = option.last_work_fixed + weight * option.last_prefill_fixed
            floors.append(Floor(fixed, slopes.segments(held)))
        return floors

    def _host(self) -> Floor:
        """The main host's own block, beyond the layers that it holds in any case."""
        problem, weight, blocks = self.problem, self.sums.weights[MEAN], self.problem.host_blocks
        held = slice(blocks.start, blocks.stop)
        pairs = zip(problem.host_work[held], problem.host_prefill[held], strict=True)
        costs = [work + weight * prefill for work, prefill in pairs]
        units = self.units[held]
        return Floor(costs[0], ((_least_slope(costs, units), (units[-1] - units[0]) * SLACK),))


def _least_slope(costs: Sequence[float], units: Sequence[float]) -> float:
    steps = zip(map(sub, costs[1:], costs), map(sub, units[1:], units), strict=False)
    return min((cost / step for cost, step in steps if step > 0), default=0.0)


def _units(costs: Sequence[list[float]], n_layers: int) -> list[float]:
    """How large the layers before each index are, as the devices' times see it."""
    shares = ([before / (cost[-1] or 1.0) for before in cost] for cost in costs)
    units = [sum(share) for share in zip(*shares, strict=True)]
    return units if any(units) else [float(index) for index in range(n_layers + 1)]


def _fill(
    fixed: float, segments: Iterable[Segment], needs: Sequence[float], begun: float
) -> list[float]:
    """Cost of filling the lowest segments first, for each of the rising needs."""
    costs: list[float] = []
    remaining = iter(segments)
    slope, units = next(remaining)
    end = begun + units
    for need in needs:
        while need > end:
            fixed += slope * (end - begun)
            following = next(remaining, None)
            if following is None:
                return costs + [inf] * (len(needs) - len(costs))
            begun = end
            slope, end = following[0], end + following[1]
        costs.append(fixed + slope * (need - begun))
    return costs
