"""A program of ours that starts at boot: what it is, whichever service manager runs it."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import agents

LABEL: Final = "org.llama-rpc-supervisor"

_CARRIED: Final = (
    "PATH",
    "PYTHONPATH",
    "LANG",
    "LLAMA_CPP_BIN",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
)
"""What a shell knows and a service manager does not. No secrets: others may read these files."""

_OURS: Final = "SUPERVISOR_"
_NOT_OURS: Final = ("SUPERVISOR_URL", "SUPERVISOR_KEY", "SUPERVISOR_JOIN_CODE")
"""Secrets, or of the command line as a client."""


@dataclass(frozen=True, slots=True)
class Service:
    """One program of ours, to be started at boot and after a failure."""

    name: str
    """``agent`` or ``supervisor``."""
    argv: tuple[str, ...]
    """Absolute paths; never a secret, since every user of a host sees it."""
    folder: Path
    """Its data folder, where it also runs."""
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_s: int = 20
    """It has so long after SIGTERM. An agent ends its rpc-server within 10 s."""
    leaves_children: bool = False
    """After a crash its children go on and are adopted by its next start: llama-server is."""
    prints_secrets: bool = False
    """Its standard output has a join code, which belongs in no log."""

    @property
    def label(self) -> str:
        return f"{LABEL}.{self.name}"

    @property
    def unit(self) -> str:
        return f"llama-rpc-{self.name}.service"

    @property
    def description(self) -> str:
        return f"llama-rpc-supervisor: {self.name}"


def own_argv(package: str) -> tuple[str, ...]:
    """The command that runs one of our packages, as this process was started.

    The interpreter is not resolved: behind its link, that of an environment knows no packages.
    """
    interpreter = str(Path(sys.executable).absolute())
    archive = Path(agents.__file__).parents[1]
    if package == "agents" and archive.is_file():
        return interpreter, str(archive.absolute())
    return interpreter, "-m", package


def carried(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a service keeps of the shell from which it is installed."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if value and (name in _CARRIED or (name.startswith(_OURS) and name not in _NOT_OURS))
    }


def user_id() -> int:
    """Of whoever runs us."""
    return os.getuid()
