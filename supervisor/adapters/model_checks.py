"""Compares files of models with what they should contain, as far as anything tells that."""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from agents.errors import ProjectError
from supervisor.adapters.deletion import hops
from supervisor.adapters.model_walk import Stopped, version_of
from supervisor.core.library import LibraryModel
from supervisor.core.library_views import VerifiedFile, VerifiedModel, VerifyProgress
from supervisor.errors import ArchitectureUnsupported, HubOffline, HubUnreachable

_CHUNK_BYTES: Final = 4 << 20
_TOLD_EVERY_BYTES: Final = 64 << 20
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHA1: Final = re.compile(r"[0-9a-f]{40}")
_ORDER: Final = ("wrong", "unproven", "good")

Etags = Callable[[str], Mapping[str, str]]
"""By file of a repository: what the hub says of its content. Raises ``ProjectError``."""


class _Digest(NamedTuple):
    """What a file should have; ``git`` ones count as git does."""

    text: str
    told_by: str
    is_git: bool = False
    is_of_now: bool = False
    """What the hub has today, which may be newer than the file."""


class ModelChecks:
    """Reads whole files; one model at a time is enough for any disk."""

    def __init__(self, etags: Etags) -> None:
        self._etags = etags

    def verify(
        self,
        models: list[LibraryModel],
        tell: Callable[[VerifyProgress], None],
        stop: threading.Event,
    ) -> tuple[VerifiedModel, ...]:
        """Check all files of these models. Blocks, for as long as the disk takes.

        Raises:
            Stopped: ``stop`` was set.
        """
        wanted = list(self._all_wanted(models, stop))
        total = sum(_size(path) for _, digests in wanted for path, d in digests.items() if d)
        meter = _Meter(total, tell, stop)
        return tuple(_verified(model, digests, meter) for model, digests in wanted)

    def _all_wanted(
        self, models: list[LibraryModel], stop: threading.Event
    ) -> Iterator[tuple[LibraryModel, dict[str, _Digest | None]]]:
        """Each repository is asked for once, and none any more when the hub does not answer."""
        asked: dict[str, Mapping[str, str]] = {}
        is_there = True
        for model in models:
            if stop.is_set():
                raise Stopped
            found = {path: _from_name(path) or _from_etag_file(path) for path in model.parts}
            is_told = len(model.repo_files) == len(model.parts) and not all(found.values())
            if is_told and model.repo not in asked and is_there:
                try:
                    asked[model.repo] = self._etags(model.repo)
                except (HubOffline, HubUnreachable):
                    is_there = False
                except ProjectError:  # gone from the hub, or not for us: its structure has to do
                    asked[model.repo] = {}
            etags = asked.get(model.repo, {}) if is_told else {}
            yield model, _from_etags(model, found, etags)


def _from_etags(
    model: LibraryModel, found: dict[str, _Digest | None], etags: Mapping[str, str]
) -> dict[str, _Digest | None]:
    """By path; None of a file of which nobody can say what it should contain."""
    if etags:
        for path, name in zip(model.parts, model.repo_files, strict=True):
            etag = etags.get(name, "").strip('"').removeprefix("W/").strip('"')
            if found[path] is None and _SHA256.fullmatch(etag):
                found[path] = _Digest(etag, f"the hub, of {model.repo}", is_of_now=True)
    return found


class _Changed(Exception):
    """A file was written or replaced while it was read."""


class _Meter:
    """Counts bytes over all files, and tells now and then."""

    def __init__(
        self, total: int, tell: Callable[[VerifyProgress], None], stop: threading.Event
    ) -> None:
        self._total, self._tell, self._stop = total, tell, stop
        self._done = self._told = 0

    def add(self, path: str, count: int) -> None:
        if self._stop.is_set():
            raise Stopped
        self._done += count
        if self._done - self._told >= _TOLD_EVERY_BYTES or not count:
            self._told = self._done
            total = max(self._total, self._done)
            self._tell(VerifyProgress(path=path, done_bytes=self._done, total_bytes=total))


def _verified(
    model: LibraryModel, digests: Mapping[str, _Digest | None], meter: _Meter
) -> VerifiedModel:
    files = [_verified_file(path, digest, meter) for path, digest in digests.items()]
    if model.problem and model.problem_code != ArchitectureUnsupported.code:
        files = [file for file in files if file.verdict != "unproven"]
        files.append(VerifiedFile(path=model.path, verdict="wrong", detail=model.problem))
    verdict = min((file.verdict for file in files), key=_ORDER.index, default="wrong")
    return VerifiedModel(path=model.path, name=model.name, verdict=verdict, files=tuple(files))


def _verified_file(path: str, wanted: _Digest | None, meter: _Meter) -> VerifiedFile:
    if wanted is None:
        detail = "nothing tells its checksum; its header and size are as they should be"
        return VerifiedFile(path=path, verdict="unproven", detail=detail)
    meter.add(path, 0)
    try:
        found = _digest_of(path, wanted, meter)
    except _Changed:
        detail = "changed while it was read; check it again when nobody writes to it"
        return VerifiedFile(path=path, verdict="unproven", detail=detail)
    except OSError as exc:
        detail = f"cannot be read: {exc.strerror or exc}"
        return VerifiedFile(path=path, verdict="wrong", detail=detail)
    kind = "git's checksum" if wanted.is_git else "sha256"
    if found == wanted.text:
        detail = f"{kind} as told by {wanted.told_by}"
        return VerifiedFile(path=path, verdict="good", detail=detail)
    why = ": damaged, or older than what is there now" if wanted.is_of_now else ""
    detail = (
        f"{kind} is {found[:12]}…, {wanted.told_by} says {wanted.text[:12]}…{why}; delete it and"
        " download it again"
    )
    return VerifiedFile(path=path, verdict="wrong", detail=detail)


def _digest_of(path: str, wanted: _Digest, meter: _Meter) -> str:
    # Opening a pipe would wait for ever; what was a file may be one now.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb", buffering=0) as file:
        before = os.fstat(handle)
        size = before.st_size
        made = hashlib.sha1(f"blob {size}\0".encode()) if wanted.is_git else hashlib.sha256()  # noqa: S324
        while chunk := file.read(_CHUNK_BYTES):
            made.update(chunk)
            meter.add(path, len(chunk))
            if file.tell() > size:
                raise _Changed
        if version_of(os.fstat(handle)) != version_of(before):
            raise _Changed
    if version_of(os.stat(path)) != version_of(before):  # noqa: PTH116
        raise _Changed
    return made.hexdigest()


def _from_name(path: str) -> _Digest | None:
    """Blobs are named by their content: of the hub's cache and of Ollama.

    A blob of the hub may be a link itself, to one whose name is another kind of hash.
    """
    for hop in map(Path, hops(path)):
        name = hop.name.removeprefix("sha256-")
        if hop.parent.name != "blobs":
            continue
        if _SHA256.fullmatch(name):
            return _Digest(name, "its name")
        if _SHA1.fullmatch(hop.name):
            return _Digest(name, "its name", is_git=True)
    return None


def _from_etag_file(path: str) -> _Digest | None:
    """llama.cpp keeps beside a file what the hub said of it."""
    try:
        text = Path(f"{path}.etag").read_bytes()[:200].decode("ascii", "replace")
    except OSError:
        return None
    etag = text.strip().removeprefix("W/").strip('"')
    return _Digest(etag, f"{Path(path).name}.etag") if _SHA256.fullmatch(etag) else None


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
