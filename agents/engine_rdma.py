"""Whether an engine's RPC was built with RDMA: its library says so at every start, or cannot."""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_SAYS_RDMA: Final = b"RDMA auto-negotiate enabled"
"""What rpc-server prints of its transport; only a build with RDMA has these words in it."""
_SAYS_RPC: Final = b"GGML_RPC_DEBUG"
"""In every build of the RPC backend since 2025: tells its library from others."""


def has_rdma(program: str) -> bool | None:
    """Whether the RPC backend of ``program`` has RDMA; ``None``: no backend was found to look at.

    HELLO would tell as well, but to ask with anything but zeros there starts an RDMA handshake.
    """
    verdict = None
    for file in _files(Path(program)):
        found = _look(file)
        if found:
            return True
        verdict = found if verdict is None else verdict
    return verdict


def _files(program: Path) -> Iterator[Path]:
    """The program itself (static builds) and the libraries where builds and releases have them."""
    if not program.is_file():
        return
    yield program
    folder = program.resolve().parent
    for place in (folder, folder.parent / "lib"):
        yield from sorted(place.glob("libggml-rpc*"))


def _look(file: Path) -> bool | None:
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as m:
            if m.find(_SAYS_RDMA) >= 0:
                return True
            return False if m.find(_SAYS_RPC) >= 0 else None
    except (OSError, ValueError):  # unreadable, or empty
        return None
