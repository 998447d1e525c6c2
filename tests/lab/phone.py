"""A fake Termux: a home folder, recorded commands, and a shop that its pkg installs from."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster import START_S, Cluster, Program, eventually

from supervisor import files

SHELL: Final = shutil.which("dash") or "/bin/sh"
COREUTILS: Final = (
    *("cat", "chmod", "cmp", "cp", "df", "dirname", "grep", "mkdir", "mktemp", "mv", "rm"),
    *("rmdir", "sed", "setsid", "sh", "sleep"),
)
"""Of Termux's base system, what the scripts and our stubs use."""

WRONG_PIN: Final = f"sha256//{'A' * 43}="


def stub(body: str) -> str:
    """A command that writes down how it was called, then does ``body``."""
    return f"""#!/bin/sh
printf '%s %s\\n' "${{0##*/}}" "$*" >>"$CALLS"
{body}
"""


@dataclass
class Phone:
    """A home folder, a prefix with recorded commands, and a shop that pkg installs from."""

    folder: Path
    environment: dict[str, str]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def data(self) -> Path:
        return self.home / ".local/share/llama-rpc-supervisor"

    @property
    def boot_script(self) -> Path:
        return self.home / ".termux/boot/10-llama-rpc-agent"

    def command(self, name: str, body: str = "", *, shop: bool = False) -> None:
        """Put a recorded command into the prefix, or into the shop."""
        path = self.folder / "shop" / name if shop else self.prefix / "bin" / name
        path.unlink(missing_ok=True)
        path.write_text(stub(body))
        path.chmod(0o755)

    @property
    def prefix(self) -> Path:
        return Path(self.environment["PREFIX"])

    def calls(self) -> list[str]:
        """Recorded command lines, oldest first."""
        path = Path(self.environment["CALLS"])
        return path.read_text().splitlines() if path.exists() else []

    @property
    def apps(self) -> Path:
        """Where Android has the folders of apps."""
        return self.folder

    async def run(self, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a script to its end."""
        return await asyncio.to_thread(
            subprocess.run,
            [SHELL, str(script), *arguments],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def start(self, cluster: Cluster, script: Path, *arguments: str, **more: str) -> Program:
        """Run a script that stays; the cluster ends it."""
        log = self.folder / "terminal.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                [SHELL, script, *arguments],
                env={**self.environment, **more},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        program = Program("phone", process, self.folder, log)
        cluster.programs.append(program)
        return program

    def snapshot(self) -> dict[str, tuple[int, int, bytes]]:
        """Mode, time of change and content of every file at home."""
        found = {}
        for path in sorted(self.home.rglob("*")):
            if path.is_file():
                facts = path.stat()
                content = path.read_bytes()
                found[str(path.relative_to(self.home))] = (
                    facts.st_mode,
                    facts.st_mtime_ns,
                    content,
                )
        return found


def fresh_phone(tmp_path: Path) -> Phone:
    """A fresh Termux: no Python, no curl, no Termux:API."""
    folder = tmp_path / "phone"
    prefix = folder / "com.termux/files/usr"
    for part in (folder / "home", folder / "shop", prefix / "bin", prefix / "tmp", prefix / "site"):
        part.mkdir(parents=True)
    for name in COREUTILS:
        (prefix / "bin" / name).symlink_to(str(shutil.which(name)))
    made = Phone(
        folder,
        {
            "HOME": str(folder / "home"),
            "PREFIX": str(prefix),
            "PATH": str(prefix / "bin"),
            "TMPDIR": str(prefix / "tmp"),
            "SHOP": str(folder / "shop"),
            "CALLS": str(folder / "calls.log"),
            "TERMUX_VERSION": "0.118.3",
            "SDK": "34",
            "MACHINE": "aarch64",
            "TMPDIR_MARK_OF_TESTS": os.environ["TMPDIR_MARK_OF_TESTS"],
        },
    )
    made.command(
        "pkg",
        """shift 2
for name in "$@"; do
    case $name in
        python-psutil) : >"$PREFIX/site/psutil.py" ;;
        termux-api) cp "$SHOP/termux-battery-status" "$PREFIX/bin/" ;;
        *) cp "$SHOP/$name" "$PREFIX/bin/" ;;
    esac
done""",
    )
    made.command("termux-wake-lock")
    made.command("termux-wake-unlock")
    made.command("uname", 'echo "$MACHINE"')
    made.command(
        "getprop",
        """case $1 in
    ro.build.version.sdk) echo "$SDK" ;;
    ro.build.version.release) echo 14 ;;
    ro.product.model) echo "Pixel 9" ;;
    persist.*) echo "${MONITOR:-}" ;;
esac""",
    )
    battery = '{"percentage": 71, "plugged": "PLUGGED_AC", "temperature": 31.5}'
    made.command("termux-battery-status", f"echo '{battery}'", shop=True)
    # The base interpreter, not the virtual environment's: it has none of our packages.
    python = Path(sys.executable).resolve()
    made.command("python", f'PYTHONPATH="$PREFIX/site" exec {python} "$@"', shop=True)
    made.command("curl", f'exec {shutil.which("curl")} "$@"', shop=True)
    return made


@dataclass
class Invitation:
    """What the main host shows."""

    code: str
    pin: str


async def invitation(cluster: Cluster) -> Invitation:
    view = (await cluster.http.post("/api/join-code")).json()
    found = re.search(r"sha256//[^']+", view["command"])
    assert found
    return Invitation(view["code"], found[0])


def install_script() -> Path:
    return files.termux() / "install.sh"


async def ready_phone(cluster: Cluster, program: Program) -> dict[str, object]:
    async def is_ready() -> dict[str, object] | None:
        assert program.process.poll() is None, program.said()
        device = await cluster.device("pixel-9")
        return device if device and device["state"] == "ready" else None

    found: dict[str, object] = await eventually(
        is_ready, within_s=START_S, what="the phone is ready"
    )
    return found


def assert_one_error(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]
