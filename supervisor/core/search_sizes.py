"""Bytes of every run of layers under one set of settings, and which runs fit where."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeVar

from supervisor.core.entities import MemoryUse
from supervisor.core.memory import (
    Position,
    Run,
    compute_bytes,
    feed_forward_bytes,
    kv_bytes,
    load_peak_bytes,
    logits_bytes,
    margin_bytes,
)
from supervisor.core.model_shape import LayerShape, ModelShape
from supervisor.core.planning import DeviceOffer, HostOffer, Rules
from supervisor.core.speed import Output
from supervisor.core.workspace import workspace_of_any

T = TypeVar("T")


class Sizes:
    """Sums over the layers before each index, so that any run is one subtraction."""

    def __init__(self, shape: ModelShape, run: Run, rules: Rules) -> None:
        self.shape, self.run, self.rules = shape, run, rules
        self.kinds, self.kind_of = _kinds(shape.layers)
        self.weights = [0, *accumulate(layer.size_bytes for layer in shape.layers)]
        self.kv = [0, *accumulate(self.by_kind(lambda layer: kv_bytes(layer, run)))]
        self.forward = self.by_kind(lambda layer: feed_forward_bytes(shape, layer, run))
        self.largest = [layer.largest_bytes for layer in shape.layers]
        self._extremes = (min(self.forward), max(self.forward), max(self.largest))
        self._workspace = workspace_of_any(shape, run)
        self._compute: dict[tuple[Position, int], int] = {}
        self._starts: dict[int, list[int]] = {}
        self._host_blocks: dict[tuple[int, int, bool], int] = {}

    def by_kind(self, value: Callable[[LayerShape], T]) -> list[T]:
        """One value per layer, computed once for all that are alike."""
        return self.spread([value(layer) for layer in self.kinds])

    def spread(self, values: Sequence[T]) -> list[T]:
        """One value per layer, from one per kind."""
        return [values[kind] for kind in self.kind_of]

    def budget(self, offer: DeviceOffer | HostOffer) -> int:
        """What may be used of a device."""
        available = offer.available_bytes
        margin = margin_bytes(offer.platform, available, self.rules.margin_floor_bytes)
        return max(0, available - margin)

    def use(self, offer: DeviceOffer, first: int, end: int, output: Output | None) -> MemoryUse:
        """What a device needs for a run of layers; ``output`` only if it is the last device."""
        weights, largest = self._weights(first, end, output)
        kv = self.kv[end] - self.kv[first]
        compute = self._compute_of(_position(output), max(self.forward[first:end], default=0))
        return MemoryUse(
            weight_bytes=weights,
            kv_bytes=kv,
            compute_bytes=compute,
            peak_bytes=load_peak_bytes(weights, largest, kv, compute),
            budget_bytes=self.budget(offer),
            available_bytes=offer.available_bytes,
        )

    def bytes_of(self, first: int, end: int) -> int:
        """What a device of its own would need for these layers, or for the output alone."""
        output = Output.LAST if first == end else None
        weights, _ = self._weights(first, end, output)
        forward = max(self.forward[first:end], default=0)
        kv = self.kv[end] - self.kv[first]
        return weights + kv + self._compute_of(_position(output), forward)

    def host_use(self, host: HostOffer, block: int, *, with_output: bool) -> MemoryUse:
        """What the main host itself needs with the first ``block`` layers."""
        weights, compute, peak = self._host_bytes(block, with_output=with_output)
        return MemoryUse(
            weight_bytes=weights,
            kv_bytes=self.kv[block],
            compute_bytes=compute,
            peak_bytes=peak,
            budget_bytes=self.budget(host),
            available_bytes=host.available_bytes,
        )

    def _host_bytes(self, block: int, *, with_output: bool) -> tuple[int, int, int]:
        """Its weights, its compute buffer and the most at any time."""
        shape = self.shape
        # Tied embeddings too: what is computed with is a copy in another layout.
        own = shape.output_matrix_bytes if with_output else 0
        weights = shape.input_bytes + self.weights[block] + own
        position = Position.HOST_WITH_LAYERS if block else Position.HOST
        compute = self._compute_of(position, max(self.forward[:block], default=0))
        compute += logits_bytes(shape, self.run) * (2 if with_output else 1)
        # A tensor on its way to a worker is there twice: as read, and as the message.
        sending = 2 * max(self._extremes[2], shape.output.largest_bytes)
        return weights, compute, load_peak_bytes(weights, sending, self.kv[block], compute)

    def host_block(self, host: HostOffer, *, with_output: bool) -> int:
        """How many of the first layers the main host can hold; -1: not even the embeddings."""
        key = self.budget(host), self.shape.n_layers if host.may_hold_layers else 0, with_output
        if key not in self._host_blocks:
            self._host_blocks[key] = self._computed_host_block(*key)
        return self._host_blocks[key]

    def _computed_host_block(self, budget: int, most: int, with_output: bool) -> int:
        def is_too_much(block: int) -> bool:
            return self._host_bytes(block, with_output=with_output)[2] > budget

        if not is_too_much(most):
            return most
        return bisect_left(range(most), True, key=is_too_much) - 1

    def starts(self, budget: int) -> list[int]:
        """For each end of a run, the first layer with which it may begin; the end: none fits."""
        if budget not in self._starts:
            self._starts[budget] = self._computed_starts(budget)
        return self._starts[budget]

    def _computed_starts(self, budget: int) -> list[int]:
        if self.fits(budget, 0, self.shape.n_layers, None):  # and so does any run
            return [0] * len(self.weights)
        low, high, largest = self._extremes
        least = budget - self._compute_of(Position.MIDDLE, low)
        most = budget - self._compute_of(Position.MIDDLE, high)
        loads = [w + kv for w, kv in zip(self.weights, self.kv, strict=True)]
        starts, first = [0], 0
        for end in range(1, len(loads)):
            while first < end:
                load = loads[end] - loads[first]
                if load <= least:
                    tight = (
                        load > most or self.weights[end] - self.weights[first] + largest > budget
                    )
                    if not tight or self.fits(budget, first, end, None):
                        break
                first += 1
            starts.append(first)
        return starts

    def last_start(self, budget: int, output: Output) -> int:
        """The first layer with which the last device may begin; ``n_layers + 1``: none."""
        n_layers = self.shape.n_layers
        if self.fits(budget, 0, n_layers, output):
            return 0
        return bisect_left(
            range(n_layers + 1),
            True,
            key=lambda first: self.fits(budget, first, n_layers, output),
        )

    def fits(self, budget: int, first: int, end: int, output: Output | None) -> bool:
        """Whether a run fits; bounds decide most cases without looking at each layer."""
        weights, _ = self._weights(end, end, output)
        weights += self.weights[end] - self.weights[first]
        kv = self.kv[end] - self.kv[first]
        low, high, largest = self._extremes
        position = _position(output)
        if weights + kv + self._compute_of(position, low if first < end else 0) > budget:
            return False
        largest = max(largest, self._output_largest(output))
        if load_peak_bytes(weights, largest, kv, self._compute_of(position, high)) <= budget:
            return True
        _, largest = self._weights(first, end, output)
        compute = self._compute_of(position, max(self.forward[first:end], default=0))
        return load_peak_bytes(weights, largest, kv, compute) <= budget

    def _weights(self, first: int, end: int, output: Output | None) -> tuple[int, int]:
        """Bytes of a run's weights, and of the largest tensor among them."""
        size = self.weights[end] - self.weights[first]
        largest = max(self.largest[first:end], default=0)
        if output in {Output.LAST, Output.SAMPLED}:
            size += self.shape.output.size_bytes
        return size, max(largest, self._output_largest(output))

    def _output_largest(self, output: Output | None) -> int:
        has_output = output in {Output.LAST, Output.SAMPLED}
        return self.shape.output.largest_bytes if has_output else 0

    def _compute_of(self, position: Position, forward: int) -> int:
        """A compute buffer, with the margin for graphs unlike llama's, and a worker's workspace."""
        key = position, forward
        if key not in self._compute:
            exact = compute_bytes(self.shape, self.run, position, forward)
            margin = exact * self.rules.compute_factor + self.rules.compute_extra_bytes
            is_worker = position not in {Position.HOST, Position.HOST_WITH_LAYERS}
            self._compute[key] = round(margin) + (self._workspace if is_worker else 0)
        return self._compute[key]


def _position(output: Output | None) -> Position:
    has_output = output in {Output.LAST, Output.SAMPLED}
    return Position.OUTPUT if has_output else Position.MIDDLE


def _kinds(layers: Sequence[LayerShape]) -> tuple[list[LayerShape], list[int]]:
    """The different layers, and which of them each layer is."""
    numbers: dict[LayerShape, int] = {}
    kind_of = [numbers.setdefault(layer, len(numbers)) for layer in layers]
    return list(numbers), kind_of
