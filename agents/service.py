"""Start a program of ours at boot, by the service manager of this host, and end that again.

A second install changes nothing. Whatever needs root is tried without a question, and otherwise
told as the exact commands to type.
"""

import contextlib
import os
import pwd
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from agents import facts, launchd, privatefile
from agents.background import Service
from agents.errors import ServiceRefused
from agents.launchd_manager import Launchd
from agents.service_report import Outcome, Status
from agents.systemd_manager import Systemd

CODE_FILE = "join-code"
"""In the agent's data folder, readable by its user alone: ``join -`` reads it."""


class Manager(Protocol):
    """What starts programs on a host."""

    def install(self, service: Service) -> Outcome: ...

    def restart(self, name: str) -> Outcome: ...

    def uninstall(self, name: str) -> Outcome: ...

    def status(self, name: str) -> Status: ...


def manager(
    command: str, *, platform: str = "", environ: Mapping[str, str] | None = None
) -> Manager:
    """The service manager of this host.

    Args:
        command: What to run by hand where there is none; the error shows it.
        platform: As ``facts.platform_name`` has it, which is the default.
        environ: Of this process, by default.

    Raises:
        ServiceRefused: There is none for us; the sentence says what to do instead.
    """
    environ = os.environ if environ is None else environ
    platform = platform or facts.platform_name()
    home = Path(environ.get("HOME") or Path.home())
    if platform == "android":
        raise ServiceRefused(
            "Android starts nothing of Termux at boot but what the app Termux:Boot runs: install "
            "it from F-Droid, open it once, and run termux/install.sh, which puts the agent into "
            "~/.termux/boot"
        )
    if platform == "macos":
        if os.getuid() == 0 and environ.get("SUDO_USER"):
            raise ServiceRefused(
                "run this without sudo, as the user whom the service shall run as; it asks sudo "
                "itself for what needs root"
            )
        return Launchd(home, user_name(), launchd.FOLDER)
    return _systemd(command, home, environ)


def _systemd(command: str, home: Path, environ: Mapping[str, str]) -> Systemd:
    made = Systemd(home, user_name(), environ)
    problem = made.problem() if shutil.which("systemctl") else "it has no systemctl"
    if problem:
        raise ServiceRefused(
            f"this host has no systemd that starts programs of a user ({problem}); in a container "
            "make the following the container's own command, in WSL put [boot] systemd=true into "
            "/etc/wsl.conf and restart it, and elsewhere put it behind @reboot with crontab -e: "
            f"{command}"
        )
    return made


def user_name() -> str:
    """Of whoever runs us; the number where nobody gave it a name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def keep_code(folder: Path, code: str) -> bool:
    """Store the join code where only this user can read it; whether it is another than before.

    Raises:
        ServiceRefused: It cannot be written.
    """
    path = folder / CODE_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.is_file() and path.read_text().strip() == code:
            path.chmod(0o600)
            return False
        privatefile.write(path, code)
    except OSError as exc:
        raise ServiceRefused(f"cannot keep the join code in {path}: {exc.strerror}") from exc
    return True


def kept_code(folder: Path) -> str:
    """The join code that ``keep_code`` or an install script stored; empty if there is none."""
    for path in (folder / CODE_FILE, folder.parent / CODE_FILE):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if code := path.read_text().strip():
                return code
    return ""


def forget_code(folder: Path) -> None:
    """Remove it, with the service that needs it."""
    (folder / CODE_FILE).unlink(missing_ok=True)


def shown(service: Service) -> str:
    """The command of a service, to be typed into a shell."""
    return shlex.join(service.argv)


def report(outcome: Outcome, say: Callable[[str], None]) -> int:
    """Say what was done and what is left to do; the exit status: 1 until all is done."""
    for line in outcome.done or (() if outcome.commands else ("nothing to change",)):
        say(line)
    for note in outcome.notes:
        say(f"note: {note}")
    if outcome.commands:
        say("this needs root; type these, in this order:")
        for command in outcome.commands:
            say(f"  {command}")
    return 1 if outcome.commands else 0
