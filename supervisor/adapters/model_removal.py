"""Deletes a model's files where its tool allows it, and says what that frees."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agents.errors import FolderNotWritable
from supervisor.adapters.deletion import Deletion, disk_bytes, hops, key, names_on_disk
from supervisor.adapters.hub_removal import hub_deletion
from supervisor.core.library import LibraryModel
from supervisor.core.library_views import ModelPlaces, PartPlace, Removal
from supervisor.core.model_copies import repo_folder

_BESIDE: Final = (".etag", ".json")
"""What llama.cpp keeps beside a file of its cache."""


def removed(model: LibraryModel, *, dry_run: bool) -> Removal:
    """Delete one copy of a model; of a cache of the hub what no other revision needs. Blocks.

    Args:
        model: As ``copy_named`` gives it.
        dry_run: Only say what would go.

    Raises:
        FolderNotWritable: Something could not be deleted; what was before it is gone.
    """
    try:
        deletion = hub_deletion(model) if repo_folder(model.path) else _of_files(model)
        keeps = (*deletion.keeps, *_others(model, deletion))
        if not dry_run:
            deletion.do()
    except OSError as exc:
        raise FolderNotWritable(
            f"{exc.filename or model.path} cannot be deleted: {exc.strerror or exc}; check the"
            " rights of its folder"
        ) from exc
    return Removal(
        path=model.path,
        name=model.name,
        deletes=deletion.deletes,
        keeps=keeps,
        freed_bytes=deletion.freed_bytes,
        is_done=not dry_run,
    )


def _of_files(model: LibraryModel) -> Deletion:
    deletes: list[str] = []
    keeps: list[str] = []
    freed_bytes = 0
    for path in model.parts:
        deletes.append(path)
        if os.path.islink(path):  # noqa: PTH114
            keeps.append(f"{os.path.realpath(path)}: {path} is only a link to it")
        elif names_on_disk(path) > 1:
            keeps.append(f"what is in {path}: it has another name on this disk as well")
        else:
            freed_bytes += disk_bytes(path)
        beside = [f"{path}{suffix}" for suffix in _BESIDE] if model.source == "llama.cpp" else []
        deletes += [file for file in beside if os.path.isfile(file)]  # noqa: PTH113

    def do() -> None:
        for path in deletes:
            Path(path).unlink(missing_ok=True)

    return Deletion(tuple(deletes), tuple(keeps), freed_bytes, frozenset(map(key, deletes)), do)


def _others(model: LibraryModel, deletion: Deletion) -> Iterator[str]:
    """What becomes of the other ways to the same files."""
    for path in model.also:
        is_told = any(kept.startswith(f"{path}: ") for kept in deletion.keeps)
        if not os.path.isabs(path) or not os.path.lexists(path) or is_told:  # noqa: PTH117
            continue
        if key(path) in deletion.gone:
            continue
        leads_nowhere = not deletion.gone.isdisjoint(hops(path)[1:])
        what = (
            "a link, which then leads nowhere" if leads_nowhere else "another path of its content"
        )
        yield f"{path}: {what}"


# -- where it is ---------------------------------------------------------------------------------


def places_of(model: LibraryModel) -> ModelPlaces:
    """Where a model's files are, with what they take. Blocks."""
    parts = []
    for path in model.parts:
        is_link = os.path.islink(path)  # noqa: PTH114
        parts.append(
            PartPlace(
                path=path,
                size_bytes=_size(path),
                disk_bytes=disk_bytes(path),
                content=os.path.realpath(path) if is_link else "",
            )
        )
    return ModelPlaces(
        path=model.path,
        name=model.name,
        source=model.source,
        parts=tuple(parts),
        also=model.also,
        projector=model.projector,
    )


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0
