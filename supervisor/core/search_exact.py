"""The exact search: which devices, in which order, with how many layers each.

A placement costs ``work + others + last + (ubatches - 1) * max(others, last)``: ``work`` is a sum
over the layers (decoding, loading), ``others`` and ``last`` are its prefill stages. The maximum
makes it no plain sum, but replacing it by either of its arguments gives two sums that never exceed
the cost. Each is minimised by dynamic programming over (set of devices, layers placed); what the
larger of the two cannot exclude is then followed back and computed exactly. Sets are pruned by
what the remaining layers must cost at least, against the best placement so far.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import inf
from operator import add, sub
from typing import Generic

from supervisor.core.search_bounds import Bounds
from supervisor.core.search_tables import Problem
from supervisor.core.search_values import (
    Best,
    L,
    Pair,
    Solution,
    beginnings,
    finite_range,
    first_finite,
    subsets,
    weighted,
    window_minima,
)
from supervisor.core.speed import Output

ENOUGH = 1 - 1e-9
"""A smaller gain is rounding."""

FOCUS_DEVICES = 9
"""Up to here, all sets of devices take little time."""


@dataclass(frozen=True, slots=True)
class _Tail:
    """The end of a placement, from the last device back; ``work`` and ``others`` are its costs."""

    work: float
    others: float
    last: float
    factor: float
    runs: tuple[tuple[int, int], ...]
    output: Output


class ExactSearch(Generic[L]):
    """One search over one ``Problem``; ``label`` comes back with its solutions."""

    def __init__(self, problem: Problem, best: Best[L], label: L) -> None:
        self.problem, self.best, self.label = problem, best, label
        self.options, self.n = problem.options, problem.n_layers
        self.scale = float(problem.ubatches)
        # How often each sum counts a stage: of a middle device, of the last one.
        middle, last = (1.0, self.scale), (self.scale, 1.0)
        self.weights = tuple(zip(middle, last, strict=True))
        self.everyone = (1 << len(self.options)) - 1
        self.prefixes = [weighted(o.work, o.prefill, middle) for o in self.options]
        self.tails = [weighted(o.last_work, o.last_prefill, last) for o in self.options]
        self.last_starts = [first_finite(option.last_work) for option in self.options]
        self.twins = [self._twin(i) for i in range(len(self.options))]
        self.reached: dict[int, Pair] = {}
        self.promise = inf
        self.allowed = self.everyone

    def glance(self) -> None:
        """Add good placements to ``best`` quickly: it makes the real search much shorter."""
        problem = self.problem
        if problem.host_alone < inf and not problem.required:
            alone = problem.host_alone
            self.best.add(Solution(alone, alone, self.n, (), Output.HOST), self.label)
        if problem.host_work and self.options and not problem.sequence:
            for order in self.bounds.promising_orders():
                self._search(beginnings(order), order, None)
                if len(self.options) <= FOCUS_DEVICES and self.best.score < inf:
                    return

    def run(self) -> None:
        """Add the best placement to ``best``, unless another there is better."""
        problem = self.problem
        if not problem.host_work or not self.options:
            return
        if problem.sequence:
            self._search(beginnings(problem.sequence), problem.sequence, self.bounds)
            return
        if len(self.options) > FOCUS_DEVICES:
            self.allowed = self._focus()
            self._search(subsets(self.allowed), (), self.bounds)
            self.allowed = self.everyone
        self._search(subsets(self.everyone), (), self.bounds)

    def _focus(self) -> int:
        """The most promising devices: all combinations of these are looked at first."""
        chosen = self.problem.required
        for device in self.bounds.promising_orders()[0]:
            if chosen.bit_count() < FOCUS_DEVICES:
                chosen |= 1 << device
        return chosen

    @cached_property
    def bounds(self) -> Bounds:
        (low, high), _ = self.weights
        middle = (low + high) / 2
        weights = (*self.weights, (middle, middle))
        return Bounds(self.options, weights, self.problem.kind_of, self.problem.required)

    def _twin(self, index: int) -> int:
        """The bit of an equal device with a lower number, which is to be used first."""
        if self.problem.sequence:
            return 0
        required = self.problem.required
        for other in range(index - 1, -1, -1):
            same = (required >> other & 1) == (required >> index & 1)
            if same and self.options[other] == self.options[index]:
                return 1 << other
        return 0

    def _search(self, masks: Iterable[int], order: tuple[int, ...], bounds: Bounds | None) -> None:
        """Go through sets of devices, each after all of its subsets."""
        reached = self.reached = {0: self._start()}
        for mask in masks:
            pair = reached.get(mask)
            if pair is None:
                continue
            alive = finite_range(pair[0])
            if bounds is not None and alive:
                alive = self._prune(mask, pair, bounds, alive)
            if not alive:
                del reached[mask]
                continue
            self._finish(mask, pair, alive)
            for device in self._followers(mask, order):
                self._extend(mask, pair, device, alive)
            if self.best.steps_left <= 0:
                self.best.is_proven = False
                return

    def _start(self) -> Pair:
        """The main host's own block: any number of first layers that it can hold."""
        problem = self.problem
        rest = [inf] * (self.n + 1 - len(problem.host_work))
        counts = (1.0, self.scale)
        first, second = (
            sums + rest for sums in weighted(problem.host_work, problem.host_prefill, counts)
        )
        for cut in problem.cuts:
            first[cut] = second[cut] = inf
        return first, second

    def _followers(self, mask: int, order: tuple[int, ...]) -> Iterable[int]:
        if order:
            return order[mask.bit_count() : mask.bit_count() + 1]
        return self._free(mask)

    def _free(self, mask: int) -> list[int]:
        return [
            device
            for device, twin in enumerate(self.twins)
            if (self.allowed & ~mask) >> device & 1 and mask & twin == twin
        ]

    def _prune(
        self, mask: int, pair: Pair, bounds: Bounds, alive: tuple[int, int]
    ) -> tuple[int, int] | None:
        """Drop the states of a set that no placement better than the best goes through."""
        limit = self.best.score * ENOUGH / self.problem.factor(mask)
        first, second = pair
        both = [(one + other) / 2 for one, other in zip(first, second, strict=True)]
        start, end = alive
        for number, costs in ((2, both), (1, second), (0, first)):
            least = bounds.remaining(number, mask, start, end)
            kept = [
                placed
                for placed, rest in zip(range(end, start - 1, -1), least, strict=True)
                if costs[placed] + rest < limit
            ]
            if not kept:
                return None
            start, end = kept[-1], kept[0]
        first[:start] = second[:start] = [inf] * start
        return start, end

    def _extend(self, mask: int, pair: Pair, device: int, alive: tuple[int, int]) -> None:
        """Give the next layers to a device that is not the last one."""
        option = self.options[device]
        start = alive[0]
        end = min(self.n, bisect_right(option.starts, alive[1]) - 1)
        if end <= start:
            return
        self.best.steps_left -= 1
        target = self.reached.get(mask | 1 << device)
        if target is None:
            target = [inf] * (self.n + 1), [inf] * (self.n + 1)
            self.reached[mask | 1 << device] = target
        before, ends = slice(start, alive[1] + 1), slice(start + 1, end + 1)
        starts = option.starts[start + 1 : end + 1]
        for costs, prefix, weight, into in zip(
            pair, self.prefixes[device], self.weights, target, strict=True
        ):
            fixed = option.work_fixed + weight[0] * option.prefill_fixed
            values = list(map(sub, costs[before], prefix[before]))
            least = window_minima(values, starts, start)
            sums = [fixed + p + value for p, value in zip(prefix[ends], least, strict=True)]
            into[ends] = map(min, into[ends], sums)
        for cut in self.problem.cuts:
            target[0][cut] = target[1][cut] = inf

    def _finish(self, mask: int, pair: Pair, alive: tuple[int, int]) -> None:
        """Let each other device be the last one, and follow what could be the best back."""
        missing = self.problem.required & ~mask
        for device in self._free(mask):
            if missing & ~(1 << device):
                continue
            states = slice(max(alive[0], self.last_starts[device]), alive[1] + 1)
            tails = self.tails[device]
            sums = (map(add, p[states], tail[states]) for p, tail in zip(pair, tails, strict=True))
            least = list(map(max, *sums))
            factor = self.problem.factor(mask | 1 << device)
            if min(least, default=inf) * factor >= self.best.score * ENOUGH:
                continue
            for index in sorted(range(len(least)), key=least.__getitem__):
                if least[index] * factor >= self.best.score * ENOUGH:
                    break
                first = states.start + index
                self._follow(mask, first, self._tail(device, first, factor))

    def _tail(self, device: int, first: int, factor: float) -> _Tail:
        option = self.options[device]
        return _Tail(
            work=option.last_work[first],
            others=0.0,
            last=option.last_prefill[first],
            factor=factor,
            runs=((device, first),),
            output=option.outputs[first],
        )

    def _follow(self, mask: int, placed: int, tail: _Tail) -> None:
        """Find the best beginnings for a tail, cheapest first."""
        if mask == 0:
            self._found(placed, tail)
            return
        self.best.steps_left -= 1
        if self.best.steps_left <= 0:
            self.best.is_proven = False
            return
        branches = sorted(self._branches(mask, placed, tail), key=lambda branch: branch[0])
        for least, device, first in branches:
            if least * tail.factor >= self.best.score * ENOUGH:
                return
            self._follow(mask & ~(1 << device), first, self._longer(tail, device, first, placed))

    def _branches(self, mask: int, placed: int, tail: _Tail) -> Iterable[tuple[float, int, int]]:
        limit = self.best.score * ENOUGH / tail.factor
        for device, option in enumerate(self.options):
            pair = self.reached.get(mask & ~(1 << device)) if mask >> device & 1 else None
            if pair is None:
                continue
            for first in range(option.starts[placed], placed):
                if pair[0][first] == inf:
                    continue
                longer = self._longer(tail, device, first, placed)
                least = self._least(pair, first, longer)
                if least < limit:
                    yield least, device, first

    def _least(self, pair: Pair, first: int, tail: _Tail) -> float:
        work, others, last, scale = tail.work, tail.others, tail.last, self.scale
        return max(
            pair[0][first] + work + others + scale * last,
            pair[1][first] + work + scale * others + last,
        )

    def _longer(self, tail: _Tail, device: int, first: int, end: int) -> _Tail:
        option = self.options[device]
        return _Tail(
            work=tail.work + option.work_fixed + option.work[end] - option.work[first],
            others=tail.others + option.prefill_fixed + option.prefill[end] - option.prefill[first],
            last=tail.last,
            factor=tail.factor,
            runs=((device, first), *tail.runs),
            output=tail.output,
        )

    def _found(self, host_layers: int, tail: _Tail) -> None:
        others = tail.others + self.problem.host_prefill[host_layers]
        work = tail.work + self.problem.host_work[host_layers]
        cost = work + others + tail.last + (self.scale - 1) * max(others, tail.last)
        solution = Solution(cost * tail.factor, cost, host_layers, tail.runs, tail.output)
        self.promise = min(self.promise, solution.score)
        self.best.add(solution, self.label)
