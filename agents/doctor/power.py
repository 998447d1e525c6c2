"""Checks of what may put this device to sleep while it serves."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.contract import Finding
from agents.doctor import reading
from agents.doctor.findings import blocks, ok, unknown, warning
from agents.doctor.reading import Output
from agents.doctor.subject import Subject
from agents.doctor.termux import battery_of

LOW_PERCENT: Final = 20.0

_SUPPLIES: Final = Path("/sys/class/power_supply")
_LIDS: Final = Path("/proc/acpi/button/lid")
_LOGIND: Final = (
    Path("/usr/lib/systemd/logind.conf"),
    Path("/etc/systemd/logind.conf"),
    Path("/usr/lib/systemd/logind.conf.d"),
    Path("/etc/systemd/logind.conf.d"),
)


@dataclass(frozen=True, slots=True)
class Battery:
    """State of charge. ``is_charging`` is True on mains power too, whether it is full or not."""

    percent: float | None
    is_charging: bool | None


# -- battery -----------------------------------------------------------------------------------


def battery(found: Battery | None, parked: str = "") -> Finding:
    """Whether it lasts. A device on mains power has none, or is charging."""
    if parked:
        return blocks("battery", f"it takes no work: {parked}", "plug it in, and let it cool")
    if found is None:
        return ok("battery", "there is none: mains power")
    if found.percent is None:
        return unknown("battery", "its state of charge is not told")
    said = f"{found.percent:.0f} %"
    if found.is_charging:
        return ok("battery", f"{said}, on mains power")
    if found.is_charging is None:
        return ok("battery", f"{said}; whether it charges is not told")
    low = ", and low" if found.percent < LOW_PERCENT else ""
    return warning("battery", f"{said}, not charging{low}", "keep it on its charger")


def macos_battery(text: str) -> Battery | None:
    """``pmset -g batt``: ``Now drawing from 'AC Power'``, then the batteries."""
    match = re.search(r"(\d+)%", text)
    if match is None:
        return None
    return Battery(float(match[1]), "'AC Power'" in text)


def linux_battery(supplies: Mapping[str, Mapping[str, str]]) -> Battery | None:
    """What each of ``/sys/class/power_supply`` says; mice and keyboards are no supplies."""
    own = [s for s in supplies.values() if s.get("scope") != "Device"]
    batteries = [s for s in own if s.get("type") == "Battery" and s.get("capacity")]
    if not batteries:
        return None
    percent = min(float(s["capacity"]) for s in batteries)
    is_fed = any(s.get("online") == "1" for s in own if s.get("type") != "Battery")
    states = {s.get("status", "") for s in batteries}
    return Battery(percent, is_fed or ("Discharging" not in states and bool(states - {"Unknown"})))


async def check_battery(subject: Subject) -> list[Finding]:
    if subject.facts is not None:
        parked, percent = subject.facts.parked, subject.facts.battery_percent
        if parked or percent is not None:
            return [battery(Battery(percent, subject.facts.battery_charging), parked)]
    if subject.platform == "android":
        percent, is_charging, problem = await battery_of(subject.environ)
        if problem:
            return [unknown("battery", problem, "see termux_api")]
        return [battery(Battery(percent, is_charging))]
    if subject.platform == "macos":
        said = await reading.command("pmset", "-g", "batt")
        if said.problem:
            return [unknown("battery", said.problem)]
        return [battery(macos_battery(said.text))]
    return [battery(linux_battery(_supplies(_SUPPLIES)))]


def _supplies(folder: Path) -> dict[str, dict[str, str]]:
    names = ("type", "scope", "capacity", "status", "online")
    try:
        supplies = sorted(folder.iterdir())
    except OSError:
        return {}
    return {
        supply.name: {n: (reading.text_of(supply / n) or "").strip() for n in names}
        for supply in supplies
    }


# -- sleep -------------------------------------------------------------------------------------


def macos_sleep(said: Output) -> Finding:
    """``pmset -g``: minutes without use after which the system sleeps; 0: never."""
    text = said.text
    match = re.search(r"^\s*sleep\s+(\d+)(.*)$", text, re.MULTILINE)
    if match is None:
        return unknown("sleep", said.problem or "pmset did not tell")
    never = re.search(r"^\s*SleepDisabled\s+1", text, re.MULTILINE) or match[1] == "0"
    if never:
        return ok("sleep", "the system never sleeps by itself")
    if "prevented by" in match[2]:
        return ok("sleep", f"after {match[1]} min without use, but now {match[2].strip(' ()')}")
    return warning(
        "sleep",
        f"the system sleeps after {match[1]} min without use, if nothing keeps it awake",
        "sudo pmset -c sleep 0; while it serves, the agent keeps it awake on mains power",
    )


def linux_sleep(targets: Output, idle_action: str, desktop: str = "") -> Finding:
    """Whether systemd or a desktop suspends a device that nobody touches.

    Args:
        targets: ``systemctl is-enabled sleep.target suspend.target``.
        idle_action: ``IdleAction`` of logind; empty is its default, to ignore idleness.
        desktop: GNOME's ``sleep-inactive-ac-type``, such as ``'suspend'``.
    """
    if targets.is_missing:
        return ok("sleep", "no systemd, which could suspend it")
    if targets.text.split()[:2] == ["masked", "masked"]:
        return ok("sleep", "sleep and suspend are masked")
    mask = "sudo systemctl mask sleep.target suspend.target"
    if idle_action and idle_action != "ignore":
        return warning("sleep", f"logind does '{idle_action}' when nobody uses the device", mask)
    if "suspend" in desktop or "hibernate" in desktop:
        remedy = "gsettings set org.gnome.settings-daemon.plugins.power sleep-inactive-ac-type "
        return warning("sleep", "the desktop suspends it when nobody uses it", f"{remedy}nothing")
    if targets.problem:
        return unknown("sleep", targets.problem, mask)
    return ok("sleep", "nothing suspends it when nobody uses it")


async def check_sleep(subject: Subject) -> list[Finding]:
    if subject.platform == "macos":
        return [macos_sleep(await reading.command("pmset", "-g"))]
    targets = await reading.command("systemctl", "is-enabled", "sleep.target", "suspend.target")
    schema = "org.gnome.settings-daemon.plugins.power"
    desktop = await reading.command("gsettings", "get", schema, "sleep-inactive-ac-type")
    text = desktop.text if desktop.status == 0 else ""
    return [linux_sleep(targets, logind_setting("IdleAction", _logind_texts()), text)]


def logind_setting(name: str, texts: list[str]) -> str:
    """The last value that any of logind's files gives; empty: its default."""
    value = ""
    for text in texts:
        for match in re.finditer(rf"^{name}=(.*)$", text, re.MULTILINE):
            value = match[1].strip()
    return value


def _logind_texts() -> list[str]:
    texts = []
    for path in _LOGIND:
        files = sorted(path.glob("*.conf")) if path.is_dir() else [path]
        texts += [reading.text_of(file) or "" for file in files]
    return texts


# -- lid ---------------------------------------------------------------------------------------


def linux_lid(state: str | None, action: str, action_on_power: str) -> Finding | None:
    """Whether closing the lid would end it. None: there is no lid.

    Args:
        state: Of ``/proc/acpi/button/lid/*/state``.
        action: ``HandleLidSwitch`` of logind; empty is its default, to suspend.
        action_on_power: ``HandleLidSwitchExternalPower``; empty: the same.
    """
    if state is None:
        return None
    closed = "closed" if "closed" in state else "open"
    if (action_on_power or action or "suspend") == "ignore":
        return ok("lid", f"{closed}, and nothing happens when it closes")
    return warning(
        "lid",
        f"{closed}; closing it suspends the device",
        "HandleLidSwitch=ignore in /etc/systemd/logind.conf, or leave it open",
    )


def macos_lid(has_battery: bool) -> Finding | None:
    """A laptop sleeps with its lid closed, whatever keeps it awake otherwise."""
    if not has_battery:
        return None
    return ok("lid", "a laptop: it sleeps when its lid is closed, so leave it open")


async def check_lid(subject: Subject) -> list[Finding]:
    if subject.platform == "macos":
        said = await reading.command("pmset", "-g", "batt")
        found = macos_lid(macos_battery(said.text) is not None)
    else:
        texts = _logind_texts()
        state = next((reading.text_of(p) for p in sorted(_LIDS.glob("*/state"))), None)
        on_power = logind_setting("HandleLidSwitchExternalPower", texts)
        found = linux_lid(state, logind_setting("HandleLidSwitch", texts), on_power)
    return [found] if found else []
