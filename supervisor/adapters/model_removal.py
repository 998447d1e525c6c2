"""Deletes a model's files where its tool allows it, and says what that frees."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agents.errors import FolderNotWritable
from supervisor.core.library import LibraryModel
from supervisor.core.library_views import ModelPlaces, PartPlace, Removal

if TYPE_CHECKING:
    from huggingface_hub import HFCacheInfo

_BESIDE: Final = (".etag", ".json")
"""What llama.cpp keeps beside a file of its cache."""


@dataclass(slots=True)
class _Doing:
    deletes: list[str] = field(default_factory=list)
    keeps: list[str] = field(default_factory=list)
    freed_bytes: int = 0


def removed(model: LibraryModel, *, dry_run: bool) -> Removal:
    """Delete the files of a model; of a cache of the hub what no other revision needs. Blocks.

    Args:
        dry_run: Only say what would go.

    Raises:
        FolderNotWritable: Something could not be deleted; what was before it is gone.
    """
    doing = _Doing()
    try:
        if model.source == "hub":
            _from_hub(model, doing, dry_run=dry_run)
        else:
            _files(model, doing, dry_run=dry_run)
    except OSError as exc:
        raise FolderNotWritable(
            f"{exc.filename or model.path} cannot be deleted: {exc.strerror or exc}; check the"
            " rights of its folder"
        ) from exc
    return Removal(
        path=model.path,
        name=model.name,
        deletes=tuple(doing.deletes),
        keeps=tuple(doing.keeps),
        freed_bytes=doing.freed_bytes,
        is_done=not dry_run,
    )


def _files(model: LibraryModel, doing: _Doing, *, dry_run: bool) -> None:
    others = [path for path in model.also if os.path.isabs(path) and os.path.exists(path)]  # noqa: PTH110, PTH117
    for path in model.parts:
        file = Path(path)
        is_link = file.is_symlink()
        linked = not is_link and file.stat().st_nlink > 1
        if is_link:
            doing.keeps.append(f"{file.resolve()}: {path} is only a link to it")
        elif linked:
            doing.keeps.append(f"{path}: its content has another name on this disk as well")
        _delete(file, doing, freed=not is_link and not linked, dry_run=dry_run)
        if model.source == "llama.cpp":
            for suffix in _BESIDE:
                beside = Path(f"{path}{suffix}")
                if beside.is_file():
                    _delete(beside, doing, freed=True, dry_run=dry_run)
    doing.keeps += [f"{path}: another path of the same file" for path in others]


def _delete(file: Path, doing: _Doing, *, freed: bool, dry_run: bool) -> None:
    if freed:
        doing.freed_bytes += _disk_bytes(file)
    doing.deletes.append(str(file))
    if not dry_run:
        file.unlink(missing_ok=True)


# -- the cache of the hub ------------------------------------------------------------------------


def _from_hub(model: LibraryModel, doing: _Doing, *, dry_run: bool) -> None:
    """Whole revisions through ``huggingface_hub``; of one with other models only these files."""
    links = [Path(path) for path in (*model.parts, *model.also) if "/snapshots/" in path]
    root = _cache_root(Path(model.path))
    cache = _scanned(root)
    ours = {_key(path) for path in links}
    whole, partly = _revisions(cache, ours)
    if whole:
        strategy = cache.delete_revisions(*whole)
        doing.freed_bytes += strategy.expected_freed_size
        doing.deletes += [str(path) for path in sorted((*strategy.repos, *strategy.snapshots))]
        if not dry_run:
            strategy.execute()
    needed = _needed(cache, ours, whole)
    blobs: set[Path] = set()
    for link in (path for path in links if _key(path) in partly):
        blob = link.resolve()
        doing.deletes.append(str(link))
        if not dry_run:
            link.unlink(missing_ok=True)
        if blob == link:  # a copy, where the file system has no links
            doing.freed_bytes += _disk_bytes(blob)
        elif _key(blob) in needed:
            doing.keeps.append(f"{blob}: another revision needs it ({needed[_key(blob)]})")
        else:
            blobs.add(blob)
    for blob in sorted(blobs):
        _delete(blob, doing, freed=True, dry_run=dry_run)
    others = [p for p in model.also if os.path.isabs(p) and "/snapshots/" not in p]  # noqa: PTH117
    doing.keeps += [f"{path}: another path of the same file" for path in others]


def _revisions(cache: "HFCacheInfo", ours: set[str]) -> tuple[list[str], set[str]]:
    """Revisions whose models are all ours; our files in the others."""
    whole, partly = [], set()
    for repo in cache.repos:
        for revision in repo.revisions:
            files = {_key(file.file_path): file for file in revision.files}
            mine = ours & files.keys()
            models = {
                key
                for key, file in files.items()
                if file.file_name.lower().endswith((".gguf", ".safetensors", ".bin", ".pt"))
                and "mmproj" not in file.file_name.lower()
            }
            if mine and models <= ours:
                whole.append(revision.commit_hash)
            else:
                partly |= mine
    return whole, partly


def _needed(cache: "HFCacheInfo", ours: set[str], whole: Iterable[str]) -> Mapping[str, str]:
    """By blob: a file that stays and links to it."""
    gone = set(whole)
    return {
        _key(file.blob_path): str(file.file_path)
        for repo in cache.repos
        for revision in repo.revisions
        if revision.commit_hash not in gone
        for file in revision.files
        if _key(file.file_path) not in ours
    }


def _scanned(root: Path) -> "HFCacheInfo":
    from huggingface_hub import scan_cache_dir  # half a second, and seldom needed
    from huggingface_hub.errors import CacheNotFound, CorruptedCacheException

    try:
        return scan_cache_dir(root)
    except (CacheNotFound, CorruptedCacheException, ValueError) as exc:
        raise FolderNotWritable(
            f"the cache of the hub in {root} cannot be read: {exc}; look at it with 'hf cache list'"
        ) from exc


def _cache_root(path: Path) -> Path:
    """``ROOT/models--OWNER--REPO/snapshots/REVISION/...``."""
    return next(p.parents[1] for p in path.parents if p.name == "snapshots")


def _key(path: Path) -> str:
    """A path with the links of its folders resolved, and not its own."""
    return os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118


# -- where it is ---------------------------------------------------------------------------------


def places_of(model: LibraryModel) -> ModelPlaces:
    """Where a model's files are, with what they take. Blocks."""
    parts = []
    for path in model.parts:
        file = Path(path)
        real = os.path.realpath(path)
        parts.append(
            PartPlace(
                path=path,
                size_bytes=_size(file),
                disk_bytes=_disk_bytes(file),
                content=real if file.is_symlink() else "",
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


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _disk_bytes(file: Path) -> int:
    """Blocks that it takes, where the system tells; st_blocks counts 512 bytes everywhere."""
    try:
        found = file.stat()
    except OSError:
        return 0
    return getattr(found, "st_blocks", (found.st_size + 511) // 512) * 512
