"""Which devices need another engine, and what a change of the cluster's engine tells."""

from enum import StrEnum
from typing import Final

from pydantic import Field

from agents.contract import EngineFacts, EngineInstall, InstallState
from supervisor.core.entities import ByteCount, Cause, Deployment, Device, FrozenModel
from supervisor.core.lifecycle import State
from supervisor.core.membership import DeviceCondition, is_same_build

_NOT_THE_ENGINES: Final = frozenset(
    {
        "agent_unreachable",
        "worker_unreachable",
        "worker_lost",
        "worker_taken",
        "worker_killed_by_android",
        "link_lost",
        "link_black_hole",
        "device_parked",
        "disk_full",
        "store_unusable",
        "model_missing",
        "model_replaced",
        "link_process_ended",
        "link_process_frozen",
        "no_devices",
    }
)
"""Codes of causes that any build would have met: the repair has to deal with them."""


class ChangePhase(StrEnum):
    """Where a change of the engine is."""

    FETCHING = "fetching"
    STOPPING = "stopping"
    SWITCHING = "switching"
    LAUNCHING = "launching"
    GOING_BACK = "going back"
    DONE = "done"
    FAILED = "failed"


OVER: Final = (ChangePhase.DONE, ChangePhase.FAILED)


class DeviceChange(FrozenModel):
    """One device in a change."""

    device: str
    state: str = Field(default="waiting", description="waiting, fetching, proving, ready, changed")
    done_bytes: ByteCount = 0
    total_bytes: ByteCount = 0
    detail: str = ""

    def after(self, install: EngineInstall) -> "DeviceChange":
        """With what its agent tells of the build that it gets."""
        changes = {"done_bytes": install.done_bytes, "total_bytes": install.total_bytes}
        return self.model_copy(
            update={"state": str(install.state), "detail": install.detail, **changes}
        )


class EngineChange(FrozenModel):
    """The latest change of the engine since the supervisor began."""

    build_before: str
    build: str
    phase: ChangePhase = ChangePhase.FETCHING
    devices: tuple[DeviceChange, ...] = ()
    deployments: dict[str, str] = Field(default_factory=dict, description="name and state")
    started_at: str = ""
    ended_at: str = ""
    error_code: str = ""
    reason: str = Field(default="", description="why it failed, or what was left out")

    @property
    def is_over(self) -> bool:
        return self.phase in OVER


def cut_off(before: str, build: str, now: str, at: str) -> EngineChange:
    """One that the end of the supervisor cut off; ``now`` is in use since."""
    return EngineChange(
        build_before=before,
        build=build,
        phase=ChangePhase.FAILED,
        ended_at=at,
        error_code="engine_change_failed",
        reason=(
            f"the supervisor ended while it moved the cluster from llama.cpp {before} to {build}; "
            f"{now} is used, so ask for the change again"
        ),
    )


def has_engine(device: Device, engine: EngineFacts) -> bool:
    """Whether a device uses that very build, and can."""
    own = device.facts.engine if device.facts else None
    return (
        own is not None
        and not own.problem
        and own.rpc_protocol == engine.rpc_protocol
        and is_same_build(own.build, engine.build)
    )


def needs_engine(device: Device, engine: EngineFacts) -> bool:
    """Whether a device should get the main host's engine now, without being asked for it."""
    own = device.facts.engine if device.facts else None
    return (
        device.state in (DeviceCondition.UNUSABLE, DeviceCondition.INCOMPATIBLE)
        and device.facts is not None
        and device.used_by is None
        and not (own is not None and own.is_fixed)
        and not has_engine(device, engine)
    )


def may_change(device: Device) -> bool:
    """Whether a device takes part in a change: lost and excluded ones are supplied later."""
    return device.state != DeviceCondition.LOST and device.facts is not None and not device.excluded


def progress_text(build: str, install: EngineInstall) -> str:
    """What a device does about its engine, in few words."""
    if install.state is InstallState.FETCHING and install.total_bytes:
        done, total = install.done_bytes / 1e6, install.total_bytes / 1e6
        return f"it gets llama.cpp {build} from the main host ({done:.0f} of {total:.0f} MB)"
    if install.state is InstallState.PROVING:
        return f"it tries llama.cpp {build}, which it got from the main host"
    return f"it gets llama.cpp {build} from the main host"


def blames_engine(cause: Cause | None) -> bool:
    """Whether a failed launch may have failed for what the engine does."""
    return cause is None or cause.code not in _NOT_THE_ENGINES


def has_failed(deployment: Deployment) -> bool:
    """Whether a launch with the new engine is to be taken as its fault."""
    if deployment.state is State.FAILED:
        return True
    return deployment.state is State.BACKOFF and blames_engine(deployment.cause)


def wants_to_be_ready(deployment: Deployment) -> bool:
    """Whether it has still to be waited for; who stopped it meanwhile does not."""
    return deployment.state not in (State.READY, State.STOPPED, State.STOPPING)
