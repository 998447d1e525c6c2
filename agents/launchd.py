"""The launchd property list of a program of ours. Nothing here touches the system.

A daemon, not an agent of the login: macOS lets daemons reach the local network without asking, and
they run before anybody logs in.
"""

import plistlib
from pathlib import Path
from typing import Final

from agents.background import Service

FOLDER: Final = Path("/Library/LaunchDaemons")
_OPEN_FILES: Final = 65_536
_RESTART_S: Final = 10


def property_list(service: Service, user: str, home: Path) -> bytes:
    """The file for ``FOLDER``, which everybody can read, so no secret is in it."""
    log = log_path(service.name, home)
    return plistlib.dumps(
        {
            "Label": service.label,
            "ProgramArguments": list(service.argv),
            "UserName": user,
            "WorkingDirectory": str(service.folder),
            "EnvironmentVariables": {
                **service.environment,
                "HOME": str(home),
                "USER": user,
                "LOGNAME": user,
            },
            "RunAtLoad": True,
            # Whoever ends by itself without an error was asked to.
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": _RESTART_S,
            "ExitTimeOut": service.stop_s,
            # Otherwise its processor and disk time would be held back as a background job's.
            "ProcessType": "Interactive",
            "SoftResourceLimits": {"NumberOfFiles": _OPEN_FILES},
            "AbandonProcessGroup": service.leaves_children,
            "StandardOutPath": "/dev/null" if service.prints_secrets else str(log),
            "StandardErrorPath": str(log),
            "Umask": 0o077,
        }
    )


def log_path(name: str, home: Path) -> Path:
    """Where launchd writes what it prints."""
    return home / "Library" / "Logs" / "llama-rpc-supervisor" / f"{name}.log"
