"""Battery and heat: what they are, read with patience, and what they mean for work.

A device whose battery is nearly empty, or a phone that is too hot, is parked: it takes no work
until it is better. A hot phone is counted as slower than it was measured. Unknown figures do
neither.
"""

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from agents import short_commands

try:
    import psutil
except ImportError:  # a phone, or a device with nothing but Python
    psutil = None

FLOOR_PERCENT: Final = 20.0
BACK_PERCENT: Final = 5.0
"""A parked device is back when its battery has so much more than the floor."""

HOT_C: Final = 42.0
"""Of a phone's battery, which throttles about there."""
TOO_HOT_C: Final = 5.0
"""So much above hot a phone is parked, until it is no longer hot."""
COOLED_C: Final = 2.0
"""So much below hot it has its whole speed again."""
HOT_SPEED: Final = 0.7

COMMAND_EVERY_S: Final = 60.0
LONGEST_PAUSE_S: Final = 900.0
KEPT_S: Final = 1800.0
"""What was read last counts so long while nothing newer can be read."""


@dataclass(frozen=True, slots=True)
class Battery:
    """One reading. What is unknown is None."""

    percent: float | None = None
    is_charging: bool | None = None
    temperature_c: float | None = None

    @property
    def is_unknown(self) -> bool:
        return self == Battery()


@dataclass(frozen=True, slots=True)
class Limits:
    """What the owner of the device allows."""

    floor_percent: float = FLOOR_PERCENT
    """Below that a device on battery is parked; 0: never."""
    hot_c: float = HOT_C


@dataclass(frozen=True, slots=True)
class Condition:
    """What follows for work, and why."""

    is_low: bool = False
    is_too_hot: bool = False
    is_hot: bool = False
    parked: str = ""
    derate: float = 1.0
    derate_reason: str = ""


# -- decisions -------------------------------------------------------------------------------------


def judge(before: Condition, battery: Battery, limits: Limits, *, is_phone: bool) -> Condition:
    """What a reading means, after what the one before meant.

    Args:
        before: Thresholds differ for what is low or hot already, so that nothing flaps.
        battery: The reading.
        limits: Of this device.
        is_phone: Only a phone's temperature is that of its battery.
    """
    is_low = _is_low(before, battery, limits)
    heat = battery.temperature_c if is_phone else None
    is_too_hot = heat is not None and heat >= limits.hot_c + (0 if before.is_too_hot else TOO_HOT_C)
    was_hot = before.is_hot or before.is_too_hot
    is_hot = heat is not None and heat >= limits.hot_c - (COOLED_C if was_hot else 0)
    reasons = [
        *([_low_words(battery, limits)] if is_low else []),
        *([_hot_words(battery, limits)] if is_too_hot else []),
    ]
    return Condition(
        is_low=is_low,
        is_too_hot=is_too_hot,
        is_hot=is_hot,
        parked=", and ".join(reasons),
        derate=HOT_SPEED if is_hot else 1.0,
        derate_reason=f"hot ({heat:.0f} °C)" if is_hot else "",
    )


def _is_low(before: Condition, battery: Battery, limits: Limits) -> bool:
    if limits.floor_percent <= 0 or battery.percent is None or battery.is_charging is not False:
        return False
    floor = limits.floor_percent + (BACK_PERCENT if before.is_low else 0)
    return battery.percent < min(floor, 100.0)


def _low_words(battery: Battery, limits: Limits) -> str:
    back = min(limits.floor_percent + BACK_PERCENT, 100.0)
    return (
        f"its battery has {battery.percent:.0f} % left and is not charging; it takes work again "
        f"when it charges, or from {back:.0f} % on"
    )


def _hot_words(battery: Battery, limits: Limits) -> str:
    return (
        f"its battery is too hot, {battery.temperature_c:.0f} °C; it takes work again below "
        f"{limits.hot_c:.0f} °C"
    )


def pause_s(failures: int) -> float:
    """Before the next command, after ``failures`` in a row."""
    return min(COMMAND_EVERY_S * 2.0 ** min(failures, 10), LONGEST_PAUSE_S)


# -- what the commands print -----------------------------------------------------------------------


def termux_battery(text: str) -> Battery:
    """The answer of ``termux-battery-status``; unknown if it is none.

    A phone may lose more than a weak supply gives: then it does not charge, though it is plugged.
    """
    try:
        state = json.loads(text)
        percent = float(state["percentage"])
    except (ValueError, KeyError, TypeError):
        return Battery()
    plugged, status = state.get("plugged"), state.get("status")
    is_charging = None if plugged is None else plugged != "UNPLUGGED"
    if status in ("CHARGING", "DISCHARGING"):
        is_charging = status == "CHARGING"
    temperature_c = None
    with contextlib.suppress(ValueError, TypeError, KeyError):
        temperature_c = float(state["temperature"])
    return Battery(percent, is_charging, temperature_c)


def mac_battery(text: str) -> Battery:
    """The answer of ``pmset -g batt``; unknown for a Mac without a battery."""
    found = re.search(r"\b(\d{1,3})%", text)
    if found is None:
        return Battery()
    return Battery(float(found[1]), "'AC Power'" in text)


# -- reading ---------------------------------------------------------------------------------------


def psutil_battery() -> Battery:
    """What psutil knows; every call of it may fail."""
    percent = charging = None
    if psutil is not None:
        with contextlib.suppress(Exception):
            if (state := psutil.sensors_battery()) is not None:
                percent = float(state.percent)
                charging = None if state.power_plugged is None else bool(state.power_plugged)
    return Battery(percent, charging, _sensors_c())


def _sensors_c() -> float | None:
    if psutil is None:
        return None
    try:
        groups = psutil.sensors_temperatures()
        return max((float(s.current) for group in groups.values() for s in group), default=None)
    except Exception:  # noqa: BLE001 - absent on macOS, forbidden on some phones
        return None


class BatteryReader:
    """Reads the battery. A command is never run twice at once, nor more often than once a minute.

    ``termux-battery-status`` hangs when the app that it asks is missing or frozen: it has a time
    limit, and is left alone for longer after every failure. Whoever comes meanwhile gets what was
    read last.
    """

    def __init__(
        self,
        platform: str,
        clock: Callable[[], float],
        run: Callable[[list[str]], Awaitable[str]] = short_commands.output_soon,
    ) -> None:
        """``platform`` as in the device's facts; ``clock`` is monotonic, in seconds."""
        self._platform = platform
        self._clock = clock
        self._run = run
        self._last = Battery()
        self._read_at_s = float("-inf")
        self._due_at_s = float("-inf")
        self._failures = 0
        self._asking: asyncio.Task[None] | None = None

    def last(self) -> Battery:
        """What was read last, unless that is too long ago."""
        is_old = self._clock() - self._read_at_s > KEPT_S
        return Battery() if is_old else self._last

    def refresh(self) -> None:
        """Begin to read, if that is due; waits for nothing."""
        if self._asking is not None or self._clock() < self._due_at_s:
            return
        if command := self._command():
            self._asking = asyncio.create_task(self._ask(command))
        else:
            self._read_sensors()

    async def read(self) -> Battery:
        """What is known now; waits for a command that is due, up to its time limit."""
        self.refresh()
        if self._asking is not None:
            await asyncio.wait({self._asking})
        elif not self._command():
            self._read_sensors()
        return self.last()

    async def close(self) -> None:
        """End a command that runs."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self, command: list[str]) -> None:
        parse = termux_battery if self._platform == "android" else mac_battery
        try:
            found = parse(await self._run(command))
            self._failures = self._failures + 1 if found.is_unknown else 0
            if not found.is_unknown:
                self._take(found)
        finally:
            self._due_at_s = self._clock() + pause_s(self._failures)
            self._asking = None

    def _read_sensors(self) -> None:
        """A phone's sensors are not its battery's, and mostly forbidden."""
        self._due_at_s = self._clock() + COMMAND_EVERY_S
        if self._platform != "android":
            self._take(psutil_battery())

    def _take(self, found: Battery) -> None:
        self._last, self._read_at_s = found, self._clock()

    def _command(self) -> list[str]:
        """The program to ask; empty: psutil, or nothing."""
        name = {"android": ["termux-battery-status"], "macos": ["pmset", "-g", "batt"]}
        if self._platform == "macos" and psutil is not None:
            return []
        command = name.get(self._platform, [])
        program = shutil.which(command[0]) if command else None
        return [program, *command[1:]] if program else []
