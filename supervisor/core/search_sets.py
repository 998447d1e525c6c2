"""Which sets of devices could be better than the best placement so far."""

from collections.abc import Sequence
from itertools import accumulate
from math import inf
from typing import NamedTuple

from supervisor.core.search_bounds import MEAN, SLACK, Bounds
from supervisor.core.search_values import bits


class _Item(NamedTuple):
    """A segment of a device's costs; at the first one, the device is taken or left."""

    slope: float
    capacity: float
    device: int = 0
    is_first: bool = False
    fixed: float = 0.0
    extra: float = inf
    factor: float = 1.0
    twin: int = 0


class _Partial(NamedTuple):
    """Some devices taken and some left: ``cost`` holds all layers but ``need`` units of them."""

    need: float
    cost: float
    chosen: int = 0
    top: float = 0.0  # the highest slope in ``cost``
    extra: float = inf  # the least that one of the chosen costs more as the last one
    factor: float = 1.0


class Sets:
    """Goes through all sets of devices, leaving out branches that cost too much in any case."""

    def __init__(self, bounds: Bounds, allowed: int, required: int, twins: Sequence[int]) -> None:
        self.items = _items(bounds, allowed, twins)
        self.required, self.smallest = required, bounds.sums.smallest
        self.start = _Partial(bounds.need, bounds.host.fixed)
        extras = (item.extra for item in reversed(self.items))
        self.extras = [*accumulate(extras, min, initial=inf)][::-1]
        rooms = (item.capacity + self.smallest * item.is_first for item in reversed(self.items))
        self.rooms = [*accumulate(rooms, initial=0.0)][::-1]
        self.limit = inf
        self.found: list[tuple[float, int]] = []

    def below(self, limit: float) -> list[tuple[float, int]]:
        """Sets that may score less than ``limit``, each after the least that it scores."""
        self.limit, self.found = limit, []
        self._visit(0, self.start)
        return self.found

    def _visit(self, index: int, partial: _Partial) -> None:
        """Go on with the item of that number."""
        need, cost, chosen, top, extra, factor = partial
        if index == len(self.items):
            if need <= 0 and (cost + extra) * factor < self.limit:
                self.found.append(((cost + extra) * factor, chosen))
            return
        item = self.items[index]
        least = cost + need * item.slope + min(extra, self.extras[index])
        if least * factor >= self.limit or need > self.rooms[index] * SLACK:
            return
        if item.is_first:
            if not self.required & item.device:
                self._visit(index + 1, partial)
            if item.twin & ~chosen:
                return
            # The layer that it has at least may come from a device that was filled before.
            cost += item.fixed - max(0.0, self.smallest - need) * top
            need = max(0.0, need - self.smallest)
            chosen, extra, factor = (
                chosen | item.device,
                min(extra, item.extra),
                factor * item.factor,
            )
        elif item.device & ~chosen:
            self._visit(index + 1, partial)
            return
        filled = min(need, item.capacity)
        cost, top = cost + filled * item.slope, item.slope if filled else top
        self._visit(index + 1, _Partial(need - filled, cost, chosen, top, extra, factor))


def _items(bounds: Bounds, allowed: int, twins: Sequence[int]) -> list[_Item]:
    """Segments of the devices and of the main host's own block, the lowest first."""
    items = [_Item(slope, units) for slope, units in bounds.host.segments]
    for device in bits(allowed):
        middle, last = bounds.middle[MEAN][device], bounds.last[MEAN][device]
        (slope, units), *more = max(middle, last, key=lambda floor: floor.capacity).segments
        first = _Item(
            slope=slope,
            capacity=units,
            device=1 << device,
            is_first=True,
            fixed=middle.fixed,
            extra=last.fixed - middle.fixed,
            factor=bounds.problem.options[device].factor,
            twin=twins[device],
        )
        items += [first, *(_Item(slope, units, 1 << device) for slope, units in more)]
    return sorted(items, key=lambda item: item.slope)
