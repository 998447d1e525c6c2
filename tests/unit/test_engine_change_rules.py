"""Which devices need an engine, and whose fault a failed launch is."""

from dataclasses import replace

import pytest

from agents.contract import DeviceFacts, EngineFacts, EngineInstall, InstallState
from supervisor.core.engine_change import (
    DeviceChange,
    has_engine,
    has_failed,
    may_change,
    needs_engine,
    progress_text,
    wants_to_be_ready,
)
from supervisor.core.entities import (
    AgentId,
    Cause,
    Deployment,
    DeploymentId,
    DeploymentSpec,
    Device,
)
from supervisor.core.lifecycle import State

MAIN = EngineFacts("/m", "PATH", build="0c1e570", rpc_protocol="7.0.0", has_rpc=True)


def device(state: str, engine: EngineFacts | None, **changes: object) -> Device:
    made = Device(
        id=AgentId("1"),
        name="pixel",
        address="10.0.0.2",
        rest_port=8102,
        state=state,
        silent_s=0,
        facts=DeviceFacts("1", "pixel", "android", engine=engine),
        rpc_server=None,
    )
    return made.model_copy(update=changes)


OTHER = replace(MAIN, build="2222222", source="engines folder")
BROKEN = replace(MAIN, problem="it does not run")


@pytest.mark.parametrize(
    ("found", "needs"),
    [
        (device("unusable", None), True),
        (device("unusable", BROKEN), True),
        (device("incompatible", OTHER), True),
        (device("incompatible", replace(MAIN, rpc_protocol="6.0.0")), True),
        (device("incompatible", replace(OTHER, source="setting")), False),
        (device("unusable", replace(BROKEN, source="LLAMA_CPP_BIN")), False),
        (device("incompatible", OTHER, used_by=DeploymentId("test")), False),
        (device("ready", MAIN), False),
        (device("lost", None), False),
        (device("lost", None, facts=None), False),
        (device("incompatible", replace(MAIN, build="0c1e570ab")), False),
    ],
)
def test_who_gets_an_engine_without_asking(found: Device, needs: bool) -> None:
    assert needs_engine(found, MAIN) is needs


def test_a_device_has_an_engine_if_it_is_that_build_and_works() -> None:
    assert has_engine(device("ready", MAIN), MAIN)
    for other in (OTHER, BROKEN, None, replace(MAIN, rpc_protocol="6.0.0")):
        assert not has_engine(device("ready", other), MAIN)


def test_lost_and_excluded_devices_hold_nobody_up() -> None:
    assert may_change(device("ready", MAIN))
    assert may_change(device("unusable", None))
    assert not may_change(device("lost", MAIN))
    assert not may_change(device("ready", MAIN, excluded=True))


def deployment(state: State, code: str = "") -> Deployment:
    cause = Cause(code=code, sentence="it ended") if code else None
    spec = DeploymentSpec(model="/m.gguf")
    return Deployment(id=DeploymentId("test"), spec=spec, state=state, cause=cause)


@pytest.mark.parametrize(
    ("found", "failed"),
    [
        (deployment(State.FAILED, "engine_exited"), True),
        (deployment(State.FAILED, "worker_unreachable"), True),
        (deployment(State.BACKOFF, "engine_exited"), True),
        (deployment(State.BACKOFF, "architecture_unsupported"), True),
        (deployment(State.BACKOFF), True),
        (deployment(State.BACKOFF, "worker_unreachable"), False),
        (deployment(State.BACKOFF, "link_lost"), False),
        (deployment(State.PENDING, "engine_exited"), False),
        (deployment(State.STARTING), False),
        (deployment(State.READY), False),
    ],
)
def test_a_device_that_goes_away_is_not_the_engines_fault(found: Deployment, failed: bool) -> None:
    assert has_failed(found) is failed


def test_who_stops_a_deployment_does_not_wait_for_it() -> None:
    waited = {state for state in State if wants_to_be_ready(deployment(state))}
    assert waited == set(State) - {State.READY, State.STOPPED, State.STOPPING}


def test_what_a_device_tells_of_its_engine() -> None:
    install = EngineInstall("b1", InstallState.FETCHING, 12_000_000, 40_000_000)
    text = "it gets llama.cpp b1 from the main host (12 of 40 MB)"
    assert progress_text("b1", install) == text
    assert "tries" in progress_text("b1", replace(install, state=InstallState.PROVING))
    row = DeviceChange(device="pixel").after(install)
    assert (row.state, row.done_bytes, row.total_bytes) == ("fetching", 12_000_000, 40_000_000)
