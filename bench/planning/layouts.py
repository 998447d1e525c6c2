"""Placements as plain values: what they are predicted to take, whether they fit, all there are."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from tier_a import POLICIES

from supervisor.core.planning import DeviceOffer, HostOffer, Placement, PlanRequest
from supervisor.core.search_sizes import Sizes
from supervisor.core.speed import LinkSpeed, Output, SpeedModel, Stage, Times, Workload, predict

NO_OVERRIDE = "zzz=CPU"


@dataclass(frozen=True, slots=True)
class Layout:
    """Layers of the main host, then of each device in order; the last one may have none."""

    runs: tuple[tuple[str, int], ...]
    output: Output = Output.LAST
    host_layers: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.runs)

    def __str__(self) -> str:
        host = [f"host {self.host_layers}"] if self.host_layers else []
        parts = [*host, *(f"{name} {count}" for name, count in self.runs)]
        return " + ".join(parts) + (", output on host" if self.output is Output.HOST else "")

    def arguments(self, endpoints: Mapping[str, str], pattern: str) -> list[str]:
        """llama-server's, as ``core/commands.py`` gives them; ``pattern`` matches the output."""
        if not self.runs:
            return ["--device", "none", "-ngl", "0"]
        counts = [count for _, count in self.runs]
        counts[-1] += 1
        arguments = ["--rpc", ",".join(endpoints[name] for name in self.names)]
        arguments += ["--device", ",".join(f"RPC{i}" for i in range(len(self.runs)))]
        arguments += ["-ngl", str(sum(counts)), "--tensor-split", ",".join(map(str, counts))]
        if self.output is Output.HOST:
            return [*arguments, "-ot", f"{pattern}=CPU"]
        has_copies = len(self.runs) > 1 and not self.host_layers
        return [*arguments, "-ot", NO_OVERRIDE] if has_copies else arguments


def chosen(placement: Placement) -> Layout:
    """What the planner chose."""
    runs = tuple((device.name, device.layers) for device in placement.devices)
    return Layout(runs, placement.output, placement.host.layers)


class Field:
    """All that could be placed, for one request with one set of settings."""

    def __init__(
        self, request: PlanRequest, sizes: Sizes, alike: Mapping[str, Hashable] | None = None
    ) -> None:
        self.request, self.sizes = request, sizes
        self.offers = {offer.name: offer for offer in request.devices}
        self.alike = alike or {}
        self.n_layers = request.shape.n_layers

    def times(self, layout: Layout, work: Workload) -> Times:
        """Predicted by the formulas of ``core/speed.py``."""
        host = self.request.host
        ends = [0]
        stages = []
        if layout.host_layers:
            stages.append(Stage(host.speed, LinkSpeed(), 0, layout.host_layers))
            ends = [layout.host_layers]
        for _, count in layout.runs:
            ends.append(ends[-1] + count)
        for (name, _), (first, end) in zip(layout.runs, pairwise(ends), strict=True):
            stages.append(Stage(self.offers[name].speed, self.offers[name].link, first, end))
        model = SpeedModel(self.request.shape, self.sizes.run, work)
        overhead_s = host.token_overhead_s
        return predict(model, stages, layout.output, host.speed, token_overhead_s=overhead_s)

    def fits(self, layout: Layout) -> bool:
        """By the planner's own memory model, which tier B checks."""
        on_host = layout.output is Output.HOST
        host = self.request.host
        if layout.host_layers > self.sizes.host_block(host, with_output=on_host):
            return False
        first = layout.host_layers
        for index, (name, count) in enumerate(layout.runs):
            output = layout.output if index == len(layout.runs) - 1 else None
            budget = self.sizes.budget(self.offers[name])
            if not self.sizes.fits(budget, first, first + count, output):
                return False
            first += count
        return first == self.n_layers

    def all(self, step: int = 1) -> list[Layout]:
        """Every placement that fits, and each kind once.

        Not tried: another order of the devices before the last one, which changes nothing that
        llama.cpp does; and, with ``step`` above 1, counts of those that are no multiple of it.
        """
        found: dict[Hashable, Layout] = {}
        for layout in self._everything(step):
            if self.fits(layout):
                found.setdefault(self.kind(layout), layout)
        return list(found.values())

    def kind(self, layout: Layout) -> Hashable:
        """Equal for placements that differ in nothing but which of several equal devices."""
        runs = [(self.alike.get(name, name), count) for name, count in layout.runs]
        others = sorted(map(repr, runs[:-1]))
        return layout.host_layers, layout.output, tuple(others), repr(runs[-1:])

    def _everything(self, step: int) -> Iterator[Layout]:
        host = self.request.host
        blocks = range(0, self.n_layers + 1 if host.may_hold_layers else 1, step)
        for block in blocks:
            if block == self.n_layers:
                yield Layout((), Output.HOST, block)
            for count in range(1, len(self.offers) + 1):
                for names in combinations(self.offers, count):
                    yield from self._of(names, block, step)

    def _of(self, names: Sequence[str], block: int, step: int) -> Iterator[Layout]:
        for last in names:
            others = [name for name in names if name != last]
            for counts in _compositions(len(others), self.n_layers - block, step):
                left = self.n_layers - block - sum(counts)
                runs = (*zip(others, counts, strict=True), (last, left))
                yield Layout(runs, Output.LAST, block)
                if left:
                    yield Layout(runs, Output.HOST, block)

    def neighbours(self, layout: Layout) -> Iterator[Layout]:
        """One layer elsewhere, or the output elsewhere; what fits."""
        for other in self._moved(layout):
            if self.fits(other):
                yield other

    def _moved(self, layout: Layout) -> Iterator[Layout]:
        counts = [layout.host_layers, *(count for _, count in layout.runs)]
        for source in range(len(counts)):
            for target in range(len(counts)):
                if source != target and (target or self.request.host.may_hold_layers):
                    moved = list(counts)
                    moved[source] -= 1
                    moved[target] += 1
                    if (other := self._with(layout, moved)) is not None:
                        yield other
        switched = Output.LAST if layout.output is Output.HOST else Output.HOST
        if layout.runs and (layout.runs[-1][1] or switched is Output.LAST):
            yield replace(layout, output=switched)

    def _with(self, layout: Layout, counts: Sequence[int]) -> Layout | None:
        """The same devices with other counts; those that are left without any are dropped."""
        if min(counts) < 0 or not layout.runs:
            return None
        *others, last = zip(layout.names, counts[1:], strict=True)
        if not last[1] and layout.output is Output.HOST:
            return None
        runs = (*(run for run in others if run[1]), last)
        return Layout(runs, layout.output, counts[0])

    def promising(self, count: int) -> list[Layout]:
        """The best by prediction, for what the scenario's goal asks."""
        goal = self.request.goal.workload

        def cost_s(layout: Layout) -> float:
            times = self.times(layout, goal)
            return times.prompt_s + goal.generated_tokens * times.token_s

        return sorted(self.all(), key=cost_s)[:count]

    def baselines(self) -> dict[str, Layout]:
        """The simple policies of tier A, and the best device alone, by prediction."""
        found = {}
        for name, policy in POLICIES.items():
            placed = policy(self.request.devices, self.sizes, self.n_layers)
            if placed is not None:
                found[name] = Layout(tuple((device.name, count) for device, count in placed))
        alone = [Layout(((name, self.n_layers),)) for name in self.offers]
        work = self.request.goal.workload
        if fitting := [layout for layout in alone if self.fits(layout)]:
            best = min(fitting, key=lambda one: self.times(one, work).token_s)
            found["best device alone"] = best
        return found


def _compositions(parts: int, total: int, step: int) -> Iterator[tuple[int, ...]]:
    """Positive multiples of ``step`` for all but the last device, which gets the rest."""
    if not parts:
        yield ()
        return
    for first in range(step, total + 1, step):
        for rest in _compositions(parts - 1, total - first, step):
            yield (first, *rest)


def room_bytes(sizes: Sizes, offer: DeviceOffer, layers: int | None) -> int:
    """What a device must have available to hold that many layers, and no more.

    ``None``: the whole model and the output. The margin of planning is added, half a layer too.
    """
    everything = sizes.shape.n_layers
    output = Output.LAST if layers is None else None
    use = sizes.use(offer, 0, everything if layers is None else layers, output)
    slack = sizes.shape.layers[0].size_bytes // 2
    return room_for(use.peak_bytes + slack, sizes, offer, slack)


def room_for(
    wanted_bytes: int, sizes: Sizes, offer: DeviceOffer | HostOffer, step_bytes: int
) -> int:
    """The least available memory whose budget is that much."""
    available = wanted_bytes
    while sizes.budget(offer.model_copy(update={"available_bytes": available})) < wanted_bytes:
        available += step_bytes
    return available
