"""Devices that fail with many tokens at once: used with fewer or not at all, as is faster."""

import random
from math import inf

import pytest
from planning_world import device, host, layer, model, random_request, speed, wired

from supervisor.core.memory import MIB, Platform
from supervisor.core.planning import (
    DeviceOffer,
    Goal,
    Overrides,
    Placement,
    Planned,
    PlanRequest,
    Wanted,
)
from supervisor.core.search import best_placement, ladder, plan
from supervisor.core.speed import Workload

MAC = device("mac", 16, speed(100, 3500), wired(), Platform.GPU)
PI = device("pi", 16, speed(90, 3000), wired())
SMALL = model([layer(600 * MIB)] * 8)
ALONE = host(8, may_hold_layers=False)


def capped(offer: DeviceOffer, cap: int | None) -> DeviceOffer:
    return offer.model_copy(update={"ubatch_cap": cap})


def request(*devices: DeviceOffer, **over: object) -> PlanRequest:
    overrides = Overrides.model_validate(over)
    return PlanRequest(shape=SMALL, devices=devices, host=ALONE, overrides=overrides)


def planned(asked: PlanRequest) -> Planned:
    found = plan(asked)
    assert isinstance(found, Planned)
    return found


def is_obeyed(asked: PlanRequest, best: Placement) -> bool:
    caps = {d.name: d.ubatch_cap or inf for d in asked.devices}
    return all(best.run.ubatch <= caps[d.name] for d in best.devices)


@pytest.mark.parametrize("cap", [256, 200, 128, 64, 32])
def test_a_plan_with_a_capped_device_computes_no_more_at_once(cap: int) -> None:
    best = planned(request(capped(MAC, cap), devices=("mac",))).best
    fits = [ubatch for ubatch in (256, 128) if ubatch <= cap] or [cap]
    assert best.run.ubatch in fits


def test_one_that_is_not_used_does_not_slow_the_others_down() -> None:
    work = Workload(prompt_tokens=3000, generated_tokens=100)
    goal = Goal(workload=work, fewest_devices=True)
    free = planned(request(MAC, PI).model_copy(update={"goal": goal})).best
    assert [d.name for d in free.devices] == ["mac"]
    assert free.run.ubatch == 512
    found = planned(request(capped(MAC, 32), PI).model_copy(update={"goal": goal}))
    assert [d.name for d in found.best.devices] == ["pi"]
    assert found.best.run.ubatch == 512
    (left,) = found.left_out
    assert left.name == "mac"
    assert left.tokens_per_s is not None, "it could take part, with small steps"
    assert left.tokens_per_s > found.best.decode_tokens_per_s, "only prompts are slow with it"


def test_every_device_may_be_capped() -> None:
    found = planned(request(capped(MAC, 64), capped(PI, 32)))
    assert is_obeyed(request(capped(MAC, 64), capped(PI, 32)), found.best)


def test_the_operator_knows_better() -> None:
    found = planned(request(capped(MAC, 64), devices=("mac",), ubatch=512))
    assert found.best.run.ubatch == 512


def test_a_given_split_obeys_too() -> None:
    over = {"devices": ("mac", "pi"), "split": (4, 5)}
    found = planned(request(capped(MAC, 64), PI, **over))
    assert found.best.run.ubatch == 64
    assert [d.layers for d in found.best.devices] == [4, 4]


def test_a_cap_that_is_large_enough_changes_nothing() -> None:
    for case in cases(10):
        same = case.model_copy(update={"devices": tuple(capped(d, 512) for d in case.devices)})
        first, second = best_placement(case), best_placement(same)
        assert (first and first.cost_s) == (second and second.cost_s)


def cases(count: int) -> list[PlanRequest]:
    seeded = random.Random(11)
    found = []
    for _ in range(count):
        case = random_request(seeded, seeded.randint(1, 4), seeded.randint(2, 7))
        # Costs alone are compared, not what a device must gain to be worth its risk.
        plain = {"unreliable_factor": 1.0, "fewest_devices": False}
        found.append(case.model_copy(update={"goal": case.goal.model_copy(update=plain)}))
    return found


def with_caps(case: PlanRequest, seeded: random.Random) -> PlanRequest:
    caps = [seeded.choice([None, None, 300, 128, 40]) for _ in case.devices]
    devices = tuple(capped(d, cap) for d, cap in zip(case.devices, caps, strict=True))
    return case.model_copy(update={"devices": devices})


def best_of_all_thresholds(case: PlanRequest) -> Placement | None:
    """Search among those who can do each ubatch, with nothing else, and take the best."""
    found: list[tuple[int, float, Placement]] = []
    ubatches = {run.ubatch for runs in ladder(case) for run in runs}
    for ubatch in ubatches:
        able = tuple(capped(d, None) for d in case.devices if (d.ubatch_cap or inf) >= ubatch)
        only = case.wanted.model_copy(update={"ubatches": (ubatch,)})
        if not able and not case.host.may_hold_layers:
            continue
        best = best_placement(case.model_copy(update={"devices": able, "wanted": only}))
        if best is not None:
            rungs = [(runs[0].ctx_tokens, runs[0].kv_type) for runs in ladder(case)]
            rung = rungs.index((best.run.ctx_tokens, best.run.kv_type))
            found.append((rung, best.cost_s, best))
    return min(found, key=lambda item: item[:2])[2] if found else None


def test_the_best_plan_is_found_that_obeys_all_caps() -> None:
    seeded, used = random.Random(7), 0
    for case in cases(25):
        asked = with_caps(case, seeded)
        found, expected = best_placement(asked), best_of_all_thresholds(asked)
        assert (found is None) == (expected is None)
        if found is None or expected is None:
            continue
        assert is_obeyed(asked, found)
        assert found.cost_s == pytest.approx(expected.cost_s, rel=1e-6)
        chosen = {device.name for device in found.devices}
        used += any(d.name in chosen for d in asked.devices if d.ubatch_cap)
    assert used > 3, "capped devices took part in some of the plans"


def test_a_small_cap_is_one_more_ubatch_and_the_last_that_is_tried() -> None:
    asked = request(capped(MAC, 48), PI)
    assert [run.ubatch for run in next(ladder(asked))] == [512, 256, 128, 48]
    wanted = asked.model_copy(update={"wanted": Wanted(ubatches=(32,))})
    assert [run.ubatch for run in next(ladder(wanted))] == [32]
    assert Workload().prompt_tokens > 48, "else there would be nothing to choose"
