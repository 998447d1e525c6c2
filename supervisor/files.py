"""Where page and scripts are: beside the packages in a checkout, inside in a wheel."""

from pathlib import Path

import agents

_PACKAGE = Path(__file__).parent


def _folder(name: str) -> Path:
    installed = _PACKAGE / "_files" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def dashboard() -> Path:
    """Folder of ``index.html`` and its assets."""
    return _folder("dashboard")


def termux() -> Path:
    """Folder of the scripts for phones."""
    return _folder("termux")


def join_script() -> Path:
    """The script that makes a Mac or a Linux host a worker."""
    return Path(agents.__file__).parent / "join.sh"
