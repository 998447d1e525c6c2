"""Checks of systemd's user units, and of Linux under Windows."""

import os
import re
from pathlib import Path
from typing import Final

from agents import facts
from agents.contract import Finding
from agents.doctor import reading
from agents.doctor.findings import blocks, gib, ok, unknown, warning
from agents.doctor.reading import Output
from agents.doctor.subject import Subject

_OURS: Final = re.compile(r"ExecStart=.*(agent\.pyz|agents join|supervisor)")
_LITTLE: Final = 0.5
"""Of the device's memory; a limit below it was hardly meant for models."""


# -- the user unit -----------------------------------------------------------------------------


def linger(unit: str, said: Output) -> Finding:
    """Whether a user unit goes on after logout: ``loginctl show-user --property=Linger``."""
    if not unit:
        return ok("linger", "no user unit of systemd starts it")
    if "Linger=yes" in said.text:
        return ok("linger", f"{unit} starts at boot and outlives a logout")
    remedy = "loginctl enable-linger"
    if "Linger=no" in said.text:
        return warning("linger", f"{unit} ends when you log out", remedy)
    return unknown("linger", said.problem or f"loginctl said: {said.text.strip()[:80]}", remedy)


def service_memory(unit: str, said: Output, total_bytes: int) -> Finding:
    """What systemd lets the unit use: ``systemctl --user show UNIT -p MemoryMax -p MemoryHigh``."""
    if not unit:
        return ok("service_memory", "no user unit of systemd limits it")
    limits = [
        int(m[1]) for m in re.finditer(r"^Memory(?:Max|High)=(\d+)$", said.text, re.MULTILINE)
    ]
    if not limits:
        if "=infinity" in said.text:
            return ok("service_memory", f"{unit} sets no limit")
        return unknown("service_memory", said.problem or "systemctl did not tell")
    found = f"{unit} is limited to {gib(min(limits))}"
    if min(limits) < _LITTLE * total_bytes:
        remedy = f"systemctl --user edit {unit}: raise MemoryMax and MemoryHigh"
        return warning("service_memory", f"{found} of {gib(total_bytes)}", remedy)
    return ok("service_memory", found)


async def check_user_unit(subject: Subject) -> list[Finding]:
    unit = _own_unit(subject.home / ".config" / "systemd" / "user")
    if not unit:
        return [linger("", Output()), service_memory("", Output(), 0)]
    user = str(os.getuid())
    lingers = await reading.command("loginctl", "show-user", user, "--property=Linger")
    show = ("systemctl", "--user", "show", unit, "-p", "MemoryMax", "-p", "MemoryHigh")
    memory = await reading.command(*show)
    return [linger(unit, lingers), service_memory(unit, memory, facts.memory()[0])]


def _own_unit(folder: Path) -> str:
    files = sorted(folder.glob("*.service")) if folder.is_dir() else []
    ours = (file.name for file in files if _OURS.search(reading.text_of(file) or ""))
    return next(ours, "")


# -- Windows -----------------------------------------------------------------------------------


def wsl(version: str, networking: str) -> Finding | None:
    """What Windows underneath means. None: there is none.

    Args:
        version: ``/proc/version``.
        networking: ``wslinfo --networking-mode``, such as ``nat`` or ``mirrored``.
    """
    if "microsoft" not in version.lower():
        return None
    if "wsl2" not in version.lower() and "microsoft-standard" not in version:
        return blocks("wsl", "WSL 1, where engines do not run well", "wsl --set-version NAME 2")
    if networking.strip() == "mirrored":
        return ok("wsl", "WSL 2 with mirrored networking")
    return warning(
        "wsl",
        "WSL 2 behind an address of its own: other hosts do not reach ports in it",
        "networkingMode=mirrored under [wsl2] in .wslconfig, then wsl --shutdown; memory= there "
        "limits what Linux gets, which is half of it by default",
    )


async def check_wsl(_: Subject) -> list[Finding]:
    version = reading.text_of(Path("/proc/version")) or ""
    said = Output()
    if "microsoft" in version.lower():
        said = await reading.command("wslinfo", "--networking-mode")
    found = wsl(version, said.text)
    return [found] if found else []
