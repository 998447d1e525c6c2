"""Measuring devices: what is kept, who goes first, and that nothing is left running."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster import eventually
from measuring_world import MAC, PIXEL, TAKEN_AT, MeasuringWorld

from agents.contract import MeasurementProgress, RpcServerSpec, RpcServerStatus, WorkerState
from agents.errors import (
    LinkLost,
    LinkRefused,
    MeasurementFailed,
    MeasurementInterrupted,
    ProjectError,
)
from supervisor.core.measurements import DeviceMeasured, LinkMeasured
from supervisor.errors import (
    AgentRefused,
    AgentUnreachable,
    DeviceUnknown,
    WorkerBusy,
    WorkerIncompatible,
)
from supervisor.link.job import WorkerJob
from supervisor.service import link_measuring, measuring
from supervisor.service.events import Change

ALL_TYPES = "measure Q4_0,Q4_K,Q6_K,Q8_0,F16"
LINKED = ["start 127.0.0.1", "link", "unlink", "stop"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[MeasuringWorld]:
    made = MeasuringWorld(tmp_path)
    await made.hear()
    yield made
    await made.measurer.close()
    made.store.close()


async def started(world: MeasuringWorld, call: str) -> None:
    """Wait until the agent was asked for something."""

    async def was_called() -> bool:
        return any(done.startswith(call) for done in world.agent.calls)

    await eventually(was_called, within_s=5, what=call)


async def test_a_device_and_its_link_are_measured_kept_and_told(world: MeasuringWorld) -> None:
    told: list[MeasurementProgress] = []
    with world.bus.subscribe() as stream:
        result = await world.measurer.measure("pixel", told.append)
        world.bus.close()
        changes = [change async for change in stream]
    assert told == [MeasurementProgress("Q4_K", 0.45, "CPU"), MeasurementProgress("link", 0.9)]
    taken_at = TAKEN_AT.isoformat()
    device = DeviceMeasured(
        agent_id=PIXEL,
        ggml_device="CPU",
        taken_at=taken_at,
        rpc_protocol="7.0.0",
        engine_build="abc",
        temperature_c=45.5,
        decode_bytes_per_s={"Q4_K": 2e10},
        prefill_flop_per_s={"Q4_K": 3e11},
        op_overhead_s=1e-6,
        hop_overhead_s=2e-3,
    )
    link = LinkMeasured(
        agent_id=PIXEL,
        taken_at=taken_at,
        rtt_p50_s=1.5e-3,
        rtt_p90_s=3e-3,
        up_bytes_per_s=1e8,
        down_bytes_per_s=2e8,
    )
    assert (result.devices, result.link) == ((device,), link)
    assert world.store.device_measurements() == [device]
    assert world.store.link_measurements() == [link]
    *of_device, measured = changes
    assert measured == Change("measured", result.model_dump(mode="json"))
    assert {change.name for change in of_device} == {"device"}
    assert [change.body["doing"] for change in of_device] == ["being measured", "", ""]
    assert [change.body["speed"] is None for change in of_device] == [True, True, False]
    speed = world.registry.device(PIXEL).speed
    assert speed is not None
    assert speed.model_dump(mode="json") == of_device[-1].body["speed"]
    assert (speed.decode_bytes_per_s, speed.up_bytes_per_s, speed.down_bytes_per_s) == (
        2e10,
        1e8,
        2e8,
    )
    assert world.registry.device(PIXEL).round_trip_ms == 1.5
    assert world.agent.calls == [ALL_TYPES, "measured", *LINKED]
    assert world.metered == ["127.0.0.1:40001"]


async def test_what_is_measured_is_a_link_that_keeps_nothing_and_hides_nothing(
    world: MeasuringWorld,
) -> None:
    await world.measurer.measure("pixel")
    [job] = world.jobs
    assert (job.launch, job.main_host) == (world.agent.generation, "desk")
    assert world.agent.main_host == "desk"
    assert job.workers == [
        WorkerJob(PIXEL, "pixel", "10.9.9.9", 8103, "AB", answers_file="", stores=False)
    ]


async def test_the_device_is_free_for_launches_all_the_time(world: MeasuringWorld) -> None:
    seen: list[object] = []
    world.agent.while_measuring = lambda: seen.append(world.registry.device(PIXEL).used_by)
    world.while_linking = lambda: seen.append(world.registry.device(PIXEL).used_by)
    await world.measurer.measure("pixel")
    assert seen == [None, None]


async def test_a_device_that_cannot_be_measured_is_refused_with_the_reason(
    world: MeasuringWorld,
) -> None:
    with pytest.raises(DeviceUnknown, match="no device 'nokia'; joined devices: mac, pixel"):
        await world.measurer.measure("nokia")
    with pytest.raises(AgentUnreachable, match="mac cannot be measured: not heard of"):
        await world.measurer.measure("mac")
    await world.hear(MAC, engine=None)
    with pytest.raises(WorkerIncompatible, match=r"mac cannot be measured: no llama\.cpp"):
        await world.measurer.measure("mac")
    await world.hear(MAC, ggml_devices=[])
    with pytest.raises(MeasurementFailed, match="mac offers no ggml device"):
        await world.measurer.measure("mac")
    world.take("llama")
    with pytest.raises(WorkerBusy, match="pixel is in use by deployment llama; stop that first"):
        await world.measurer.measure("pixel")
    assert world.agent.calls == world.agents[MAC].calls == []


async def test_the_word_of_the_agent_that_a_launch_came_is_passed_on(world: MeasuringWorld) -> None:
    world.agent.failure = AgentRefused("pixel: by launch 7", MeasurementInterrupted.code)
    with pytest.raises(AgentRefused, match="by launch 7") as caught:
        await world.measurer.measure("pixel")
    assert caught.value.code == "measurement_interrupted"
    assert world.agent.calls == [ALL_TYPES, "measured"]
    assert world.kept() == 0


@pytest.mark.parametrize("fails", [False, True])
async def test_a_launch_between_device_and_link_interrupts(
    world: MeasuringWorld, fails: bool
) -> None:
    world.agent.while_measuring = world.take
    if fails:
        world.agent.failure = AgentRefused("pixel: starting", "measurement_refused")
    with pytest.raises(MeasurementInterrupted, match="interrupted by deployment llama"):
        await world.measurer.measure("pixel")
    assert "start 127.0.0.1" not in world.agent.calls
    assert world.kept() == 0


async def test_a_launch_that_takes_the_rpc_server_of_the_link_interrupts(
    world: MeasuringWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world.link_failure = MeasurementFailed("connection lost")

    def launch() -> None:
        world.agent.generation = 77

    world.while_linking = launch
    says = "pixel: the measurement was interrupted by launch 77; measure again"
    with caplog.at_level(logging.WARNING), pytest.raises(MeasurementInterrupted, match=says):
        await world.measurer.measure("pixel")
    assert world.agent.calls[-2:] == ["stop", "refused"]
    assert not caplog.records, "the agent is right to refuse, and nobody needs to know"
    assert world.kept() == 0


async def test_the_rpc_server_of_a_launch_is_never_connected_to(world: MeasuringWorld) -> None:
    world.agent.generation = 77
    with pytest.raises(MeasurementInterrupted, match="by launch 77"):
        await world.measurer.measure("pixel")
    assert not world.metered
    assert not world.jobs
    assert world.kept() == 0


async def test_a_launch_that_comes_just_before_the_link_is_measured_interrupts(
    world: MeasuringWorld,
) -> None:
    world.agent.while_starting = world.take
    with pytest.raises(MeasurementInterrupted, match="by deployment llama"):
        await world.measurer.measure("pixel")
    assert not world.metered
    assert not world.jobs
    assert world.agent.calls[-1] == "stop"


async def test_a_link_that_fails_by_itself_says_why_and_is_ended(world: MeasuringWorld) -> None:
    world.link_failure = MeasurementFailed("rpc-server 127.0.0.1:40001: not measured within 15 s")
    with pytest.raises(MeasurementFailed, match=r"pixel: .*not measured within 15 s"):
        await world.measurer.measure("pixel")
    assert world.agent.calls[-4:] == LINKED
    assert world.kept() == 0


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ({"loss": LinkLost("the link to pixel was lost: silent for 5.0 s")}, "link_lost"),
        ({"detail": "the link to pixel was lost: silent"}, "measurement_failed"),
        ({"refusal": LinkLost("no link to pixel: it is silent")}, "link_lost"),
    ],
)
async def test_the_link_knows_best_why_it_was_not_measured(
    world: MeasuringWorld, faults: dict[str, Any], code: str
) -> None:
    world.link_failure = MeasurementFailed("connection lost")
    world.link_faults = faults
    with pytest.raises(ProjectError, match=r"link to pixel.*silent") as caught:
        await world.measurer.measure("pixel")
    assert caught.value.code == code
    assert world.agent.calls[-4:] == LINKED
    assert world.kept() == 0


async def test_a_link_process_that_does_not_start_leaves_no_rpc_server(
    world: MeasuringWorld,
) -> None:
    world.link_process_failure = LinkLost("the link process did not start")
    with pytest.raises(LinkLost, match="did not start"):
        await world.measurer.measure("pixel")
    assert world.agent.calls[-2:] == ["start 127.0.0.1", "stop"]


async def test_a_link_that_is_refused_because_a_launch_came_is_interrupted(
    world: MeasuringWorld,
) -> None:
    world.link_faults = {"refusal": LinkRefused("pixel: launch 1 is over; launch 77 came")}
    start = world.agent.start_rpc_server

    async def start_for_a_moment(spec: RpcServerSpec, *, wait_s: float) -> RpcServerStatus:
        status = await start(spec, wait_s=wait_s)
        world.agent.generation = 77
        return status

    world.agent.start_rpc_server = start_for_a_moment  # type: ignore[method-assign]
    with pytest.raises(MeasurementInterrupted, match="by launch 77"):
        await world.measurer.measure("pixel")
    assert world.agent.calls[-3:] == ["unlink", "stop", "refused"]
    assert world.metered == []


async def test_a_launch_does_not_wait_for_the_measurement_of_a_slow_link(
    world: MeasuringWorld,
) -> None:
    world.link_goes_on.clear()
    asking = asyncio.create_task(world.measurer.measure("pixel"))
    await started(world, "link")
    world.take()
    async with asyncio.timeout(1):
        with pytest.raises(MeasurementInterrupted, match="by deployment llama"):
            await asking
    assert world.agent.calls[-4:] == LINKED
    assert world.kept() == 0


async def test_a_link_that_does_not_end_holds_up_nothing(
    world: MeasuringWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link_measuring, "_STOP_S", 0.05)
    world.link_faults = {"never_ends": True}
    with caplog.at_level(logging.WARNING):
        await world.measurer.measure("pixel")
    assert [record.message for record in caplog.records] == ["link.not_stopped"]
    assert world.agent.calls[-1] == "stop"


async def test_an_rpc_server_that_does_not_start_says_why_and_is_ended(
    world: MeasuringWorld,
) -> None:
    world.agent.start_state = WorkerState.FAILED
    with pytest.raises(MeasurementFailed, match="rpc-server of pixel does not start: no memory"):
        await world.measurer.measure("pixel")
    assert not world.metered
    assert not world.jobs
    assert world.agent.calls[-1] == "stop"


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("field", ["decode_bytes_per_s", "prefill_flop_per_s"])
async def test_impossible_speeds_are_refused(
    world: MeasuringWorld, field: str, value: float
) -> None:
    changes: dict[str, Any] = {field: {"Q4_K": value}}
    world.agent.measured = replace(world.agent.measured, **changes)
    with pytest.raises(AgentRefused, match="pixel measured impossible speeds of CPU"):
        await world.measurer.measure("pixel")
    assert world.kept() == 0


@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan])
async def test_impossible_times_are_refused(world: MeasuringWorld, value: float) -> None:
    world.agent.measured = replace(world.agent.measured, hop_overhead_s=value)
    with pytest.raises(AgentRefused, match="pixel measured impossible times of CPU"):
        await world.measurer.measure("pixel")
    assert world.kept() == 0


async def test_a_measurement_without_any_speed_is_refused(world: MeasuringWorld) -> None:
    world.agent.measured = replace(
        world.agent.measured, decode_bytes_per_s={}, prefill_flop_per_s={}
    )
    with pytest.raises(AgentRefused, match="impossible speeds"):
        await world.measurer.measure("pixel")


async def test_one_device_is_measured_after_the_other(world: MeasuringWorld) -> None:
    await world.hear(MAC)
    world.agents[MAC] = world.agent
    world.agent.goes_on.clear()
    told: list[MeasurementProgress] = []
    first = asyncio.create_task(world.measurer.measure("pixel"))
    await started(world, "measure")
    second = asyncio.create_task(world.measurer.measure("mac", told.append))

    async def is_waiting() -> bool:
        return bool(told)

    await eventually(is_waiting, within_s=5, what="the second one waits")
    assert told == [MeasurementProgress("waiting for another measurement", 0.0)]
    world.agent.goes_on.set()
    await asyncio.gather(first, second)
    assert world.agent.most_busy == 1
    assert world.kept() == 4


async def test_a_device_that_is_taken_while_another_is_measured_is_refused(
    world: MeasuringWorld,
) -> None:
    await world.hear(MAC)
    world.agents[MAC].goes_on.clear()
    first = asyncio.create_task(world.measurer.measure("mac"))
    second = asyncio.create_task(world.measurer.measure("pixel"))
    await asyncio.sleep(0)
    world.take()
    world.agents[MAC].goes_on.set()
    with pytest.raises(WorkerBusy):
        await second
    await first
    assert world.agent.calls == []


async def test_who_asked_and_leaves_ends_the_measurement(world: MeasuringWorld) -> None:
    world.agent.goes_on.clear()
    asking = asyncio.create_task(world.measurer.measure("pixel"))
    await started(world, "measure")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await started(world, "measured")
    world.agent.goes_on.set()
    await world.measurer.measure("pixel")  # nothing is in its way


async def test_link_and_rpc_server_are_ended_however_often_one_is_cancelled(
    world: MeasuringWorld,
) -> None:
    world.link_goes_on.clear()
    asking = asyncio.create_task(world.measurer.measure("pixel"))
    await started(world, "start")
    for _ in range(5):  # as anyio does, until a task ends
        asking.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(asking, return_exceptions=True)
    await world.measurer.close()
    assert world.agent.calls[-4:] == LINKED
    assert world.kept() == 0


async def test_closing_ends_everything_and_says_so(world: MeasuringWorld) -> None:
    await world.hear(MAC)
    world.link_goes_on.clear()
    asking = [asyncio.create_task(world.measurer.measure(name)) for name in ("pixel", "mac")]
    await started(world, "start")
    await world.measurer.close()
    for task in asking:
        with pytest.raises(MeasurementInterrupted, match="the supervisor ended"):
            await task
    assert world.agent.calls[-1] == "stop"
    assert world.agents[MAC].calls == []


@pytest.mark.parametrize(
    ("state", "calls"),
    [(WorkerState.READY, ["stop"]), (WorkerState.STARTING, ["stop"]), (WorkerState.FAILED, [])],
)
async def test_an_rpc_server_that_nobody_uses_is_ended_first(
    world: MeasuringWorld, state: WorkerState, calls: list[str]
) -> None:
    await world.hear(rpc_server=RpcServerStatus(state, generation=3))
    await world.measurer.measure("pixel")
    assert world.agent.calls == [*calls, ALL_TYPES, "measured", *LINKED]


async def test_a_device_that_is_removed_meanwhile_leaves_nothing(world: MeasuringWorld) -> None:
    world.link_goes_on.clear()
    asking = asyncio.create_task(world.measurer.measure("pixel"))
    await started(world, "start")
    await world.registry.remove(PIXEL)
    world.link_goes_on.set()
    with pytest.raises(DeviceUnknown):
        await asking
    assert world.kept() == 0


async def test_what_was_measured_is_forgotten_with_the_device(world: MeasuringWorld) -> None:
    await world.hear(MAC)
    for name in ("pixel", "mac"):
        await world.measurer.measure(name)
    await world.registry.remove(PIXEL)
    known = await world.measurer.known()
    assert {m.agent_id for m in known.devices} == {m.agent_id for m in known.links} == {MAC}


async def test_an_agent_that_never_comes_to_an_end_is_given_up(
    world: MeasuringWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_DEVICE_S", 0.05)
    monkeypatch.setattr(measuring, "_PHONE_SUSTAINED_S", 0.0)
    monkeypatch.setattr(measuring, "_SLACK_S", 0.05)
    world.agent.goes_on.clear()
    with pytest.raises(MeasurementFailed, match=r"pixel was not measured within 0\.05 s"):
        await world.measurer.measure("pixel")
    assert world.agent.calls[-1] == "measured"


async def test_devices_that_need_it_are_named_with_the_reason(world: MeasuringWorld) -> None:
    await world.hear(MAC)
    assert await world.measurer.why_needed() == {
        PIXEL: "CPU was never measured",
        MAC: "CPU was never measured",
    }
    await world.measurer.measure("pixel")
    assert await world.measurer.why_needed() == {MAC: "CPU was never measured"}


@pytest.mark.parametrize("error", [AgentUnreachable("gone"), AgentRefused("no", "x")])
async def test_a_failed_link_is_told_even_if_the_agent_no_longer_answers(
    world: MeasuringWorld, monkeypatch: pytest.MonkeyPatch, error: ProjectError
) -> None:
    world.link_failure = MeasurementFailed("connection lost")

    async def silent(*, wait_s: float = 0.0) -> RpcServerStatus:
        raise error

    def die() -> None:
        monkeypatch.setattr(world.agent, "rpc_server", silent)

    world.while_linking = die
    with pytest.raises(MeasurementFailed, match="connection lost"):
        await world.measurer.measure("pixel")


async def test_only_a_phone_is_kept_busy_until_it_throttles(world: MeasuringWorld) -> None:
    await world.measurer.measure("pixel")
    assert world.agent.specs[-1].sustained_s == 60
    facts = world.registry.device(PIXEL).facts
    assert facts is not None
    world.registry.took_facts(PIXEL, replace(facts, platform="linux"))
    await world.measurer.measure("pixel")
    assert world.agent.specs[-1].sustained_s == 0
