"""Where page and phone scripts are: beside the packages in a checkout, inside in a wheel."""

from pathlib import Path

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
