"""Which architectures a build of llama.cpp knows: their names are in its programs, or are not.

No program prints them. Each name is a text of its own in the library or program that reads models,
with a zero after it, so one that is nowhere is unknown to the build for certain. One that is there
may be there for another reason, so that proves nothing.
"""

import mmap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CERTAIN: Final = (b"llama\0", b"falcon\0", b"gpt2\0", b"qwen2\0", b"gemma2\0", b"phi3\0")
"""In every build since 2024. Where one is missing, the names are not where we look for them."""
_LIBRARIES: Final = ("libllama.*", "libllama-*", "llama.dll")
_MAX_REMEMBERED: Final = 1000


class EngineArchitectures:
    """What one program at a time knows; another one, or a changed one, is looked at anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: tuple[tuple[str, int, int], ...] = ()
        self._known: dict[str, bool | None] = {}

    def knows(self, program: str, architecture: str) -> bool | None:
        """Whether llama-server at ``program`` knows an architecture; None: nobody can say.

        Blocks: each new name costs a look through some megabytes.
        """
        if not program or not architecture:
            return None
        files = list(_files(Path(program)))
        with self._lock:
            if (now := tuple(_mark(file) for file in files)) != self._of:
                self._of, self._known = now, {}
            if architecture not in self._known:
                if len(self._known) >= _MAX_REMEMBERED:
                    self._known.clear()
                self._known[architecture] = _is_in(files, architecture.encode() + b"\0")
            return self._known[architecture]


def _is_in(files: list[Path], name: bytes) -> bool | None:
    """Looked for where the certain names are, which is one file of each build."""
    verdict: bool | None = None
    for file in files:
        try:
            with (
                file.open("rb") as opened,
                mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                if content.find(name) >= 0:
                    return True
                if all(content.find(known) >= 0 for known in _CERTAIN):
                    verdict = False
        except (OSError, ValueError):  # unreadable, or empty
            continue
    return verdict


def _files(program: Path) -> Iterator[Path]:
    """The program itself (static builds) and its libraries, where builds and releases have them."""
    try:
        resolved = program.resolve(strict=True)
    except (OSError, RuntimeError):
        return
    yield resolved
    seen = {resolved}
    folders = (resolved.parent, resolved.parent.parent / "lib", program.parent.parent / "lib")
    for folder in (*folders, program.parent.parent / "llama_cpp" / "lib"):
        for pattern in _LIBRARIES:
            for file in sorted(folder.glob(pattern)):
                if (real := file.resolve()) not in seen and real.is_file():
                    seen.add(real)
                    yield real


def _mark(file: Path) -> tuple[str, int, int]:
    try:
        found = file.stat()
    except OSError:
        return str(file), 0, 0
    return str(file), found.st_size, found.st_mtime_ns
