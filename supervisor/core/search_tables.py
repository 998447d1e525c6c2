"""Turns a request into the tables of an exact search: what each run of layers costs, and fits."""

from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import inf, prod

from supervisor.core.memory import Run
from supervisor.core.plan_overrides import Choice
from supervisor.core.planning import DeviceOffer, PlanRequest
from supervisor.core.search_sizes import Sizes
from supervisor.core.speed import DeviceSpeed, LinkSpeed, Output, SpeedModel


@dataclass(slots=True)
class Option:
    """One device in a search. Seconds per request, but prefill: seconds per ubatch.

    ``work`` and ``prefill`` are sums over the layers before an index, so that the run ``a`` to
    ``b`` costs ``work_fixed + work[b] - work[a]``. ``starts[b]`` is the first layer with which a
    run that ends before ``b`` may begin. As the last device, from layer ``a``:
    ``last_work[a]``, infinite if it does not fit, and at least ``last_work_fixed`` more than its
    layers; ``outputs[a]`` is where the output is best computed then.
    """

    work: list[float]
    work_fixed: float
    prefill: list[float]
    prefill_fixed: float
    starts: list[int]
    factor: float
    last_work: list[float] = field(default_factory=list)
    last_work_fixed: float = inf
    last_start: int = 0
    last_prefill: list[float] = field(default_factory=list)
    last_prefill_fixed: float = 0.0
    outputs: list[Output] = field(default_factory=list)


@dataclass(slots=True)
class Problem:
    """An exact search: the devices, and the main host's own block of first layers."""

    options: list[Option]
    host_work: list[float]
    host_prefill: list[float]
    host_blocks: range
    host_alone: float
    ubatches: int
    kind_of: list[int]
    cuts: list[int] = field(default_factory=list)

    @property
    def n_layers(self) -> int:
        return len(self.kind_of)

    def factor(self, mask: int) -> float:
        """What the devices of a set multiply its cost by, to be judged."""
        return prod(o.factor for device, o in enumerate(self.options) if mask >> device & 1)


class Tables:
    """The costs of one request under one set of settings."""

    def __init__(self, request: PlanRequest, run: Run) -> None:
        self.request, self.run = request, run
        self.sizes = Sizes(request.shape, run, request.rules)
        self.model = SpeedModel(request.shape, run, request.goal.workload)
        work = request.goal.workload
        self.per_token = work.generated_tokens / work.users
        self.per_load = 1 / request.goal.requests_per_load
        self.caches = [self.model.cache_bytes(layer) for layer in self.sizes.kinds]
        self._middles: dict[str, Option] = {}

    def problem(self, outputs: frozenset[Output], choice: Choice, blocks: range) -> Problem:
        """The search with one of ``outputs``, and as many first layers on the main host."""
        shape, host = self.request.shape, self.request.host
        options = [self._option(device, outputs) for device in choice.devices]
        if choice.last is not None:
            options = _pinned(options, choice.last)
        # Per request, whatever the placement; the host's block is part of every one.
        constant = self.per_token * host.token_overhead_s
        work = [constant + w for w in self._work_prefix(host.speed, LinkSpeed(), frozenset())]
        prefill = self._prefill_prefix(host.speed, LinkSpeed())
        alone = work[-1] + self._output_work(host.speed) + self.model.prefill_s(0, prefill[-1])
        is_whole = Output.HOST in outputs and shape.n_layers in blocks
        return Problem(
            options=options,
            host_work=work,
            host_prefill=prefill,
            host_blocks=blocks,
            host_alone=alone if is_whole else inf,
            ubatches=self.model.ubatches,
            kind_of=self.sizes.kind_of,
            cuts=[i for i in range(1, shape.n_layers) if not shape.cut_is_allowed(i)],
        )

    def host_blocks(self, choice: Choice) -> tuple[int, int]:
        """Layers that the main host can hold, without and with the output."""
        return (
            self._host_block(choice, with_output=False),
            self._host_block(choice, with_output=True),
        )

    def _host_block(self, choice: Choice, *, with_output: bool) -> int:
        block = self.sizes.host_block(self.request.host, with_output=with_output)
        return block if choice.host_may_hold else min(block, 0)

    def _option(self, device: DeviceOffer, outputs: frozenset[Output]) -> Option:
        if device.name not in self._middles:
            self._middles[device.name] = self._middle(device)
        middle = self._middles[device.name]
        hop = self.model.prefill_hop_s(device.link, is_last=True)
        budget = self.sizes.budget(device)
        ends = [self._end(device, budget, output) for output in outputs]
        fixed, places = _cheapest(ends, len(middle.work))
        return replace(
            middle,
            last_work=[
                f + middle.work[-1] - before for f, before in zip(fixed, middle.work, strict=True)
            ],
            last_work_fixed=min((fixed for fixed, start, _ in ends), default=inf),
            last_start=min((start for _, start, _ in ends), default=len(fixed)),
            last_prefill=[hop + middle.prefill[-1] - before for before in middle.prefill],
            last_prefill_fixed=hop,
            outputs=places,
        )

    def _middle(self, device: DeviceOffer) -> Option:
        """A device as it is anywhere but at the end, whatever the output."""
        speed, link = device.speed, device.link
        return Option(
            work=self._work_prefix(speed, link, device.cached_layers),
            work_fixed=self.per_token * self.model.hop_s(link),
            prefill=self._prefill_prefix(speed, link),
            prefill_fixed=self.model.prefill_hop_s(link, is_last=False),
            starts=self.sizes.starts(self.sizes.budget(device)),
            factor=self._factor(device),
        )

    def _factor(self, device: DeviceOffer) -> float:
        goal, rules = self.request.goal, self.request.rules
        unsteady = device.link.rtt_p90_s > rules.max_rtt_p90_s or not device.is_reliable
        return (goal.unreliable_factor if unsteady else 1.0) * (
            FEWEST_FACTOR if goal.fewest_devices else 1.0
        )

    def _end(self, device: DeviceOffer, budget: int, output: Output) -> tuple[float, int, Output]:
        """As the last device: what it costs beyond its layers, and the first it may begin with."""
        start = self.sizes.last_start(budget, output)
        # A device with neither layers nor the output would do nothing.
        end = self.request.shape.n_layers - (output is Output.HOST)
        return self._last_fixed(device, output) if start <= end else inf, start, output

    def _last_fixed(self, device: DeviceOffer, output: Output) -> float:
        hop = self.per_token * self.model.hop_s(device.link, output)
        if output is Output.HOST:
            return hop + self._output_work(self.request.host.speed)
        size = 0 if self.request.shape.n_layers in device.cached_layers else 1
        size *= self.request.shape.output.size_bytes
        return hop + self._output_work(device.speed) + self._load(size, device.link)

    def _output_work(self, speed: DeviceSpeed) -> float:
        return self.per_token * self.model.output_s(speed)

    def _load(self, size_bytes: float, link: LinkSpeed) -> float:
        disk = self.request.host.disk_bytes_per_s
        return self.per_load * self.model.load_s(size_bytes, link, disk)

    def _work_prefix(
        self, speed: DeviceSpeed, link: LinkSpeed, cached: frozenset[int]
    ) -> list[float]:
        layers = list(zip(self.sizes.kinds, self.caches, strict=True))
        decoding = [
            self.per_token * self.model.decode_layer_s(layer, speed, cache)
            for layer, cache in layers
        ]
        loading = [self._load(layer.size_bytes, link) for layer, _ in layers]
        costs = self.sizes.spread([d + load for d, load in zip(decoding, loading, strict=True)])
        for index in cached & frozenset(range(len(costs))):
            costs[index] = decoding[self.sizes.kind_of[index]]
        return [0.0, *accumulate(costs)]

    def _prefill_prefix(self, speed: DeviceSpeed, link: LinkSpeed) -> list[float]:
        costs = [self.model.prefill_layer_s(layer, speed, link) for layer in self.sizes.kinds]
        return [0.0, *accumulate(self.sizes.spread(costs))]


def _cheapest(
    ends: list[tuple[float, int, Output]], count: int
) -> tuple[list[float], list[Output]]:
    """The best way to be the last device, by first layer: its fixed cost and its output."""
    fixed, outputs = [inf] * count, [Output.LAST] * count
    for cost, start, output in sorted(ends, reverse=True):
        places = range(start, count - (output is Output.HOST))
        fixed[start : places.stop] = [cost] * len(places)
        outputs[start : places.stop] = [output] * len(places)
    return fixed, outputs


def _pinned(options: list[Option], last: int) -> list[Option]:
    """Let one device be the last, and nothing else."""
    never = [inf] * len(options[last].last_work)
    pinned = [replace(option, last_work=never, last_work_fixed=inf) for option in options]
    pinned[last] = replace(options[last], starts=list(range(len(never))))
    return pinned


FEWEST_FACTOR = 1e6
"""More than any two placements differ by, so that fewer devices always win."""
