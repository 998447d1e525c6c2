"""What each cause stands for: one table from a code to the action of the repair and the remedy."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from agents.errors import (
    AgentError,
    DiskFull,
    EngineMissing,
    EngineUnusable,
    EngineWithoutRpc,
    LinkLost,
    LocalNetworkDenied,
    PortInUse,
    ProjectError,
    PublicAddressRefused,
    RpcServerExited,
)
from supervisor import errors
from supervisor.core.entities import Action, Cause
from supervisor.core.evidence import WorkerEvidence
from supervisor.core.log_causes import QUOTED_CHARACTERS

MOST_LINES: Final = 8

ANDROID_REMEDY: Final = (
    'developer options: "Disable child process restrictions", or run adb shell settings put global '
    "settings_enable_monitor_phantom_procs false; set the battery of Termux to Unrestricted and "
    "hold termux-wake-lock"
)

_UPDATE = "update llama.cpp to one recent build on every device"
_ONE_BUILD = "that device is left out until the same llama.cpp build is on both"
_LESS = "its share gets smaller; close other programs there, or add a device"
_WHO = "it is started anew; find who did it: another user, a service manager, a limit"

_ADVICE: Final[Mapping[type[ProjectError], tuple[Action, str]]] = {
    # Less of something helps.
    errors.GpuTimeout: (
        Action.SMALLER_UBATCH,
        "fewer tokens at once (ubatch) are computed from now on; close what else uses that GPU",
    ),
    errors.GpuOutOfMemory: (Action.SMALLER_SHARE, f"{_LESS}, or lower the context"),
    errors.WorkerOutOfMemory: (Action.SMALLER_SHARE, _LESS),
    errors.AllocationRefused: (Action.SMALLER_SHARE, _LESS),
    errors.CacheDoesNotFit: (
        Action.SMALLER_SHARE,
        "fewer layers are placed there; lower the context (--ctx) to keep them",
    ),
    errors.HostOutOfMemory: (
        Action.SMALLER_SHARE,
        "its share gets smaller; close other programs on the main host, or lower the context",
    ),
    # Nothing helps but a change by a human.
    errors.WorkerIncompatible: (Action.GIVE_UP, _ONE_BUILD),
    errors.ModelMissing: (
        Action.GIVE_UP,
        "check the path, its permissions, and that all parts are in one folder",
    ),
    errors.ModelBroken: (Action.GIVE_UP, "download it again and compare its checksum"),
    errors.EngineRefusedModel: (
        Action.GIVE_UP,
        "update llama.cpp, or use another conversion of the model",
    ),
    errors.ArchitectureUnsupported: (Action.GIVE_UP, _UPDATE),
    errors.ChatTemplateBroken: (
        Action.GIVE_UP,
        "use another conversion of the model, or update llama.cpp",
    ),
    errors.EngineRefusedFlag: (Action.GIVE_UP, _UPDATE),
    errors.BadSplit: (Action.GIVE_UP, "use fewer devices"),
    EngineWithoutRpc: (
        Action.GIVE_UP,
        "build llama.cpp with -DGGML_RPC=ON, or install a build that has it",
    ),
    EngineMissing: (Action.GIVE_UP, "install llama.cpp with RPC, or name its folder"),
    EngineUnusable: (Action.GIVE_UP, "install a build that is made for this host"),
    # The next attempt may well succeed.
    errors.WorkerKilledByAndroid: (Action.RETRY, ANDROID_REMEDY),
    errors.WorkerKilled: (Action.RETRY, _WHO),
    errors.EngineKilled: (Action.RETRY, _WHO),
    errors.WorkerCrashed: (
        Action.RETRY,
        "it is started anew; if it repeats, update llama.cpp everywhere, or launch without it",
    ),
    errors.WorkerFrozen: (Action.RETRY, "it is started anew; find who stops it"),
    errors.EngineFrozen: (Action.RETRY, "it is started anew; find who stops it"),
    errors.WorkerUnreachable: (
        Action.RETRY,
        "check that device, its Wi-Fi and the firewalls between both; it is left out until it "
        "answers",
    ),
    errors.WorkerLost: (
        Action.RETRY,
        "it is started anew; if it repeats, see the logs of the workers",
    ),
    errors.AgentRestarted: (Action.RETRY, "it is started anew; see the log of that agent"),
    errors.LinkBlackHole: (
        Action.RETRY,
        "it is made anew; look at firewalls, Wi-Fi roaming and VPNs between both",
    ),
    LocalNetworkDenied: (
        Action.RETRY,
        "allow it in System Settings > Privacy & Security > Local Network of this Mac, start the "
        "supervisor from Terminal, or install it as a service (supervisor service install)",
    ),
    LinkLost: (Action.RETRY, "it is made anew; look at that device's Wi-Fi and battery settings"),
    RpcServerExited: (Action.RETRY, "it is started anew; if it repeats, see its log"),
    PortInUse: (Action.RETRY, "the next attempt uses another port"),
    DiskFull: (Action.RETRY, "free space there"),
    errors.ModelReplaced: (
        Action.RETRY,
        "it is started anew with the file as it is now; put new files beside the old one",
    ),
    PublicAddressRefused: (Action.GIVE_UP, "launch with links, which is the default"),
    errors.EngineExited: (
        Action.RETRY,
        "it is started anew; if it repeats, make a report and see its log",
    ),
}

_LEFT_OUT: Final = frozenset(
    {
        errors.WorkerIncompatible,
        errors.WorkerNotRpcServer,
        errors.EngineRefusedFlag,
        EngineMissing,
        EngineUnusable,
        EngineWithoutRpc,
    }
)
"""Of one device: time does not mend it, and the others may do without that device."""


def cause(
    kind: type[ProjectError],
    sentence: str,
    lines: Iterable[str],
    worker: WorkerEvidence | None = None,
    *,
    remedy: str | None = None,
    action: Action | None = None,
) -> Cause:
    """A cause with the action and the remedy that belong to it, unless others are given.

    Args:
        kind: Error whose code it is.
        sentence: What happened, with the numbers.
        lines: Evidence, best first; empty and repeated ones are dropped.
        worker: The device that it is about; ``None``: the main host, or unknown.
    """
    usual_action, usual_remedy = _ADVICE.get(kind, _usual(kind))
    if worker is not None and kind in _LEFT_OUT:
        usual_action = Action.EXCLUDE
    one_line_each = (" ".join(line.split())[:QUOTED_CHARACTERS] for line in lines)
    kept = dict.fromkeys(line for line in one_line_each if line)
    return Cause(
        code=kind.code,
        sentence=sentence,
        evidence=tuple(kept)[:MOST_LINES],
        remedy=usual_remedy if remedy is None else remedy,
        action=action or usual_action,
        agent_id=worker.agent_id if worker else "",
        device=worker.name if worker else "",
    )


def kind_of(code: str, otherwise: type[ProjectError]) -> type[ProjectError]:
    """The error that has a code; every one has a section in docs/errors.md."""
    return _KINDS.get(code, otherwise)


def _usual(kind: type[ProjectError]) -> tuple[Action, str]:
    """What is wrong with a device may change without anybody here; a wrong request does not."""
    is_of_device = issubclass(kind, errors.PeerError | AgentError)
    action = Action.RETRY if kind.retryable or is_of_device else Action.GIVE_UP
    return action, f"see {kind.code} in docs/errors.md"


def _leaves(kind: type[ProjectError]) -> dict[str, type[ProjectError]]:
    below = kind.__subclasses__()
    if not below:
        return {kind.code: kind}
    return {code: leaf for each in below for code, leaf in _leaves(each).items()}


_KINDS: Final = MappingProxyType(_leaves(ProjectError))
