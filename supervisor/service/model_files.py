"""Whether the files of a running model are still the ones that it was launched with."""

from collections.abc import Iterable, Mapping
from pathlib import Path


def marks(paths: Iterable[str]) -> dict[str, str]:
    """What tells the present content of each file from a later one. Blocks."""
    return {path: _mark(Path(path)) for path in paths}


def changed(before: Mapping[str, str]) -> str:
    """What happened to the first file that is not what it was, or nothing. Blocks."""
    for path, mark in before.items():
        now = _mark(Path(path))
        if now == mark:
            continue
        if not now:
            return f"{path} was deleted"
        how = "replaced" if now.split()[0] != mark.split()[0] else "overwritten in place"
        return f"{path} was {how}"
    return ""


def _mark(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return ""
    return f"{facts.st_dev}:{facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
