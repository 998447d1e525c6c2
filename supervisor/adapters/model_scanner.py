"""Lists the models of this host: the places of each tool, grouped into models, with their headers.

A scan looks at every folder and file, and reads only headers of versions that it has not seen.
"""

import logging
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from supervisor.adapters.header_store import HeaderStore
from supervisor.adapters.model_places import FoundFile, Place, files_in
from supervisor.adapters.model_walk import Stopped, Walk
from supervisor.core.library import LibraryModel, Listing
from supervisor.core.model_faults import error_of, fault_of, warning_of
from supervisor.core.model_headers import (
    MODEL,
    PROJECTOR,
    FileVersion,
    HeaderFacts,
    kind_by_name,
)
from supervisor.core.quantisation import label_in
from supervisor.errors import ModelMissing

log = logging.getLogger(__name__)

FEW: Final = 16
"""Headers that whoever asks for the list waits for: a moment."""

READERS: Final = 2
"""Threads that read headers; each holds the interpreter most of the time."""

_TOLD_EVERY_S: Final = 1.0
_AT_ONCE: Final = 64
_YOUNG_S: Final = 3600.0
"""A file that changed within this time may be on its way; its folder would not tell."""

_PART: Final = re.compile(
    r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class _Group:
    """The files of one model, in order; ``also`` are other names and paths of the same files."""

    files: tuple[FoundFile, ...]
    missing: tuple[str, ...] = ()
    count: int = 1
    also: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[tuple[int, int], ...]:
        return tuple(each.version[:2] for each in self.files)


@dataclass(slots=True)
class _Scan:
    """What the last scan saw."""

    folders: dict[str, int] = field(default_factory=dict)
    young: dict[str, FileVersion] = field(default_factory=dict)
    at_ns: int = 0
    groups: tuple[_Group, ...] = ()
    skipped: tuple[str, ...] = ()
    by_file: dict[tuple[int, int], _Group] = field(default_factory=dict)


class ModelScanner:
    """Scans when it is told to, from any thread; nobody waits for headers that another reads."""

    def __init__(
        self,
        find_places: Callable[[], tuple[Place, ...]],
        headers: HeaderStore,
        knows: Callable[[str], bool | None] = lambda _: None,
    ) -> None:
        """``knows``: whether the engine knows an architecture; see ``engine_architectures``."""
        self._find_places = find_places
        self._headers = headers
        self._knows = knows
        self._lock = threading.Lock()
        self._scan = _Scan()
        self._built: dict[tuple[object, ...], LibraryModel] = {}

    def scan(self, stop: threading.Event, tell: Callable[[Listing], None] | None = None) -> Listing:
        """List all models. Blocks.

        Args:
            stop: Ends it early, by ``Stopped``.
            tell: Hears what there is at once, and every second until all headers are read. Without
                it those that are not known are read only if they are few, else left for the next.
        """
        with self._lock:
            at_ns = time.time_ns()
            walk = Walk(stop)
            if tell is not None:
                self._headers.forget_recent()
            groups = self._groups(walk)
            self._scan = _seen(walk, groups, at_ns)
            listing = self._listing()
        unread = [f for g in groups for f in g.files if self._headers.known(f.version) is None]
        if not unread or (tell is None and len(unread) > FEW):
            return listing
        if tell is not None:
            tell(listing)

        for _ in self._read(unread, stop):
            if tell is not None:
                tell(self._latest())
        self._save({each.version for group in groups for each in group.files})
        return self._latest()

    def is_outdated(self) -> bool:
        """Whether a scan would find something else; costs one look per folder. Blocks."""
        scan = self._scan
        settled_ns = scan.at_ns - 2_000_000_000  # times of folders are coarse
        for folder, before_ns in scan.folders.items():
            now_ns = _changed_ns(folder)
            if now_ns != before_ns or before_ns > settled_ns:
                return True
        walk = Walk()
        return any(
            version.changed_ns > settled_ns or walk.version(path) != version
            for path, version in scan.young.items()
        )

    def examined(self, path: str) -> LibraryModel:
        """The model that a file belongs to, as it is now, wherever it is. Blocks.

        Raises:
            ModelMissing: There is no such file.
        """
        walk = Walk()
        version = walk.version(path)
        if version is None:
            raise ModelMissing(f"{path} does not exist; check the name or fetch the model")
        known = self._scan.by_file.get(version[:2])
        fresh = _refreshed(known, walk) if known else None
        group = fresh or _group_at(path, walk)
        headers = [self._headers.read(f.path, _file_name(f), f.version) for f in group.files]
        return _model(group, headers, "", self._knows)

    def _groups(self, walk: Walk) -> list[_Group]:
        best: dict[tuple[tuple[int, int], ...], _Group] = {}
        for place in self._find_places():
            for group in sorted(_grouped(files_in(place, walk)), key=_goodness):
                other = best.get(group.identity)
                best[group.identity] = _merged(other, group) if other else group
        return list(best.values())

    def _read(self, unread: list[FoundFile], stop: threading.Event) -> Iterator[None]:
        """Read them, and yield about every second."""
        told_s = time.monotonic()
        with ThreadPoolExecutor(READERS, thread_name_prefix="headers") as pool:
            for start in range(0, len(unread), _AT_ONCE):
                if stop.is_set():
                    raise Stopped
                for _ in pool.map(self._read_one, unread[start : start + _AT_ONCE]):
                    pass
                if time.monotonic() - told_s >= _TOLD_EVERY_S:
                    told_s = time.monotonic()
                    yield

    def _latest(self) -> Listing:
        """Of what was seen last, perhaps by another scan, with what was read since."""
        with self._lock:
            return self._listing()

    def _save(self, used: set[FileVersion]) -> None:
        try:
            self._headers.save(used)
        except OSError as exc:  # they are only read again after the next start
            log.warning("models.headers_not_kept", extra={"reason": str(exc)})

    def _read_one(self, file: FoundFile) -> None:
        self._headers.read(file.path, _file_name(file), file.version)

    def _listing(self) -> Listing:
        groups = self._scan.groups
        known: dict[str, bool | None] = {}

        def knows(architecture: str) -> bool | None:
            if architecture not in known:
                known[architecture] = self._knows(architecture)
            return known[architecture]

        read = [(group, [self._headers.known(f.version) for f in group.files]) for group in groups]
        projectors = _projectors(read)
        built: dict[tuple[object, ...], LibraryModel] = {}
        unread = 0
        for group, headers in read:
            projector = projectors(group)
            whole = [header for header in headers if header is not None]
            is_known = len(whole) == len(headers)
            unread += not is_known
            architecture = whole[0].architecture if whole else ""
            key = (group, is_known, projector, knows(architecture) if architecture else None)
            model = self._built.get(key)
            built[key] = model or _model(group, whole if is_known else None, projector, knows)
        self._built = built
        models = sorted(built.values(), key=lambda model: (model.name.casefold(), model.path))
        return Listing(tuple(models), self._scan.skipped, unread)


def _seen(walk: Walk, groups: list[_Group], at_ns: int) -> _Scan:
    since_ns = at_ns - int(_YOUNG_S * 1e9)
    files = [each for group in groups for each in group.files]
    young = {f.path: f.version for f in files if f.version.changed_ns > since_ns}
    by_file = {each.version[:2]: group for group in groups for each in group.files}
    return _Scan(walk.folders, young, at_ns, tuple(groups), tuple(walk.skipped), by_file)


def _changed_ns(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns  # noqa: PTH116 - ten thousand times
    except (OSError, ValueError):
        return 0


# -- files that belong together ------------------------------------------------------------------


def _grouped(files: Iterable[FoundFile]) -> list[_Group]:
    """Parts that lie in one folder and are named as parts of one model."""
    whole: list[_Group] = []
    split: dict[tuple[str, int], dict[int, FoundFile]] = defaultdict(dict)
    for each in files:
        match = _PART.fullmatch(each.path)
        if match is None or not 1 < int(match["count"]) <= 10_000:
            whole.append(_Group((each,)))
        else:
            split[match["stem"], int(match["count"])][int(match["number"])] = each
    for (stem, count), found in split.items():
        whole.append(_split_group(stem, count, found))
    return whole


def _split_group(stem: str, count: int, found: dict[int, FoundFile]) -> _Group:
    name = os.path.basename(stem)  # noqa: PTH119
    missing = tuple(
        f"{name}-{number:05d}-of-{count:05d}.gguf"
        for number in range(1, count + 1)
        if number not in found
    )
    return _Group(tuple(found[number] for number in sorted(found)), missing, count)


def _group_at(path: str, walk: Walk) -> _Group:
    """Of a file that is in none of the places, or of a tool that was not scanned yet."""
    path = os.path.abspath(path)  # noqa: PTH100 - a link stays what it is
    match = _PART.fullmatch(path)
    if match is None or not 1 < int(match["count"]) <= 10_000:
        names = {0: path}
    else:
        stem, count = match["stem"], int(match["count"])
        names = {n: f"{stem}-{n:05d}-of-{match['count']}.gguf" for n in range(1, count + 1)}
    found = {}
    for number, name in names.items():
        version = walk.version(name)
        if version is not None:
            found[number] = FoundFile(name, "folder", version)
    if match is None or 0 in found:
        return _Group(tuple(found.values()))
    return _split_group(match["stem"], int(match["count"]), found)


def _refreshed(group: _Group, walk: Walk) -> _Group | None:
    """The same with its files as they are now; None if one is gone, or a part came."""
    if group.missing:
        return None
    files = []
    for each in group.files:
        version = walk.version(each.path)
        if version is None:
            return None
        files.append(replace(each, version=version))
    return replace(group, files=tuple(files))


def _goodness(group: _Group) -> tuple[int, int]:
    return group.files[0].rank, -group.files[0].version.modified_ns


def _merged(best: _Group, other: _Group) -> _Group:
    """Two ways to the same files, under the better name: in one's own folders no link's."""
    if other.files[0].source == best.files[0].source == "folder":
        is_link = (os.path.islink(group.files[0].path) for group in (best, other))  # noqa: PTH114
        if tuple(is_link) == (True, False):
            best, other = replace(other, also=best.also), best
    names = (*best.also, *(f.path for f in other.files), *_names(other))
    kept = {f.path for f in best.files} | set(_names(best))
    return replace(best, also=tuple(dict.fromkeys(name for name in names if name not in kept)))


def _names(group: _Group) -> tuple[str, ...]:
    first = group.files[0]
    return tuple(name for name in (first.name, first.reference) if name)


def _file_name(file: FoundFile) -> str:
    """What may tell the quantisation; the tag of Ollama's, whose files are named by digest."""
    return file.name or os.path.basename(file.path)  # noqa: PTH119


# -- what the list shows -------------------------------------------------------------------------


def _projectors(
    read: list[tuple[_Group, list[HeaderFacts | None]]],
) -> Callable[[_Group], str]:
    """Which projector lies beside a model: of its repository, or the only ones of a folder."""
    beside: dict[tuple[str, str], list[str]] = defaultdict(list)
    models: dict[tuple[str, str], int] = defaultdict(int)
    kinds = [_kind(group, headers[0]) for group, headers in read]
    if PROJECTOR not in kinds:
        return lambda group: group.files[0].projector
    for (group, headers), kind in zip(read, kinds, strict=True):
        if kind == PROJECTOR and (headers[0] is None or not headers[0].problem):
            beside[_beside(group)].append(group.files[0].path)
        elif kind == MODEL:
            models[_beside(group)] += 1

    def projector_of(group: _Group) -> str:
        first, place = group.files[0], _beside(group)
        if first.projector:
            return first.projector
        found = beside.get(place)
        if not found or first.path in found or (not first.repo and models[place] > 1):
            return ""
        return min(found, key=lambda path: ("f16" not in path.lower(), path))

    return projector_of


def _kind(group: _Group, header: HeaderFacts | None) -> str:
    return header.kind if header else kind_by_name(_file_name(group.files[0]))


def _beside(group: _Group) -> tuple[str, str]:
    first = group.files[0]
    return os.path.dirname(first.path), first.repo  # noqa: PTH120


def _model(
    group: _Group,
    headers: list[HeaderFacts] | None,
    projector: str,
    knows: Callable[[str], bool | None],
) -> LibraryModel:
    """``headers`` of all its files, or None while they are not all read."""
    first = group.files[0]
    path, stem = first.path, _PART.sub(r"\g<stem>", first.path)
    head = headers[0] if headers else HeaderFacts(kind=kind_by_name(_file_name(first)))
    name = first.name or Path(stem).name.removesuffix(".gguf")
    fault = None
    if headers:
        named = [(Path(f.path).name, h) for f, h in zip(group.files, headers, strict=True)]
        fault = fault_of(named, group.missing, group.count, knows)
    is_companion = head.kind != MODEL
    if is_companion and not head.problem:
        fault = None  # it is good for what it is; see ``not_a_model``
    return LibraryModel(
        path=path,
        name=name,
        title=head.name,
        source=first.source,
        reference=first.reference,
        repo=first.repo,
        repo_files=tuple(f.repo_file for f in group.files if f.repo_file),
        architecture=head.architecture,
        parameters=sum(h.parameters for h in headers or ()) or None,
        quantisation=head.quantisation or label_in(name),
        size_bytes=sum(each.version.size_bytes for each in group.files),
        ctx_train_tokens=head.ctx_train_tokens or None,
        parts=tuple(each.path for each in group.files),
        also=group.also,
        changed_at=max(each.version.modified_ns for each in group.files) / 1e9,
        is_companion=is_companion,
        kind=head.kind or MODEL,
        projector="" if is_companion else projector,
        is_read=headers is not None,
        problem=str(error_of(path, fault)) if fault else "",
        problem_code=fault.code if fault else "",
        remedy=fault.remedy if fault else "",
        warning=warning_of(head) if headers and not fault else "",
    )
