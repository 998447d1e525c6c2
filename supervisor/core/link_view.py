"""Links and loads as people want to see them: from counters, a rate and what is left."""

import math
from collections.abc import Mapping
from typing import Final

from supervisor.core.entities import LinkView, Plan, WorkerLoad
from supervisor.link.job import LinkStats

_MEMORY_S: Final = 2.0
"""How far back the rate looks, so that the time left does not jump."""


def link_view(
    device: str, planned_bytes: int, stats: LinkStats, before: LinkView | None, elapsed_s: float
) -> LinkView:
    """``elapsed_s`` seconds after ``before``; ``planned_bytes`` of weights belong on the device."""
    rate = _rate(stats.weight_bytes, before, elapsed_s)
    is_loading = stats.graphs == 0
    left_bytes = max(planned_bytes - stats.weight_bytes, 0) if is_loading else 0
    known_s = stats.answered_s
    return LinkView(
        device=device,
        state=stats.state,
        phase=stats.phase,
        round_trip_ms=None if stats.round_trip_s is None else round(stats.round_trip_s * 1e3, 2),
        weight_bytes=stats.weight_bytes,
        saved_bytes=stats.saved_bytes,
        seeded_bytes=stats.seeded_bytes,
        remaining_bytes=left_bytes,
        sent_bytes=stats.sent_bytes,
        received_bytes=stats.received_bytes,
        bytes_per_s=int(rate),
        eta_s=round(left_bytes / rate, 1) if left_bytes and rate > 0 else None,
        wire_share=round(max(1 - stats.computed_s / known_s, 0.0), 3) if known_s > 0 else None,
        wire_s=round(max(known_s - stats.computed_s, 0.0), 4),
        compute_s=round(stats.computed_s, 4),
        last_command=stats.last_command,
        waiting_s=round(stats.waiting_s, 2),
        detail=stats.detail,
    )


def _rate(weight_bytes: int, before: LinkView | None, elapsed_s: float) -> float:
    """Readings come at any pace, so each counts by the time that it covers."""
    if before is None:
        return 0.0
    if elapsed_s <= 0:
        return float(before.bytes_per_s)
    now = max(weight_bytes - before.weight_bytes, 0) / elapsed_s
    share = 1 - math.exp(-elapsed_s / _MEMORY_S) if before.bytes_per_s else 1.0
    return share * now + (1 - share) * before.bytes_per_s


def worker_loads(plan: Plan, loaded: Mapping[str, int]) -> tuple[WorkerLoad, ...]:
    """How far each device of a plan is; ``loaded`` bytes by its name."""
    merged: dict[str, WorkerLoad] = {}
    for shard in plan.shards:
        before = merged.get(shard.device)
        layers = shard.layers + (before.layers if before else 0)
        weight_bytes = shard.weight_bytes + (before.weight_bytes if before else 0)
        merged[shard.device] = WorkerLoad(
            device=shard.device,
            layers=layers,
            weight_bytes=weight_bytes,
            loaded_bytes=min(loaded.get(shard.device, 0), weight_bytes),
        )
    return tuple(merged.values())
