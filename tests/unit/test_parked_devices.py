"""What a parked, a hot or a slow-answering device is to the planner, and what it says of it."""

from dataclasses import replace
from typing import Any

import pytest
from test_launch_plan import spec
from test_offers import device
from test_planner import changed, planner

from supervisor.core import device_remarks
from supervisor.core.entities import Device, MeasuredSpeed, Plan
from supervisor.errors import DeviceParked, InsufficientMemory, NoDevices

WHY = "its battery has 14 % left and is not charging; it takes work again when it charges"


def with_facts(found: Device, **changes: Any) -> Device:
    assert found.facts is not None
    return changed(found, facts=replace(found.facts, **changes))


def parked(name: str) -> Device:
    return with_facts(changed(device(name), state="parked", reason=WHY), parked=WHY)


def hot(name: str) -> Device:
    return with_facts(device(name), derate=0.7, derate_reason="hot (44 °C)")


def names(plan: Plan) -> list[str]:
    return sorted(shard.device for shard in plan.shards)


async def test_a_parked_device_gets_no_work_and_the_plan_says_why() -> None:
    made, _, _ = planner(device("a"), parked("phone"))
    plan = await made.plan(spec())
    assert names(plan) == ["a"]
    assert [(left.name, left.reason) for left in plan.left_out] == [("phone", WHY)]
    assert f"phone is left out: {WHY}." in plan.reasons


async def test_who_names_a_parked_device_hears_of_it() -> None:
    made, _, _ = planner(device("a"), parked("phone"))
    with pytest.raises(DeviceParked, match="phone cannot take part: its battery has 14 % left"):
        await made.plan(spec(devices=["a", "phone"]))


async def test_a_repair_does_without_a_named_device_that_is_parked_and_says_why() -> None:
    made, _, _ = planner(device("a"), parked("phone"))
    plan = await made.plan(spec(devices=["a", "phone"]), is_repair=True)
    assert names(plan) == ["a"]
    assert any("This is a repair without phone" in reason for reason in plan.reasons)
    assert f"phone is left out: {WHY}." in plan.reasons


async def test_a_repair_that_has_nothing_else_is_none() -> None:
    made, _, _ = planner(device("a"), parked("phone"))
    with pytest.raises(DeviceParked):
        await made.plan(spec(devices=["phone"]), is_repair=True)


async def test_nothing_but_a_parked_device_is_an_error_with_the_reason() -> None:
    made, _, _ = planner(parked("phone"))
    with pytest.raises(NoDevices, match="phone: its battery has 14 % left"):
        await made.plan(spec())


async def test_what_does_not_fit_without_a_parked_device_says_that_it_is_missing() -> None:
    made, _, _ = planner(device("a"), parked("phone"))
    with pytest.raises(InsufficientMemory, match="phone is left out: its battery has 14 % left"):
        await made.plan(spec(ctx_tokens=9_000_000))


async def test_a_plan_with_a_hot_device_says_so() -> None:
    made, _, _ = planner(device("a"), hot("phone"))
    plan = await made.plan(spec(devices=["a", "phone"]))
    assert "phone is hot (44 °C): counted at 0.7 of its speed." in plan.reasons
    cool, _, _ = planner(device("a"), device("phone"))
    usual = await cool.plan(spec(devices=["a", "phone"]))
    assert plan.prediction is not None
    assert usual.prediction is not None
    assert plan.prediction.decode_tokens_per_s < usual.prediction.decode_tokens_per_s


MEASURED = MeasuredSpeed(
    decode_bytes_per_s=1e9,
    up_bytes_per_s=1e6,
    down_bytes_per_s=1e6,
    round_trip_ms=90.0,
    taken_at="",
)


@pytest.mark.parametrize(
    ("platform", "round_trip_ms", "speed", "says"),
    [
        ("android", 67.4, None, "phone answers after 67 ms, and every token waits for that"),
        ("android", 20.1, None, "20 ms"),
        ("android", 20.0, None, ""),
        ("android", 4.0, MEASURED, ""),  # newer than the measurement
        ("android", None, MEASURED, "90 ms"),
        ("android", None, None, ""),
        ("linux", 67.4, None, ""),
    ],
)
def test_a_phone_whose_wifi_saves_power_is_told_of(
    platform: str, round_trip_ms: float | None, speed: MeasuredSpeed | None, says: str
) -> None:
    made = device("phone", platform=platform, round_trip_ms=round_trip_ms)
    found = device_remarks.remarks([changed(made, speed=speed)])
    assert bool(found) == bool(says)
    if found:
        (sentence,) = found
        assert says in sentence
        assert "screen off" in sentence


async def test_a_plan_with_such_a_phone_says_so() -> None:
    made, _, _ = planner(device("phone", platform="android", round_trip_ms=300.0))
    plan = await made.plan(spec())
    assert any("phone answers after 300 ms" in reason for reason in plan.reasons)


def test_of_a_device_that_is_well_nothing_is_said() -> None:
    unknown = changed(device("gone"), facts=None)
    assert device_remarks.remarks([device("a"), unknown]) == ()
    assert device_remarks.heat_sentence(with_facts(device("a"), derate=0.5)) == (
        "a is not what it was: counted at 0.5 of its speed."
    )
