"""Is a deployment that serves stuck? Decided from what moves, in looks about a second apart.

``/health`` says ok while a worker is frozen, so it is not asked. What is looked at: the counts of
the slots, answers and bytes of the links, processor time of the workers, and llama-server's own
state and processor time. In the order in which that is believed:

* A process that is stopped (state T) computes nothing, whatever it owes.
* A worker that owes an answer over a link that still beats, and used no processor time meanwhile,
  is frozen. Only a CPU worker, as a GPU computes without; not in state D, where it swaps; and not
  while what was sent last may still be on its way.
* All else goes by time: busy, and nothing has moved for ``hang_factor`` times what a step may take,
  nor for less than ``hang_least_s``. A step may take what the longest took lately, in a maximum
  that decays, or what the plan predicts, whichever is more; four times that if the plan guessed.
  While a prompt is read, the step is all of the prompt that was taken up: the last worker of a
  chain answers nothing before its end, however many batches that is.

Processor time of the worker whose answer is awaited, or of llama-server if it awaits none, is life:
a phone may compute for ten minutes. A loop without end looks the same, so it counts only for ten
times the limit.

Movement is that of the whole engine, not of each slot: a slot rightly waits while the prompt of
another is read, and ending the launch for one that is stuck would end the others too. Older engines
say nothing on ``/slots`` during a step: they count as busy then, and links and processors tell the
rest. After a pause of our own nothing that was seen before it counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from supervisor.core import pace, worker_liveness
from supervisor.core.entities import AgentId
from supervisor.core.pace import Pace
from supervisor.core.slots import SlotState, busy
from supervisor.core.step_time import Expected, Longest, decode_s, learned, prompt_s
from supervisor.core.worker_liveness import Worker, WorkerLook, stopped_since

_COMPUTING_FACTOR: Final = 10.0
_USUAL_DECAY: Final = 0.99
_PAUSE_FACTOR: Final = 4.0
"""A gap between looks that is so much longer than usual was a pause of our own."""
_LEAST_GAP_S: Final = 1.0
_ENGINE_CPU_SHARE: Final = 0.05
"""Of one processor. Our questions cost llama-server a thousandth."""
_ASK_AFTER_S: Final = 1.0
"""An answer that is missing for so long makes its worker's own word worth asking for."""


@dataclass(frozen=True, slots=True)
class Look:
    """All that is seen at once. ``slots`` is None if llama-server did not say."""

    slots: tuple[SlotState, ...] | None
    engine_state: str = ""
    engine_cpu_s: float | None = None
    workers: tuple[WorkerLook, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings of these names."""

    frozen_after_s: float
    hang_factor: float
    hang_least_s: float


@dataclass(frozen=True, slots=True)
class Liveness:
    """A deployment that serves, as observed. Times are seconds of a monotonic clock."""

    looked_at_s: float
    moved_at_s: float
    """Something was done, or nothing was to be done."""
    alive_at_s: float
    """That, or somebody computed."""
    proven_at_s: float
    """Tokens came, or a worker answered."""
    usual_gap_s: float = _LEAST_GAP_S
    slots: tuple[SlotState, ...] | None = None
    """As llama-server said last."""
    has_answered: bool = False
    """It said so at the last look."""
    slot_moved_at_s: Mapping[int, float] = field(default_factory=dict)
    engine_stopped_at_s: float | None = None
    engine_cpu_s: float | None = None
    longest: Longest = field(default_factory=Longest)
    workers: Mapping[AgentId, Worker] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True, slots=True)
class Alive:
    """Idle, or something moves, or it is too early to tell."""


@dataclass(frozen=True, slots=True)
class FrozenEngine:
    """llama-server is stopped."""

    stopped_s: float


@dataclass(frozen=True, slots=True)
class FrozenWorker:
    """A worker, and why, for a sentence about it."""

    agent_id: AgentId
    why: str


@dataclass(frozen=True, slots=True)
class Hung:
    """Nothing moves. ``agent_id``: whose answer is awaited, or empty; ``slot``: if known."""

    slot: int | None
    waited_s: float
    expected_s: float
    agent_id: AgentId


Verdict = Alive | pace.Slow | FrozenEngine | FrozenWorker | Hung


def begin(now_s: float) -> Liveness:
    """A deployment that has just proven itself."""
    return Liveness(now_s, now_s, now_s, now_s)


def proven(state: Liveness, now_s: float) -> Liveness:
    """A completion came back that may have been too short for any look."""
    return replace(state, proven_at_s=now_s)


def observe(state: Liveness, look: Look, now_s: float) -> Liveness:
    """One look."""
    gap_s = now_s - state.looked_at_s
    if gap_s > _PAUSE_FACTOR * state.usual_gap_s:
        state = _after_pause(state, now_s)
    usual_s = max(min(gap_s, _PAUSE_FACTOR * state.usual_gap_s), state.usual_gap_s * _USUAL_DECAY)
    links = {each.agent_id: each.link for each in look.workers if each.link is not None}
    after = replace(
        state,
        looked_at_s=now_s,
        usual_gap_s=max(usual_s, _LEAST_GAP_S),
        slots=state.slots if look.slots is None else look.slots,
        has_answered=look.slots is not None,
        slot_moved_at_s=_slots_moved(state, look, now_s),
        engine_stopped_at_s=stopped_since(state.engine_stopped_at_s, look.engine_state, now_s),
        engine_cpu_s=look.engine_cpu_s,
        workers={each.agent_id: _worker(state, each, now_s) for each in look.workers},
        pace=pace.observe(state.pace, look.slots, links, gap_s),
    )
    return _with_clocks(state, after, gap_s)


def _after_pause(state: Liveness, now_s: float) -> Liveness:
    return replace(
        state,
        moved_at_s=now_s,
        alive_at_s=now_s,
        slot_moved_at_s={},
        engine_stopped_at_s=None,
        workers={},
        pace=pace.interrupted(state.pace),
    )


def _worker(state: Liveness, look: WorkerLook, now_s: float) -> Worker:
    before = state.workers.get(look.agent_id)
    if before is None:
        return worker_liveness.begin(look, now_s)
    return worker_liveness.observe(before, look, now_s)


def _slots_moved(state: Liveness, look: Look, now_s: float) -> Mapping[int, float]:
    """When each slot was first seen as it is now."""
    if look.slots is None:
        return state.slot_moved_at_s
    before = {slot.id: slot for slot in state.slots or ()}
    known = state.slot_moved_at_s
    return {s.id: known.get(s.id, now_s) if before.get(s.id) == s else now_s for s in look.slots}


def _with_clocks(before: Liveness, state: Liveness, gap_s: float) -> Liveness:
    now_s, workers = state.looked_at_s, state.workers
    has_slot_moved = now_s in state.slot_moved_at_s.values()
    has_moved = has_slot_moved or any(w.moved_at_s == now_s for w in workers.values())
    longest = before.longest
    if has_moved and _is_busy(before):
        took_s = now_s - before.moved_at_s
        longest = learned(longest, took_s, reads_prompt=_reads_prompt(before))
    moved_at_s = now_s if has_moved or not _is_busy(state) else before.moved_at_s
    computed_at_s = [w.computed_at_s for w in workers.values() if _may_compute(w)]
    if _engine_computes(before, state, gap_s):
        computed_at_s.append(now_s)
    has_answered = any(workers[a].answered_at_s == now_s for a in before.workers if a in workers)
    is_proven = has_answered or _has_progressed(before, state)
    return replace(
        state,
        moved_at_s=moved_at_s,
        alive_at_s=max(moved_at_s, before.alive_at_s, *computed_at_s),
        proven_at_s=now_s if is_proven else before.proven_at_s,
        longest=longest,
    )


def _may_compute(worker: Worker) -> bool:
    """Its processor time may be for what llama-server waits for; without a link nobody knows."""
    return worker.look.link is None or worker.waiting_s > 0


def _engine_computes(before: Liveness, state: Liveness, gap_s: float) -> bool:
    if before.engine_cpu_s is None or state.engine_cpu_s is None or awaited(state):
        return False
    least_s = _ENGINE_CPU_SHARE * max(gap_s, _LEAST_GAP_S)
    return state.engine_cpu_s - before.engine_cpu_s >= least_s


def _has_progressed(before: Liveness, state: Liveness) -> bool:
    counts = {(slot.id, slot.task): slot.counted for slot in before.slots or ()}
    return any(
        slot.counted > counts.get((slot.id, slot.task), slot.counted) for slot in state.slots or ()
    )


def _is_busy(state: Liveness) -> bool:
    if state.has_answered:
        return bool(busy(state.slots))
    return state.slots is not None or awaited(state) != ""


def _reads_prompt(state: Liveness) -> bool:
    if state.has_answered:
        return any(slot.reads_prompt for slot in busy(state.slots))
    worker = state.workers.get(awaited(state))
    return worker is None or worker.look.link is None or worker.look.link.phase != "decode"


def _step_s(state: Liveness, expected: Expected) -> float:
    if not _reads_prompt(state):
        return decode_s(expected, state.longest)
    known = busy(state.slots) if state.has_answered else []
    return prompt_s(expected, state.longest, [slot for slot in known if slot.reads_prompt])


def verdict(state: Liveness, expected: Expected, limits: Limits) -> Verdict:
    """As of the last look; the worst there is to say."""
    now_s, frozen_after_s = state.looked_at_s, limits.frozen_after_s
    if state.engine_stopped_at_s is not None:
        stopped_s = now_s - state.engine_stopped_at_s
        if stopped_s >= frozen_after_s:
            return FrozenEngine(stopped_s)
    is_busy = _is_busy(state)
    for agent_id, worker in state.workers.items():
        why = worker_liveness.why_frozen(worker, frozen_after_s, now_s, is_busy=is_busy)
        if why:
            return FrozenWorker(agent_id, why)
    expected_s = _step_s(state, expected)
    limit_s = max(limits.hang_least_s, limits.hang_factor * expected_s)
    waited_s = now_s - state.moved_at_s
    if now_s - state.alive_at_s >= limit_s or waited_s >= _COMPUTING_FACTOR * limit_s:
        return Hung(_stuck_slot(state), waited_s, expected_s, awaited(state))
    return pace.verdict(state.pace) or Alive()


def _stuck_slot(state: Liveness) -> int | None:
    """The busy one that has not moved for longest, as far as llama-server said."""
    since_s = state.slot_moved_at_s
    slots = [slot.id for slot in busy(state.slots)]
    return min(slots, key=lambda slot: since_s.get(slot, state.moved_at_s), default=None)


def awaited(state: Liveness) -> AgentId:
    """The worker whose answer llama-server has been waiting for longest; empty: none."""
    waiting = max(state.workers.values(), key=lambda worker: worker.waiting_s, default=None)
    return waiting.look.agent_id if waiting and waiting.waiting_s > 0 else AgentId("")


def suspects(state: Liveness) -> frozenset[AgentId]:
    """Workers whose own word would tell more: those that are awaited, or were found stopped."""
    return frozenset(
        agent_id
        for agent_id, worker in state.workers.items()
        if worker.waiting_s >= _ASK_AFTER_S or worker.stopped_at_s is not None
    )


def is_idle(state: Liveness) -> bool:
    """No request runs, as llama-server itself said at the last look."""
    return state.has_answered and not busy(state.slots)


def canary_due(state: Liveness, now_s: float, after_s: float) -> bool:
    """Idle, and nothing has proven for so long that its workers compute."""
    return is_idle(state) and now_s - state.proven_at_s >= after_s
