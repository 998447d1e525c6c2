"""What one more device, a smaller quantisation or a better link would change."""

from collections.abc import Iterator

from supervisor.core.entities import MAX_REMOTE_DEVICES
from supervisor.core.model_shape import LayerShape, ModelShape, Weights
from supervisor.core.planning import DeviceOffer, Overrides, Placement, PlanRequest, WhatIf
from supervisor.core.search import best_placement
from supervisor.core.speed import LinkSpeed

SMALLER = 0.75
"""A step of quantisation, such as Q4_K_M to Q3_K_M or Q8_0 to Q6_K, takes about a quarter."""

CABLE = LinkSpeed(
    rtt_p50_s=0.0005, rtt_p90_s=0.001, up_bytes_per_s=110e6, down_bytes_per_s=110e6, is_guess=True
)
SLOW_RTT_S = 0.002


def what_if(request: PlanRequest, best: Placement) -> tuple[WhatIf, ...]:
    """Plan again with each change; a few hundred milliseconds for a large cluster."""
    found: list[WhatIf] = []
    for change, changed in _changes(request, best):
        placement = best_placement(changed)
        if placement is not None:
            found.append(
                WhatIf(
                    change=change,
                    tokens_per_s=placement.decode_tokens_per_s,
                    cost_s=placement.cost_s,
                )
            )
    return tuple(found)


def _changes(request: PlanRequest, best: Placement) -> Iterator[tuple[str, PlanRequest]]:
    free = request.model_copy(update={"overrides": Overrides()})
    offers = {offer.name: offer for offer in request.devices}
    used = [offers[device.name] for device in best.devices]
    remote = [offer for offer in request.devices if not offer.link.is_local]
    if used and len(remote) < MAX_REMOTE_DEVICES:
        fastest = max(used, key=lambda offer: offer.speed.decode_bytes_per_s)
        twin = fastest.model_copy(
            update={"name": f"another {fastest.name}", "cached_layers": frozenset()}
        )
        devices = (*request.devices, twin)
        yield twin.name, free.model_copy(update={"devices": devices})
    smaller = free.model_copy(update={"shape": _smaller(request.shape)})
    yield "a version of the model that is a quarter smaller (a coarser quantisation)", smaller
    slow = [offer for offer in used if offer.link.rtt_s > SLOW_RTT_S]
    if slow:
        slowest = max(slow, key=lambda offer: offer.link.rtt_s)
        yield f"a cable to {slowest.name}", _wired(free, slowest)


def _wired(request: PlanRequest, device: DeviceOffer) -> PlanRequest:
    devices = tuple(
        offer.model_copy(update={"link": CABLE}) if offer is device else offer
        for offer in request.devices
    )
    return request.model_copy(update={"devices": devices})


def _smaller(shape: ModelShape) -> ModelShape:
    return shape.model_copy(
        update={
            "layers": tuple(_smaller_layer(layer) for layer in shape.layers),
            "output": _smaller_weights(shape.output),
            "output_matrix_bytes": int(shape.output_matrix_bytes * SMALLER),
            "input_bytes": int(shape.input_bytes * SMALLER),
        }
    )


def _smaller_layer(layer: LayerShape) -> LayerShape:
    return layer.model_copy(update=_scaled(layer))


def _smaller_weights(weights: Weights) -> Weights:
    return weights.model_copy(update=_scaled(weights))


def _scaled(weights: Weights) -> dict[str, object]:
    return {
        "size_bytes": int(weights.size_bytes * SMALLER),
        "reads": tuple((name, int(count * SMALLER)) for name, count in weights.reads),
        "largest_bytes": int(weights.largest_bytes * SMALLER),
    }
