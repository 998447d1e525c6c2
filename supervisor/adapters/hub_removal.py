"""Deletes models from the cache of the hub, through ``huggingface_hub``: it knows which blobs
several revisions need, and which lie in a store that several repositories share.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agents.errors import FolderNotWritable
from supervisor.adapters.deletion import Deletion, key, names_on_disk
from supervisor.core.library import LibraryModel
from supervisor.core.model_copies import repo_folder
from supervisor.core.model_headers import MODEL, kind_by_name

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRepoInfo, DeleteCacheStrategy, HFCacheInfo

_WEIGHTS: Final = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".onnx")
_LARGE_BYTES: Final = 64 << 20
"""Nothing that only describes a model is larger."""


def hub_deletion(model: LibraryModel) -> Deletion:
    """Whole revisions where no other model is in them; of others only this model. Blocks.

    Raises:
        FolderNotWritable: The cache is damaged there, so that nobody can say who needs what.
    """
    folder = repo_folder(model.path)
    ours = {key(p) for p in (*model.parts, *model.also) if p.startswith(f"{folder}/")}
    cache, repo = _scanned(folder)
    files = {f for each in repo.revisions for f in each.files}
    mine = {f for f in files if key(str(f.file_path)) in ours}
    whole = [each for each in repo.revisions if each.files & mine and _models(each.files) <= mine]
    coming = _coming(repo) if len(whole) == len(repo.revisions) else ""
    if coming:
        whole = []
    going = mine.union(*(each.files for each in whole))
    strategy = cache.delete_files(*going)
    if len(whole) == len(repo.revisions):
        deletes = [repo.repo_path]
    else:
        folders = {each.snapshot_path for each in whole}
        links = {f for f in strategy.files if folders.isdisjoint(f.parents)}
        deletes = sorted(folders) + sorted(links | strategy.blobs)
    shared, shared_bytes = _otherwise_named(strategy, going)
    keeps = [f"{path}: another revision needs it" for path in _needed(strategy, mine)]
    keeps += [f"what is in {path}: it has another name on this disk as well" for path in shared]
    keeps += [f"{coming}: of a download that is not over, or was left behind"] if coming else []

    def do() -> None:
        strategy.execute()
        _clean(folder, [each.commit_hash for each in whole])
        for path in (*strategy.files, *strategy.blobs):
            if os.path.lexists(path):
                raise FolderNotWritable(f"{path} cannot be deleted; check the rights of its folder")

    return Deletion(
        tuple(map(str, deletes)),
        tuple(keeps),
        max(strategy.expected_freed_size - shared_bytes, 0),
        frozenset(key(str(path)) for path in (*strategy.files, *strategy.blobs)),
        do,
    )


def _models(files: "Iterable[CachedFileInfo]") -> "set[CachedFileInfo]":
    """Those for which a revision is kept, in whatever format."""
    return {
        file
        for file in files
        if (file.file_name.lower().endswith(_WEIGHTS) or file.size_on_disk > _LARGE_BYTES)
        and kind_by_name(file.file_name) == MODEL
    }


def _needed(strategy: "DeleteCacheStrategy", mine: "Iterable[CachedFileInfo]") -> list[Path]:
    """Blobs of this model that stay."""
    gone = strategy.files | strategy.blobs
    return sorted({file.blob_path for file in mine} - gone)


def _otherwise_named(
    strategy: "DeleteCacheStrategy", going: "Iterable[CachedFileInfo]"
) -> tuple[Sequence[Path], int]:
    """Blobs whose content stays, since it has another name; how much that is."""
    gone = strategy.files | strategy.blobs
    sizes = {f.blob_path: f.size_on_disk for f in going if f.blob_path in gone}
    found = [p for p in sizes if not p.is_symlink() and names_on_disk(str(p)) > 1]
    return sorted(found), sum(sizes[path] for path in found)


def _clean(folder: str, whole: Sequence[str]) -> None:
    """Remove what is left of revisions, and their repository if there is nothing else in it."""
    if not whole:
        return
    cache, repo = _scanned(folder)
    empty = [each for each in repo.revisions if each.commit_hash in whole and not each.files]
    if len(empty) == len(repo.revisions) and _coming(repo):
        return
    if empty:
        cache.delete_revisions(*(each.commit_hash for each in empty)).execute()


def _coming(repo: "CachedRepoInfo") -> str:
    """A blob that is in no revision: somebody fetches it, or wants to go on with that."""
    linked = {file.blob_path.name for each in repo.revisions for file in each.files}
    try:
        names = sorted(path.name for path in (repo.repo_path / "blobs").iterdir())
    except OSError:  # file systems without links have none
        return ""
    found = (name for name in names if name not in linked and not name.startswith("."))
    name = next(found, "")
    return str(repo.repo_path / "blobs" / name) if name else ""


def _scanned(folder: str) -> "tuple[HFCacheInfo, CachedRepoInfo]":
    from huggingface_hub import scan_cache_dir  # half a second, and seldom needed
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(Path(folder).parent)
    except (CacheNotFound, ValueError) as exc:
        raise _damaged(folder, str(exc)) from exc
    real = os.path.realpath(folder)
    for repo in cache.repos:
        if os.path.realpath(repo.repo_path) == real:
            return cache, repo
    name = Path(folder).name
    raise _damaged(folder, next((str(w) for w in cache.warnings if name in str(w)), "it is gone"))


def _damaged(folder: str, why: str) -> FolderNotWritable:
    return FolderNotWritable(
        f"{folder} is not as huggingface_hub leaves it, so that nothing was deleted: {why}; wait"
        " until downloads into it are over, or delete that folder by hand"
    )
