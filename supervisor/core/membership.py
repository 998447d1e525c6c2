"""State of a device, derived from facts. The worst news wins."""

from enum import StrEnum
from typing import Final

from agents.contract import DeviceFacts, EngineFacts

SHORTEST_COMMIT: Final = 7


class DeviceCondition(StrEnum):
    """Whether a device may be planned with."""

    READY = "ready"
    PARKED = "parked"
    """It wants no work for now: its battery is low, or it is too hot."""
    SUSPECT = "suspect"
    LOST = "lost"
    UNUSABLE = "unusable"
    INCOMPATIBLE = "incompatible"


def assess(
    facts: DeviceFacts | None,
    *,
    silent_s: float,
    late_after_s: float,
    stale_after_s: float,
    rpc_protocol: str,
    engine_build: str = "",
) -> tuple[DeviceCondition, str]:
    """Condition of a device and why.

    Args:
        facts: Its last word; ``None`` before the first heartbeat since we started.
        silent_s: Age of that word.
        late_after_s: Older than this is worth a doubt.
        stale_after_s: Older than this is gone.
        rpc_protocol: The version that the main host's engine speaks; empty if unknown.
        engine_build: Build of that engine; empty if unknown.
    """
    if facts is None or silent_s >= stale_after_s:
        heard = f"last heard of {silent_s:.0f} s ago" if facts else "not heard of since we started"
        return DeviceCondition.LOST, f"{heard}; check that its agent runs and its network"
    engine = facts.engine
    if engine is None or engine.problem:
        none = "no llama.cpp programs there; install a build with RPC"
        return DeviceCondition.UNUSABLE, engine.problem if engine else none
    if mismatch := _mismatch(engine, rpc_protocol, engine_build):
        return DeviceCondition.INCOMPATIBLE, mismatch
    if facts.parked:
        return DeviceCondition.PARKED, facts.parked
    if silent_s >= late_after_s:
        return DeviceCondition.SUSPECT, f"heartbeat is {silent_s:.0f} s old"
    return DeviceCondition.READY, ""


def _mismatch(engine: EngineFacts, rpc_protocol: str, engine_build: str) -> str:
    if rpc_protocol and engine.rpc_protocol != rpc_protocol:
        return (
            f"speaks RPC {engine.rpc_protocol}, the main host {rpc_protocol}; "
            "install the same llama.cpp build on both"
        )
    if not is_same_build(engine.build, engine_build):
        return (
            f"runs llama.cpp {engine.build}, the main host {engine_build}; mixed builds give wrong "
            "results without a word: install the same build on both"
        )
    return ""


def is_same_build(one: str, other: str) -> bool:
    """Whether two builds may be the same; unknown ones are empty.

    A build is a commit as git abbreviates it: to 7 characters or more, as the repository needs.
    """
    short, long = sorted((one, other), key=len)
    return not short or short == long or (len(short) >= SHORTEST_COMMIT and long.startswith(short))
