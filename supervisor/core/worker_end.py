"""Why one worker was lost, from what its agent and its rpc-server say."""

from collections.abc import Iterable
from typing import Final

from agents.errors import DiskFull, ProjectError, RpcServerExited
from supervisor import errors
from supervisor.core import evidence_words as words
from supervisor.core import log_causes
from supervisor.core.causes import cause, kind_of
from supervisor.core.entities import Action, Cause
from supervisor.core.evidence import Evidence, WorkerEvidence

_ASKED_TO_END: Final = ("SIGTERM", "SIGINT", "SIGHUP")

_CRASHES: Final[dict[str, str]] = {
    "SIGABRT": "",
    "SIGBUS": "",
    "SIGFPE": "",
    "SIGILL": ": it has an instruction that this processor lacks",
    "SIGSEGV": "",
    "SIGSYS": ": it makes a system call that the system forbids",
    "SIGTRAP": "",
}
_WRONG_BUILD: Final = ("SIGILL", "SIGSYS")
_OF_MEMORY: Final = (errors.AllocationRefused, errors.GpuOutOfMemory)

# The worst news of several workers is told.
_RANKS: Final = {
    kind.code: rank
    for rank, kind in enumerate[type[ProjectError]](
        (
            errors.GpuTimeout,
            errors.GpuOutOfMemory,
            errors.WorkerOutOfMemory,
            errors.AllocationRefused,
            DiskFull,
            errors.WorkerCrashed,
            errors.WorkerKilledByAndroid,
            errors.WorkerKilled,
        )
    )
}


def worst(causes: Iterable[Cause]) -> Cause | None:
    """The one to tell of several; the first of equals."""
    return min(causes, key=lambda each: _RANKS.get(each.code, len(_RANKS)), default=None)


def end_of(worker: WorkerEvidence, evidence: Evidence) -> Cause:
    """Why an rpc-server ended; its agent saw it."""
    signal = words.signal_name(
        worker.status.exit_status if worker.status else None, worker.platform
    )
    is_sent = signal == "SIGKILL" or signal in _ASKED_TO_END
    rows = log_causes.GPU_CAUSES if is_sent else log_causes.WORKER_CAUSES
    if hit := log_causes.first_hit(rows, worker.log_tail):
        return from_worker_log(hit, worker, evidence)
    if signal == "SIGKILL":
        return _killed(worker, evidence)
    if signal in _ASKED_TO_END:
        return _ended(worker, evidence, signal)
    if signal in _CRASHES:
        return _crashed(worker, evidence, signal)
    return _failed(worker, evidence)


def unreachable(worker: WorkerEvidence, evidence: Evidence) -> Cause:
    """A device that does not answer, neither its agent nor its link."""
    absent = [each for each in evidence.workers if not each.is_reachable]
    hint = ""
    if words.is_empty(worker):
        hint = "; its battery was nearly empty: charge it"
    elif words.is_hot(worker):
        hint = "; its battery was hot: let it cool"
    link = ""
    if worker.link_state == "lost":
        link = f", and the link to {worker.name} was lost{words.link_doing(worker, evidence)}"
    found = cause(
        errors.WorkerUnreachable,
        f"{worker.name} does not answer{words.during(evidence)}; it was last heard of "
        f"{worker.silent_s:.1f} s ago{link}",
        [
            words.link_line(worker),
            *words.facts(worker),
            str(evidence.found or ""),
            *words.engine_lines(evidence),
        ],
        worker,
    )
    return found.model_copy(update={"remedy": f"{found.remedy}{hint}{words.all_gone(absent)}"})


def from_worker_log(hit: log_causes.Hit, worker: WorkerEvidence, evidence: Evidence) -> Cause:
    """What a line of its rpc-server says."""
    what = hit.row.what.format(who=worker.name, line=hit.text)
    return cause(
        hit.row.error,
        f"the rpc-server of {worker.name} failed{words.during(evidence)}: {what}",
        [
            f"rpc-server of {worker.name}: {hit.line}",
            *words.worker_lines(worker),
            words.memory_line(worker) if hit.row.error in _OF_MEMORY else "",
            *_witnesses(worker),
        ],
        worker,
        remedy=hit.row.remedy,
    )


def _killed(worker: WorkerEvidence, evidence: Evidence) -> Cause:
    """By whom, the kernel's own counter knows best."""
    kills = worker.status.oom_kills if worker.status else None
    name, when = worker.name, words.during(evidence)
    if kills:
        return cause(
            errors.WorkerOutOfMemory,
            f"the kernel of {name} killed its rpc-server for want of memory{when}"
            f"{words.available(worker.available_bytes)}",
            [words.kills_line(name, kills), words.memory_line(worker), *_witnesses(worker)],
            worker,
        )
    if worker.platform == "android":
        return cause(
            errors.WorkerKilledByAndroid,
            f"Android killed the rpc-server of {name} with SIGKILL{when}, as it does with "
            "background programs, and when memory is short",
            [words.memory_line(worker), *_witnesses(worker)],
            worker,
        )
    counted = "memory was not short" if kills is not None else "whether memory was short is unknown"
    return cause(
        errors.WorkerKilled,
        f"somebody killed the rpc-server of {name} with SIGKILL{when}; {counted}",
        [words.memory_line(worker), *_witnesses(worker)],
        worker,
    )


def _ended(worker: WorkerEvidence, evidence: Evidence, signal: str) -> Cause:
    return cause(
        errors.WorkerKilled,
        f"somebody ended the rpc-server of {worker.name} with {signal}{words.during(evidence)}",
        _witnesses(worker),
        worker,
    )


def _crashed(worker: WorkerEvidence, evidence: Evidence, signal: str) -> Cause:
    is_wrong_build = signal in _WRONG_BUILD
    return cause(
        errors.WorkerCrashed,
        f"the rpc-server of {worker.name} crashed with {signal}{words.during(evidence)}"
        f"{_CRASHES[signal]}",
        [*words.worker_lines(worker), *_witnesses(worker)],
        worker,
        action=Action.EXCLUDE if is_wrong_build else None,
        remedy="install a build made for that device, such as Termux's own on a phone; it is left "
        "out until then"
        if is_wrong_build
        else None,
    )


def _failed(worker: WorkerEvidence, evidence: Evidence) -> Cause:
    code = worker.status.error_code if worker.status else ""
    detail = worker.status.detail if worker.status else ""
    return cause(
        kind_of(code, RpcServerExited),
        f"the rpc-server of {worker.name} failed{words.during(evidence)}: "
        f"{detail or 'its agent does not say why'}",
        [*words.worker_lines(worker), *_witnesses(worker)],
        worker,
    )


def _witnesses(worker: WorkerEvidence) -> list[str]:
    return [
        words.agent_line(worker),
        words.link_line(worker),
        *words.facts(worker),
    ]
