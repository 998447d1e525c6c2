"""The searches of a request, made once for all choices of devices that look alike to them."""

from collections.abc import Iterator, Sequence
from math import inf

from supervisor.core.memory import Run
from supervisor.core.plan_overrides import Choice
from supervisor.core.planning import PlanRequest
from supervisor.core.search_bounds import Sums
from supervisor.core.search_exact import ExactSearch
from supervisor.core.search_fit import could_fit
from supervisor.core.search_tables import Problem, Tables
from supervisor.core.search_values import Best, Solution
from supervisor.core.speed import Output

Label = tuple[Tables, Choice]
"""Where a solution comes from: two searches may number their devices differently."""


def barred(label: Label) -> int:
    """The devices, as bits, that must not compute as many tokens at once as a search is for."""
    tables, choice = label
    ubatch, given = tables.run.ubatch, tables.request.overrides.ubatch
    if ubatch == given:
        return 0  # the operator knows better
    caps = (device.ubatch_cap for device in choice.devices)
    return sum(1 << i for i, cap in enumerate(caps) if cap is not None and cap < ubatch)


class Made:
    """Tables and searches of one request. Overrides are part of a choice, not of the tables."""

    def __init__(self, request: PlanRequest) -> None:
        self.request = request
        self._tables: dict[Run, Tables] = {}
        self._searches: dict[tuple[object, ...], list[ExactSearch[Label]]] = {}

    def searches(self, run: Run, choice: Choice, best: Best[Label]) -> list[ExactSearch[Label]]:
        """The searches with one of equally good settings; none if nothing can fit.

        A placement that the operator described needs none, and is added to ``best``.
        """
        names = tuple(device.name for device in choice.devices)
        # Who must take part, and in which order, is told to a search when it begins.
        key = run, names, choice.outputs, choice.host_may_hold, choice.last, choice.split
        if key in self._searches:
            for one in self._searches[key]:
                one.forget()
        else:
            self._searches[key] = list(_searches(self._tables_of(run), choice, best))
        return self._searches[key]

    def _tables_of(self, run: Run) -> Tables:
        if run not in self._tables:
            self._tables[run] = Tables(self.request, run)
        return self._tables[run]


def _searches(tables: Tables, choice: Choice, best: Best[Label]) -> Iterator[ExactSearch[Label]]:
    if not could_fit(tables.sizes, choice, tables.request.host):
        return
    label: Label = tables, choice
    sums: Sums | None = None
    for outputs, least, most in _groups(tables, choice):
        problem = tables.problem(outputs, choice, range(least, most + 1))
        if choice.split:
            if not barred(label):
                _as_given(problem, choice.split, best, label)
        elif problem.host_blocks:
            sums = sums or Sums(problem)
            yield ExactSearch(problem, sums, label)


def _groups(tables: Tables, choice: Choice) -> Iterator[tuple[frozenset[Output], int, int]]:
    """Outputs that can share a search, with the least and the most layers on the main host.

    The main host can hold fewer layers if it holds the output too.
    """
    without, with_output = tables.host_blocks(choice)
    elsewhere = choice.outputs - {Output.HOST}
    if elsewhere == choice.outputs:
        yield elsewhere, 0, without
        return
    yield choice.outputs, 0, with_output
    if elsewhere and with_output < without:
        yield elsewhere, with_output + 1, without


def _as_given(problem: Problem, split: Sequence[int], best: Best[Label], label: Label) -> None:
    """Add the placement that the operator described, if it fits."""
    runs: list[tuple[int, int]] = []
    if 0 not in problem.host_blocks:
        return
    first, work, others = 0, problem.host_work[0], 0.0
    for device, count in enumerate(split[:-1]):
        option = problem.options[device]
        end = first + count
        if option.starts[end] > first:
            return
        runs.append((device, first))
        work += option.work_fixed + option.work[end] - option.work[first]
        others += option.prefill_fixed + option.prefill[end] - option.prefill[first]
        first = end
    device, option = len(split) - 1, problem.options[-1]
    runs.append((device, first))
    last = option.last_prefill[first]
    cost = work + option.last_work[first] + others + last
    cost += (problem.ubatches - 1) * max(others, last)
    if cost < inf:
        best.add(Solution(cost, cost, 0, tuple(runs), option.outputs[first]), label)
