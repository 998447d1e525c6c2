"""Headers of model files, each read once per version of its file and remembered on disk."""

import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Final

from agents import privatefile
from supervisor.adapters.gguf import LocalSource
from supervisor.adapters.gguf_parse import parse_part
from supervisor.core.model_faults import START_BYTES, named_start
from supervisor.core.model_headers import (
    FileVersion,
    HeaderFacts,
    facts_of,
    from_list,
    kind_by_name,
)
from supervisor.errors import ModelBroken, ModelMissing

MAX_KEPT: Final = 60_000
_FORMAT: Final = 1
"""Another one on disk is thrown away: everything is read again."""

_SETTLED_NS: Final = 2_000_000_000
"""What was written within this time is read again: file times are coarse."""


class HeaderStore:
    """Headers by version of their file, which may be read by several threads at once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._is_changed = False
        self._known = _loaded(file)
        self._recent: dict[FileVersion, HeaderFacts] = {}

    def known(self, version: FileVersion) -> HeaderFacts | None:
        return self._known.get(version) or self._recent.get(version)

    def forget_recent(self) -> None:
        """Have those read again whose files had only just changed, or could not be read."""
        with self._lock:
            self._recent = {}

    def read(self, path: str, name: str, version: FileVersion) -> HeaderFacts:
        """A file's header, or why it has none. Blocks.

        Args:
            path: Where it is.
            name: What it is called; a blob has none that says anything.
            version: As it was looked at; one that has changed since is read and not remembered.
        """
        if (known := self._known.get(version)) is not None:
            return known
        facts = _read(path, name)
        is_settled = version.changed_ns < time.time_ns() - _SETTLED_NS
        is_lasting = is_settled and facts.problem_code != ModelMissing.code
        with self._lock:
            (self._known if is_lasting else self._recent)[version] = facts
            self._is_changed |= is_lasting
        return facts

    def save(self, used: set[FileVersion]) -> None:
        """Write what is known; of files that are no longer there only while there is room.

        Raises:
            OSError: Nothing was written; the next scan after a start takes longer, no more.
        """
        with self._lock:
            if len(self._known) > MAX_KEPT:
                self._known = {v: facts for v, facts in self._known.items() if v in used}
            if not self._is_changed:
                return
            entries = [[*version, facts.as_list()] for version, facts in self._known.items()]
            self._is_changed = False
            privatefile.write(self._file, json.dumps({"format": _FORMAT, "headers": entries}))


def _loaded(file: Path) -> dict[FileVersion, HeaderFacts]:
    """What an earlier run wrote; nothing of what is not as it should be."""
    try:
        kept = json.loads(file.read_text())
        if kept["format"] != _FORMAT:
            return {}
        entries = [(entry[:5], from_list(entry[5])) for entry in kept["headers"][:MAX_KEPT]]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return {}
    return {
        FileVersion(*numbers): facts
        for numbers, facts in entries
        if facts is not None and all(type(number) is int for number in numbers)
    }


def _read(path: str, name: str) -> HeaderFacts:
    try:
        # Opening a pipe would wait for ever; what was a file may be one now.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb", buffering=0) as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                return _broken(name, "is not a regular file", "give a .gguf file")
            start = file.read(START_BYTES)
            if start[:4] != b"GGUF":
                fault = named_start(start)
                return _broken(name, fault.problem, fault.remedy)
            # Without a name: it belongs to the place where the file was found, not to its content.
            part = parse_part(LocalSource("", found.st_size, file))
    except ModelBroken as exc:
        problem, _, remedy = str(exc).strip().rpartition("; ")
        return _broken(name, problem or remedy, remedy if problem else "download it again")
    except (OSError, ValueError) as exc:
        reason = (exc.strerror if isinstance(exc, OSError) else "") or str(exc)
        problem = f"cannot be read: {reason}"
        return _broken(name, problem, "check its rights", ModelMissing.code)
    tensors = ((tensor.shape, tensor.type_id, tensor.size_bytes) for tensor in part.tensors)
    return facts_of(name, part.metadata, tensors)


def _broken(name: str, problem: str, remedy: str, code: str = ModelBroken.code) -> HeaderFacts:
    return HeaderFacts(kind=kind_by_name(name), problem=problem, remedy=remedy, problem_code=code)
