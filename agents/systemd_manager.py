"""systemd of a user: installs, removes and asks for a unit of ours."""

import signal
from collections.abc import Mapping
from pathlib import Path

from agents import privatefile, systemd
from agents.background import Service, user_id
from agents.errors import ServiceRefused
from agents.service_report import Outcome, Status, needed, run

_PROPERTIES = (
    "UnitFileState",
    "ActiveState",
    "MainPID",
    "NRestarts",
    "ExecMainCode",
    "ExecMainStatus",
    "ExecMainStartTimestamp",
    "Result",
)
_EXITED, _KILLED, _DUMPED = "1", "2", "3"
"""``ExecMainCode``: as ``si_code`` of SIGCHLD."""
_STOP_S = 600.0
"""A supervisor that stops waits for running requests, for as long as its setting drain_s says."""
_RUNS = ("active", "reloading")
_STARTS = ("activating", *_RUNS)


class Systemd:
    """Talks to ``systemctl --user``; a user's programs go on after logout only if they linger."""

    def __init__(self, home: Path, user: str, environ: Mapping[str, str]) -> None:
        self._user = user
        self._environ = dict(environ)
        runtime = Path(f"/run/user/{user_id()}")
        if "XDG_RUNTIME_DIR" not in environ and runtime.is_dir():
            # Missing after su, though the manager is there.
            self._environ["XDG_RUNTIME_DIR"] = str(runtime)
        config = environ.get("XDG_CONFIG_HOME")
        self._folder = (Path(config) if config else home / ".config") / "systemd" / "user"

    def problem(self) -> str:
        """Why this user's systemd cannot be used, or nothing."""
        ran = run(["systemctl", "--user", "show-environment"], self._environ, 10)
        return "" if ran.is_fine else ran.text or f"systemctl ended with status {ran.status}"

    def install(self, service: Service) -> Outcome:
        """Write the unit, enable it, start it, and let the user's programs linger.

        Raises:
            ServiceRefused: A file cannot be written, or systemd does not take it.
        """
        path = self._folder / service.unit
        done = []
        if self._wrote(path, systemd.unit_text(service), service.folder):
            done.append(f"wrote {path}")
            self._systemctl("daemon-reload")
        now = self._shown(service.unit)
        if now["ActiveState"] == "failed":
            self._systemctl("reset-failed", service.unit)
        if now["UnitFileState"] != "enabled" or now["ActiveState"] not in _STARTS:
            self._systemctl("enable", "--now", service.unit)
            done.append(f"enabled and started {service.unit}")
        elif done:
            self._systemctl("restart", service.unit)
            done.append(f"restarted {service.unit}")
        lingers = self._lingers()
        if not lingers and run(["loginctl", "enable-linger", self._user], self._environ).is_fine:
            done.append(f"programs of {self._user} now run without a login (loginctl)")
            lingers = True
        return Outcome(tuple(done), () if lingers else (self._no_linger(),))

    def restart(self, name: str) -> Outcome:
        """Start it anew.

        Raises:
            ServiceRefused: systemd does not.
        """
        self._systemctl("restart", _unit(name))
        return Outcome((f"restarted {_unit(name)}",))

    def uninstall(self, name: str) -> Outcome:
        """Stop the unit and remove it.

        Raises:
            ServiceRefused: A file cannot be removed, or systemd refuses.
        """
        unit = _unit(name)
        path = self._folder / unit
        if not path.exists():
            return Outcome()
        self._systemctl("disable", "--now", unit)
        try:
            path.unlink()
        except OSError as exc:
            raise ServiceRefused(f"cannot remove {path}: {exc.strerror}") from exc
        self._systemctl("daemon-reload")
        run(["systemctl", "--user", "reset-failed", unit], self._environ)
        notes: tuple[str, ...] = ()
        if self._lingers():
            notes = (
                f"programs of {self._user} still run without a login; if no other needs that: "
                f"loginctl disable-linger {self._user}",
            )
        return Outcome((f"stopped {unit} and removed {path}",), notes)

    def status(self, name: str) -> Status:
        """What systemd says of the unit."""
        unit = _unit(name)
        path = self._folder / unit
        shown = self._shown(unit)
        is_running = shown["ActiveState"] in _RUNS
        lingers = self._lingers()
        return Status(
            name,
            "systemd",
            is_installed=path.exists(),
            is_enabled=shown["UnitFileState"] == "enabled",
            is_running=is_running,
            pid=int(shown["MainPID"] or 0) or None,
            since=_iso(shown["ExecMainStartTimestamp"]) if is_running else "",
            restarts=int(shown["NRestarts"]) if shown["NRestarts"].isdigit() else None,
            last_exit=_last_exit(shown),
            file=str(path),
            logs=f"journalctl --user -u {unit}",
            notes=() if lingers or not path.exists() else (self._no_linger(),),
        )

    def _wrote(self, path: Path, text: str, folder: Path) -> bool:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() and path.read_text() == text:
                return False
            privatefile.write(path, text)
        except OSError as exc:
            raise ServiceRefused(f"cannot write {path}: {exc.strerror}") from exc
        return True

    def _systemctl(self, *words: str) -> str:
        return needed(["systemctl", "--user", *words], self._environ, _STOP_S)

    def _shown(self, unit: str) -> dict[str, str]:
        text = self._systemctl("show", unit, f"--property={','.join(_PROPERTIES)}")
        found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        return {name: found.get(name, "") for name in _PROPERTIES}

    def _lingers(self) -> bool:
        ran = run(
            ["loginctl", "show-user", self._user, "--property=Linger", "--value"], self._environ
        )
        return ran.is_fine and ran.text.strip() == "yes"

    def _no_linger(self) -> str:
        return (
            f"it runs only while {self._user} is logged in, and not at boot; to change that: "
            f"sudo loginctl enable-linger {self._user}"
        )


def _unit(name: str) -> str:
    return Service(name, (), Path()).unit


def _iso(stamp: str) -> str:
    """``2026-11-21T16:52:54Z`` of ``Sat 2026-11-21 16:52:54 UTC``."""
    words = stamp.split()
    return f"{words[1]}T{words[2]}Z" if len(words) == 4 else stamp


def _last_exit(shown: Mapping[str, str]) -> str:
    code, status = shown["ExecMainCode"], shown["ExecMainStatus"]
    if code == _EXITED:
        return f"status {status}"
    if code in (_KILLED, _DUMPED):
        try:
            return signal.Signals(int(status)).name
        except ValueError:
            return f"signal {status}"
    return "" if shown["Result"] in ("success", "") else shown["Result"]
