"""Says why a model does not fit, and what would help."""

from collections.abc import Iterator
from itertools import groupby, pairwise

from supervisor.core.explain_words import called, listed
from supervisor.core.ggml_types import TYPE_SIZES
from supervisor.core.mac_gpus import how_to_raise
from supervisor.core.memory import GIB
from supervisor.core.model_shape import ModelShape
from supervisor.core.planning import NoFit, PlanRequest, Shortfall
from supervisor.core.search_sizes import Sizes
from supervisor.core.units import gib

NEARLY = 3
"""So few layers without a place may be made to fit by closing programs."""

CAREFUL = 0.85
"""Of a version that would fit in proportion: caches and buffers do not shrink with the weights."""

COARSEST_BITS = 2.25
"""Per weight; below, a smaller model gives better answers."""


def explain_no_fit(request: PlanRequest, result: NoFit) -> Iterator[str]:
    """One sentence each: what is missing, where there is room, what would fit."""
    sizes = Sizes(request.shape, result.run, request.rules)
    if sizes.host_block(request.host, with_output=False) < 0:
        own = sizes.host_use(request.host, 0, with_output=False)
        yield (
            "The model does not fit: the main host is too small for its own part, which no other"
            f" device can take. It needs {gib(own.peak_bytes)} to read the file, send it out and"
            f" keep the vocabulary, and may use {gib(own.budget_bytes)}; free memory there, or let"
            " a device with more memory be the main host."
        )
        return
    yield (
        f"The model does not fit: with {result.run.ctx_tokens} tokens of context it needs"
        f" {gib(result.needed_bytes)}, and all devices together may use"
        f" {gib(result.budget_bytes)}."
    )
    yield from _missing(sizes, result)
    yield _room(result)
    yield from gpu_limits(request)
    yield from _nearly(request, result)
    yield _advice(request, result)
    if not request.overrides.is_empty:
        yield "This is with your own settings; without them, more may fit."


def gpu_limits(request: PlanRequest) -> Iterator[str]:
    """How the GPU of each Mac that has memory to spare may be let use it."""
    chosen, left_out = request.overrides.devices, request.overrides.exclude
    for offer in request.devices:
        is_wanted = offer.name not in left_out and (not chosen or offer.name in chosen)
        if offer.gpu_limit is not None and is_wanted:
            yield how_to_raise(offer.name, offer.gpu_limit)


def _missing(sizes: Sizes, result: NoFit) -> Iterator[str]:
    n_layers = sizes.shape.n_layers
    count = min(result.missing_layers, n_layers)
    find = "finds" if count == 1 else "find"
    yield (
        f"{count} of its {n_layers} layers {find} no place; that would take another device with"
        f" {gib(result.missing_bytes)} to spare."
    )
    if result.needed_bytes <= result.budget_bytes:
        ends = [weights + kv for weights, kv in zip(sizes.weights, sizes.kv, strict=True)]
        largest = max(end - start for start, end in pairwise(ends))
        yield (
            f"A layer takes up to {gib(largest)} and cannot be divided: what is left of each"
            " device's memory is too little for one more."
        )


def _room(result: NoFit) -> str:
    """What every device may use, the largest first, equal ones together."""
    others = result.devices[1:]
    host_counts = result.budget_bytes > sum(device.budget_bytes for device in others)
    devices = sorted(result.devices if host_counts else others, key=lambda d: -d.budget_bytes)
    parts = []
    for budget, group in groupby(devices, key=lambda d: gib(d.budget_bytes)):
        names = [device.name for device in group]
        each = " each" if len(names) > 1 else ""
        parts.append(f"{listed(names)} {budget}{each}")
    return f"Besides what each keeps free for its system, there are: {'; '.join(parts)}."


def _nearly(request: PlanRequest, result: NoFit) -> Iterator[str]:
    if result.missing_layers > NEARLY or request.overrides.split:
        return
    lacks = [(d.needs_bytes - d.budget_bytes, d) for d in result.devices if _lacks(d)]
    nearest = sorted(lacks, key=lambda item: item[0])[:2]
    if nearest:
        more = [f"{gib(count)} more on {called(device.name)}" for count, device in nearest]
        yield f"Freeing memory may be enough: one more layer fits with {', or with '.join(more)}."


def _lacks(device: Shortfall) -> bool:
    return 0 < device.budget_bytes < device.needs_bytes


def _advice(request: PlanRequest, result: NoFit) -> str:
    if (nearest := result.nearest) is not None:
        wanted = request.overrides.ctx_tokens or request.wanted.ctx_tokens
        changes = []
        if nearest.ctx_tokens < wanted:
            changes.append(f"a context of {nearest.ctx_tokens} instead of {wanted} tokens")
        if nearest.kv_type != (request.overrides.kv_type or request.wanted.kv_types[0]):
            changes.append(
                f"a {nearest.kv_type} cache (its memory of the conversation, stored more coarsely)"
            )
        changes = changes or [f"smaller steps while reading prompts (ubatch {nearest.ubatch})"]
        return f"It would fit with {' and '.join(changes)}."
    placed = max(0.0, 1 - result.missing_layers / request.shape.n_layers)
    size = CAREFUL * placed * request.shape.weight_bytes
    what = "a smaller model"
    if placed * _bits(request.shape) >= COARSEST_BITS:
        what = "a version of it that is stored more coarsely (another quantisation)"
    of = f", of about {size / GIB:.0f} GiB or less" if size >= GIB else ""
    return f"A shorter context does not help; add a device, or choose {what}{of}."


def _bits(shape: ModelShape) -> float:
    """Bits per weight of the type that most layers have."""
    sizes = {size.name: size.block_bytes * 8 / size.block_elements for size in TYPE_SIZES.values()}
    kinds = [layer.main_type for layer in shape.layers]
    return sizes.get(max(kinds, key=kinds.count), 0.0)
