"""A fake Mac or Linux host: a home folder, and a PATH of recorded commands alone."""

import asyncio
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.phone import SHELL, stub
from supervisor import files

COREUTILS: Final = ("cat", "chmod", "cmp", "cp", "env", "mkdir", "mv", "rm", "sh", "sleep", "true")
"""What the scripts and our stubs use."""

OLD: Final = 'case "$*" in *version_info*) exit 1 ;; esac; echo "too old"; exit 1'
"""Body of a Python that is too old."""

NEW: Final = f'exec {Path(sys.executable).resolve()} "$@"'
"""Body of one that will do: the base interpreter, without our packages."""


@dataclass
class Computer:
    """A host on which every command that is found was put there."""

    folder: Path
    environment: dict[str, str]

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def data(self) -> Path:
        """Where ``agents/cli.py`` has the agent's data, one folder up."""
        return self.home / ".local/share/llama-rpc-supervisor"

    def command(self, name: str, body: str = "", *, folder: Path | None = None) -> None:
        """Put a recorded command into PATH, or into another folder."""
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(stub(body))
        path.chmod(0o755)

    def calls(self, *names: str) -> list[str]:
        """Recorded command lines, oldest first; of these commands only, if some are named."""
        path = Path(self.environment["CALLS"])
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not names or line.split()[0] in names]

    async def run(
        self, *arguments: str, script: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``join.sh`` up to its end, which is the agent's."""
        return await asyncio.to_thread(
            subprocess.run,
            [SHELL, str(script or files.join_script()), *arguments],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def snapshot(self) -> dict[str, tuple[int, int, bytes]]:
        """Mode, time of change and content of every file at home."""
        found = {}
        for path in sorted(self.home.rglob("*")):
            if path.is_file():
                facts = path.stat()
                name = str(path.relative_to(self.home))
                found[name] = (facts.st_mode, facts.st_mtime_ns, path.read_bytes())
        return found


def fresh_computer(tmp_path: Path, *, system: str = "Linux") -> Computer:
    """A host with curl; of everything else that a script may look for, nothing."""
    folder = tmp_path / "computer"
    made = Computer(
        folder,
        {
            "HOME": str(folder / "home"),
            "PATH": str(folder / "bin"),
            "CALLS": str(folder / "calls.log"),
            "BIN": str(folder / "bin"),
            "SHOP": str(folder / "shop"),
            "SYSTEM": system,
            "USER_NUMBER": "1000",
            "TMPDIR_MARK_OF_TESTS": os.environ["TMPDIR_MARK_OF_TESTS"],
        },
    )
    for part in (made.home, made.bin, folder / "shop"):
        part.mkdir(parents=True)
    for name in COREUTILS:
        (made.bin / name).symlink_to(str(shutil.which(name)))
    made.command("curl", f'exec {shutil.which("curl")} "$@"')
    made.command("uname", 'echo "$SYSTEM"')
    made.command("id", 'echo "$USER_NUMBER"')
    made.command("new-python", NEW, folder=folder / "shop")
    return made
