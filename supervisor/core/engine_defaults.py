"""What llama-server may keep of earlier conversations, so that it never costs more than it saves.

Both of its means copy state from the devices into its own memory while requests wait: the prompt
cache the whole KV cache of a conversation that gives way to another, a context checkpoint what
cannot be rolled back: sliding windows and recurrent states. Over a network each takes about as long
as the copy does, since its parts are fetched one after the other.

Source:
    llama.cpp 0.5.0-dev: ``server-context.cpp`` ``get_available_slot``, ``create_checkpoint``;
    ``llama-context.cpp`` ``llama_io_write_host``, which gets one tensor after the other;
    ``llama-kv-cache.cpp`` and ``llama-memory-recurrent.cpp`` ``state_write``. Measured with a
    recorded worker: a change between conversations of 407 tokens fetched 5.0 MB in 24 steps (12
    layers of 1 KiB per token), a checkpoint of ten sliding layers of 512 tokens 10.5 MB in 20 or 40
    steps, one of seven recurrent layers 15.0 MB in 14.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from supervisor.core.entities import Plan, Shard
from supervisor.core.explain_words import called, duration, listed
from supervisor.core.memory import F32_BYTES, MIB, Run, kv_token_bytes
from supervisor.core.model_shape import LayerShape, ModelShape
from supervisor.core.offers import HostFacts, Place, is_on
from supervisor.core.planning import PlacedDevice, Placement, PlanRequest
from supervisor.core.units import gib

LEAST_CACHE_MIB: Final = 256
"""A smaller prompt cache holds too few conversations to be worth anything."""

CACHE_SHARE: Final = 2
CHECKPOINTS_SHARE: Final = 4
"""What the main host has left, divided by what may be used of it: most of its use is never seen by
a plan, such as the requests themselves, and pages of the model's file."""

CHECKPOINT_S: Final = 0.05
"""A checkpoint that takes no longer is not noticed; usually two are made per request."""

REREAD_SHARE: Final = 20
"""Of recurrent layers, a checkpoint may take this part of the time that a usual prompt takes:
without one, any change of a conversation has all of it read again. A sliding window keeps enough
for small changes by itself (measured: of 1500 tokens, 30 rolled back)."""

ENGINE_CHECKPOINTS: Final = 32
"""Per slot, by the engine's own default."""

FEWEST_CHECKPOINTS: Final = 2
"""A request makes two."""

RANGES: Final = 2
"""Pieces of a sliding layer's cells: the window lies across the end of the cache, at worst."""


@dataclass(frozen=True, slots=True)
class EngineDefaults:
    """Values for the plan, and why, in sentences."""

    cache_ram_mib: int
    ctx_checkpoints: int | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Copy:
    """The state of some layers as a checkpoint copies it, of one slot."""

    size_bytes: int = 0
    steps: int = 0


def engine_defaults(
    plan: Plan,
    request: PlanRequest,
    best: Placement,
    places: Mapping[str, Place],
    host: HostFacts,
    *,
    most_cache_mib: int,
) -> EngineDefaults:
    """What suits a plan.

    Args:
        plan: With all memory figures.
        request: What it was made from.
        best: The placement that it is.
        places: By the planner's names.
        host: The main host.
        most_cache_mib: The operator's limit for the prompt cache.
    """
    shared = [
        shard
        for device, shard in zip(best.devices, plan.shards, strict=True)
        if is_on(places[device.name], host) and places[device.name].shares_host_memory
    ]
    remote = [d.name for d in best.devices if not is_on(places[d.name], host)]
    left = left_bytes(plan, shared)
    cache_mib, cache_reason = _cache(left, remote, most_cache_mib)
    checkpoints, reasons = _checkpoints(left, request, best)
    return EngineDefaults(cache_mib, checkpoints, (cache_reason, *reasons))


def left_bytes(plan: Plan, shared: Sequence[Shard]) -> int:
    """What the main host can spare beside the plan, its head-room kept.

    Args:
        plan: With all memory figures.
        shared: Its shards in the main host's own memory.
    """
    needed = plan.host.peak_bytes + sum(shard.peak_bytes for shard in shared)
    return max(0, plan.host.budget_bytes - needed)


def _cache(left: int, remote: Sequence[str], most_mib: int) -> tuple[int, str]:
    if remote:
        return 0, (
            "Prompts of earlier conversations are not kept (--cache-ram 0): at every change of"
            f" conversation they would be fetched over the network from {listed(remote)}."
        )
    if most_mib == 0:
        return 0, "Prompts of earlier conversations are not kept: your settings say so."
    mib = min(most_mib, left // CACHE_SHARE // MIB)
    if mib < LEAST_CACHE_MIB <= most_mib:
        return 0, (
            "Prompts of earlier conversations are not kept (--cache-ram 0): beside the model, the"
            f" main host has only {gib(left)} left."
        )
    return mib, (
        f"Up to {gib(mib * MIB)} of what the main host has left keeps prompts of earlier"
        " conversations (--cache-ram), which need not be read again; no network is between."
    )


# -- context checkpoints ---------------------------------------------------------------------------


def _checkpoints(
    left: int, request: PlanRequest, best: Placement
) -> tuple[int | None, tuple[str, ...]]:
    """How many per slot, and why; nothing for models that keep only what can be rolled back."""
    shape, run = request.shape, best.run
    own = _copy(best.host, shape, run)
    copies = {device.name: _copy(device, shape, run) for device in best.devices}
    size_bytes = own.size_bytes + sum(copy.size_bytes for copy in copies.values())
    if not size_bytes:
        return None, ()
    took_s = _took_s(request, copies)
    copy_s, limit_s = sum(took_s.values()), _limit_s(shape, best)
    what = f"a copy of the model's state ({gib(size_bytes)})"
    if copy_s > limit_s:
        slowest = max(took_s, key=lambda name: took_s[name])
        return 0, (
            f"Context checkpoints are off (--ctx-checkpoints 0): {what} would be fetched twice per"
            f" request and take {duration(copy_s)} each time, most of it from {called(slowest)}.",
        )
    fit = left // CHECKPOINTS_SHARE // (size_bytes * run.slots)
    if fit >= ENGINE_CHECKPOINTS:
        time = f" in {duration(copy_s)}" if copy_s else ""
        return None, (
            f"Context checkpoints are on: {what} is made{time}, so that a conversation that is"
            " changed need not be read from its beginning.",
        )
    if fit < FEWEST_CHECKPOINTS:
        return 0, (
            f"Context checkpoints are off (--ctx-checkpoints 0): each is {what}, and the main host"
            f" has only {gib(left)} left.",
        )
    return fit, (
        f"At most {fit} context checkpoints are kept per request that is served at once"
        f" (--ctx-checkpoints): each is {what}, and the main host has only {gib(left)} left.",
    )


def _copy(placed: PlacedDevice, shape: ModelShape, run: Run) -> _Copy:
    layers = shape.layers[placed.first_layer : placed.first_layer + placed.layers]
    parts = [_layer_copy(layer, run) for layer in layers]
    return _Copy(sum(part.size_bytes for part in parts), sum(part.steps for part in parts))


def _layer_copy(layer: LayerShape, run: Run) -> _Copy:
    """Keys and values of a window; of a recurrent layer its state and that of its convolution."""
    size_bytes, steps = F32_BYTES * layer.state_elements, 2 if layer.state_elements else 0
    if layer.window_tokens is not None and layer.has_cache:
        tokens = min(layer.window_tokens, run.cells)
        size_bytes += round(kv_token_bytes(layer, run.kv_type) * tokens)
        steps += RANGES * (2 if layer.value_elements else 1)
    return _Copy(size_bytes, steps)


def _took_s(request: PlanRequest, copies: Mapping[str, _Copy]) -> dict[str, float]:
    """How long each device's part of a copy takes: a round trip for each step, and the bytes."""
    links = {offer.name: offer.link for offer in request.devices}
    return {
        name: copy.steps * links[name].rtt_s + links[name].receiving_s(copy.size_bytes)
        for name, copy in copies.items()
    }


def _limit_s(shape: ModelShape, best: Placement) -> float:
    is_recurrent = any(layer.state_elements for layer in shape.layers)
    return max(CHECKPOINT_S, best.times.prompt_s / REREAD_SHARE if is_recurrent else 0.0)
