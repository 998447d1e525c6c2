"""One worker of a deployment that serves: when it last did anything, and whether it is frozen."""

from dataclasses import dataclass, replace
from typing import Final

from agents.contract import RpcServerStatus
from supervisor.core.entities import AgentId
from supervisor.link.job import LinkStats

STOPPED: Final = ("T", "t")
_SWAPS: Final = "D"
_BEATS_BYTES_PER_S: Final = 1024
"""More than both ends of an idle link say."""
_MEASURED_FOR_S: Final = 1.0
_HEARD_S: Final = 2.0
"""Beats come every second; a link silent for longer may be holding back the answer."""
_UNSEEN_BYTES: Final = 5 << 20
"""Sent, as the link counts, but still in buffers of the operating system."""
_SLOWEST_BYTES_PER_S: Final = 512 << 10


@dataclass(frozen=True, slots=True)
class WorkerLook:
    """One worker as of now. Its agent said ``status`` at ``asked_at_s``."""

    agent_id: AgentId
    is_cpu: bool
    """All that it computes with; a GPU computes without processor time."""
    link: LinkStats | None = None
    status: RpcServerStatus | None = None
    asked_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Worker:
    """What is remembered of it. Times say when something was seen last, at first that of now."""

    look: WorkerLook
    answered_at_s: float
    moved_at_s: float
    """An answer, or data on its link."""
    heard_at_s: float
    """Anything on its link, beats among it."""
    computed_at_s: float
    """Processor time, as its agent says."""
    stopped_at_s: float | None
    """Since when each look has found its process stopped."""
    marked_at_s: float
    marked_bytes: int
    sent_bytes: int
    """At the last answer."""

    @property
    def waiting_s(self) -> float:
        """How long llama-server has been waiting for its answer."""
        return self.look.link.waiting_s if self.look.link else 0.0


def begin(look: WorkerLook, now_s: float) -> Worker:
    """The first look at it."""
    link = look.link or LinkStats(look.agent_id)
    stopped_at_s = stopped_since(None, _letter(look), now_s)
    bytes_now = link.sent_bytes + link.received_bytes
    return Worker(look, now_s, now_s, now_s, now_s, stopped_at_s, now_s, bytes_now, link.sent_bytes)


def observe(worker: Worker, look: WorkerLook, now_s: float) -> Worker:
    """One more look, at which its agent may have said nothing new."""
    before = worker.look
    stopped_at_s = stopped_since(worker.stopped_at_s, _letter(look), look.asked_at_s)
    worker = replace(worker, look=look, stopped_at_s=stopped_at_s)
    if _cpu_s(look) != _cpu_s(before):
        worker = replace(worker, computed_at_s=look.asked_at_s)
    if look.link is not None and before.link is not None:
        worker = _on_link(worker, before.link, look.link, now_s)
    return worker


def _on_link(worker: Worker, before: LinkStats, link: LinkStats, now_s: float) -> Worker:
    if link.received_bytes != before.received_bytes:
        worker = replace(worker, heard_at_s=now_s)
    if link.answers != before.answers:
        worker = replace(worker, answered_at_s=now_s, moved_at_s=now_s, sent_bytes=link.sent_bytes)
    since_s = now_s - worker.marked_at_s
    if since_s < _MEASURED_FOR_S:
        return worker
    bytes_now = link.sent_bytes + link.received_bytes
    if bytes_now - worker.marked_bytes > _BEATS_BYTES_PER_S * since_s:
        worker = replace(worker, moved_at_s=now_s)
    return replace(worker, marked_at_s=now_s, marked_bytes=bytes_now)


def stopped_since(before_s: float | None, letter: str, now_s: float) -> float | None:
    """When a process was first found stopped, of the looks in a row that found it so."""
    if letter not in STOPPED:
        return None
    return now_s if before_s is None else before_s


def why_frozen(worker: Worker, frozen_after_s: float, now_s: float, *, is_busy: bool) -> str:
    """For a sentence about it; empty: it is not frozen, or that cannot be told yet."""
    asked_at_s, stopped_at_s = worker.look.asked_at_s, worker.stopped_at_s
    if stopped_at_s is not None and asked_at_s - stopped_at_s >= frozen_after_s:
        return f"its process has been stopped for {now_s - stopped_at_s:.1f} s"
    if not is_busy or not worker.look.is_cpu or _cpu_s(worker.look) is None:
        return ""
    # From when on it had all that it needs, up to when its agent last said that it did nothing.
    had_all_at_s = max(now_s - worker.waiting_s, worker.moved_at_s + _travelling_s(worker))
    idle_s = asked_at_s - max(had_all_at_s, worker.computed_at_s)
    is_owing = worker.waiting_s > 0 and idle_s >= frozen_after_s
    # What it answered would have come before later beats.
    is_heard = now_s - worker.heard_at_s <= _HEARD_S
    if is_owing and is_heard and _letter(worker.look) != _SWAPS:
        return (
            f"it has owed an answer for {worker.waiting_s:.1f} s and used no processor time "
            f"in {idle_s:.1f} s of them"
        )
    return ""


def _travelling_s(worker: Worker) -> float:
    """How long what was sent last may still be on its way, unseen."""
    sent_bytes = worker.look.link.sent_bytes if worker.look.link else 0
    return min(sent_bytes - worker.sent_bytes, _UNSEEN_BYTES) / _SLOWEST_BYTES_PER_S


def _letter(look: WorkerLook) -> str:
    return look.status.process_state if look.status else ""


def _cpu_s(look: WorkerLook) -> float | None:
    return look.status.cpu_s if look.status else None
