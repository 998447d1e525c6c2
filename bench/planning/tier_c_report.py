"""What tier C found: scores, errors of prediction, and how steady it all was."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from layouts import Field, Layout, chosen
from oracle import Effort, Results
from scenarios import Scenario
from server_runs import Timing
from worker_lab import Measured

from supervisor.core.planning import Planned
from supervisor.core.speed import Times


@dataclass(frozen=True)
class Outcome:
    """Everything that was measured of one scenario."""

    scenario: Scenario
    space: Field
    results: Results
    effort: Effort
    planned: Planned
    measured: Mapping[str, Measured]
    measured_again: Mapping[str, Measured]
    load: float

    @property
    def choice(self) -> Layout:
        return chosen(self.planned.best)

    @property
    def score(self) -> float:
        return self.score_of(self.choice)

    def score_of(self, layout: Layout) -> float:
        best = self.results.final_cost_s(self.results.best())
        return best / self.results.final_cost_s(layout)

    @property
    def worst_variation(self) -> float:
        return max(map(self.results.variation, self.results.finals))

    def predicted(self, layout: Layout, tokens: int) -> Times:
        work = self.scenario.work.model_copy(update={"generated_tokens": tokens})
        return self.space.times(layout, work)

    def decode_errors(self) -> dict[Layout, float]:
        """Predicted less measured, relative; of every placement, finals where there are any."""
        return {
            layout: self.predicted(layout, tokens).token_s / timing.token_s - 1
            for layout, (timing, tokens) in self._timings().items()
        }

    def prefill_errors(self) -> dict[Layout, float]:
        if not self.scenario.by_request:
            return {}
        return {
            layout: self.predicted(layout, tokens).prompt_s / timing.prompt_s - 1
            for layout, (timing, tokens) in self._timings().items()
        }

    def _timings(self) -> dict[Layout, tuple[Timing, int]]:
        results, effort = self.results, self.effort
        found = {layout: (t, effort.first_tokens) for layout, t in results.first.items()}
        return found | {layout: (results.final(layout), effort.tokens) for layout in results.finals}

    def baseline_scores(self) -> dict[str, float]:
        return {name: self.score_of(one) for name, one in self.space.baselines().items()}

    def drift(self) -> float:
        """The most that a device's decode speed changed between the beginning and the end."""
        kind = self.scenario.made.kind
        pairs = [
            (found.device.decode_bytes_per_s[kind], again.device.decode_bytes_per_s[kind])
            for found, again in zip(
                self.measured.values(), self.measured_again.values(), strict=True
            )
        ]
        return max((after / before - 1 for before, after in pairs), key=abs)


def markdown(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """All tables."""
    yield from _scores(outcomes)
    yield ""
    yield from _errors(outcomes)
    yield ""
    yield from _baselines(outcomes)
    yield ""
    for outcome in outcomes:
        yield from _finals(outcome)
        yield ""


def _scores(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "| scenario | runs | chosen | best measured | score | variation | load |"
    yield "|---|--:|---|---|--:|--:|--:|"
    for one in outcomes:
        yield (
            f"| {one.scenario.name} | {len(one.results.first)} | {one.choice} "
            f"| {one.results.best()} | {one.score:.3f} | {one.worst_variation:.1%} "
            f"| {one.load:.1f} |"
        )
    scores = [one.score for one in outcomes]
    yield ""
    yield f"Geometric mean {geometric_mean(scores):.3f}, worst {min(scores):.3f}."


def _errors(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield "| scenario | placements | decode error, mean | worst | bias | prefill, mean | worst |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    everything: list[float] = []
    prompts: list[float] = []
    for one in outcomes:
        decode, prefill = list(one.decode_errors().values()), list(one.prefill_errors().values())
        everything += decode
        prompts += prefill
        yield (
            f"| {one.scenario.name} | {len(decode)} | {magnitude(decode):.1%} "
            f"| {max(decode, key=abs):+.1%} | {statistics.mean(decode):+.1%} "
            + (
                f"| {magnitude(prefill):.1%} | {max(prefill, key=abs):+.1%} |"
                if prefill
                else "| | |"
            )
        )
    yield ""
    yield f"Decode: mean error of all {len(everything)} placements {magnitude(everything):.1%}."
    if prompts:
        yield f"Prefill: {magnitude(prompts):.1%} of {len(prompts)}."


def _baselines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    by_name: dict[str, list[float]] = {}
    for one in outcomes:
        for name, score in one.baseline_scores().items():
            by_name.setdefault(name, []).append(score)
    yield "| policy | scenarios | geometric mean | worst |"
    yield "|---|--:|--:|--:|"
    scores = [one.score for one in outcomes]
    for name, found in {"planner": scores, **by_name}.items():
        yield f"| {name} | {len(found)} | {geometric_mean(found):.2f} | {min(found):.2f} |"


def _finals(one: Outcome) -> Iterator[str]:
    """What was run again and again, the best first."""
    names: dict[Layout, list[str]] = {one.choice: ["planner"]}
    for name, layout in one.space.baselines().items():
        names.setdefault(layout, []).append(name)
    yield (
        f"{one.scenario.name}: {one.scenario.tests}; speed drifted {one.drift():+.1%}, main host"
        f" {one.space.request.host.token_overhead_s * 1e3:.2f} ms per token"
    )
    yield ""
    yield "| placement | whose | ms/token | predicted | prompt s | predicted | variation |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    for layout in sorted(one.results.finals, key=one.results.final_cost_s):
        timing, times = one.results.final(layout), one.predicted(layout, one.effort.tokens)
        prompt = f"{timing.prompt_s:.2f} | {times.prompt_s:.2f}"
        yield (
            f"| {layout} | {', '.join(names.get(layout, []))} | {timing.token_s * 1e3:.1f} "
            f"| {times.token_s * 1e3:.1f} | {prompt if one.scenario.by_request else ' | '} "
            f"| {one.results.variation(layout):.1%} |"
        )


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


def magnitude(errors: Sequence[float]) -> float:
    return statistics.mean(map(abs, errors))


def as_json(one: Outcome) -> dict[str, Any]:
    """Every number, so that other formulas can be tried on them without running anything."""
    return {
        "scenario": one.scenario.name,
        "score": one.score,
        "load": one.load,
        "request": one.space.request.model_dump(mode="json"),
        "measured": {name: asdict(found) for name, found in one.measured.items()},
        "measured_again": {name: asdict(found) for name, found in one.measured_again.items()},
        "chosen": str(one.choice),
        "baselines": {name: str(layout) for name, layout in one.space.baselines().items()},
        "placements": [
            _placement(one, layout) for layout in {**one.results.first, **one.results.finals}
        ],
    }


def _placement(one: Outcome, layout: Layout) -> dict[str, Any]:
    results = one.results
    first = results.first.get(layout)
    return {
        "layout": asdict(layout),
        "first": asdict(first) if first else None,
        "finals": [asdict(timing) for timing in results.finals.get(layout, [])],
        "predicted": one.predicted(layout, one.effort.tokens).model_dump(),
    }
