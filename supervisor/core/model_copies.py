"""The copies of a model: each way by which its files are reached on this host; pure."""

import re
from typing import Final

from supervisor.core.library import LibraryModel, Source

_IN_REPO: Final = re.compile(r"(?P<folder>.*/models--(?P<repo>[^/]+))/snapshots/.*")
_PART: Final = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)


def repo_folder(path: str) -> str:
    """Of a file in a snapshot of the hub's cache: the folder of its repository; else empty."""
    match = _IN_REPO.fullmatch(path)
    return match["folder"] if match else ""


def copy_of(path: str) -> str:
    """What files of one copy share: their repository's folder, or their name without the part."""
    return repo_folder(path) or _PART.sub("", path)


def copy_named(
    model: LibraryModel, text: str, places: tuple[tuple[Source, str], ...]
) -> LibraryModel:
    """The copy that ``text`` names by path or repository; else the one under which it is listed.

    The result has the paths and the source of that copy, and in ``also`` those of the others.

    Args:
        text: What the user gave.
        places: Source and path of each folder in which models are looked for.
    """
    others = [path for path in model.also if path.startswith("/")]
    own = copy_of(model.path)
    named = next((path for path in others if _is_named(path, text)), model.path)
    if text in model.parts or _is_named(model.path, text) or copy_of(named) == own:
        return model
    parts = [path for path in others if copy_of(path) == copy_of(named)]
    also = [name for name in (*model.parts, *model.also) if name not in parts]
    source = next((source for source, folder in places if named.startswith(f"{folder}/")), None)
    return model.model_copy(
        update={
            "path": parts[0],
            "parts": tuple(parts),
            "also": tuple(also),
            "source": source or model.source,
        }
    )


def _is_named(path: str, text: str) -> bool:
    """By path, file name with or without part and suffix, or what the hub calls its repository."""
    name = path.rpartition("/")[2]
    if text == path or text.casefold() in _names(name.casefold()):
        return True
    match = _IN_REPO.fullmatch(path)
    return match is not None and _begins(text, match["repo"].replace("--", "/", 1))


def _names(file: str) -> tuple[str, ...]:
    whole = _PART.sub("", file)
    return file, file.removesuffix(".gguf"), whole, whole.removesuffix(".gguf")


def _begins(text: str, repo: str) -> bool:
    text, repo = text.casefold(), repo.casefold()
    return text == repo or text.startswith((f"{repo}:", f"{repo}/"))
