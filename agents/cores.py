"""Which processor cores may be used, which of them are fast, and how many threads suit them."""

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents import cgroups

SAME_KIND: Final = 1.05
"""Cores whose clocks differ by less are of one kind: makers sort the best of equal cores out."""


@dataclass(frozen=True, slots=True)
class Cores:
    """What this process may use now. Phones give less to what is not on their screen."""

    numbers: frozenset[int] | None
    """Of those that it may run on; None where the platform does not tell."""
    usable: int
    """Whole cores: no more than its quota of processor time is worth."""
    fast: frozenset[int] | None
    """Of ``numbers``, all but the slowest kind, or all if they are of one kind; None: unknown."""


# -- what follows from what was read ---------------------------------------------------------------


def cores(
    allowed: Collection[int] | None,
    present: int | None,
    quota: float | None,
    max_khz: Mapping[int, int],
) -> Cores:
    """What may be used.

    Args:
        allowed: Numbers of the cores that the scheduler gives us; ``None``: it does not tell.
        present: How many there are; ``None``: unknown.
        quota: Cores' worth of processor time that our groups allow; ``None``: no limit.
        max_khz: Highest clock by number, of those that could be read.
    """
    count = len(allowed) if allowed else present or 1
    usable = count if quota is None else min(count, int(quota))
    numbers = frozenset(allowed) if allowed else None
    return Cores(numbers, max(usable, 1), fast_cores(numbers or (), max_khz))


def fast_cores(numbers: Collection[int], max_khz: Mapping[int, int]) -> frozenset[int] | None:
    """All of these cores but the slowest kind; ``None`` if the clock of one is unknown."""
    if not numbers or any(number not in max_khz for number in numbers):
        return None
    slowest = min(max_khz[number] for number in numbers)
    fast = frozenset(number for number in numbers if max_khz[number] > slowest * SAME_KIND)
    return fast or frozenset(numbers)


def threads_for(found: Cores, *, is_phone: bool) -> int:
    """Threads of an rpc-server.

    On a phone those of the fast cores: every step of a graph waits for the slowest thread. Half of
    all, where nobody can say which those are.
    """
    if not is_phone:
        return found.usable
    fast = max(found.usable // 2, 1) if found.fast is None else len(found.fast)
    return min(fast, found.usable)


def cores_to_pin(found: Cores, threads: int, *, is_phone: bool) -> frozenset[int] | None:
    """The fast cores, if a phone's rpc-server should run on nothing else.

    More threads than those cores would only wait for each other.
    """
    if not is_phone or found.fast is None or found.fast == found.numbers:
        return None
    return found.fast if threads <= len(found.fast) else None


def quota_of(text: str) -> float | None:
    """``150000 100000`` of ``cpu.max`` is one and a half cores; ``max 100000`` is no limit.

    Raises:
        ValueError: It is neither.
    """
    used, _, period = text.strip().partition(" ")
    if used in ("max", "-1"):
        return None
    quota = int(used) / int(period or 100_000)
    if quota <= 0:
        raise ValueError(f"a quota of {text.strip()!r}")
    return quota


# -- reading ---------------------------------------------------------------------------------------


def read(root: Path = Path("/")) -> Cores:
    """What may be used now. ``root`` is where ``proc`` and ``sys`` are; never fails."""
    allowed = allowed_cores()
    return cores(allowed, os.cpu_count(), read_quota(root), read_max_khz(allowed or (), root))


def allowed_cores() -> frozenset[int] | None:
    """What the scheduler gives this process; ``None`` where it cannot be asked."""
    try:
        return frozenset(os.sched_getaffinity(0)) or None
    except (AttributeError, OSError):  # macOS has no such thing, and a phone may forbid it
        return None


def read_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of processor time of the tightest group; ``None``: no limit."""
    found = []
    for folder, is_v2 in cgroups.folders("cpu", root):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota = quota_of(_quota_text(folder, is_v2=is_v2))
            if quota is not None:
                found.append(quota)
    return min(found, default=None)


def _quota_text(folder: Path, *, is_v2: bool) -> str:
    if is_v2:
        return (folder / "cpu.max").read_text()
    used = (folder / "cpu.cfs_quota_us").read_text().strip()
    return f"{used} {(folder / 'cpu.cfs_period_us').read_text().strip()}"


def read_max_khz(numbers: Collection[int], root: Path = Path("/")) -> dict[int, int]:
    """Highest clock of each core that tells it."""
    found = {}
    for number in numbers:
        path = root / f"sys/devices/system/cpu/cpu{number}/cpufreq/cpuinfo_max_freq"
        with contextlib.suppress(OSError, ValueError):
            found[number] = int(path.read_text())
    return found


def pin(pid: int, numbers: Collection[int]) -> None:
    """Let a process run on these cores only; threads that it starts later inherit that.

    Raises:
        OSError: The platform does not let us, as some makers of phones do.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise OSError("this platform has no sched_setaffinity")
    os.sched_setaffinity(pid, numbers)
