"""A real systemd of a user, in namespaces of its own, to see what it makes of our unit."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

_GROUPS: Final = Path("/sys/fs/cgroup")
_DEADLINE_S: Final = 30.0
_PROGRAM: Final = Path("/lib/systemd/systemd")

# The first process of the new namespace stays, so that somebody reaps orphans there.
_ENTER: Final = """
set -e
for procs in "$@"; do echo 0 >"$procs"; done
mount --make-rprivate /
mount -t tmpfs run /run
mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR"
"$SYSTEMD" --user --log-target=console >"$HOME/systemd.log" 2>&1 &
while :; do wait || :; sleep 1; done
"""


class UserSystemd:
    """Runs commands where that systemd is."""

    def __init__(self, home: Path, pid: int, environ: dict[str, str]) -> None:
        self.home = home
        self._pid = pid
        self._environ = environ

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """A command to its end, seen by that systemd's user."""
        return subprocess.run(
            ["nsenter", "-t", str(self._pid), "-m", "-p", *argv],
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def python(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, *words)

    def systemctl(self, *words: str) -> str:
        done = self.run("systemctl", "--user", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def main_pid(self, unit: str) -> int:
        """In that systemd's count; 0: it does not run."""
        return int(self.systemctl("show", unit, "--property=MainPID", "--value"))


@contextlib.contextmanager
def user_systemd(home: Path) -> Iterator[UserSystemd]:
    """Start one; the test is skipped where that may not be done, or there is no systemd."""
    if not _PROGRAM.exists() or shutil.which("systemctl") is None:
        pytest.skip("systemd is not installed")
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    runtime = f"/run/user/{os.getuid()}"
    environ = {
        **kept,
        "HOME": str(home),
        "XDG_RUNTIME_DIR": runtime,
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus",
        "SYSTEMD": str(_PROGRAM),
    }
    groups = _new_groups(f"user-systemd-{os.getpid()}")
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    procs = [str(group / "cgroup.procs") for group in groups]
    outside = subprocess.Popen(
        [*namespaces, "/bin/sh", "-c", _ENTER, "enter", *procs],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield _once_it_answers(outside, home, environ)
    finally:
        outside.kill()
        outside.communicate(timeout=_DEADLINE_S)
        for group in groups:
            _remove(group)


def _once_it_answers(
    outside: subprocess.Popen[str], home: Path, environ: dict[str, str]
) -> UserSystemd:
    deadline_s = time.monotonic() + _DEADLINE_S
    children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
    while time.monotonic() < deadline_s and outside.poll() is None:
        inside = children.read_text().split()
        if inside:
            made = UserSystemd(home, int(inside[0]), environ)
            if made.run("systemctl", "--user", "show-environment").returncode == 0:
                return made
        time.sleep(0.1)
    outside.kill()
    _, said = outside.communicate(timeout=_DEADLINE_S)
    log = home / "systemd.log"
    more = log.read_text() if log.exists() else ""
    pytest.skip(f"not permitted here: a systemd of our own ({said.strip()} {more[-300:]})")


def _new_groups(name: str) -> list[Path]:
    """A folder for it in the hierarchies that systemd uses, so that it leaves nothing in others."""
    made: list[Path] = []
    for hierarchy in (_GROUPS, _GROUPS / "unified", _GROUPS / "systemd"):
        if (hierarchy / "cgroup.procs").exists():
            try:
                (hierarchy / name).mkdir()
            except OSError as exc:
                for each in made:
                    _remove(each)
                pytest.skip(f"not permitted here: a group of processes ({exc.strerror})")
            made.append(hierarchy / name)
    return made


def _remove(group: Path) -> None:
    """With what systemd made of the same name in other hierarchies."""
    for folder in [group, *_GROUPS.glob(f"*/{group.name}")]:
        below = sorted(folder.rglob("*/"), key=lambda each: -len(each.parts))
        for each in [*(one for one in below if one.is_dir()), folder]:
            deadline_s = time.monotonic() + _DEADLINE_S
            while each.is_dir() and time.monotonic() < deadline_s:
                with contextlib.suppress(OSError):
                    each.rmdir()
                    break
                time.sleep(0.05)
