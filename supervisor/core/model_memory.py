"""Says whether a model fits at a context, device by device, and what would fit if it does not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from agents.contract import Finding
from supervisor.core.doctor import blocks, ok, warning
from supervisor.core.entities import MemoryUse, Plan
from supervisor.core.explain_words import listed
from supervisor.core.memory import MIB
from supervisor.core.planning import HOST
from supervisor.core.units import gib

KV_TYPES: Final = ("f16", "q8_0", "q4_0")
"""From the finest to the coarsest."""
LEAST_CTX_TOKENS: Final = 256
LITTLE_PART: Final = 0.05
LITTLE_BYTES: Final = 128 * MIB
"""Less to spare than both is little: what other programs do in a minute may take it."""


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest context that fits with a type of cache; 0: none does."""

    kv_type: str
    ctx_tokens: int


# -- it fits -----------------------------------------------------------------------------------


def fit(plan: Plan) -> Finding:
    """One sentence for the cluster; a warning where it is tight."""
    tight = [f"{name} {gib(use.budget_bytes - use.peak_bytes)}" for name, use in _tight(plan)]
    said = f"{plan.ctx_tokens:,} tokens fit with {_cache(plan.kv_type)}"
    if tight:
        return warning(
            "model_fit",
            f"{said}, with little to spare on {listed(tight)}",
            "close programs there, or take a shorter context or a coarser cache",
        )
    trained = plan.model.ctx_train_tokens
    if trained and plan.ctx_tokens > trained:
        return warning(
            "model_fit",
            f"{said}, but the model was trained for {trained:,}: beyond, its answers get worse",
            f"take --context {trained}",
        )
    return ok("model_fit", said)


def shares(plan: Plan) -> dict[str, Finding]:
    """What each part of a plan holds, needs and may use, by the name of its device."""
    tight = {name for name, _ in _tight(plan)}
    found = {}
    for name, layers, use in _parts(plan):
        spare = gib(max(use.budget_bytes - use.peak_bytes, 0))
        text = (
            f"{layers}: needs {gib(use.peak_bytes)} with the whole context in use, may use "
            f"{gib(use.budget_bytes)} of {gib(use.available_bytes)} available; {spare} to spare"
        )
        make = warning if name in tight else ok
        found[name] = make("model_share", text)
    for left_out in plan.left_out:
        found.setdefault(left_out.name, ok("model_share", f"not needed: {left_out.reason}"))
    return found


def _parts(plan: Plan) -> Iterator[tuple[str, str, MemoryUse]]:
    host = plan.host
    held = f"{host.layers} layers and the embeddings" if host.layers else "the embeddings"
    yield HOST, held, host
    for shard in plan.shards:
        several = sum(other.agent_id == shard.agent_id for other in plan.shards) > 1
        name = f"{shard.device}/{shard.ggml_device}" if several else shard.device
        yield name, f"{shard.layers} of {plan.model.block_count + 1} layers", shard


def _tight(plan: Plan) -> Iterator[tuple[str, MemoryUse]]:
    for name, _, use in _parts(plan):
        least = max(LITTLE_PART * use.budget_bytes, LITTLE_BYTES)
        if use.budget_bytes and use.budget_bytes - use.peak_bytes < least:
            yield name, use


# -- it does not -------------------------------------------------------------------------------


def no_fit(
    ctx_tokens: int, shortfall: Mapping[str, Any], largest: Sequence[Largest], *, is_cut: bool
) -> Finding:
    """What fits instead, for each type of cache, and by how much the wish does not.

    Args:
        ctx_tokens: That was asked for.
        shortfall: ``planning.NoFit`` as JSON.
        largest: For each type that was tried, the finest first.
        is_cut: There was no time to try all of them.
    """
    parts: list[str] = []
    best = 0
    for each in largest:
        if each.ctx_tokens > best:
            best = each.ctx_tokens
            verb = "would" if parts else "tokens fit"
            parts.append(f"{each.ctx_tokens:,} {verb} with {_cache(each.kv_type)}")
    if not parts:
        parts.append("no context fits")
    if best < ctx_tokens:
        missing = int(shortfall.get("missing_bytes") or 0)
        parts.append(
            f"{ctx_tokens:,} needs {gib(missing)} more" if missing else f"{ctx_tokens:,} does not"
        )
    if is_cut:
        parts.append("there was no time to try every type of cache")
    return blocks("model_fit", "; ".join(parts), _advice(ctx_tokens, largest))


def _advice(ctx_tokens: int, largest: Sequence[Largest]) -> str:
    whole = next((each for each in largest if each.ctx_tokens >= ctx_tokens), None)
    found = whole or max(largest, key=lambda each: each.ctx_tokens, default=None)
    if found is None or not found.ctx_tokens:
        return "add a device, free memory, or choose a smaller model or a coarser quantisation"
    return f"launch it with --ctx {found.ctx_tokens} --kv {found.kv_type}, or add a device"


def shortfalls(shortfall: Mapping[str, Any]) -> dict[str, Finding]:
    """What each device could hold of a model that does not fit."""
    found = {}
    for device in shortfall.get("devices", ()):
        may = f"may use {gib(device['budget_bytes'])} of {gib(device['available_bytes'])} available"
        layers = device["layers"]
        next_one = f"; one layer more needs {gib(device['needs_bytes'])}"
        text = f"{may}: {layers} layers would fit{next_one if device['needs_bytes'] else ''}"
        make = ok if layers or device["name"] == HOST else warning
        found[device["name"]] = make("model_share", text)
    return found


def _cache(kv_type: str) -> str:
    return f"{'an' if kv_type.startswith(('f', 'i')) else 'a'} {kv_type} cache"
