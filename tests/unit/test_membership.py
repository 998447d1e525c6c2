"""Condition of a device, derived from facts; the worst news wins."""

from dataclasses import replace

import pytest

from agents.contract import DeviceFacts, EngineFacts
from supervisor.core.membership import DeviceCondition, assess, is_same_build

GOOD = EngineFacts(
    folder="/opt/llama", source="PATH", rpc_server="/opt/llama/x", rpc_protocol="7.0.0"
)
BROKEN = EngineFacts(folder="/opt/llama", source="PATH", problem="built without RPC; rebuild it")
OLD = EngineFacts(folder="/opt/llama", source="PATH", rpc_protocol="3.6.0")


def facts(engine: EngineFacts | None) -> DeviceFacts:
    return DeviceFacts(agent_id="a", name="pixel", platform="android", engine=engine)


def parked(engine: EngineFacts | None) -> DeviceFacts:
    return replace(facts(engine), parked="its battery has 14 % left and is not charging")


@pytest.mark.parametrize(
    ("word", "silent_s", "protocol", "condition", "says"),
    [
        (None, 0.0, "7.0.0", DeviceCondition.LOST, "not heard of since we started; check"),
        (None, 1e9, "7.0.0", DeviceCondition.LOST, "not heard of since we started"),
        (facts(GOOD), 0.0, "7.0.0", DeviceCondition.READY, ""),
        (facts(GOOD), 9.9, "7.0.0", DeviceCondition.READY, ""),
        (facts(GOOD), 10.0, "7.0.0", DeviceCondition.SUSPECT, "heartbeat is 10 s old"),
        (facts(GOOD), 29.9, "7.0.0", DeviceCondition.SUSPECT, "heartbeat is 30 s old"),
        (facts(GOOD), 30.0, "7.0.0", DeviceCondition.LOST, "last heard of 30 s ago; check"),
        (facts(None), 0.0, "7.0.0", DeviceCondition.UNUSABLE, "no llama.cpp programs there"),
        (facts(BROKEN), 0.0, "7.0.0", DeviceCondition.UNUSABLE, "built without RPC; rebuild it"),
        (facts(OLD), 0.0, "7.0.0", DeviceCondition.INCOMPATIBLE, "speaks RPC 3.6.0, the main host"),
        (facts(OLD), 0.0, "3.6.1", DeviceCondition.INCOMPATIBLE, "the main host 3.6.1"),
        (facts(OLD), 0.0, "", DeviceCondition.READY, ""),  # the main host has no engine yet
        (parked(GOOD), 0.0, "7.0.0", DeviceCondition.PARKED, "its battery has 14 % left"),
        # The worst news wins.
        (parked(GOOD), 15.0, "7.0.0", DeviceCondition.PARKED, "its battery has 14 % left"),
        (parked(GOOD), 31.0, "7.0.0", DeviceCondition.LOST, "last heard of 31 s ago"),
        (parked(OLD), 0.0, "7.0.0", DeviceCondition.INCOMPATIBLE, "speaks RPC"),
        (parked(None), 0.0, "7.0.0", DeviceCondition.UNUSABLE, "no llama.cpp"),
        (facts(OLD), 15.0, "7.0.0", DeviceCondition.INCOMPATIBLE, "speaks RPC"),
        (facts(None), 15.0, "7.0.0", DeviceCondition.UNUSABLE, "no llama.cpp"),
        (facts(BROKEN), 31.0, "7.0.0", DeviceCondition.LOST, "last heard of 31 s ago"),
    ],
)
def test_a_device_is_what_its_facts_say(
    word: DeviceFacts | None,
    silent_s: float,
    protocol: str,
    condition: DeviceCondition,
    says: str,
) -> None:
    found, reason = assess(
        word, silent_s=silent_s, late_after_s=10.0, stale_after_s=30.0, rpc_protocol=protocol
    )
    assert found is condition
    assert reason.startswith(says) or says in reason
    assert bool(reason) == (condition is not DeviceCondition.READY)


@pytest.mark.parametrize(
    ("build", "main_build", "condition"),
    [
        ("0c1e570", "0c1e570", DeviceCondition.READY),
        ("0c1e570", "0c1e57012", DeviceCondition.READY),  # git cuts the same commit differently
        ("0c1e570", "9f2a113", DeviceCondition.INCOMPATIBLE),
        ("0c1e570", "", DeviceCondition.READY),  # unknown here
        ("", "0c1e570", DeviceCondition.READY),  # unknown there: it has no llama-server
    ],
)
def test_a_device_with_another_build_is_incompatible(
    build: str, main_build: str, condition: DeviceCondition
) -> None:
    found, reason = assess(
        facts(replace(GOOD, build=build)),
        silent_s=0.0,
        late_after_s=10.0,
        stale_after_s=30.0,
        rpc_protocol="7.0.0",
        engine_build=main_build,
    )
    assert found is condition
    if condition is DeviceCondition.INCOMPATIBLE:
        assert "runs llama.cpp 0c1e570, the main host 9f2a113" in reason
        assert reason.endswith("install the same build on both")


def test_another_protocol_is_the_worse_news() -> None:
    old = replace(OLD, build="0c1e570")
    _, reason = assess(
        facts(old),
        silent_s=0.0,
        late_after_s=10.0,
        stale_after_s=30.0,
        rpc_protocol="7.0.0",
        engine_build="9f2a113",
    )
    assert reason.startswith("speaks RPC 3.6.0")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("abc", "abcdef", False),  # too short to be a commit
        ("4.1", "4.12", False),  # versions
        ("4.1", "4.1", True),
        ("0c1e570", "0c1e5701", True),
        ("0c1e570", "0c1e571", False),
        ("", "", True),
    ],
)
def test_builds_are_compared_as_git_abbreviates_them(one: str, other: str, expected: bool) -> None:
    assert is_same_build(one, other) is is_same_build(other, one) is expected
