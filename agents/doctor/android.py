"""Checks of what Android does to programs that run for long."""

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agents.contract import Finding
from agents.doctor import reading
from agents.doctor.findings import ok, unknown, warning
from agents.doctor.reading import Output
from agents.doctor.subject import Subject
from agents.doctor.termux import BATTERY_PROGRAM, LIMIT_S, battery_from

SWITCH: Final = "persist.sys.fflag.override.settings_enable_monitor_phantom_procs"
BOOT_SCRIPT: Final = Path(".termux/boot/10-llama-rpc-agent")
_UNRESTRICTED: Final = (
    "Settings > Apps > Termux > Battery: Unrestricted; the same for Termux:Boot and Termux:API"
)


# -- phantom processes -------------------------------------------------------------------------


def phantom_processes(sdk: str, switch: str) -> Finding:
    """Whether Android ends child processes of apps, and those that use the processor.

    Args:
        sdk: ``ro.build.version.sdk``.
        switch: The property ``SWITCH``: ``false`` is off, empty was never set.
    """
    if not sdk.strip().isdigit():
        return unknown("phantom_processes", "getprop does not tell the version of Android")
    level = int(sdk)
    if level < 31:
        return ok("phantom_processes", f"this Android (API {level}) does not look for them")
    if switch.strip() == "false":
        return ok("phantom_processes", "Android is told not to end them")
    return warning(
        "phantom_processes",
        f"this Android (API {level}) may end child processes, and busy ones in any case",
        _phantom_remedy(level),
    )


def _phantom_remedy(level: int) -> str:
    if level >= 34:
        return (
            "Developer options: switch on 'Disable child process restrictions', and leave "
            "developer options on"
        )
    if level >= 32:
        return (
            "from a computer: adb shell settings put global "
            "settings_enable_monitor_phantom_procs false"
        )
    return (
        "from a computer: adb shell device_config set_sync_disabled_for_tests persistent; adb "
        "shell device_config put activity_manager max_phantom_processes 2147483647"
    )


async def check_phantom_processes(_: Subject) -> list[Finding]:
    sdk, switch = await asyncio.gather(
        reading.command("getprop", "ro.build.version.sdk"), reading.command("getprop", SWITCH)
    )
    return [phantom_processes(sdk.text, switch.text)]


# -- staying awake -----------------------------------------------------------------------------


def wake_lock(said: Output, *, has_program: bool) -> Finding:
    """Whether processor and Wi-Fi stay awake without the screen.

    Args:
        said: ``dumpsys power``, which few phones let an app read.
        has_program: ``termux-wake-lock`` is there.
    """
    if not has_program:
        return warning("wake_lock", "there is no termux-wake-lock", "pkg install termux-tools")
    if said.status == 0 and "Wake Locks" in said.text:
        if "com.termux" in said.text:
            return ok("wake_lock", "Termux holds one")
        return warning("wake_lock", "Termux holds none: all of it sleeps", "run termux-wake-lock")
    return unknown(
        "wake_lock",
        "Android tells it to nobody but itself; the boot script asks for one",
        "look at Termux's notification: it says 'wake lock held', else run termux-wake-lock",
    )


async def check_wake_lock(_: Subject) -> list[Finding]:
    said = await reading.command("dumpsys", "power")
    return [wake_lock(said, has_program=shutil.which("termux-wake-lock") is not None)]


def battery_exemption(said: Output) -> Finding:
    """Whether Doze leaves Termux its network: ``dumpsys deviceidle whitelist``."""
    if said.status == 0 and ("user," in said.text or "system" in said.text):
        if "com.termux," in said.text:
            return ok("battery_exemption", "Termux is exempt from battery optimisation")
        return warning(
            "battery_exemption",
            "Termux is not exempt: off its charger, Doze takes its network",
            _UNRESTRICTED,
        )
    return unknown("battery_exemption", "Android tells it to nobody but itself", _UNRESTRICTED)


async def check_battery_exemption(_: Subject) -> list[Finding]:
    return [battery_exemption(await reading.command("dumpsys", "deviceidle", "whitelist"))]


# -- Termux ------------------------------------------------------------------------------------


def termux_origin(environ: Mapping[str, str]) -> Finding:
    """Whether it is a Termux that may run programs of its own folder."""
    version = environ.get("TERMUX_VERSION", "")
    release = environ.get("TERMUX_APK_RELEASE") or environ.get("TERMUX_APP__APK_RELEASE") or ""
    if "googleplay" in version.lower() or "PLAY" in release.upper():
        return warning(
            "termux_origin",
            f"Termux {version} of the Play Store, which may not run downloaded programs freely",
            "install Termux from F-Droid or its GitHub releases instead",
        )
    if not version and not release:
        return unknown("termux_origin", "this shell does not tell; it may not be Termux's own")
    return ok("termux_origin", f"Termux {version}{f' ({release})' if release else ''}")


async def check_termux_origin(subject: Subject) -> list[Finding]:
    return [termux_origin(subject.environ)]


def termux_api(said: Output) -> Finding:
    """Whether battery and heat can be learned: ``termux-battery-status``."""
    lost = "so battery and heat stay unknown"
    if said.is_missing:
        return warning(
            "termux_api", f"not installed, {lost}", "pkg install termux-api, and the app"
        )
    if battery_from(said.text) is not None:
        return ok("termux_api", "answers")
    return warning(
        "termux_api",
        f"{said.problem or 'it answers nothing of use'}, {lost}",
        "install the app Termux:API from where Termux came from, and open it once",
    )


async def check_termux_api(_: Subject) -> list[Finding]:
    return [termux_api(await reading.command(BATTERY_PROGRAM, limit_s=LIMIT_S))]


def termux_boot(script: Path, *, is_there: bool, is_executable: bool) -> Finding:
    """Whether the agent starts with the phone."""
    if not is_there:
        return warning(
            "termux_boot",
            f"{script} is missing: the agent does not start with the phone",
            "run the line that 'supervisor invite' prints again, and open Termux:Boot once",
        )
    if not is_executable:
        return warning("termux_boot", f"{script} is not executable", f"chmod 700 {script}")
    return ok("termux_boot", f"{script} starts the agent, if the app Termux:Boot was opened once")


async def check_termux_boot(subject: Subject) -> list[Finding]:
    script = subject.home / BOOT_SCRIPT
    can_run = os.access(script, os.X_OK)
    return [termux_boot(script, is_there=script.is_file(), is_executable=can_run)]
