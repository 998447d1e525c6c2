"""The exact search: which devices, in which order, with how many layers each.

A placement costs ``work + others + last + (ubatches - 1) * max(others, last)``: ``work`` is a sum
over the layers (decoding, loading), ``others`` and ``last`` are its prefill stages. The maximum
makes it no plain sum, but replacing it by either of its arguments, or by their mean, gives three
sums that never exceed the cost. For each set of devices that could be better than the best so
far, all three are minimised by dynamic programming over (devices used, layers placed); what the
largest of them cannot exclude is then followed back and computed exactly.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from operator import add, sub
from typing import Generic, NamedTuple

from supervisor.core.search_bounds import FIRST, MEAN, SECOND, Bounds, Sums
from supervisor.core.search_sets import Sets
from supervisor.core.search_tables import Problem
from supervisor.core.search_values import (
    Best,
    L,
    Solution,
    Totals,
    bits,
    finite_range,
    window_minima,
)
from supervisor.core.speed import Output

ENOUGH = 1 - 1e-9
"""A smaller gain is rounding."""


class Scope(NamedTuple):
    """The devices that may take part, those that must, and their order if that is given."""

    allowed: int
    required: int
    sequence: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Tail:
    """The end of a placement, from the last device back; ``work`` and ``others`` are its costs."""

    work: float
    others: float
    last: float
    runs: tuple[tuple[int, int], ...]
    output: Output


class ExactSearch(Generic[L]):
    """One search over one ``Problem``; ``label`` comes back with its solutions."""

    def __init__(self, problem: Problem, sums: Sums, label: L) -> None:
        self.problem, self.sums, self.label = problem, sums, label
        self.options, self.n = problem.options, problem.n_layers
        self.bounds = Bounds(problem, sums)
        self.start = self._start()
        self.tails = [
            [
                [w + weight * p for w, p in zip(o.last_work, o.last_prefill, strict=True)]
                for weight in sums.last_weights
            ]
            for o in self.options
        ]
        self.reached: dict[int, Totals] = {}
        self.factor = 1.0
        self.ends: list[int] = []

    def forget(self) -> None:
        """Drop what was reached, so that the next search is as the first."""
        self.reached = {}

    def begin(self, best: Best[L], scope: Scope) -> None:
        """From now on, search among these devices for something better than ``best``.

        The main host alone is no set of devices, so that is added at once.
        """
        self.best, self.scope = best, scope
        self.twins = [self._twin(index) for index in range(len(self.options))]
        alone = self.problem.host_alone
        if alone < inf and not scope.required:
            best.add(Solution(alone, alone, self.n, (), Output.HOST), self.label)

    def glance(self) -> None:
        """Add good placements to ``best`` quickly: it makes the real search much shorter."""
        if not self.scope.sequence:
            for order in self.bounds.orders(self.scope.allowed):
                self.chain(order)
                if self.best.score < inf:
                    return

    def sets(self) -> list[tuple[float, int]]:
        """The sets of devices that could be better, each after the least that it scores."""
        sets = Sets(self.bounds, self.scope.allowed, self.scope.required, self.twins)
        return sets.below(self.best.score * ENOUGH)

    def search(self, devices: int) -> None:
        """Add the best placement that uses all of a set of devices, unless ``best`` is better."""
        sequence = self.scope.sequence
        self.factor = self.problem.factor(devices)
        self.ends = [sequence[-1]] if sequence else bits(devices)
        self.reached = {}
        self.best.steps_left -= 1
        waiting = {0: [costs[:] for costs in self.start]}
        for _ in range(devices.bit_count()):
            longer: dict[int, Totals] = {}
            for mask, totals in waiting.items():
                alive = self._prune(mask, devices, totals)
                if alive:
                    self._go_on(mask, devices, alive, longer)
                if self.best.steps_left <= 0:
                    self.best.is_proven = False
                    return
            waiting = longer

    def _twin(self, index: int) -> int:
        """The bit of an equal device with a lower number, which is to be used first."""
        allowed, required, sequence = self.scope
        if sequence:
            return 0
        for other in reversed(bits(allowed & ((1 << index) - 1))):
            same = (required >> other & 1) == (required >> index & 1)
            if same and self.options[other] == self.options[index]:
                return 1 << other
        return 0

    def _start(self) -> Totals:
        """The main host's own block, with any number of first layers that it may hold."""
        problem, blocks = self.problem, self.problem.host_blocks
        start: Totals = []
        for weight in self.sums.weights:
            pairs = zip(problem.host_work, problem.host_prefill, strict=True)
            costs = [work + weight * prefill for work, prefill in pairs]
            costs[: blocks.start] = [inf] * blocks.start
            costs[blocks.stop :] = [inf] * (self.n + 1 - blocks.stop)
            start.append(costs)
        self._forbid_cuts(start)
        return start

    def _nowhere(self) -> Totals:
        return [[inf] * (self.n + 1) for _ in self.sums.weights]

    def _forbid_cuts(self, totals: Totals) -> None:
        for costs in totals:
            for cut in self.problem.cuts:
                costs[cut] = inf

    def chain(self, order: tuple[int, ...], size: int = 0) -> None:
        """Try the first devices of an order, ``size`` at least, with each other one as the last."""
        mask, totals = 0, self.start
        for device in order:
            alive = finite_range(totals[FIRST])
            if alive is None:
                return
            self.reached[mask] = totals
            followers = self._next(mask, self.scope.allowed) if mask.bit_count() >= size else []
            for last in followers:
                if not self.scope.required & ~mask & ~(1 << last):
                    self.factor = self.problem.factor(mask | 1 << last)
                    self._finish(mask, last, alive)
            longer = self._nowhere()
            self._extend(totals, device, alive, longer)
            mask, totals = mask | 1 << device, longer

    def _go_on(
        self, mask: int, devices: int, alive: tuple[int, int], longer: dict[int, Totals]
    ) -> None:
        """Give the next layers to each of the other devices."""
        for device in self._next(mask, devices):
            target = mask | 1 << device
            if target == devices:
                self._finish(mask, device, alive)
            else:
                if target not in longer:
                    longer[target] = self._nowhere()
                self._extend(self.reached[mask], device, alive, longer[target])

    def _next(self, mask: int, devices: int) -> list[int]:
        """The devices that may follow."""
        if self.scope.sequence:
            return [self.scope.sequence[mask.bit_count()]]
        twins = self.twins
        return [device for device in bits(devices & ~mask) if not twins[device] & ~mask]

    def _prune(self, mask: int, devices: int, totals: Totals) -> tuple[int, int] | None:
        """Drop the states that no placement better than the best goes through."""
        alive, limit = finite_range(totals[FIRST]), self.best.score * ENOUGH / self.factor
        self.reached[mask] = totals
        if alive is None:
            return None
        ranges = self._ranges(totals, alive, devices & ~mask, limit)
        if mask == 0:
            self.ends = list(ranges)
        if not ranges:
            del self.reached[mask]
            return None
        start = min(start for start, _ in ranges.values())
        for costs in totals:
            costs[:start] = [inf] * start
        return start, max(end for _, end in ranges.values())

    def _ranges(
        self, totals: Totals, alive: tuple[int, int], rest: int, limit: float
    ) -> dict[int, tuple[int, int]]:
        """By last device, the first and the last state that could be better."""
        start, end = alive
        backwards = [costs[start : end + 1][::-1] for costs in totals]
        needs = self.bounds.needs(start, end)
        found: dict[int, tuple[int, int]] = {}
        for last in self.ends:
            if rest >> last & 1:
                kept = self._kept(backwards, needs, (rest, last), limit)
                if kept:
                    found[last] = end - kept[1], end - kept[0]
        return found

    def _kept(
        self, totals: Totals, needs: list[float], rest: tuple[int, int], limit: float
    ) -> tuple[int, int] | None:
        start, end = 0, len(needs)
        for number in (MEAN, SECOND, FIRST):
            least = self.bounds.remaining(number, *rest, needs[start:end])
            scores = map(add, totals[number][start:end], least)
            kept = [index for index, score in enumerate(scores, start) if score < limit]
            if not kept:
                return None
            start, end = kept[0], kept[-1] + 1
        return start, end - 1

    def _extend(self, totals: Totals, device: int, alive: tuple[int, int], into: Totals) -> None:
        """Give the next layers to a device that is not the last one."""
        option, sums = self.options[device], self.sums
        start = alive[0]
        end = min(self.n, bisect_right(option.starts, alive[1]) - 1)
        if end <= start:
            return
        self.best.steps_left -= 1
        before, ends = slice(start, alive[1] + 1), slice(start + 1, end + 1)
        starts = option.starts[ends]
        for number, weight in enumerate(sums.weights):
            prefix, target = sums.costs[number][device], into[number]
            fixed = option.work_fixed + weight * option.prefill_fixed
            values = list(map(sub, totals[number][before], prefix[before]))
            least = window_minima(values, starts, start)
            costs = [fixed + p + value for p, value in zip(prefix[ends], least, strict=True)]
            target[ends] = map(min, target[ends], costs)
        self._forbid_cuts(into)

    def _finish(self, mask: int, device: int, alive: tuple[int, int]) -> None:
        """Let a device be the last one, and follow what could be the best back."""
        option, totals = self.options[device], self.reached[mask]
        states = slice(max(alive[0], option.last_start), alive[1] + 1)
        tails = self.tails[device]
        sums = (map(add, t[states], tail[states]) for t, tail in zip(totals, tails, strict=True))
        least = list(map(max, *sums))
        if min(least, default=inf) >= self._limit():
            return
        for index in sorted(range(len(least)), key=least.__getitem__):
            if least[index] >= self._limit():
                break
            first = states.start + index
            work, last = option.last_work[first], option.last_prefill[first]
            tail = _Tail(work, 0.0, last, ((device, first),), option.outputs[first])
            self._follow(mask, first, tail)

    def _limit(self) -> float:
        return self.best.score * ENOUGH / self.factor

    def _follow(self, mask: int, placed: int, tail: _Tail) -> None:
        """Find the best beginnings for a tail, cheapest first."""
        if mask == 0:
            self._found(placed, tail)
            return
        self.best.steps_left -= 1
        if self.best.steps_left <= 0:
            self.best.is_proven = False
            return
        for least, device, first in sorted(self._branches(mask, placed, tail)):
            if least >= self._limit():
                return
            self._follow(mask & ~(1 << device), first, self._longer(tail, device, first, placed))

    def _branches(self, mask: int, placed: int, tail: _Tail) -> Iterable[tuple[float, int, int]]:
        """Which run may come before, with the least that this leads to."""
        limit, last = self._limit(), tail.last
        _, scale, mean = self.sums.weights
        for device in bits(mask):
            totals = self.reached.get(mask & ~(1 << device))
            if totals is None:
                continue
            one, other, middle = totals
            option = self.options[device]
            work = tail.work + option.work_fixed + option.work[placed]
            others = tail.others + option.prefill_fixed + option.prefill[placed]
            for first in range(option.starts[placed], placed):
                w, p = work - option.work[first], others - option.prefill[first]
                least = max(
                    one[first] + w + p + scale * last,
                    other[first] + w + scale * p + last,
                    middle[first] + w + mean * (p + last),
                )
                if least < limit:
                    yield least, device, first

    def _longer(self, tail: _Tail, device: int, first: int, end: int) -> _Tail:
        option = self.options[device]
        return _Tail(
            work=tail.work + option.work_fixed + option.work[end] - option.work[first],
            others=tail.others + option.prefill_fixed + option.prefill[end] - option.prefill[first],
            last=tail.last,
            runs=((device, first), *tail.runs),
            output=tail.output,
        )

    def _found(self, host_layers: int, tail: _Tail) -> None:
        others = tail.others + self.problem.host_prefill[host_layers]
        work = tail.work + self.problem.host_work[host_layers]
        cost = work + others + tail.last
        cost += (self.problem.ubatches - 1) * max(others, tail.last)
        solution = Solution(cost * self.factor, cost, host_layers, tail.runs, tail.output)
        self.best.add(solution, self.label)
