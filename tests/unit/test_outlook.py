"""What a request that waits is told: progress, time and cause."""

from datetime import UTC, datetime, timedelta

import pytest
from gateway_world import deployment, plan

from supervisor.core.entities import Cause, LinkView, WorkerLoad
from supervisor.core.lifecycle import State
from supervisor.core.outlook import outlook

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def loads(done: int) -> tuple[WorkerLoad, ...]:
    return (WorkerLoad(device="phone", layers=4, weight_bytes=1000, loaded_bytes=done),)


def test_before_a_load_the_whole_of_it_is_to_come() -> None:
    found = outlook(deployment(state=State.PENDING, plan=plan(load_s=42)), NOW)
    assert found.ready_in_s == 42
    assert found.retry_after_s == 42
    assert found.progress is None


def test_while_it_loads_the_rest_of_it_is() -> None:
    starting = deployment(state=State.STARTING, plan=plan(load_s=40), loads=loads(250))
    found = outlook(starting, NOW)
    assert found.progress == 0.25
    assert found.ready_in_s == 30
    assert "25% loaded" in found.sentence


def test_the_slowest_link_knows_better_than_the_plan() -> None:
    links = (
        LinkView(device="a", state="up", eta_s=7),
        LinkView(device="b", state="up", eta_s=90.5),
    )
    starting = deployment(state=State.STARTING, loads=loads(250), links=links)
    assert outlook(starting, NOW).retry_after_s == 91


def test_a_repair_waits_first_and_loads_then() -> None:
    due = (NOW + timedelta(seconds=8)).isoformat()
    waits = deployment(state=State.BACKOFF, plan=plan(load_s=20), retry_at=due)
    assert outlook(waits, NOW).ready_in_s == 28


def test_a_repair_that_is_overdue_waits_no_negative_time() -> None:
    due = (NOW - timedelta(seconds=60)).isoformat()
    waits = deployment(state=State.BACKOFF, plan=plan(load_s=20), retry_at=due)
    assert outlook(waits, NOW).ready_in_s == 20


def test_nobody_knows_when_a_device_comes_back() -> None:
    cause = Cause(code="no_devices", sentence="no device is there", remedy="wake the phone")
    found = outlook(deployment(state=State.PENDING, cause=cause), NOW)
    assert found.retry_after_s is None
    assert found.as_json()["cause"] == {
        "code": "no_devices",
        "sentence": "no device is there",
        "remedy": "wake the phone",
    }
    assert "no device is there" in found.sentence


@pytest.mark.parametrize("state", [State.FAILED, State.STOPPED, State.STOPPING])
def test_what_has_ended_comes_at_no_time(state: State) -> None:
    assert outlook(deployment(state=state), NOW).retry_after_s is None


def test_a_busy_deployment_answers_those_before_first() -> None:
    busy = deployment(plan=plan(slots=2))
    assert outlook(busy, NOW, ahead=6, usual_s=10).ready_in_s == 30
    assert outlook(busy, NOW, ahead=0, usual_s=10).retry_after_s == 1


def test_nobody_is_asked_to_come_back_after_days() -> None:
    assert (
        outlook(deployment(state=State.PENDING, plan=plan(load_s=1e6)), NOW).retry_after_s == 3600
    )
