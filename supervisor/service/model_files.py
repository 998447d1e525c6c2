"""Whether the files of a running model are still the ones that it was launched with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


def marks(paths: Iterable[str]) -> dict[str, str]:
    """What tells the present content of each file from a later one. Blocks."""
    return {path: _mark(Path(path)) for path in paths}


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a file. ``is_harmful``: whoever has it open reads something else now."""

    text: str
    is_harmful: bool = False


def changed(before: Mapping[str, str]) -> Change | None:
    """What happened to the first file that is not what it was. Blocks."""
    for path, mark in before.items():
        now = _mark(Path(path))
        if now == mark:
            continue
        if not now:
            return Change(f"{path} was deleted")
        if now.split()[0] != mark.split()[0]:
            return Change(f"{path} was replaced")
        return Change(f"{path} was overwritten in place", is_harmful=True)
    return None


def _mark(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError:
        return ""
    return f"{facts.st_dev}:{facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
