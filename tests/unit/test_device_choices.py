"""What excluding, draining and renaming a device means for plans, specs and measurements."""

from pathlib import Path

import pytest
from measuring_world import MAC, PIXEL, MeasuringWorld

from supervisor.core.entities import AgentId, DeploymentId, DeploymentSpec, Device
from supervisor.core.obeying import Lessons
from supervisor.core.renaming import names_device, renamed
from supervisor.errors import DeviceExcluded
from supervisor.service.eligibility import Asked, Choice, Eligibility

ONE, TWO = AgentId("id-one"), AgentId("id-two")


def device(agent_id: AgentId, name: str, **more: object) -> Device:
    return Device.model_validate(
        {
            "id": agent_id,
            "name": name,
            "address": "10.0.0.2",
            "rest_port": 8102,
            "state": "ready",
            "silent_s": 0,
            "facts": None,
            "rpc_server": None,
            **more,
        }
    )


def chosen(asked: Asked, **more: object) -> Choice:
    """The choice between two ready devices, of which ``one`` is as said."""
    both = device(ONE, "one", **more), device(TWO, "two")
    by_name = {name: each for each in both for name in (each.name, each.id)}
    return Eligibility(asked, both, by_name.__getitem__, Lessons()).choose()


def spec(**wishes: object) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"model": "m.gguf", **wishes})


# -- excluded --------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"used_by": "other"}, {"state": "lost", "reason": "gone"}])
def test_an_excluded_device_is_left_out_and_that_is_said(more: dict[str, object]) -> None:
    choice = chosen(Asked(spec()), excluded=True, **more)
    assert [each.name for each in choice.devices] == ["two"]
    assert [(left.name, left.reason) for left in choice.left_out] == [("one", "you excluded it")]


@pytest.mark.parametrize("wishes", [{"devices": ("two", "one")}, {"order": ("id-one",)}])
def test_who_names_an_excluded_device_is_told_how_to_include_it(wishes: dict[str, object]) -> None:
    says = "one cannot take part: you excluded it; 'supervisor devices include one' ends that"
    with pytest.raises(DeviceExcluded, match=says):
        chosen(Asked(spec(**wishes)), excluded=True)
    assert chosen(Asked(spec(**wishes))).devices


def test_a_repair_does_without_a_named_device_that_was_excluded() -> None:
    choice = chosen(Asked(spec(order=("one", "two")), is_repair=True), excluded=True)
    assert [each.name for each in choice.devices] == ["two"]
    assert choice.spec.order == ("two",)
    remark, why = choice.remarks
    assert "without one, though you asked for that" in remark
    assert why == "one is left out: you excluded it."


def test_a_plan_can_be_made_as_if_a_device_were_excluded() -> None:
    name, without = DeploymentId("m"), frozenset({ONE})
    used: dict[str, object] = {"used_by": name}
    choice = chosen(Asked(spec(), name, is_repair=True, without=without), **used)
    assert [each.name for each in choice.devices] == ["two"]
    choice = chosen(Asked(spec(order=("one", "two")), name, is_repair=True, without=without))
    assert choice.spec.order == ("two",)
    with pytest.raises(DeviceExcluded, match=r"deployment m names no other device .* than one"):
        chosen(Asked(spec(order=("one",)), name, is_repair=True, without=without), **used)


async def test_an_excluded_device_need_not_be_measured_and_may_be(tmp_path: Path) -> None:
    world = MeasuringWorld(tmp_path)
    for agent_id in (PIXEL, MAC):
        await world.hear(agent_id)
    await world.registry.exclude(PIXEL, excluded=True)
    assert set(await world.measurer.why_needed()) == {MAC}
    assert (await world.measurer.measure("pixel")).device == "pixel"


# -- renamed ---------------------------------------------------------------------------------------


def test_a_spec_follows_the_new_name_wherever_it_has_the_old_one() -> None:
    before = spec(
        devices=("one", "two/CUDA0", "main host"),
        order=("two/CUDA0", "one", "main host"),
        exclude=("two", "twofold", "id-two"),
        pin_output="two/CUDA0",
    )
    after = renamed(before, "two", "desk")
    assert after.devices == ("one", "desk/CUDA0", "main host")
    assert after.order == ("desk/CUDA0", "one", "main host")
    assert after.exclude == ("desk", "twofold", "id-two")
    assert after.pin_output == "desk/CUDA0"
    assert not names_device(after, "two")
    assert renamed(after, "two", "x") == after
    assert renamed(spec(), "two", "x") == spec()


@pytest.mark.parametrize(
    ("wishes", "is_named"),
    [
        ({"devices": ("two",)}, True),
        ({"order": ("one", "two/CPU")}, True),
        ({"exclude": ("two",)}, True),
        ({"pin_output": "two"}, True),
        ({"devices": ("one",), "exclude": ("twofold",)}, False),
        ({}, False),
    ],
)
def test_a_spec_names_a_device_for_whatever_purpose(
    wishes: dict[str, object], is_named: bool
) -> None:
    assert names_device(spec(**wishes), "two") is is_named
