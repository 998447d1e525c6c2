"""When a device has to be measured, and when it is better left alone: tables of cases."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from agents.contract import DeviceFacts, EngineFacts, GgmlDevice
from supervisor.core.entities import AgentId, Device
from supervisor.core.measurements import DeviceMeasured, LinkMeasured
from supervisor.core.when_to_measure import Known, why_needed, why_not_now

PIXEL = AgentId("id-pixel")
NOW = datetime(2026, 10, 31, tzinfo=UTC)
KEEPS = timedelta(days=30)
ENGINE = EngineFacts("/opt", "PATH", build="abc", rpc_protocol="7.0.0", has_rpc=True)
FACTS = DeviceFacts(PIXEL, "pixel", "android", ggml_devices=[GgmlDevice("CPU")], engine=ENGINE)
TWO = [GgmlDevice("CUDA0"), GgmlDevice("CUDA1")]


def device(facts: DeviceFacts | None = FACTS) -> Device:
    return Device(
        id=PIXEL,
        name="pixel",
        address="10.0.0.2",
        rest_port=8102,
        state="ready",
        silent_s=0.0,
        facts=facts,
        rpc_server=None,
    )


def measured(ggml_device: str = "CPU", days_ago: float = 1, agent_id: str = PIXEL) -> Known:
    taken_at = (NOW - timedelta(days=days_ago)).isoformat()
    found = DeviceMeasured(
        agent_id=AgentId(agent_id),
        ggml_device=ggml_device,
        taken_at=taken_at,
        rpc_protocol="7.0.0",
        engine_build="abc",
        decode_bytes_per_s={"Q4_K": 1e10},
        prefill_flop_per_s={"Q4_K": 1e11},
        op_overhead_s=1e-6,
        hop_overhead_s=1e-3,
    )
    link = LinkMeasured(
        agent_id=AgentId(agent_id),
        taken_at=taken_at,
        rtt_p50_s=1e-3,
        rtt_p90_s=2e-3,
        up_bytes_per_s=1e8,
        down_bytes_per_s=1e8,
    )
    return Known((found,), (link,))


def with_engine(build: str, rpc_protocol: str) -> DeviceFacts:
    return replace(FACTS, engine=replace(ENGINE, build=build, rpc_protocol=rpc_protocol))


@pytest.mark.parametrize(
    ("facts", "known", "reason"),
    [
        (FACTS, measured(), ""),
        (FACTS, measured(days_ago=30), ""),
        (FACTS, measured(days_ago=30.1), "it was measured 30 days ago"),
        (FACTS, Known(), "CPU was never measured"),
        (FACTS, Known(links=measured().links), "CPU was never measured"),
        (FACTS, Known(devices=measured().devices), "the link to it was never measured"),
        (
            FACTS,
            Known(measured().devices, measured(days_ago=40).links),
            "it was measured 40 days ago",
        ),
        (FACTS, measured(agent_id="another"), "CPU was never measured"),
        (FACTS, measured("CUDA0"), "CPU was never measured"),
        (replace(FACTS, ggml_devices=TWO), Known(), "CUDA0, CUDA1 was never measured"),
        (replace(FACTS, ggml_devices=TWO), measured("CUDA1"), "CUDA0 was never measured"),
        (
            with_engine(build="xyz", rpc_protocol="7.0.0"),
            measured(),
            "it was measured with build abc, now it is xyz",
        ),
        (
            with_engine(build="abc", rpc_protocol="7.0.1"),
            measured(),
            "it was measured with RPC 7.0.0, now it is 7.0.1",
        ),
        (with_engine(build="", rpc_protocol=""), measured(), ""),
        (replace(FACTS, engine=None), Known(), ""),
        (replace(FACTS, ggml_devices=[]), Known(), ""),
        (None, Known(), ""),
    ],
)
def test_a_device_is_measured_when_what_is_known_no_longer_counts(
    facts: DeviceFacts | None, known: Known, reason: str
) -> None:
    assert why_needed(device(facts), known, NOW, KEEPS) == reason


def test_what_is_known_of_a_ggml_device_that_is_gone_does_not_matter() -> None:
    old = measured("CUDA0", days_ago=400)
    known = Known((*measured().devices, *old.devices), measured().links)
    assert why_needed(device(), known, NOW, KEEPS) == ""


@pytest.mark.parametrize(
    ("percent", "is_charging", "temperature_c", "reason"),
    [
        (None, None, None, ""),
        (90.0, True, 35.0, ""),
        (30.0, True, 60.0, ""),
        (90.0, False, 35.0, "it runs on battery"),
        (None, False, None, "it runs on battery"),
        (29.9, True, None, "its battery is at 30 %"),
        (12.0, None, None, "its battery is at 12 %"),
        (None, None, 60.5, "it is 60 degrees hot"),
        (90.0, True, 71.0, "it is 71 degrees hot"),
    ],
)
def test_a_weak_or_hot_device_is_left_alone(
    percent: float | None, is_charging: bool | None, temperature_c: float | None, reason: str
) -> None:
    facts = replace(
        FACTS,
        battery_percent=percent,
        battery_charging=is_charging,
        temperature_c=temperature_c,
    )
    assert why_not_now(device(facts), most_load=0.5) == reason


def test_an_unknown_device_is_left_alone() -> None:
    assert why_not_now(device(None), most_load=0.5) == "nothing is known of it"


@pytest.mark.parametrize(("load", "is_idle"), [(None, True), (1.9, True), (2.1, False)])
def test_a_busy_device_is_not_measured_unasked(load: float | None, is_idle: bool) -> None:
    facts = replace(FACTS, cores=4, load_average=load)
    assert (why_not_now(device(facts), most_load=0.5) == "") is is_idle
