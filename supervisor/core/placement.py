"""Simple placement: whole layers in proportion to the memory that is truly available.

The planner will choose by speed; the functions that turn shards into layers stay the same.
"""

from collections.abc import Sequence

from supervisor.core.entities import MAX_REMOTE_DEVICES, Candidate, ModelFacts, Plan, Shard
from supervisor.core.units import gib
from supervisor.errors import BadSplit, InsufficientMemory, NoDevices


def place(
    model: ModelFacts,
    candidates: Sequence[Candidate],
    *,
    ctx_tokens: int,
    slots: int,
    split: Sequence[int] = (),
) -> Plan:
    """Place a model over ``candidates``, in their order.

    Raises:
        NoDevices: There is no candidate.
        InsufficientMemory: The weights alone exceed what is available.
        BadSplit: ``split`` does not fit the model or the devices.
    """
    if not candidates:
        raise NoDevices("no device is ready; join one with 'supervisor join', or see 'devices'")
    total = model.block_count + 1
    per_layer_bytes = -(-model.size_bytes // total)
    roomy = list(candidates)
    if not split:
        # A device without room for one layer would only make the whole plan fail.
        roomy = [c for c in candidates if c.available_bytes >= per_layer_bytes] or roomy
    chosen = roomy[: min(MAX_REMOTE_DEVICES, total)]
    reasons = _left_out(candidates, chosen, total)
    if split:
        layers = _checked_split(split, chosen, model)
        reasons.append("the split was given")
    else:
        layers = proportional([c.available_bytes for c in chosen], total)
        reasons.append("layers in proportion to the memory that is truly available")
    shards = [
        Shard(
            agent_id=candidate.agent_id,
            device=candidate.device,
            ggml_device=candidate.ggml_device,
            host=candidate.host,
            layers=count,
            weight_bytes=count * per_layer_bytes,
            available_bytes=candidate.available_bytes,
        )
        for candidate, count in zip(chosen, layers, strict=True)
        if count > 0
    ]
    shards[-1] = shards[-1].model_copy(update={"has_output": True})
    plan = Plan(
        model=model,
        ctx_tokens=ctx_tokens,
        slots=slots,
        shards=tuple(shards),
        reasons=tuple(reasons),
    )
    _check_memory(plan)
    return plan


def proportional(weights: Sequence[int], total: int) -> list[int]:
    """Whole numbers that sum to ``total`` in proportion to ``weights`` (largest remainder).

    Every device with a weight gets at least one, as long as there are enough layers: a device
    that is connected for nothing costs a round trip per token.
    """
    sum_weights = sum(weights)
    if sum_weights == 0:
        weights, sum_weights = [1] * len(weights), len(weights)
    exact = [total * weight / sum_weights for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    for index, weight in enumerate(weights):
        if weight > 0 and counts[index] == 0 and max(counts) > 1:
            counts[counts.index(max(counts))] -= 1
            counts[index] = 1
    return counts


def _left_out(
    candidates: Sequence[Candidate], chosen: Sequence[Candidate], total: int
) -> list[str]:
    limit = min(MAX_REMOTE_DEVICES, total)
    full = len(chosen) == limit
    why = f"at most {limit} devices can take part" if full else "no room for one layer"
    return [f"left out {c.device}: {why}" for c in candidates if c not in chosen]


def _checked_split(
    split: Sequence[int], chosen: Sequence[Candidate], model: ModelFacts
) -> Sequence[int]:
    total = model.block_count + 1
    if len(split) != len(chosen):
        raise BadSplit(
            f"the split has {len(split)} entries for {len(chosen)} devices "
            f"({', '.join(c.device for c in chosen)}); give one number of layers for each"
        )
    if any(count < 0 for count in split) or sum(split) != total:
        raise BadSplit(
            f"the split {','.join(map(str, split))} sums to {sum(split)}, but {model.name} has "
            f"{total} layers to place ({model.block_count} and the output layer)"
        )
    return split


def _check_memory(plan: Plan) -> None:
    needed = plan.model.size_bytes
    available = sum(shard.available_bytes for shard in plan.shards)
    if needed > available:
        raise InsufficientMemory(
            f"{plan.model.name} needs {gib(needed)} for its weights alone, the devices offer "
            f"{gib(available)}; add a device or choose a smaller quantisation"
        )
    for shard in plan.shards:
        if shard.weight_bytes > shard.available_bytes:
            raise InsufficientMemory(
                f"{shard.device} would get {shard.layers} layers of {gib(shard.weight_bytes)} but "
                f"has {gib(shard.available_bytes)} available; give it fewer layers with --split"
            )
