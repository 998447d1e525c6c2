"""Whether a model fits at all, and if not, by how much and what would."""

from bisect import bisect_right
from collections.abc import Iterable

from supervisor.core.memory import Run
from supervisor.core.plan_overrides import Choice
from supervisor.core.planning import HOST, HostOffer, NoFit, PlanRequest, Shortfall
from supervisor.core.search_sizes import Sizes
from supervisor.core.speed import Output

EXACT_DEVICES = 10
"""Above, orders are not tried out to answer whether something fits; largest first is close."""


def could_fit(sizes: Sizes, choice: Choice, host: HostOffer) -> bool:
    """A quick test that errs only towards yes: is there room enough, each device for itself?"""
    blocks = [_host_block(sizes, choice, host, output) for output in choice.outputs]
    if max(blocks) < 0:
        return False
    room = sum(_longest(sizes, sizes.budget(device)) for device in choice.devices)
    return max(blocks) + room >= sizes.shape.n_layers


def _longest(sizes: Sizes, budget: int) -> int:
    return max(end - start for end, start in enumerate(sizes.starts(budget)))


def _host_block(sizes: Sizes, choice: Choice, host: HostOffer, output: Output) -> int:
    block = sizes.host_block(host, with_output=output is Output.HOST)
    return block if choice.host_may_hold else min(block, 0)


def fits(sizes: Sizes, choice: Choice, host: HostOffer) -> bool:
    """Whether some order of the devices holds everything."""
    return any(_missing(sizes, choice, host, output)[0] == 0 for output in choice.outputs)


def _missing(sizes: Sizes, choice: Choice, host: HostOffer, output: Output) -> tuple[int, int]:
    """Layers without a place in the best order, the output counted as one; where they begin."""
    n_layers = sizes.shape.n_layers
    block = _host_block(sizes, choice, host, output)
    if block < 0:
        return n_layers + 1, 0
    if output is Output.HOST and block == n_layers:
        return 0, n_layers
    reach = _reach(sizes, choice, block)
    worst = n_layers + (0 if output is Output.HOST else 1)
    found = (worst - min(reach.values(), default=block), max(reach.values(), default=block))
    for mask, reached in reach.items():
        for index, device in enumerate(choice.devices):
            if not mask >> index & 1:
                start = sizes.last_start(sizes.budget(device), output)
                found = min(found, (max(0, start - reached), reached))
    return found


def _reach(sizes: Sizes, choice: Choice, block: int) -> dict[int, int]:
    """The most first layers that each set of devices can hold."""
    starts = [sizes.starts(sizes.budget(device)) for device in choice.devices]
    reach = {0: _allowed(sizes, block)}
    for mask in _masks(choice, starts):
        for index, start in enumerate(starts):
            if mask in reach and not mask >> index & 1:
                end = _allowed(sizes, bisect_right(start, reach[mask]) - 1)
                longer = mask | 1 << index
                reach[longer] = max(reach.get(longer, 0), end, reach[mask])
    return reach


def _masks(choice: Choice, starts: list[list[int]]) -> Iterable[int]:
    count = len(choice.devices)
    if count <= EXACT_DEVICES:
        return range(1 << count)
    masks = [0]
    for index in sorted(range(count), key=lambda i: starts[i][-1]):
        masks.append(masks[-1] | 1 << index)
    return masks


def _allowed(sizes: Sizes, layer: int) -> int:
    return layer if sizes.shape.cut_is_allowed(layer) else sizes.shape.last_cut


def no_fit(request: PlanRequest, choice: Choice, run: Run, smaller: Iterable[Run]) -> NoFit:
    """By how much ``run``, the smallest that was wanted, does not fit, and what would."""
    sizes = Sizes(request.shape, run, request.rules)
    missing, reached = min(
        _missing(sizes, choice, request.host, output) for output in choice.outputs
    )
    n_layers = request.shape.n_layers
    needed = sizes.weights[n_layers] + sizes.kv[n_layers] + request.shape.output.size_bytes
    own = sizes.budget(request.host) if choice.host_may_hold else 0
    return NoFit(
        needed_bytes=needed + request.shape.input_bytes,
        budget_bytes=own + sum(sizes.budget(device) for device in choice.devices),
        missing_bytes=sizes.bytes_of(reached, min(reached + max(missing, 1), n_layers)),
        missing_layers=missing,
        run=run,
        devices=tuple(_shortfalls(sizes, choice, request.host)),
        nearest=_nearest(request, choice, smaller),
    )


def _shortfalls(sizes: Sizes, choice: Choice, host: HostOffer) -> Iterable[Shortfall]:
    """What each device could hold of the model; the main host's embeddings are its own."""
    block = max(_host_block(sizes, choice, host, output) for output in choice.outputs)
    more = min(max(block, 0) + (1 if choice.host_may_hold else 0), sizes.shape.n_layers)
    yield Shortfall(
        name=HOST,
        available_bytes=host.available_bytes,
        budget_bytes=sizes.budget(host),
        layers=max(block, 0),
        needs_bytes=sizes.host_use(host, more, with_output=False).peak_bytes,
    )
    for index, device in enumerate(choice.devices):
        budget = sizes.budget(device)
        layers = choice.split[index] if choice.split else _longest(sizes, budget) + 1
        end = min(layers, sizes.shape.n_layers)
        yield Shortfall(
            name=device.name,
            available_bytes=device.available_bytes,
            budget_bytes=budget,
            layers=_longest(sizes, budget),
            needs_bytes=sizes.use(device, 0, end, None).peak_bytes,
        )


def _nearest(request: PlanRequest, choice: Choice, smaller: Iterable[Run]) -> Run | None:
    for run in smaller:
        sizes = Sizes(request.shape, run, request.rules)
        if could_fit(sizes, choice, request.host) and fits(sizes, choice, request.host):
            return run
    return None
