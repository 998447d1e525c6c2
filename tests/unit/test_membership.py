"""Condition of a device, derived from facts; the worst news wins."""

import pytest

from agents.contract import DeviceFacts, EngineFacts
from supervisor.core.membership import DeviceCondition, assess

GOOD = EngineFacts(
    folder="/opt/llama", source="PATH", rpc_server="/opt/llama/x", rpc_protocol="7.0.0"
)
BROKEN = EngineFacts(folder="/opt/llama", source="PATH", problem="built without RPC; rebuild it")
OLD = EngineFacts(folder="/opt/llama", source="PATH", rpc_protocol="3.6.0")


def facts(engine: EngineFacts | None) -> DeviceFacts:
    return DeviceFacts(agent_id="a", name="pixel", platform="android", engine=engine)


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
        # The worst news wins.
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
