"""Runs every placement of a scenario, then those that matter again and again, in turn."""

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from layouts import Field, Layout
from scenarios import Scenario
from server_runs import Bench, Timing
from worker_lab import Lab

SEED = 7
STARTS = 3
"""Kinds of placements around whose best member every neighbour is tried."""

MOST_CLIMBS = 3
BEST = 4
"""Of the first pass that are run again."""

STEADY = 0.05
"""Coefficient of variation up to which no further rounds are needed."""

Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    first_tokens: int = 12
    tokens: int = 32
    rounds: int = 4
    more_rounds: int = 3


QUICK = Effort(first_tokens=8, tokens=16, rounds=2, more_rounds=0)


@dataclass
class Results:
    """All timings of a scenario, first pass and finals apart."""

    scenario: Scenario
    first: dict[Layout, Timing] = field(default_factory=dict)
    finals: dict[Layout, list[Timing]] = field(default_factory=dict)

    def cost_s(self, timing: Timing) -> float:
        """What the scenario is judged by: seconds per token, or per request."""
        if not self.scenario.by_request:
            return timing.token_s
        return timing.prompt_s + self.scenario.work.generated_tokens * timing.token_s

    def first_cost_s(self, layout: Layout) -> float:
        return self.cost_s(self.first[layout])

    def final(self, layout: Layout) -> Timing:
        """Medians."""
        timings = self.finals[layout]
        return Timing(
            statistics.median(t.prompt_s for t in timings),
            statistics.median(t.token_s for t in timings),
        )

    def final_cost_s(self, layout: Layout) -> float:
        return statistics.median(map(self.cost_s, self.finals[layout]))

    def variation(self, layout: Layout) -> float:
        """Standard deviation, relative to the mean."""
        costs = [self.cost_s(timing) for timing in self.finals[layout]]
        return statistics.stdev(costs) / statistics.mean(costs) if len(costs) > 1 else 0.0

    def best_of_first(self) -> list[Layout]:
        return sorted(self.first, key=self.first_cost_s)

    def best(self) -> Layout:
        return min(self.finals, key=self.final_cost_s)


@dataclass
class Progress:
    """Says on stderr what is being run, and how long it may still take."""

    title: str
    scenarios_left: int
    runs: int = 0
    planned: int = 0
    started_s: float = field(default_factory=time.monotonic)

    def plan(self, runs: int) -> None:
        self.planned = self.runs + runs

    def say(self, what: str) -> None:
        each_s = (time.monotonic() - self.started_s) / max(self.runs, 1)
        left_s = each_s * (self.planned - self.runs + self.scenarios_left * self.planned)
        sys.stderr.write(
            f"\r\033[K{self.title}: run {self.runs + 1} of about {self.planned},"
            f" {each_s:.1f} s each, about {left_s / 60:.0f} min left in all: {what}"
        )
        sys.stderr.flush()


class Oracle:
    """The passes over one scenario."""

    def __init__(
        self, scenario: Scenario, bench: Bench, lab: Lab, effort: Effort, progress: Progress
    ) -> None:
        self.results = Results(scenario)
        self.bench, self.lab, self.effort, self.progress = bench, lab, effort, progress

    async def first_pass(self, space: Field) -> None:
        """Every placement once, in random order; then uphill from the best kinds."""
        layouts = space.all(self.results.scenario.step)
        random.Random(SEED).shuffle(layouts)
        finals = self.effort.rounds * (BEST + 4)
        self.progress.plan(len(layouts) + 10 + finals)
        await self._run_once(layouts)
        for _ in range(MOST_CLIMBS):
            tried = {space.kind(layout) for layout in self.results.first}
            new = [
                other
                for start in self._starts()
                for other in space.neighbours(start)
                if space.kind(other) not in tried
            ]
            fresh = list({space.kind(other): other for other in new}.values())
            if not fresh:
                return
            self.progress.plan(len(fresh) + finals)
            await self._run_once(fresh)

    def _starts(self) -> list[Layout]:
        """The best placement of each of the best combinations of devices and output."""
        kinds: dict[object, Layout] = {}
        for layout in self.results.best_of_first():
            kinds.setdefault((layout.names, layout.output, layout.host_layers > 0), layout)
        return list(kinds.values())[:STARTS]

    async def final_rounds(self, more: Iterable[Layout]) -> None:
        """The best of the first pass and ``more``, in turn; again while they vary too much."""
        layouts = list(dict.fromkeys([*more, *self.results.best_of_first()[:BEST]]))
        self.progress.plan(len(layouts) * self.effort.rounds)
        for number in range(self.effort.rounds):
            await self._run_finals(layouts, number)
        for number in range(self.effort.more_rounds):
            shaky = [one for one in layouts if self.results.variation(one) > STEADY]
            if not shaky:
                return
            self.progress.plan(len(shaky))
            await self._run_finals(shaky, self.effort.rounds + number)

    async def _run_once(self, layouts: Sequence[Layout]) -> None:
        for layout in layouts:
            self.results.first[layout] = await self._timed(layout, self.effort.first_tokens)

    async def _run_finals(self, layouts: Sequence[Layout], number: int) -> None:
        order = list(layouts)
        random.Random(SEED + number).shuffle(order)
        for layout in order:
            timing = await self._timed(layout, self.effort.tokens)
            self.results.finals.setdefault(layout, []).append(timing)

    async def _timed(self, layout: Layout, tokens: int) -> Timing:
        self.progress.say(str(layout))
        scenario = self.results.scenario
        timing = await self.bench.timed(
            layout,
            self.lab,
            scenario.work.prompt_tokens,
            tokens,
            is_prompt_timed=scenario.by_request,
        )
        self.progress.runs += 1
        return timing
