"""Tier A: the planner against brute force on random clusters, simple policies, and plan times.

    uv run python bench/planning/tier_a.py
    uv run python bench/planning/tier_a.py --json

Every cluster is drawn from a seed. Up to seven devices, from phones to desktop GPUs on mixed
links; models of few layers, uniform and not, so that every placement can be tried. The policies
place the same layers by their own rule and are charged by the same formulas; where a rule puts
more on a device than it holds, the surplus moves to the next one with room, which is kinder to
them than reality. Ratios leave out the clusters where a policy finds no room at all.
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests"))

from planning_world import brute_force, model, random_layers, random_request, score_factor
from shares import proportional

from supervisor.core.memory import GIB
from supervisor.core.planning import DeviceOffer, Placement, Planned, PlanRequest
from supervisor.core.search import best_placement, plan
from supervisor.core.search_sizes import Sizes
from supervisor.core.speed import Output, SpeedModel, Stage, predict

SEED = 20_261_120
SIZES = ((2, 8), (3, 7), (4, 6), (5, 5), (6, 5), (7, 4))
"""Devices and layers; as many layers as brute force can enumerate."""

TOLERANCE = 1e-9
"""Of sums in another order."""


def compare(count: int) -> dict[str, Any]:
    """Cost of the planner and of brute force for ``count`` clusters."""
    rng = random.Random(SEED)
    different: list[int] = []
    refused = 0
    for number in range(count):
        request = random_request(rng, *SIZES[number % len(SIZES)])
        found, expected = best_placement(request), brute_force(request)
        own = math.inf
        if found is not None:
            own = found.cost_s * score_factor(request, [d.name for d in found.devices])
        refused += expected == math.inf
        if own != expected and not abs(own - expected) <= TOLERANCE * expected:
            different.append(number)
    return {
        "clusters": count,
        "equal": count - len(different),
        "nothing_fits": refused,
        "different": different,
    }


# --- policies -------------------------------------------------------------------------------------

Policy = Callable[[Sequence[DeviceOffer], Sizes, int], list[tuple[DeviceOffer, int]] | None]
"""Devices in order, with their layers; the last one also takes the output."""


def by_share(shares: Callable[[DeviceOffer], float]) -> Policy:
    """All devices, in their order, with layers in proportion to something."""

    def place(
        devices: Sequence[DeviceOffer], sizes: Sizes, n_layers: int
    ) -> list[tuple[DeviceOffer, int]] | None:
        counts = proportional([int(shares(device)) for device in devices], n_layers)
        return repaired(list(zip(devices, counts, strict=True)), sizes)

    return place


def fewest_devices(
    devices: Sequence[DeviceOffer], sizes: Sizes, n_layers: int
) -> list[tuple[DeviceOffer, int]] | None:
    """The largest devices, as few as hold the model, by memory: like exo."""
    largest = sorted(devices, key=lambda d: -d.available_bytes)
    memory = by_share(lambda d: d.available_bytes)
    tries = (memory(largest[:count], sizes, n_layers) for count in range(1, len(devices) + 1))
    return next((placed for placed in tries if placed is not None), None)


def fastest_first(
    devices: Sequence[DeviceOffer], sizes: Sizes, n_layers: int
) -> list[tuple[DeviceOffer, int]] | None:
    """Fill the fastest device, then the next, as far as needed."""
    fastest = sorted(devices, key=lambda d: -d.speed.decode_bytes_per_s)
    wanted = [(device, n_layers) for device in fastest]
    tries = (repaired(wanted[:count], sizes) for count in range(1, len(devices) + 1))
    return next((placed for placed in tries if placed is not None), None)


def repaired(
    wanted: list[tuple[DeviceOffer, int]], sizes: Sizes
) -> list[tuple[DeviceOffer, int]] | None:
    """Move what does not fit to later devices; if that fails, fill all from the first on."""
    for wants in (wanted, [(device, sizes.shape.n_layers) for device, _ in wanted]):
        for last in reversed(range(len(wants))):
            placed = filled([*wants[:last], *wants[last + 1 :]], wants[last][0], sizes)
            if placed is not None:
                return placed
    return None


def filled(
    others: list[tuple[DeviceOffer, int]], last: DeviceOffer, sizes: Sizes
) -> list[tuple[DeviceOffer, int]] | None:
    """Give each its layers and the surplus of those before; ``last`` takes the rest."""
    placed: list[tuple[DeviceOffer, int]] = []
    n_layers = sizes.shape.n_layers
    first = due = 0
    for device, count in others:
        due = min(due + count, n_layers)
        room = range(first, due + 1)
        end = bisect_right(
            room, 0, key=lambda e: not sizes.fits(sizes.budget(device), first, e, None)
        )
        reached = max(first, first + end - 1)
        if reached > first:
            placed.append((device, reached - first))
        first = reached
    if not sizes.fits(sizes.budget(last), first, n_layers, Output.LAST):
        return None
    return [*placed, (last, n_layers - first)]


POLICIES: dict[str, Policy] = {
    "llama.cpp default (memory-proportional)": by_share(lambda d: d.available_bytes),
    "equal": by_share(lambda _: 1000),
    "bandwidth-proportional": by_share(lambda d: d.speed.decode_bytes_per_s),
    "fewest devices, memory-proportional": fewest_devices,
    "fastest first": fastest_first,
}


def cost_of(
    request: PlanRequest, placed: list[tuple[DeviceOffer, int]], model_: SpeedModel
) -> tuple[float, float]:
    """Seconds per request, and tokens per second, of a policy's placement."""
    ends = [0]
    for _, count in placed:
        ends.append(ends[-1] + count)
    stages = [
        Stage(device.speed, device.link, first, end, device.cached_layers)
        for (device, _), (first, end) in zip(placed, pairwise(ends), strict=True)
    ]
    host = request.host
    times = predict(
        model_,
        stages,
        Output.LAST,
        host.speed,
        token_overhead_s=host.token_overhead_s,
        disk_bytes_per_s=host.disk_bytes_per_s,
    )
    tokens = request.goal.workload.generated_tokens
    cost = tokens * times.token_s + times.prompt_s + times.load_s / request.goal.requests_per_load
    return cost, 1 / times.token_s


def baselines(count: int) -> dict[str, Any]:
    """Each policy's tokens per second and requests per second, relative to the planner's."""
    rng = random.Random(SEED + 1)
    tokens: dict[str, list[float]] = {name: [] for name in POLICIES}
    whole: dict[str, list[float]] = {name: [] for name in POLICIES}
    used: list[float] = []
    while len(used) < count:
        request = large_request(rng, rng.randrange(2, 8), rng.choice((32, 48, 80)), host=False)
        best = best_placement(request)
        if best is None:
            continue
        used.append(len(best.devices) / len(request.devices))
        for name, policy in POLICIES.items():
            ratio = ratios(request, best, policy)
            tokens[name].append(ratio[0])
            whole[name].append(ratio[1])
    return {
        "clusters": count,
        "devices_used": statistics.mean(used),
        "tokens_per_s": {name: summary(values) for name, values in tokens.items()},
        "requests_per_s": {name: summary(values) for name, values in whole.items()},
    }


def ratios(request: PlanRequest, best: Placement, policy: Policy) -> tuple[float, float]:
    """The best that a policy does with any of the ubatches that the planner may choose from."""
    found = (0.0, 0.0)
    for ubatch in request.wanted.ubatches:
        run = best.run.model_copy(update={"ubatch": ubatch})
        sizes = Sizes(request.shape, run, request.rules)
        placed = policy(request.devices, sizes, request.shape.n_layers)
        if placed is not None:
            speed_model = SpeedModel(request.shape, run, request.goal.workload)
            cost, rate = cost_of(request, placed, speed_model)
            found = max(found, (rate / best.decode_tokens_per_s, best.cost_s / cost))
    return found


def summary(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(value for value in values if value > 0)
    return {
        "median": statistics.median(ordered),
        "mean": statistics.mean(ordered),
        "p10": ordered[len(ordered) // 10],
        "worst": ordered[0],
        "no_room": 1 - len(ordered) / len(values),
    }


# --- plan times -----------------------------------------------------------------------------------


def large_request(
    rng: random.Random, n_devices: int, n_layers: int, *, host: bool = True
) -> PlanRequest:
    """A cluster of that size and a model that needs some part of it."""
    request = random_request(rng, n_devices, n_layers)
    room = sum(device.available_bytes for device in request.devices)
    total = min(room * rng.uniform(0.1, 0.6), 150 * GIB)
    main = request.host.model_copy(update={} if host else {"may_hold_layers": False})
    return request.model_copy(
        update={"shape": model(random_layers(rng, n_layers, total)), "host": main}
    )


def plan_times(n_devices: int, count: int) -> dict[str, float]:
    """Milliseconds of complete plans for 80 layers: runners-up and left-out devices included.

    Processor time: the planner waits for nothing, and the machine may be busy otherwise.
    """
    rng = random.Random(SEED + n_devices)
    took: list[float] = []
    proven = plans = 0
    for _ in range(count):
        request = large_request(rng, n_devices, 80)
        started = time.process_time()
        result = plan(request)
        took.append(1000 * (time.process_time() - started))
        if isinstance(result, Planned):
            plans += 1
            proven += result.is_proven
    took.sort()
    return {
        "median_ms": statistics.median(took),
        "p90_ms": took[int(0.9 * count)],
        "worst_ms": took[-1],
        "under_limit": sum(one < (50 if n_devices <= 7 else 1000) for one in took) / count,
        "proven_optimal": proven / max(1, plans),
    }


# --- report ---------------------------------------------------------------------------------------


def markdown(report: dict[str, Any]) -> Iterator[str]:
    optimum = report["optimum"]
    yield (
        f"{optimum['equal']} of {optimum['clusters']} clusters cost the same as brute force"
        f" ({optimum['nothing_fits']} of them: nothing fits, by both)."
    )
    yield ""
    policies = report["baselines"]
    yield (
        f"{policies['clusters']} clusters with a placement; the planner used"
        f" {policies['devices_used']:.0%} of the devices on average. Ratios to the planner:"
    )
    for title, key in (("tokens per second", "tokens_per_s"), ("requests", "requests_per_s")):
        yield ""
        yield f"| {title} | median | mean | p10 | worst | no room |"
        yield "| --- | --: | --: | --: | --: | --: |"
        for name, row in policies[key].items():
            cells = " | ".join(
                f"{row[column]:.2f}" for column in ("median", "mean", "p10", "worst")
            )
            yield f"| {name} | {cells} | {row['no_room']:.0%} |"
    yield ""
    yield "| plan time, 80 layers | median | p90 | worst | within limit | proven optimal |"
    yield "| --- | --: | --: | --: | --: | --: |"
    for name, row in report["plan_times"].items():
        yield (
            f"| {name} devices | {row['median_ms']:.0f} ms | {row['p90_ms']:.0f} ms |"
            f" {row['worst_ms']:.0f} ms | {row['under_limit']:.0%} | {row['proven_optimal']:.0%} |"
        )
    yield ""
    yield f"{report['took_s']:.0f} s in all."


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clusters", type=int, default=1200)
    parser.add_argument("--baselines", type=int, default=400)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    started = time.perf_counter()
    report: dict[str, Any] = {
        "optimum": compare(args.clusters),
        "baselines": baselines(args.baselines),
        "plan_times": {n: plan_times(n, args.plans) for n in (7, 14)},
    }
    report["took_s"] = time.perf_counter() - started
    print(json.dumps(report, indent=2) if args.json else "\n".join(markdown(report)))
    return 1 if report["optimum"]["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
