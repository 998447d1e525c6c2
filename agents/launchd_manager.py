"""launchd of a Mac: installs, removes and asks for a daemon of ours.

Daemons belong to root. What needs that is run by sudo if sudo does not ask, else told.
"""

import os
import re
import shlex
import time
from datetime import datetime
from pathlib import Path
from typing import Final

from agents import launchd, privatefile
from agents.background import Service
from agents.errors import ServiceRefused
from agents.service_report import Outcome, Ran, Status, run

_PAUSE_S: Final = 1.0
_SPARE_S: Final = 10
_GOES_ON: Final = "36:"
"""``bootout`` says so (EINPROGRESS) and returns before the old daemon is gone; ``bootstrap`` fails
until it is."""

_FIELD: Final = r"^\s*{} = (.+)$"


class Launchd:
    """Talks to ``launchctl`` about the domain ``system``."""

    def __init__(self, home: Path, user: str, folder: Path) -> None:
        self._home = home
        self._user = user
        self._folder = folder

    def install(self, service: Service) -> Outcome:
        """Write the property list into the data folder, then, as root, install and start it.

        Raises:
            ServiceRefused: A file cannot be written, or launchd does not take it.
        """
        source = service.folder / f"{service.label}.plist"
        text = launchd.property_list(service, self._user, self._home)
        log = launchd.log_path(service.name, self._home)
        try:
            service.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            log.parent.chmod(0o700)
            if _read(source) != text:
                privatefile.write(source, text.decode())
        except OSError as exc:
            raise ServiceRefused(f"cannot write {source}: {exc.strerror}") from exc
        target = self._target(service.label)
        is_same, is_loaded = _read(target) == text, self._printed(service.label).is_fine
        if is_same and is_loaded:
            return Outcome()
        steps = [["launchctl", "bootout", f"system/{service.label}"]] if is_loaded else []
        if not is_same:
            steps.append(["install", "-m", "644", str(source), str(target)])
        steps.append(["launchctl", "bootstrap", "system", str(target)])
        patience_s = service.stop_s + _SPARE_S
        return self._as_root(steps, f"installed {target} and started it", patience_s)

    def restart(self, name: str) -> Outcome:
        """Start it anew.

        Raises:
            ServiceRefused: launchd refuses.
        """
        step = ["launchctl", "kickstart", "-k", f"system/{_label(name)}"]
        return self._as_root([step], f"restarted {_label(name)}")

    def uninstall(self, name: str) -> Outcome:
        """Stop the daemon and remove its file.

        Raises:
            ServiceRefused: launchd refuses.
        """
        label = _label(name)
        target, steps = self._target(label), []
        if self._printed(label).is_fine:
            steps.append(["launchctl", "bootout", f"system/{label}"])
        if target.exists():
            steps.append(["rm", "-f", str(target)])
        return self._as_root(steps, f"stopped {label} and removed {target}") if steps else Outcome()

    def status(self, name: str) -> Status:
        """What launchd says of the daemon."""
        label = _label(name)
        target, printed = self._target(label), self._printed(label)
        text = printed.text if printed.is_fine else ""
        pid = _field(text, "pid")
        return Status(
            name,
            "launchd",
            is_installed=target.exists(),
            is_enabled=printed.is_fine,
            is_running=_field(text, "state") == "running",
            pid=int(pid) if pid.isdigit() else None,
            since=self._since(pid) if pid.isdigit() else "",
            restarts=None,
            last_exit=_last_exit(text),
            file=str(target),
            logs=str(launchd.log_path(name, self._home)),
        )

    def _target(self, label: str) -> Path:
        return self._folder / f"{label}.plist"

    def _printed(self, label: str) -> Ran:
        return run(["launchctl", "print", f"system/{label}"], os.environ)

    def _since(self, pid: str) -> str:
        text = run(["ps", "-o", "lstart=", "-p", pid], os.environ).text
        try:
            began = datetime.strptime(f"{' '.join(text.split())} +0000", "%a %b %d %H:%M:%S %Y %z")
        except ValueError:
            return ""
        return f"{began:%Y-%m-%dT%H:%M:%SZ}"

    def _as_root(self, steps: list[list[str]], done: str, patience_s: int = 0) -> Outcome:
        if not run(["sudo", "-n", "true"], os.environ).is_fine:
            return Outcome(commands=tuple(shlex.join(["sudo", *step]) for step in steps))
        for step in steps:
            ran = _patiently(step, patience_s if "bootstrap" in step else 0)
            if not ran.is_fine and not ("bootout" in step and _GOES_ON in ran.text):
                why = ran.text or f"status {ran.status}"
                raise ServiceRefused(f"{shlex.join(['sudo', *step])} failed: {why}")
        return Outcome((done,))


def _patiently(step: list[str], patience_s: int) -> Ran:
    argv = ["sudo", "-n", *step]
    deadline_s = time.monotonic() + patience_s
    while not (ran := run(argv, os.environ)).is_fine and time.monotonic() < deadline_s:
        time.sleep(_PAUSE_S)
    return ran


def _label(name: str) -> str:
    return Service(name, (), Path()).label


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _field(text: str, name: str) -> str:
    found = re.search(_FIELD.format(re.escape(name)), text, re.MULTILINE)
    return found[1].strip() if found else ""


def _last_exit(text: str) -> str:
    """As ``launchctl print`` words it: ``last exit code = 1``, or ``(never exited)``."""
    if killed := _field(text, "last terminating signal"):
        return killed
    code = _field(text, "last exit code")
    return f"status {code}" if code and not code.startswith("(") else ""
