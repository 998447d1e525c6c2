"""All checks of one device at once, with a deadline for all of them together."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from agents.contract import Finding
from agents.doctor import (
    android,
    firewall,
    linux,
    macos,
    memory_and_disk,
    network,
    power,
    programs,
)
from agents.doctor.findings import TITLES, unknown
from agents.doctor.subject import Subject

DEADLINE_S: Final = 20.0
_CLEAN_UP_S: Final = 3.0
"""For what was cut off to end its programs."""

ALL: Final = frozenset({"android", "macos", "linux"})
_COMPUTERS: Final = frozenset({"macos", "linux"})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Check:
    """One reading, and the findings that it leads to. It may leave out what does not apply."""

    names: tuple[str, ...]
    find: Callable[[Subject], Awaitable[list[Finding]]]
    platforms: frozenset[str] = ALL
    for_main_host: bool = True


CHECKS: Final = (
    Check(("python",), programs.check_python),
    Check(("agent",), programs.check_agent, for_main_host=False),
    Check(("data_folder",), programs.check_data_folder),
    Check(("engine",), programs.check_engine),
    Check(("agent_ports", "rpc_ports"), network.check_ports),
    Check(("firewall",), firewall.check_firewall),
    Check(
        ("main_host", "round_trip", "local_network", "clock"),
        network.check_main_host,
        for_main_host=False,
    ),
    Check(("wires",), network.check_wires),
    Check(("memory",), memory_and_disk.check_memory),
    Check(("swap",), memory_and_disk.check_swap),
    Check(("gpu_memory",), macos.check_gpu_memory, frozenset({"macos"})),
    Check(("disk",), memory_and_disk.check_disk),
    Check(("battery",), power.check_battery),
    Check(("sleep",), power.check_sleep, _COMPUTERS),
    Check(("lid",), power.check_lid, _COMPUTERS),
    Check(("phantom_processes",), android.check_phantom_processes, frozenset({"android"})),
    Check(("wake_lock",), android.check_wake_lock, frozenset({"android"})),
    Check(("battery_exemption",), android.check_battery_exemption, frozenset({"android"})),
    Check(("termux_origin",), android.check_termux_origin, frozenset({"android"})),
    Check(("termux_api",), android.check_termux_api, frozenset({"android"})),
    Check(("termux_boot",), android.check_termux_boot, frozenset({"android"})),
    Check(("launch_item",), macos.check_launch_item, frozenset({"macos"})),
    Check(("linger", "service_memory"), linux.check_user_unit, frozenset({"linux"})),
    Check(("wsl",), linux.check_wsl, frozenset({"linux"})),
)


async def examine(
    subject: Subject,
    checks: Sequence[Check] = CHECKS,
    *,
    deadline_s: float = DEADLINE_S,
) -> list[Finding]:
    """Every finding that applies to this device, in the order of ``TITLES``.

    Never raises: a check that does, or that is not done after ``deadline_s``, finds ``unknown``.
    """
    asked = [check for check in checks if _applies(check, subject)]
    began_s = time.monotonic()
    tasks = [asyncio.ensure_future(check.find(subject)) for check in asked]
    try:
        if tasks:
            await asyncio.wait(tasks, timeout=deadline_s)
    finally:
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_CLEAN_UP_S)
    took_s = time.monotonic() - began_s
    found = [
        finding
        for check, task in zip(asked, tasks, strict=True)
        for finding in _outcome(check, subject, task, took_s)
    ]
    order = {name: number for number, name in enumerate(TITLES)}
    # The reader of networks has names of its own for what it finds.
    found.sort(key=lambda finding: order.get(finding.check, order["wires"]))
    return found


def _applies(check: Check, subject: Subject) -> bool:
    is_wanted = check.for_main_host or not subject.is_main_host
    return is_wanted and subject.platform in check.platforms


def _outcome(
    check: Check, subject: Subject, task: "asyncio.Future[list[Finding]]", took_s: float
) -> Iterator[Finding]:
    if not task.done() or task.cancelled():
        yield from _unknown(check, subject, f"it was not done after {took_s:.0f} s")
    elif (exc := task.exception()) is not None:
        # Never the end: whoever asks wants to know what the others found.
        log.debug("doctor.check_failed", exc_info=exc, extra={"check": check.names[0]})
        detail = str(exc) or type(exc).__name__
        yield from _unknown(check, subject, f"it could not be looked at ({detail})")
    else:
        yield from task.result()


def _unknown(check: Check, subject: Subject, why: str) -> Iterator[Finding]:
    for name in check.names:
        if name != "local_network" or subject.platform == "macos":
            yield unknown(name, why)


class Doctor:
    """Examines this device for whoever asks; who asks meanwhile gets the same findings."""

    def __init__(self, subject: Callable[[], Awaitable[Subject]]) -> None:
        """``subject`` tells what is known of this device now."""
        self._subject = subject
        self._running: asyncio.Task[list[Finding]] | None = None

    async def findings(self) -> list[Finding]:
        """Findings as of now. A caller who leaves ends nothing: there is a deadline anyhow."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._examine())
        return await asyncio.shield(self._running)

    async def _examine(self) -> list[Finding]:
        return await examine(await self._subject())

    async def close(self) -> None:
        """End an examination that goes on."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._running
