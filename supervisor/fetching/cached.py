"""Models in the hub's cache: what is there, and what was begun."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from supervisor.adapters.models import read_any_model, read_model
from supervisor.core.model_reference import Reference, RepoFile, choose, parse_reference
from supervisor.core.pulling import PullPart
from supervisor.errors import HubOffline, HubUnreachable, ModelAmbiguous, ModelMissing
from supervisor.ports import Model, ModelReader


class HubFiles:
    """The hub, and its cache on this host. All of it blocks."""

    def resolve(self, reference: str) -> tuple[PullPart, ...]:
        """Ask the hub for the files of a model, in order, and for its projector.

        Raises:
            ModelMissing, ModelAmbiguous, ModelForbidden, HubOffline, HubUnreachable
        """
        from supervisor.adapters.hub import resolve  # half a second, and seldom needed

        return tuple(
            PullPart(
                repo=part.repo,
                revision=part.revision,
                path=part.path,
                size_bytes=part.size_bytes,
                etag=part.etag,
            )
            for part in resolve(reference, with_projector=True)
        )

    def path_of(self, parts: Sequence[PullPart]) -> Path | None:
        """Where the first of these files lies, if all of them are there."""
        snapshot = _repo_folder(parts[0].repo) / "snapshots" / parts[0].revision
        paths = [snapshot / part.path for part in parts]
        is_whole = all(
            _size_bytes(path) == part.size_bytes for path, part in zip(paths, parts, strict=True)
        )
        return paths[0] if is_whole else None

    def find(self, text: str) -> Path | None:
        """A model of the cache by its reference, without asking the hub; the newest of several."""
        reference = parse_reference(text)
        if reference is None:
            return None
        folder = _repo_folder(reference.repo)
        for snapshot in _snapshots(folder):
            found = _chosen(snapshot, reference)
            if found is not None:
                return found
        return None

    def done_bytes(self, parts: Sequence[PullPart]) -> list[int]:
        """Of each file: what is there of it."""
        from supervisor.adapters.hub_http import RemotePart
        from supervisor.fetching.blob import there_bytes

        cache = _cache()
        return [there_bytes(RemotePart(**part.model_dump()), cache) for part in parts]

    def forget(self, parts: Sequence[PullPart]) -> None:
        """Remove what was begun and is not whole."""
        from supervisor.adapters.hub_http import RemotePart
        from supervisor.fetching.blob import forget

        for part in parts:
            forget(RemotePart(**part.model_dump()), _cache())

    def note_main(self, parts: Sequence[PullPart]) -> None:
        """Let tools that ask for no version find this one while they are offline."""
        reference = _repo_folder(parts[0].repo) / "refs" / "main"
        with suppress(OSError):
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(parts[0].revision)


def launch_reader(
    local: Callable[[str], Path | None], find: Callable[[str], Path | None], folder: Path
) -> ModelReader:
    """Reads a model's file if it is on this host, and else its header from the hub.

    Args:
        local: The file of a reference that was fetched.
        find: The same for a reference that may mean several; asked when the hub cannot be.
        folder: Keeps headers.
    """

    def read(path: str) -> Model:
        is_path = parse_reference(path) is None or os.path.exists(path)  # noqa: PTH110
        if is_path:
            return read_model(path)
        if (there := local(path)) is not None:
            return read_model(str(there))
        try:
            return read_any_model(path, folder)
        except (HubOffline, HubUnreachable):
            if (there := find(path)) is None:
                raise
            return read_model(str(there))

    return read


def _cache() -> Path:
    from supervisor.fetching.line import cache_folder

    return cache_folder()


def _repo_folder(repo: str) -> Path:
    return _cache() / f"models--{repo.replace('/', '--')}"


def _snapshots(folder: Path) -> list[Path]:
    """Of a repository: the one that is called main, then the others, the newest first."""
    found: list[Path] = []
    with suppress(OSError):
        found = sorted(
            (folder / "snapshots").iterdir(), key=lambda each: each.stat().st_mtime, reverse=True
        )
    with suppress(OSError, UnicodeDecodeError):
        main = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        found = [each for each in found if each == main] + [f for f in found if f != main]
    return found


def _chosen(snapshot: Path, reference: Reference) -> Path | None:
    sizes = ((path, _size_bytes(path)) for path in snapshot.rglob("*.gguf"))
    files = [
        RepoFile(path=path.relative_to(snapshot).as_posix(), size_bytes=size_bytes)
        for path, size_bytes in sizes
        if size_bytes is not None
    ]
    try:
        return snapshot / choose(files, reference)[0].path
    except (ModelMissing, ModelAmbiguous):
        return None


def _size_bytes(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
