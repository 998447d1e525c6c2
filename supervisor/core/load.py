"""From spawn to ready, as a state that observations move: phases, progress and deadlines.

Two deadlines guard a load. Until the HTTP port is open llama-server is connecting to its workers,
and a silent worker hangs it there for ever. After that, only a lack of progress is suspicious: a
slow load may take an hour as long as something moves.
"""

from dataclasses import dataclass, replace
from enum import StrEnum


class Phase(StrEnum):
    """Where a launch is, once llama-server was started."""

    CONNECT = "connect"
    LOAD = "load"
    LISTENING = "listening"


# Matched loosely: wording and prefixes differ between builds (b7527 to 2026-10).
_LOAD_BEGINS = ("loading model", "load_model", "llama_model_loader", "server is listening on")
_LISTENING = ("listening on http", "all slots are idle", "server is listening on")
_STEPS = (
    ("using device RPC", "worker attached"),
    ("load_tensors: loading model tensors", "reading tensors"),
    ("model buffer size", "weights allocated"),
    ("KV buffer size", "KV cache allocated"),
    ("compute buffer size", "compute buffers allocated"),
    ("model loaded", "model loaded"),
)


@dataclass(frozen=True, slots=True)
class Load:
    """One load as observed. Times are seconds of a monotonic clock."""

    phase: Phase
    phase_since_s: float
    progress_at_s: float
    last_seen: str = "nothing"
    resident_bytes: tuple[tuple[str, int], ...] = ()
    cpu_s: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines of a load, in seconds."""

    connect_s: float
    stall_s: float


def begin(now_s: float) -> Load:
    """A llama-server that was just started."""
    return Load(Phase.CONNECT, now_s, now_s)


def observe_line(load: Load, line: str, now_s: float) -> Load:
    """A line of llama-server's log. Any line is progress; some of them begin a phase."""
    load = replace(load, progress_at_s=now_s)
    step = next((name for text, name in _STEPS if text in line), None)
    if step is not None:
        load = replace(load, last_seen=step)
    if load.phase is Phase.CONNECT and any(text in line for text in _LOAD_BEGINS):
        load = replace(load, phase=Phase.LOAD, phase_since_s=now_s)
    if load.phase is Phase.LOAD and any(text in line for text in _LISTENING):
        load = replace(load, phase=Phase.LISTENING, phase_since_s=now_s)
    return load


def observe_port_open(load: Load, now_s: float) -> Load:
    """llama-server answered HTTP, so it has finished connecting to its workers."""
    if load.phase is not Phase.CONNECT:
        return load
    return replace(load, phase=Phase.LOAD, phase_since_s=now_s, progress_at_s=now_s)


def observe_worker(
    load: Load, device: str, resident_bytes: int | None, cpu_s: float | None, now_s: float
) -> Load:
    """What the agent says of its rpc-server: memory that grows, or work, is progress."""
    resident, cpu = dict(load.resident_bytes), dict(load.cpu_s)
    has_moved = False
    if resident_bytes is not None:
        has_moved |= resident_bytes > resident.get(device, 0)
        resident[device] = max(resident_bytes, resident.get(device, 0))
    if cpu_s is not None:
        # Two clock ticks: less is the bookkeeping of an idle process.
        has_moved |= cpu_s >= cpu.get(device, 0.0) + 0.02
        cpu[device] = max(cpu_s, cpu.get(device, 0.0)) if has_moved else cpu.get(device, cpu_s)
    load = replace(load, resident_bytes=tuple(resident.items()), cpu_s=tuple(cpu.items()))
    if not has_moved:
        return load
    return replace(load, progress_at_s=now_s, last_seen=f"{device} receiving weights")


def observe_link(load: Load, device: str, weight_bytes: int, now_s: float) -> Load:
    """What the link to a device has delivered; more of it is progress."""
    resident = dict(load.resident_bytes)
    if weight_bytes <= resident.get(device, 0):
        return load
    resident[device] = weight_bytes
    return replace(
        load,
        resident_bytes=tuple(resident.items()),
        progress_at_s=now_s,
        last_seen=f"{device} receiving weights",
    )


@dataclass(frozen=True, slots=True)
class Overdue:
    """A deadline that fired, with the numbers for the message."""

    phase: Phase
    waited_s: float
    last_seen: str


def overdue(load: Load, limits: Limits, now_s: float) -> Overdue | None:
    """The deadline that has fired, if any."""
    if load.phase is Phase.CONNECT and now_s - load.phase_since_s >= limits.connect_s:
        return Overdue(load.phase, now_s - load.phase_since_s, load.last_seen)
    if load.phase is Phase.LOAD and now_s - load.progress_at_s >= limits.stall_s:
        return Overdue(load.phase, now_s - load.progress_at_s, load.last_seen)
    return None


def next_deadline_s(load: Load, limits: Limits) -> float:
    """When :func:`overdue` could fire next, on the same clock."""
    if load.phase is Phase.CONNECT:
        return load.phase_since_s + limits.connect_s
    return load.progress_at_s + limits.stall_s
