"""A home folder and recorded commands, for services."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CODE: Final = f"192.0.2.1:8101/secret-token/{'F' * 43}"


@dataclass
class Host:
    """A home folder and recorded commands; their state is a folder of marks."""

    folder: Path

    def __post_init__(self) -> None:
        for each in (self.state, self.bin, self.home):
            each.mkdir()

    @property
    def home(self) -> Path:
        return self.folder / "höme %h"

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def data(self) -> Path:
        return self.home / "data/agent"

    @property
    def unit(self) -> Path:
        return self.home / ".config/systemd/user/llama-rpc-agent.service"

    def command(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\nprintf '%s %s\\n' '{name}' \"$*\" >>\"$CALLS\"\n{body}")
        path.chmod(0o755)

    def mark(self, name: str) -> None:
        (self.state / name).touch()

    @property
    def environ(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SUPERVISOR_", "XDG_"))}
        return {
            **kept,
            "HOME": str(self.home),
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "CALLS": str(self.folder / "calls"),
            "STATE": str(self.state),
            "HF_TOKEN": "hf_secret",
        }

    def calls(self) -> list[str]:
        """Recorded since the last look."""
        path = self.folder / "calls"
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return found

    def run(self, package: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", package, "service", *words],
            env=self.environ,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def install(self, code: str = CODE, *more: str) -> subprocess.CompletedProcess[str]:
        return self.run("agents", "install", code, "--data", str(self.data), *more)
