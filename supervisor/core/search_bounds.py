"""What the layers that are left must cost at least, whichever devices take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

from supervisor.core.search_tables import Option

SLACK = 1 + 1e-12


@dataclass(frozen=True, slots=True)
class _Floor:
    """The least that one device costs, per unit of layers; ``last`` is its least as the last."""

    device: int
    rate: float
    capacity: float
    slope: float
    saving: float
    last: float
    last_extra: float
    due: float


class Bounds:
    """Lower bounds for both sums of ``ExactSearch``, by fractional filling.

    A device's fixed cost is spread over as many layers as it can hold, then the cheapest devices
    are filled first. ``weights`` say how often a prefill stage counts: for a middle device and for
    the last one.
    """

    def __init__(
        self,
        options: Sequence[Option],
        weights: Sequence[tuple[float, float]],
        kind_of: Sequence[int],
        required: int = 0,
    ) -> None:
        n_layers = len(kind_of)
        self.n = n_layers
        self.required = required
        self.sizes = _unit_sizes(options)
        self.total = [0.0, *accumulate(self.sizes[kind] for kind in kind_of)]
        held = [(self._capacity(option), _last_fixed(option)) for option in options]
        self.floors = [
            [self._floor(i, option, weight, held[i]) for i, option in enumerate(options)]
            for weight in weights
        ]
        self.by_rate = [sorted(floors, key=lambda f: f.rate) for floors in self.floors]

    def remaining(self, number: int, mask: int, first: int, end: int) -> list[float]:
        """The least that the others cost for one sum, with ``end`` down to ``first`` placed."""
        needs = [self.total[self.n] - self.total[placed] for placed in range(end, first - 1, -1)]
        return self._least(self.by_rate[number], mask, needs)

    def promising_orders(self) -> list[tuple[int, ...]]:
        """Orders of all devices whose beginnings are likely to be good sets."""
        floors = self.floors[-1]
        keys = (
            [f.rate for f in floors],
            [f.slope for f in floors],
            [-f.capacity for f in floors],
        )
        orders = [tuple(sorted(range(len(floors)), key=key.__getitem__)) for key in keys]
        return list(dict.fromkeys(orders))

    def _least(self, floors: list[_Floor], mask: int, needs: list[float]) -> list[float]:
        free = [floor for floor in floors if not mask >> floor.device & 1]
        lasts = [floor for floor in free if floor.last < inf]
        if not lasts:
            return [inf] * len(needs)
        extra = min(floor.last_extra for floor in lasts) + sum(floor.due for floor in free)
        last = min(floor.last for floor in lasts)
        slope = min(floor.slope - floor.saving for floor in free)
        saving = max(floor.saving for floor in lasts)
        costs = zip(_fill(free, needs), needs, strict=True)
        if saving == 0:
            return [max(cost + extra, last + slope * need) for cost, need in costs]
        most = max(floor.saving * floor.capacity for floor in lasts)
        return [
            max(cost + extra - min(saving * need, most), last + slope * need)
            for cost, need in costs
        ]

    def _floor(
        self,
        device: int,
        option: Option,
        weight: tuple[float, float],
        held: tuple[float, float],
    ) -> _Floor:
        (middle, last), (capacity, fixed_as_last) = weight, held
        slope = self._slope(option, middle)
        fixed = option.work_fixed + middle * option.prefill_fixed
        as_last = fixed_as_last + last * option.last_prefill[self.n]
        fixed = min(fixed, as_last)
        # A device that must take part pays its fixed cost at once.
        due = fixed if self.required >> device & 1 else 0.0
        rate = slope + (fixed - due) / capacity if capacity else inf
        saving = max(0.0, slope - self._slope(option, last))
        return _Floor(device, rate, capacity, slope, saving, as_last, as_last - fixed, due)

    def _slope(self, option: Option, weight: float) -> float:
        kinds = zip(option.kinds, self.sizes, strict=True)
        rates = ((work + weight * stage) / size for (work, stage), size in kinds if size > 0)
        return min(rates, default=0.0)

    def _capacity(self, option: Option) -> float:
        held = (self.total[end] - self.total[start] for end, start in enumerate(option.starts))
        as_last = (
            self.total[self.n] - self.total[first]
            for first, cost in enumerate(option.last_work)
            if cost < inf
        )
        return max(*held, max(as_last, default=0.0)) * SLACK


def _last_fixed(option: Option) -> float:
    """Work of the last device beyond its layers: its round trip and the output."""
    total = option.work[-1]
    costs = zip(option.last_work, option.work, strict=True)
    return min(cost - (total - before) for cost, before in costs)


def _unit_sizes(options: Sequence[Option]) -> list[float]:
    """How large each kind of layer is, as the devices' times see it."""
    sizes = [0.0] * len(options[0].kinds)
    for option in options:
        total = option.work[-1] or 1.0
        for kind, (work, _) in enumerate(option.kinds):
            sizes[kind] += work / total
    return sizes


def _fill(free: list[_Floor], needs: list[float]) -> list[float]:
    """Cost of filling the cheapest devices first, for each of the rising needs."""
    costs: list[float] = []
    done, cost, devices = 0.0, 0.0, iter(free)
    device = next(devices)
    for need in needs:
        while need > done + device.capacity:
            cost += device.rate * device.capacity if device.capacity else 0.0
            done += device.capacity
            following = next(devices, None)
            if following is None:
                return costs + [inf] * (len(needs) - len(costs))
            device = following
        costs.append(cost + device.rate * (need - done) if need > done else cost)
    return costs
