"""From everything that was seen of a launch to the one cause of its end.

The rules go from the best witness to the worst: an rpc-server that its agent saw end, a link that
is lost, what our own watching found, the log of llama-server, and last its bare exit status.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

from agents.contract import WorkerState
from agents.errors import (
    AgentError,
    EngineUnusable,
    LinkLost,
    LocalNetworkDenied,
    ProjectError,
    RpcServerExited,
    RpcServerSilent,
)
from supervisor import errors
from supervisor.core import evidence_words as words
from supervisor.core import log_causes
from supervisor.core.causes import MOST_LINES, cause, kind_of
from supervisor.core.entities import Cause
from supervisor.core.evidence import Evidence, WorkerEvidence
from supervisor.core.units import gib
from supervisor.core.worker_end import end_of, from_worker_log, unreachable, worst
from supervisor.errors import PeerError

_SYMPTOMS: Final = frozenset(
    kind.code
    for kind in (
        errors.AgentUnreachable,
        errors.ConnectStalled,
        errors.EngineExited,
        errors.EngineHung,
        errors.EngineNotReady,
        errors.LinkBlackHole,
        errors.LoadStalled,
        errors.WorkerFrozen,
        errors.WorkerLost,
        errors.WorkerUnreachable,
        LinkLost,
        RpcServerExited,
        RpcServerSilent,
    )
)
"""What our watching says when it sees that something is wrong, not why; others may know better."""

_BEFORE_WORKERS: Final = "workers"
"""The phase in which rpc-servers are started: nothing is missed yet of one that is not there."""

Rule = Callable[[Evidence], Cause | None]


def diagnose(evidence: Evidence) -> Cause:
    """Why a launch ended or has to end. Never raises; always names a documented code."""
    for rule in _RULES:
        if (found := rule(evidence)) is not None:
            return found
    return _plain_end(evidence)


def cause_of(error: ProjectError, *, phase: str) -> Cause:
    """The cause that an error is, where no process can be asked: a plan that failed, a refusal."""
    return _kept(error, Evidence(phase))


# -- something of it is lost or stuck; llama-server may have ended of that ------------------------


def _decided(evidence: Evidence) -> Cause | None:
    """Our watching saw the cause itself, not a symptom of one."""
    found = evidence.found
    return _kept(found, evidence) if found and found.code not in _SYMPTOMS else None


def _worker_ended(evidence: Evidence) -> Cause | None:
    failed = [w for w in evidence.workers if words.state_of(w) is WorkerState.FAILED]
    return worst(end_of(worker, evidence) for worker in failed)


def _worker_frozen(evidence: Evidence) -> Cause | None:
    for worker in evidence.workers:
        state = worker.status.process_state if worker.status else ""
        if worker.is_reachable and state in words.STOPPED:
            return cause(
                errors.WorkerFrozen,
                f"the rpc-server of {worker.name} is stopped by a signal or a debugger "
                f"(state {state}){words.during(evidence)}",
                [words.link_line(worker), *words.facts(worker)],
                worker,
            )
    return None


def _engine_frozen(evidence: Evidence) -> Cause | None:
    if evidence.found is None or evidence.process_state not in words.STOPPED:
        return None
    return cause(
        errors.EngineFrozen,
        f"llama-server is stopped by a signal or a debugger (state {evidence.process_state})"
        f"{words.during(evidence)}",
        [str(evidence.found)],
    )


def _agent_restarted(evidence: Evidence) -> Cause | None:
    if evidence.phase == _BEFORE_WORKERS:
        return None
    for worker in evidence.workers:
        if worker.restarted and words.state_of(worker) is not WorkerState.READY:
            return cause(
                errors.AgentRestarted,
                f"the agent of {worker.name} began anew{words.during(evidence)}, and so its "
                "rpc-server was lost",
                [words.link_line(worker), *words.facts(worker)],
                worker,
            )
    return None


def _stopped_by_agent(evidence: Evidence) -> Cause | None:
    if evidence.phase == _BEFORE_WORKERS:
        return None
    for worker in evidence.workers:
        if words.state_of(worker) is WorkerState.STOPPED:
            return cause(
                errors.WorkerLost,
                f"the agent of {worker.name} stopped its rpc-server{words.during(evidence)}",
                [words.agent_line(worker), words.link_line(worker), *words.facts(worker)],
                worker,
                remedy="an agent does so when it is ended, or hears nothing of the main host for "
                "long; it is started anew",
            )
    return None


def _link_lost(evidence: Evidence) -> Cause | None:
    lost = [worker for worker in evidence.workers if worker.link_state == "lost"]
    if not lost:
        return None
    worker = next((w for w in lost if not w.is_reachable), lost[0])
    if not worker.is_reachable:
        return unreachable(worker, evidence)
    if silent := words.silent_for(worker):
        black_hole = cause(
            errors.LinkBlackHole,
            f"the link to {worker.name} was {silent}{words.link_doing(worker, evidence)}, though "
            "its agent answers: one connection is dropped without a word, the other is not",
            [words.link_line(worker), *words.facts(worker)],
            worker,
        )
        return black_hole.model_copy(update={"remedy": black_hole.remedy + words.all_gone(lost)})
    kind = kind_of(worker.link_code, LinkLost)
    return cause(kind, words.link_sentence(worker), words.facts(worker), worker)


def _out_of_reach(evidence: Evidence) -> Cause | None:
    """A symptom that an absent device explains."""
    return _absent(evidence) if evidence.found is not None else None


def _gpu_failed(evidence: Evidence) -> Cause | None:
    """A GPU that failed ends nothing at once, but nothing comes of it any more."""
    if _was_ended_from_outside(evidence):
        return None
    for worker in evidence.workers:
        if hit := log_causes.first_hit(log_causes.GPU_CAUSES, worker.log_tail):
            return from_worker_log(hit, worker, evidence)
    hit = log_causes.first_hit(log_causes.GPU_CAUSES, evidence.log_tail)
    if hit is None or evidence.found is None:
        return None
    what = hit.row.what.format(who="the main host")
    return cause(
        hit.row.error, f"{what}{words.during(evidence)}", words.engine_lines(evidence, hit)
    )


def _found(evidence: Evidence) -> Cause | None:
    """A symptom that nothing explains stands for itself."""
    return _kept(evidence.found, evidence) if evidence.found else None


# -- llama-server ended by itself, and nobody else has seen why -----------------------------------


def _model_cut(evidence: Evidence) -> Cause | None:
    """It maps the model file, and a page that is no longer there raises SIGBUS."""
    if words.signal_name(evidence.exit_status) != "SIGBUS":
        return None
    return cause(
        errors.ModelReplaced,
        f"llama-server {words.how(evidence)}{words.during(evidence)}: the model file was cut short "
        "or replaced while it was in use",
        words.engine_lines(evidence),
    )


def _host_out_of_memory(evidence: Evidence) -> Cause | None:
    is_killed = words.signal_name(evidence.exit_status) == "SIGKILL"
    if not is_killed or not evidence.host_oom_kills:
        return None
    return _left_to_the_host(evidence) or _kernel_killed(evidence)


def _ended_from_outside(evidence: Evidence) -> Cause | None:
    if not _was_ended_from_outside(evidence):
        return None
    sentence = f"somebody ended llama-server{words.during(evidence)}: it {words.how(evidence)}"
    if words.signal_name(evidence.exit_status) == "SIGKILL":
        is_known = evidence.host_oom_kills is not None
        sentence += ", and " + (
            "memory was not short" if is_known else "whether memory was short is not known"
        )
    return cause(errors.EngineKilled, sentence, words.engine_lines(evidence))


def _engine_said(evidence: Evidence) -> Cause | None:
    of_macs = log_causes.ON_MACS if evidence.platform == "macos" else ()
    hit = log_causes.first_hit((*of_macs, *log_causes.ENGINE_CAUSES), evidence.log_tail)
    if hit is None:
        return None
    worker = _meant(hit, evidence)
    who = worker.name if worker else hit.endpoint or _somebody(hit)
    size = "memory" if hit.size_bytes is None else gib(hit.size_bytes)
    what, remedy = hit.row.what.format(who=who, size=size, line=hit.text), hit.row.remedy
    if hit.row.error is errors.ChatTemplateBroken and evidence.template_file:
        what = f"it cannot read the chat template {evidence.template_file} ({hit.text})"
        remedy = "correct that file, or launch without it"
    lines = words.engine_lines(evidence, hit)
    if worker:
        memory = words.memory_line(worker) if hit.is_refusal else ""
        lines += [*words.worker_lines(worker), memory, *words.facts(worker)]
    return cause(
        hit.row.error,
        f"llama-server {words.how(evidence)}{words.during(evidence)}: {what}",
        lines,
        worker,
        remedy=remedy,
    )


def _worker_refused(evidence: Evidence) -> Cause | None:
    """The log of a worker says why it hung up on llama-server, which does not know."""
    if not _has_lost_a_worker(evidence):
        return None
    for worker in evidence.workers:
        if hit := log_causes.first_hit(log_causes.WORKER_REFUSALS, worker.log_tail):
            return from_worker_log(hit, worker, evidence)
    return None


def _mixed_builds(evidence: Evidence) -> Cause | None:
    worker = _mismatched(evidence)
    if worker is None or not _has_lost_a_worker(evidence):
        return None
    theirs = f"llama.cpp {worker.engine_build or '?'} with RPC {worker.rpc_protocol or '?'}"
    ours = f"{evidence.engine_build or '?'} with RPC {evidence.rpc_protocol or '?'}"
    return cause(
        errors.WorkerIncompatible,
        f"llama-server {words.how(evidence)}{words.during(evidence)}: {worker.name} runs {theirs}, "
        f"the main host {ours}",
        words.engine_lines(evidence),
        worker,
    )


def _somebody_absent(evidence: Evidence) -> Cause | None:
    """It died without a known reason while a device is out of reach."""
    is_crash = words.signal_name(evidence.exit_status) in ("SIGABRT", "SIGSEGV")
    return _absent(evidence) if is_crash or evidence.exit_status is None else None


def _hung_up(evidence: Evidence) -> Cause | None:
    """Nobody says why it lost a worker; its link may say which one."""
    if not _has_lost_a_worker(evidence):
        return None
    worker = next((w for w in evidence.workers if w.link_detail), _only(evidence))
    if worker and worker.link_detail:
        lines = [*words.worker_lines(worker), *words.engine_lines(evidence), *words.facts(worker)]
        return cause(LinkLost, words.link_sentence(worker), lines, worker)
    who = worker.name if worker else "a worker"
    return cause(
        errors.WorkerLost,
        f"llama-server {words.how(evidence)}{words.during(evidence)}: the connection to {who} "
        "broke, and nobody says why",
        [
            *words.engine_lines(evidence),
            *(line for each in evidence.workers for line in words.worker_lines(each)),
        ],
        worker,
    )


def _never_connected(evidence: Evidence) -> Cause | None:
    """Builds up to the end of 2025 die of a worker that they cannot reach, without a word."""
    is_crash = words.signal_name(evidence.exit_status) == "SIGSEGV"
    is_old = evidence.rpc_protocol.partition(".")[0] in ("", "1", "2", "3")
    has_begun = evidence.was_ready or log_causes.has_begun_to_load(evidence.log_tail)
    if not (is_crash and is_old and evidence.workers) or has_begun:
        return None
    worker = _only(evidence)
    return cause(
        errors.WorkerUnreachable,
        f"llama-server {words.how(evidence)}{words.during(evidence)} before it read the model: "
        f"such a build does so when it cannot connect to {worker.name if worker else 'a worker'}",
        [*words.engine_lines(evidence), *(words.facts(worker) if worker else ())],
        worker,
    )


def _unseen_kill(evidence: Evidence) -> Cause | None:
    """Nobody saw it end, but the kernel did end something then."""
    is_unseen = evidence.exit_status is None and evidence.host_oom_kills
    return _kernel_killed(evidence) if is_unseen else None


def _wrong_build(evidence: Evidence) -> Cause | None:
    if words.signal_name(evidence.exit_status) not in ("SIGILL", "SIGSYS"):
        return None
    return cause(
        EngineUnusable,
        f"llama-server {words.how(evidence)}{words.during(evidence)}: it was built for another "
        "processor or system than the main host's",
        words.engine_lines(evidence),
    )


_RULES: Final[tuple[Rule, ...]] = (
    _decided,
    _worker_ended,
    _worker_frozen,
    _engine_frozen,
    _agent_restarted,
    _stopped_by_agent,
    _link_lost,
    _out_of_reach,
    _gpu_failed,
    _found,
    _model_cut,
    _host_out_of_memory,
    _ended_from_outside,
    _engine_said,
    _worker_refused,
    _mixed_builds,
    _somebody_absent,
    _hung_up,
    _never_connected,
    _unseen_kill,
    _wrong_build,
)


def _plain_end(evidence: Evidence) -> Cause:
    last = log_causes.last_words(evidence.log_tail)
    lines = log_causes.telling(evidence.log_tail, MOST_LINES) or [last]
    return cause(
        errors.EngineExited,
        f"llama-server {words.how(evidence)}{words.during(evidence)}; its last words: "
        f"{lines[-1] or 'none'}",
        [f"llama-server: {line}" for line in reversed(lines) if line],
    )


# -- what several rules need ----------------------------------------------------------------------


def _kept(error: ProjectError, evidence: Evidence) -> Cause:
    """An error as it is; its sentence says what to do, too."""
    kind = kind_of(error.code, kind_of(type(error).code, errors.EngineExited))
    worker = _named(error, evidence.workers)
    concerned = [worker] if worker else evidence.workers
    return cause(
        kind,
        str(error) or kind.code,
        [
            *(words.link_line(each) for each in concerned),
            *(line for each in concerned for line in words.facts(each)),
            words.kills_line("the main host", evidence.host_oom_kills),
            *words.engine_lines(evidence),
            f"phase: {evidence.phase}" if evidence.phase else "",
        ],
        worker,
        remedy="",
    )


def _named(error: ProjectError, workers: Sequence[WorkerEvidence]) -> WorkerEvidence | None:
    """The worker whose name comes first in an error that is about a device."""
    if not isinstance(error, PeerError | AgentError) and error.code not in _SYMPTOMS:
        return None
    places = {
        match.start(): worker
        for worker in workers
        if (match := re.search(rf"(?<![\w-]){re.escape(worker.name)}(?![\w-])", str(error)))
    }
    return places[min(places)] if places else None


def _kernel_killed(evidence: Evidence) -> Cause:
    return cause(
        errors.HostOutOfMemory,
        f"the kernel of the main host killed llama-server for want of memory"
        f"{words.during(evidence)}{words.available(evidence.host_available_bytes)}",
        [
            words.kills_line("the main host", evidence.host_oom_kills),
            *words.engine_lines(evidence),
        ],
    )


def _left_to_the_host(evidence: Evidence) -> Cause | None:
    """A worker that was not reached left its layers to the main host, which broke under them."""
    hit = log_causes.first_hit(log_causes.LEFT_TO_THE_HOST, evidence.log_tail)
    if hit is None:
        return None
    worker = _at(hit.endpoint, evidence)
    return cause(
        errors.WorkerUnreachable,
        f"llama-server {words.how(evidence)}{words.during(evidence)}: it could not connect to "
        f"{worker.name if worker else hit.endpoint}, took its layers itself, and the memory of the "
        "main host ran out",
        [*words.engine_lines(evidence, hit), *(words.facts(worker) if worker else ())],
        worker,
    )


def _absent(evidence: Evidence) -> Cause | None:
    gone = next((worker for worker in evidence.workers if not worker.is_reachable), None)
    return unreachable(gone, evidence) if gone else None


def _meant(hit: log_causes.Hit, evidence: Evidence) -> WorkerEvidence | None:
    """The worker that a line of llama-server is about."""
    if hit.row.error is errors.WorkerIncompatible and not hit.endpoint:
        return _mismatched(evidence) or _only(evidence)
    if hit.is_refusal and not hit.buffer:
        refused = log_causes.WORKER_REFUSALS
        return next(
            (w for w in evidence.workers if log_causes.first_hit(refused, w.log_tail)), None
        )
    return _at(hit.endpoint, evidence)


def _somebody(hit: log_causes.Hit) -> str:
    is_of_worker = hit.row.error in (errors.WorkerIncompatible, LocalNetworkDenied)
    return "a worker" if is_of_worker else "the main host"


def _at(endpoint: str, evidence: Evidence) -> WorkerEvidence | None:
    return next((w for w in evidence.workers if endpoint and w.endpoint == endpoint), None)


def _only(evidence: Evidence) -> WorkerEvidence | None:
    return evidence.workers[0] if len(evidence.workers) == 1 else None


def _mismatched(evidence: Evidence) -> WorkerEvidence | None:
    def differs(ours: str, theirs: str) -> bool:
        return bool(ours and theirs and ours != theirs)

    for worker in evidence.workers:
        if differs(evidence.rpc_protocol, worker.rpc_protocol) or differs(
            evidence.engine_build, worker.engine_build
        ):
            return worker
    return None


def _has_lost_a_worker(evidence: Evidence) -> bool:
    return any(log_causes.HUNG_UP in line for line in evidence.log_tail)


def _was_ended_from_outside(evidence: Evidence) -> bool:
    """It obeys SIGTERM with status 0 once it serves."""
    asked = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
    return evidence.exit_status == 0 or words.signal_name(evidence.exit_status) in asked
