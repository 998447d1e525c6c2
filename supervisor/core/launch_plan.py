"""From a placement to the plan of a launch, and from the engine's figures back to the planner."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from supervisor.core.engine_memory import EngineMemory, EngineUse
from supervisor.core.entities import (
    DeploymentSpec,
    HostShare,
    MemoryUse,
    ModelFacts,
    Plan,
    Prediction,
    Shard,
    StagePrediction,
)
from supervisor.core.memory import MIB, Run, load_peak_bytes, margin_bytes
from supervisor.core.model_shape import ModelShape
from supervisor.core.offers import Place
from supervisor.core.planning import (
    HOST,
    DeviceOffer,
    Goal,
    HostOffer,
    Overrides,
    Placement,
    PlanRequest,
    Rules,
    Wanted,
)
from supervisor.core.speed import Output, Workload
from supervisor.core.wires import direct_host
from supervisor.core.workspace import workspace_of_any

EXACT: Final = {"compute_factor": 1.0, "compute_extra_bytes": 0}
"""Rules for when the engine itself checks the memory: no margin for graphs unlike llama's."""

ROUNDING_BYTES: Final = 3 * MIB
"""The engine rounds weights, cache and buffers down to a MiB each."""


def wanted(spec: DeploymentSpec) -> Wanted:
    """What the server shall offer; each slot has its own cache, as llama-server does by default."""
    return Wanted(
        ctx_tokens=spec.ctx_tokens,
        min_ctx_tokens=spec.min_ctx_tokens,
        slots=spec.slots,
        is_unified=spec.slots == 1,
    )


def goal(spec: DeploymentSpec) -> Goal:
    """What the placement is judged by."""
    work = Workload(
        prompt_tokens=spec.prompt_tokens, generated_tokens=spec.generated_tokens, users=spec.users
    )
    return Goal.preset(spec.goal, work)


def overrides(spec: DeploymentSpec, places: Sequence[Place], joined: Collection[str]) -> Overrides:
    """What the operator decided, in the planner's names.

    A device with several ggml devices is all of its GPUs, unless one is named: ``desktop/CPU``.

    Args:
        spec: What was asked for.
        places: Those that are offered.
        joined: Names and ids of all devices; to exclude one that is not offered changes nothing.
    """
    return Overrides(
        devices=_expanded(spec.devices, places),
        exclude=_all_of(spec.exclude, places, joined),
        order=_expanded(spec.order, places),
        split=spec.split,
        kv_type=spec.kv_type,
        ubatch=spec.ubatch,
        pin_output=next(iter(_expanded(_one(spec.pin_output), places)), None),
    )


def _one(name: str | None) -> tuple[str, ...]:
    return (name,) if name else ()


def _expanded(names: Iterable[str], places: Sequence[Place]) -> tuple[str, ...]:
    return tuple(name for given in names for name in _named(given, places))


def _named(given: str, places: Sequence[Place]) -> list[str]:
    own = [place for place in places if given in (place.device.name, place.device.id)]
    cards = [place for place in own if not place.ggml.is_cpu]
    return [place.name for place in cards or own] or [given]


def _all_of(
    names: Iterable[str], places: Sequence[Place], joined: Collection[str]
) -> tuple[str, ...]:
    found: list[str] = []
    for given in names:
        own = [p.name for p in places if given in (p.name, p.device.name, p.device.id)]
        found += own or ([] if given.partition("/")[0] in joined else [given])
    return tuple(found)


def launch_plan(
    facts: ModelFacts,
    spec: DeploymentSpec,
    request: PlanRequest,
    best: Placement,
    places: Mapping[str, Place],
) -> Plan:
    """The plan that a launch follows.

    Args:
        facts: Of the model.
        spec: What was asked for.
        request: What there is to use; the placement may have been made from less.
        best: The placement.
        places: By the planner's names.
    """
    offers = {offer.name: offer for offer in request.devices}
    splits = best.tensor_split
    shards = []
    for index, (device, layers) in enumerate(zip(best.devices, splits, strict=True)):
        place = places[device.name]
        is_last = index == len(best.devices) - 1
        budget = _budget(offers[device.name], request.rules)
        use = device.memory.model_copy(
            update={"available_bytes": place.available_bytes, "budget_bytes": budget}
        )
        shards.append(
            Shard(
                agent_id=place.device.id,
                device=place.device.name,
                ggml_device=place.ggml.name,
                host=direct_host(place.device),
                layers=layers,
                first_layer=device.first_layer,
                has_output=is_last and best.output is not Output.HOST,
                **use.model_dump(),
            )
        )
    own = best.host.memory.model_copy(
        update={
            "available_bytes": request.host.available_bytes,
            "budget_bytes": _budget(request.host, request.rules),
        }
    )
    return Plan(
        model=facts,
        ctx_tokens=best.run.ctx_tokens,
        slots=spec.slots,
        kv_type=best.run.kv_type,
        ubatch=best.run.ubatch,
        shards=tuple(shards),
        host=HostShare(
            layers=best.host.layers if best.devices else facts.block_count,
            has_output=best.output is Output.HOST or not best.devices,
            **own.model_dump(),
        ),
        tensor_overrides=best.tensor_overrides,
        samples_on_device=best.output is Output.SAMPLED,
        prediction=_prediction(request, best),
    )


def _budget(offer: DeviceOffer | HostOffer, rules: Rules) -> int:
    margin = margin_bytes(offer.platform, offer.available_bytes, rules.margin_floor_bytes)
    return max(0, offer.available_bytes - margin)


def _prediction(request: PlanRequest, best: Placement) -> Prediction:
    names = [HOST] if best.host.layers else []
    names += [device.name for device in best.devices]
    stages = [
        StagePrediction(device=name, compute_s=stage.compute_s, network_s=stage.hop_s)
        for name, stage in zip(names, best.times.stages, strict=True)
    ]
    return Prediction(
        decode_tokens_per_s=best.decode_tokens_per_s,
        prefill_tokens_per_s=best.prefill_tokens_per_s,
        load_s=best.times.load_s,
        prompt_tokens=best.prompt_tokens,
        users=best.users,
        output_s=best.times.output_s,
        stages=tuple(stages),
        is_guess=_is_guess(request, best),
    )


def _is_guess(request: PlanRequest, best: Placement) -> bool:
    used = {device.name for device in best.devices}
    offers = [offer for offer in request.devices if offer.name in used]
    needs_host = best.host.layers > 0 or best.output is Output.HOST
    return (needs_host and request.host.speed.is_guess) or any(
        offer.speed.is_guess or offer.link.is_guess for offer in offers
    )


def with_engine_memory(plan: Plan, shape: ModelShape, found: EngineMemory) -> Plan:
    """The plan with the engine's own figures for weights, cache and buffers."""
    largest = max((layer.largest_bytes for layer in shape.layers), default=0)
    sending = 2 * max(largest, shape.output.largest_bytes)
    workspace = workspace_of_any(shape, _run_of(plan))
    shards = [
        shard.model_copy(update=_engine_use(use, _largest(shape, shard), workspace))
        for shard, use in zip(plan.shards, found.devices, strict=True)
    ]
    own = _engine_use(found.host, sending if plan.shards else 0, 0)
    return plan.model_copy(
        update={
            "shards": tuple(shards),
            "host": plan.host.model_copy(update=own),
            "memory_from": "engine",
        }
    )


def _run_of(plan: Plan) -> Run:
    return Run(
        ctx_tokens=plan.ctx_tokens,
        kv_type=plan.kv_type,
        ubatch=plan.ubatch,
        slots=plan.slots,
        is_unified=plan.slots == 1,
    )


def _engine_use(found: EngineUse, largest: int, workspace: int) -> dict[str, int]:
    weights, kv = found.model_bytes, found.context_bytes
    compute = found.compute_bytes + workspace
    return {
        "weight_bytes": weights,
        "kv_bytes": kv,
        "compute_bytes": compute,
        "peak_bytes": load_peak_bytes(weights, largest, kv, compute) + ROUNDING_BYTES,
    }


def _largest(shape: ModelShape, shard: Shard) -> int:
    """The largest tensor that a worker receives."""
    end = min(shard.first_layer + shard.layers, shape.n_layers)
    sizes = [layer.largest_bytes for layer in shape.layers[shard.first_layer : end]]
    if shard.has_output:
        sizes.append(shape.output.largest_bytes)
    return max(sizes, default=0)


def is_roomy(plan: Plan, shape: ModelShape) -> bool:
    """Whether all have twice what they need, of a model that our formulas describe exactly."""
    places: list[MemoryUse] = [plan.host, *plan.shards]
    return not shape.notes and all(2 * use.peak_bytes <= use.budget_bytes for use in places)


def overcharged(plan: Plan, best: Placement) -> dict[str, int]:
    """Who would need more than it may use by the engine's word, and how much less to offer of it.

    A place where the engine needs a fifth more than we reckoned is offered a fifth less.

    Args:
        plan: With the engine's figures.
        best: The placement it was made from, with ours.
    """
    ours = [best.host, *best.devices]
    theirs: list[MemoryUse] = [plan.host, *plan.shards]
    return {
        mine.name: max(MIB, use.budget_bytes - use.budget_bytes * mine_bytes // use.peak_bytes)
        for mine, use in zip(ours, theirs, strict=True)
        if use.peak_bytes > use.budget_bytes
        for mine_bytes in [min(mine.memory.peak_bytes, use.peak_bytes)]
    }


def with_less(request: PlanRequest, bytes_less: Mapping[str, int]) -> PlanRequest:
    """The same request with less to give where the engine needs more than we reckoned."""

    def less(available_bytes: int, name: str) -> dict[str, int]:
        return {"available_bytes": max(0, available_bytes - bytes_less[name])}

    devices = tuple(
        offer.model_copy(update=less(offer.available_bytes, offer.name))
        if offer.name in bytes_less
        else offer
        for offer in request.devices
    )
    host = request.host
    if HOST in bytes_less:
        host = host.model_copy(update=less(host.available_bytes, HOST))
    return request.model_copy(update={"devices": devices, "host": host})


def rules(*, floor_bytes: int, sampling: bool, is_checked: bool) -> Rules:
    """How careful to be; ``is_checked``: the engine will have the last word on memory."""
    base = Rules(margin_floor_bytes=floor_bytes, allow_sampling_on_devices=sampling)
    return base.model_copy(update=EXACT) if is_checked else base
