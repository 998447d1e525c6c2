"""A deletion before it is done, and what it has to know of paths: links, other names, size."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_MOST_HOPS: Final = 40
"""As many links as Linux follows."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What would go, and how to do it."""

    deletes: tuple[str, ...]
    keeps: tuple[str, ...]
    freed_bytes: int
    gone: frozenset[str]
    """All files and links that go, each as ``key``."""
    do: Callable[[], None]
    """Raises ``OSError``, ``FolderNotWritable``."""


def key(path: str) -> str:
    """A path with the links of its folders resolved, and not its own."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118


def hops(path: str) -> list[str]:
    """A path, and where it leads, link by link; each as ``key``."""
    found = [key(path)]
    while len(found) <= _MOST_HOPS and os.path.islink(found[-1]):  # noqa: PTH114
        link = found[-1]
        found.append(key(os.path.join(os.path.dirname(link), os.readlink(link))))  # noqa: PTH115, PTH118, PTH120
    return found


def names_on_disk(path: str) -> int:
    """How many names its content has; 0 if it is gone."""
    try:
        return os.stat(path).st_nlink  # noqa: PTH116
    except FileNotFoundError:
        return 0


def disk_bytes(path: str) -> int:
    """Blocks that it takes, where the system tells; st_blocks counts 512 bytes everywhere."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return 0
    return getattr(found, "st_blocks", (found.st_size + 511) // 512) * 512
