"""Measuring without being asked: only idle devices, one at a time, and never for ever."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cluster import eventually
from measuring_world import ENGINE, MAC, NAMES, PIXEL, STOPPED, TAKEN_AT, MeasuringWorld

from agents.contract import Heartbeat
from agents.errors import MeasurementFailed, MeasurementInterrupted
from supervisor.core.entities import DeploymentId
from supervisor.errors import AgentRefused, StoreUnusable
from supervisor.service.idle_measuring import BACK_OFF_S, IdleMeasurer


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[MeasuringWorld]:
    made = MeasuringWorld(tmp_path)
    yield made
    await made.measurer.close()
    made.store.close()


def idle_measurer(world: MeasuringWorld, *, is_busy: bool = False) -> IdleMeasurer:
    return IdleMeasurer(
        world.measurer,
        world.registry,
        world.chosen,
        lambda: is_busy,
        clock=lambda: world.now_s,
    )


async def watching(world: MeasuringWorld, *, is_busy: bool = False) -> IdleMeasurer:
    """One that has looked once, and so knows since when devices are idle."""
    made = idle_measurer(world, is_busy=is_busy)
    await made.look()
    return made


async def looked(world: MeasuringWorld, idle: IdleMeasurer, after_s: float = 20.0) -> list[str]:
    """Look again later, all devices being heard of; returns who was measured."""
    before = {agent_id: len(agent.calls) for agent_id, agent in world.agents.items()}
    world.now_s += after_s
    for device in world.registry.devices():
        if device.facts is not None:
            await world.registry.heard(device.id, _last_word(world, device.name), "10.0.0.2")
    await idle.look()
    return [NAMES[a] for a, agent in world.agents.items() if len(agent.calls) > before[a]]


def _last_word(world: MeasuringWorld, name: str) -> Heartbeat:
    facts = world.registry.find(name).facts
    assert facts is not None
    return Heartbeat(facts, STOPPED, 8102)


async def test_a_device_that_was_idle_long_enough_is_measured(world: MeasuringWorld) -> None:
    await world.hear()
    idle = await watching(world)
    assert await looked(world, idle, 19.9) == []
    assert await looked(world, idle, 0.1) == ["pixel"]
    assert world.kept() == 2
    assert await looked(world, idle) == [], "it was just measured"


async def test_one_device_is_measured_at_a_look(world: MeasuringWorld) -> None:
    for agent_id in (PIXEL, MAC):
        await world.hear(agent_id)
    idle = await watching(world)
    first = await looked(world, idle)
    second = await looked(world, idle, 5)
    assert sorted([*first, *second]) == ["mac", "pixel"]
    assert len(first) == 1


async def test_a_device_that_served_in_between_begins_anew(world: MeasuringWorld) -> None:
    await world.hear()
    idle = await watching(world)
    assert await looked(world, idle, 15) == []
    world.take()
    assert await looked(world, idle, 15) == []
    world.registry.release(DeploymentId("llama"))
    assert await looked(world, idle, 1) == []
    assert await looked(world, idle, 19) == []
    assert await looked(world, idle, 1) == ["pixel"]


async def test_a_device_that_is_not_ready_is_left_alone(world: MeasuringWorld) -> None:
    await world.hear(engine=replace(ENGINE, problem="no RPC"))
    assert await looked(world, await watching(world)) == []


@pytest.mark.parametrize(
    "facts", [{"battery_charging": False}, {"battery_percent": 20.0}, {"temperature_c": 70.0}]
)
async def test_a_weak_or_hot_device_is_left_alone(
    world: MeasuringWorld, facts: dict[str, Any]
) -> None:
    await world.hear(**facts)
    idle = await watching(world)
    assert await looked(world, idle) == []
    await world.hear(battery_charging=True, battery_percent=80.0, temperature_c=40.0)
    assert await looked(world, idle, 0) == ["pixel"]


async def test_nothing_is_measured_while_a_deployment_starts(world: MeasuringWorld) -> None:
    await world.hear()
    assert await looked(world, await watching(world, is_busy=True)) == []


@pytest.mark.parametrize(
    ("engine", "days", "is_measured"),
    [
        (ENGINE, 29.0, False),
        (ENGINE, 31.0, True),
        (replace(ENGINE, build="xyz"), 1.0, True),
    ],
)
async def test_a_stale_measurement_is_made_again(
    world: MeasuringWorld, engine: Any, days: float, is_measured: bool
) -> None:
    await world.hear()
    await world.measurer.measure("pixel")
    world.now = TAKEN_AT + timedelta(days=days)
    await world.hear(engine=engine)
    assert (await looked(world, await watching(world)) == ["pixel"]) is is_measured


async def test_a_device_that_fails_is_put_off_and_told_once(
    world: MeasuringWorld, caplog: pytest.LogCaptureFixture
) -> None:
    await world.hear()
    world.agent.failure = MeasurementFailed("too little memory")
    idle = await watching(world)
    with caplog.at_level(logging.WARNING):
        assert await looked(world, idle) == ["pixel"]
        assert await looked(world, idle, BACK_OFF_S - 1) == []
    assert [r.getMessage() for r in caplog.records] == ["device.not_measured"]
    assert "too little memory" in caplog.records[0].reason  # type: ignore[attr-defined]
    world.agent.failure = None
    assert await looked(world, idle, 1) == ["pixel"]
    assert world.kept() == 2


async def test_a_device_that_fails_is_not_in_the_way_of_others(world: MeasuringWorld) -> None:
    for agent_id in (PIXEL, MAC):
        await world.hear(agent_id)
    for agent in world.agents.values():
        agent.failure = MeasurementFailed("too little memory")
    idle = await watching(world)
    assert sorted([*await looked(world, idle), *await looked(world, idle, 5)]) == ["mac", "pixel"]


async def test_a_device_that_a_launch_took_is_measured_as_soon_as_it_is_idle(
    world: MeasuringWorld, caplog: pytest.LogCaptureFixture
) -> None:
    await world.hear()
    world.agent.failure = AgentRefused("by launch 7", MeasurementInterrupted.code)
    idle = await watching(world)
    with caplog.at_level(logging.INFO):
        assert await looked(world, idle) == ["pixel"]
    assert not caplog.records
    world.agent.failure = None
    assert await looked(world, idle, 5) == ["pixel"]
    assert world.kept() == 2


async def test_a_store_that_cannot_be_read_is_told_once(
    world: MeasuringWorld, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.hear()

    def broken() -> None:
        raise StoreUnusable("the disk is full")

    monkeypatch.setattr(world.store, "device_measurements", broken)
    idle = await watching(world)
    for _ in range(3):
        assert await looked(world, idle) == []
    assert [r.getMessage() for r in caplog.records] == ["device.not_measured"]


async def test_the_loop_measures_until_it_is_cancelled_and_then_leaves_nothing(
    tmp_path: Path,
) -> None:
    world = MeasuringWorld(tmp_path, {"measure_idle_after_s": 0.0})
    await world.hear()
    world.link_goes_on.clear()
    idle = idle_measurer(world)
    running = asyncio.create_task(idle.run())

    async def is_linking() -> bool:
        return bool(world.metered)

    await eventually(is_linking, within_s=5, what="the link is measured")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert world.agent.calls[-1] == "stop"
    assert world.kept() == 0
    world.store.close()


async def test_the_loop_ends_measurements_that_were_asked_for_though_it_makes_none(
    tmp_path: Path,
) -> None:
    world = MeasuringWorld(tmp_path, {"measure_idle": False, "measure_idle_after_s": 0.0})
    await world.hear()
    world.agent.goes_on.clear()
    running = asyncio.create_task(idle_measurer(world).run())
    await asyncio.sleep(0.3)  # longer than its pause between two looks
    assert world.agent.calls == []
    asking = asyncio.create_task(world.measurer.measure("pixel"))

    async def is_measuring() -> bool:
        return world.agent.busy == 1

    await eventually(is_measuring, within_s=5, what="it is measured")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    with pytest.raises(MeasurementInterrupted):
        await asking
    assert world.agent.busy == 0
    world.store.close()
