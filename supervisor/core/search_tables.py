"""Turns a request into the tables of an exact search: what each run of layers costs, and fits."""

from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import inf, prod

from supervisor.core.memory import Run
from supervisor.core.model_shape import LayerShape
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
    ``last_work[a]``, infinite if it does not fit. ``kinds`` has the least work and prefill of each
    kind of layer.
    """

    work: list[float]
    work_fixed: float
    prefill: list[float]
    prefill_fixed: float
    starts: list[int]
    last_work: list[float]
    last_prefill: list[float]
    outputs: list[Output]
    factor: float
    kinds: list[tuple[float, float]]


@dataclass(slots=True)
class Problem:
    """An exact search: the devices, and the main host's own block of first layers."""

    options: list[Option]
    host_work: list[float]
    host_prefill: list[float]
    host_alone: float
    ubatches: int
    kind_of: list[int]
    cuts: list[int] = field(default_factory=list)
    required: int = 0
    sequence: tuple[int, ...] = ()

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
        self._options: dict[tuple[str, frozenset[Output]], Option] = {}

    def problem(self, outputs: frozenset[Output], choice: Choice) -> Problem:
        """The search over the devices of ``choice`` with one of ``outputs``."""
        shape, host = self.request.shape, self.request.host
        options = [self._known_option(device, outputs) for device in choice.devices]
        if choice.last is not None:
            options = _pinned(options, choice.last)
        block = self._host_block(choice, with_output=Output.HOST in outputs)
        # Per request, whatever the placement; the host's block is part of every one.
        constant = self.per_token * host.token_overhead_s
        work = [constant + w for w in self._work_prefix(host.speed, LinkSpeed(), frozenset())]
        prefill = self._prefill_prefix(host.speed, LinkSpeed())
        alone = work[-1] + self._output_work(host.speed) + self.model.prefill_s(0, prefill[-1])
        is_whole = Output.HOST in outputs and block == shape.n_layers
        return Problem(
            options=options,
            host_work=work[: block + 1],
            host_prefill=prefill[: block + 1],
            host_alone=alone if is_whole else inf,
            ubatches=self.model.ubatches,
            kind_of=self.sizes.kind_of,
            cuts=[i for i in range(1, shape.n_layers) if not shape.cut_is_allowed(i)],
            required=choice.required,
            sequence=choice.sequence,
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

    def _known_option(self, device: DeviceOffer, outputs: frozenset[Output]) -> Option:
        key = device.name, outputs
        if key not in self._options:
            self._options[key] = self._option(device, outputs)
        return self._options[key]

    def _option(self, device: DeviceOffer, outputs: frozenset[Output]) -> Option:
        speed, link = device.speed, device.link
        work = self._work_prefix(speed, link, device.cached_layers)
        prefill = self._prefill_prefix(speed, link)
        last = self._last(device, outputs, work)
        hop = self.model.prefill_hop_s(link, is_last=True)
        return Option(
            work=work,
            work_fixed=self.per_token * self.model.hop_s(link),
            prefill=prefill,
            prefill_fixed=self.model.prefill_hop_s(link, is_last=False),
            starts=self.sizes.starts(self.sizes.budget(device)),
            last_work=[cost for cost, _ in last],
            last_prefill=[hop + prefill[-1] - before for before in prefill],
            outputs=[output for _, output in last],
            factor=self._factor(device),
            kinds=[self._kind(layer, device) for layer in self.sizes.kinds],
        )

    def _kind(self, layer: LayerShape, device: DeviceOffer) -> tuple[float, float]:
        """The least that a layer of this kind costs; one that is there already is not sent."""
        size = 0 if device.cached_layers else layer.size_bytes
        return (
            self.per_token * self.model.decode_layer_s(layer, device.speed)
            + self._load(size, device.link),
            self.model.prefill_layer_s(layer, device.speed, device.link),
        )

    def _factor(self, device: DeviceOffer) -> float:
        goal, rules = self.request.goal, self.request.rules
        unsteady = device.link.rtt_p90_s > rules.max_rtt_p90_s or not device.is_reliable
        return (goal.unreliable_factor if unsteady else 1.0) * (
            FEWEST_FACTOR if goal.fewest_devices else 1.0
        )

    def _last(
        self, device: DeviceOffer, outputs: frozenset[Output], work: list[float]
    ) -> list[tuple[float, Output]]:
        """The cheapest way to be the last device, by first layer."""
        n_layers = self.request.shape.n_layers
        best = [(inf, Output.LAST)] * (n_layers + 1)
        for output in outputs:
            fixed = self._last_fixed(device, output)
            start = self.sizes.last_start(self.sizes.budget(device), output)
            # A device with neither layers nor the output would do nothing.
            end = n_layers if output is Output.HOST else n_layers + 1
            for first in range(start, end):
                best[first] = min(best[first], (fixed + work[-1] - work[first], output))
        return best

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
        def cost(layer: LayerShape) -> tuple[float, float]:
            decoding = self.per_token * self.model.decode_layer_s(layer, speed)
            return decoding, decoding + self._load(layer.size_bytes, link)

        costs = self.sizes.by_kind(cost)
        return [0.0, *accumulate(c[i not in cached] for i, c in enumerate(costs))]

    def _prefill_prefix(self, speed: DeviceSpeed, link: LinkSpeed) -> list[float]:
        def cost(layer: LayerShape) -> float:
            return self.model.prefill_layer_s(layer, speed, link)

        return [0.0, *accumulate(self.sizes.by_kind(cost))]


def _pinned(options: list[Option], last: int) -> list[Option]:
    """Let one device be the last, and nothing else."""
    never = [inf] * len(options[last].last_work)
    pinned = [replace(option, last_work=never) for option in options]
    pinned[last] = replace(options[last], starts=list(range(len(never))))
    return pinned


FEWEST_FACTOR = 1e6
"""More than any two placements differ by, so that fewer devices always win."""
