"""What a Mac tells of its memory and of a process without psutil, by commands that every Mac has.

``agent.pyz`` brings no psutil, and without these figures a Mac would have no memory to offer, and
nobody would know an rpc-server that an agent left behind when it was killed.
"""

import re
import time
from dataclasses import dataclass
from typing import Final

from agents import short_commands

_LIMIT_S: Final = 2.0
_KEPT_S: Final = 1.0
"""Several figures are asked for in a row; one look serves them all."""

_PAGE: Final = re.compile(r"page size of (\d+) bytes")
_ROW: Final = re.compile(r"^Pages (free|inactive):\s+(\d+)", re.MULTILINE)
_LETTERS: Final = {"I": "S", "U": "D"}
"""Letters that other systems do not have: asleep for long, and waiting for a device."""

# In one language and one time zone: the start of a process is compared, also after a journey.
_PS: Final = ("env", "LC_ALL=C", "TZ=UTC", "ps", "-o", "state=,rss=,time=,lstart=", "-p")


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one process."""

    state: str
    resident_bytes: int
    cpu_s: float
    started: str


_memory: tuple[float, tuple[int, int]] | None = None
_processes: dict[int, tuple[float, Figures | None]] = {}


def memory() -> tuple[int, int] | None:
    """Total bytes, and those that are free or not in use, as psutil counts them."""
    global _memory  # noqa: PLW0603 - a look costs milliseconds, and everybody asks
    if _memory is not None and time.monotonic() - _memory[0] < _KEPT_S:
        return _memory[1]
    total = short_commands.output(["sysctl", "-n", "hw.memsize"], _LIMIT_S)
    found = parsed_memory(total, short_commands.output(["vm_stat"], _LIMIT_S))
    _memory = (time.monotonic(), found) if found else None
    return found


def parsed_memory(total: str, vm_stat: str) -> tuple[int, int] | None:
    """What ``sysctl -n hw.memsize`` and ``vm_stat`` said, either of which may have said nothing."""
    page = _PAGE.search(vm_stat)
    pages = dict(_ROW.findall(vm_stat))
    if page is None or len(pages) < 2 or not total.strip().isdigit():
        return None
    free = (int(pages["free"]) + int(pages["inactive"])) * int(page[1])
    return int(total), min(free, int(total))


def process(pid: int) -> Figures | None:
    """Of a process as it was at most a second ago; ``None``: it is gone, or nobody tells."""
    now_s = time.monotonic()
    for other in [each for each, (at_s, _) in _processes.items() if now_s - at_s >= _KEPT_S]:
        del _processes[other]
    if pid not in _processes:
        found = parsed_process(short_commands.output([*_PS, str(pid)], _LIMIT_S))
        _processes[pid] = (time.monotonic(), found)
    return _processes[pid][1]


def parsed_process(line: str) -> Figures | None:
    """One line of ``ps -o state=,rss=,time=,lstart=``."""
    words = line.split()
    try:
        letter, resident, used = words[0][0], int(words[1]) * 1024, _seconds(words[2])
    except (IndexError, ValueError):
        return None
    return Figures(_LETTERS.get(letter, letter), resident, used, " ".join(words[3:]))


def _seconds(text: str) -> float:
    """``0:05.27``, ``1:02:03`` or ``2-01:02:03``, as systems differ."""
    days, _, clock = text.rpartition("-")
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total + 86_400 * int(days or 0)
