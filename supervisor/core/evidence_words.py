"""Evidence in words: how a process ended, and the lines that show why."""

import re
from collections.abc import Sequence
from typing import Final

from agents.contract import WorkerState
from supervisor.core import log_causes
from supervisor.core.evidence import HERE, Evidence, WorkerEvidence
from supervisor.core.units import gib

STOPPED: Final = ("T", "t")
"""Process states: by a signal, by a debugger."""

_HOT_BATTERY_C: Final = 43.0
_LOW_BATTERY_PERCENT: Final = 5.0
_TELLING_STATES: Final = (*STOPPED, "D", "Z")

_DURING: Final = {
    "workers": "the start of its workers",
    "verify": "the check of its workers",
    "connect": "connecting",
    "load": "loading",
    "first token": "the first completion",
    "ready": "serving",
}

# Numbers, as a worker may run another system than this host.
_SIGNALS: Final = {
    1: "SIGHUP",
    2: "SIGINT",
    3: "SIGQUIT",
    4: "SIGILL",
    5: "SIGTRAP",
    6: "SIGABRT",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    13: "SIGPIPE",
    15: "SIGTERM",
}
_OF_MACOS: Final = {10: "SIGBUS", 12: "SIGSYS"}
_OF_LINUX: Final = {7: "SIGBUS", 31: "SIGSYS"}


def signal_name(status: int | None, platform: str = HERE) -> str:
    """``SIGKILL`` of -9; empty if no signal, or no known one, ended it."""
    if status is None or status >= 0:
        return ""
    names = _SIGNALS | (_OF_MACOS if platform == "macos" else _OF_LINUX)
    return names.get(-status, "")


def how(evidence: Evidence) -> str:
    """How llama-server ended."""
    status = evidence.exit_status
    if status is None:
        return "ended (its status is not known)"
    if status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal_name(status) or f'signal {-status}'}"


def during(evidence: Evidence) -> str:
    """In which phase it happened, to be put behind what happened."""
    phase = _DURING.get(evidence.phase, evidence.phase)
    return f" during {phase}" if phase else ""


def available(available_bytes: int | None) -> str:
    """How much memory is left, to be put behind a sentence."""
    return "" if available_bytes is None else f"; {gib(available_bytes)} are available now"


# -- of the main host ---------------------------------------------------------------------------


def engine_lines(evidence: Evidence, hit: log_causes.Hit | None = None) -> list[str]:
    """What llama-server said of it, the line that decided first."""
    told = log_causes.telling(evidence.log_tail)
    return [f"llama-server: {line}" for line in ([hit.line] if hit else []) + told]


def kills_line(host: str, kills: int | None) -> str:
    """What the kernel of a host counted; empty if nothing."""
    ended = "1 process" if kills == 1 else f"{kills} processes"
    return f"kernel of {host}: killed {ended} for want of memory since then" if kills else ""


# -- of a worker --------------------------------------------------------------------------------


def state_of(worker: WorkerEvidence) -> WorkerState | None:
    """Of its rpc-server; ``None``: nobody knows."""
    return worker.status.state if worker.status else None


def worker_lines(worker: WorkerEvidence) -> list[str]:
    """What its rpc-server said of it."""
    return [f"rpc-server of {worker.name}: {line}" for line in log_causes.telling(worker.log_tail)]


def agent_line(worker: WorkerEvidence) -> str:
    """What its agent says of the rpc-server."""
    detail = worker.status.detail if worker.status else ""
    return f"agent of {worker.name}: {detail}" if detail else ""


def link_doing(worker: WorkerEvidence, evidence: Evidence) -> str:
    """`` in phase decode (last command: GET_TENSOR)``, as far as it is known."""
    phase = f" in phase {worker.link_phase}" if worker.link_phase else during(evidence)
    last = f" (last command: {worker.last_command})" if worker.last_command else ""
    return f"{phase}{last}"


def link_line(worker: WorkerEvidence) -> str:
    """How its link does."""
    if not worker.link_state:
        return ""
    waits = f", unanswered for {worker.waiting_s:.1f} s" if worker.waiting_s else ""
    last = f" (last command: {worker.last_command}{waits})" if worker.last_command else ""
    return f"link to {worker.name}: {worker.link_detail or worker.link_state + last}"


def link_sentence(worker: WorkerEvidence) -> str:
    """What happened to its link; the link's own sentence names worker, phase and last command."""
    return worker.link_detail or f"the link to {worker.name} was lost"


def silent_for(worker: WorkerEvidence) -> str:
    """``silent for 6.1 s``, if its link ended because of that."""
    match = re.search(r"silent for [\d.]+ s", worker.link_detail)
    return match[0] if match else ""


def memory_line(worker: WorkerEvidence) -> str:
    """How much memory its rpc-server had, and how much there is."""
    status, parts = worker.status, []
    if status and status.peak_bytes is not None:
        parts.append(f"its rpc-server had up to {gib(status.peak_bytes)}")
    if worker.available_bytes is not None:
        parts.append(f"{gib(worker.available_bytes)} available now")
    return f"memory of {worker.name}: {', '.join(parts)}" if parts else ""


def facts(worker: WorkerEvidence) -> list[str]:
    """What of the device itself may be behind it."""
    name, found = worker.name, []
    if not worker.is_reachable:
        found.append(f"agent of {name}: no answer, last heard of {worker.silent_s:.1f} s ago")
    if worker.status and worker.status.process_state in _TELLING_STATES:
        found.append(f"rpc-server of {name}: process state {worker.status.process_state}")
    if is_empty(worker):
        found.append(f"battery of {name}: {worker.battery_percent:.0f} % left")
    if is_hot(worker):
        found.append(f"battery of {name}: {worker.temperature_c:.0f} °C")
    return found


def is_empty(worker: WorkerEvidence) -> bool:
    """Its battery is nearly empty."""
    percent = worker.battery_percent
    return percent is not None and percent < _LOW_BATTERY_PERCENT


def is_hot(worker: WorkerEvidence) -> bool:
    """Of a phone it is the battery's temperature; processors of others may well be that hot."""
    heat_c = worker.temperature_c
    return worker.platform == "android" and heat_c is not None and heat_c > _HOT_BATTERY_C


def all_gone(gone: Sequence[WorkerEvidence]) -> str:
    """A hint to be put behind a remedy if several devices were lost at once."""
    several = f"; {len(gone)} devices are gone at once: look at the main host's own network first"
    return several if len(gone) > 1 else ""
