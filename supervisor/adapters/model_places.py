"""Where tools keep models on this host, and what they call them; nothing is copied or opened but
the small files that say so.

Sources:
    huggingface_hub ``file_download.py`` (``models--OWNER--REPO/snapshots/REVISION``), llama.cpp
    ``common/common.cpp`` ``fs_get_cache_directory`` and ``common/download.cpp``, Ollama
    ``manifest`` and ``envconfig``, LM Studio's ``settings.json`` (``downloadsFolder``).
"""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from supervisor.adapters.model_walk import Seen, Walk
from supervisor.core.library import Source
from supervisor.core.model_headers import MODEL, FileVersion, kind_by_name
from supervisor.core.quantisation import label_in

OLLAMA_MODEL: Final = "application/vnd.ollama.image.model"
OLLAMA_PROJECTOR: Final = "application/vnd.ollama.image.projector"

_MAX_JSON_BYTES: Final = 4 << 20
_HUB_FOLDER: Final = re.compile(r"models--(?P<owner>[^/]+?)--(?P<repo>[^/]+)")
_CACHED_NAME: Final = re.compile(r"(?P<owner>[^_]+)_(?P<repo>.+?-GGUF)_(?P<file>.+)", re.IGNORECASE)
_PART: Final = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_DIGEST: Final = re.compile(r"sha256[:-][0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder in which a tool keeps models."""

    source: Source
    path: str


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of a model where a tool keeps it. The best of several that are the same ranks first.

    ``rank`` is smaller for better ones of one source.
    """

    path: str
    source: Source
    version: FileVersion
    name: str = ""
    """What the tool calls the model; empty: the file's own name."""
    reference: str = ""
    repo: str = ""
    repo_file: str = ""
    rank: int = 0
    projector: str = ""


def places(
    environ: Mapping[str, str],
    home: Path,
    model_folders: Iterable[Path] = (),
    platform: str = sys.platform,
) -> tuple[Place, ...]:
    """All places that this host may have, the best names first; each is there once."""
    cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    found: list[tuple[Source, Path]] = [("hub", folder) for folder in _hub(environ, home, cache)]
    own = home / "Library" / "Caches" if platform == "darwin" else cache
    found += [("llama.cpp", Path(named)) for named in _given(environ, "LLAMA_CACHE")]
    found += [("llama.cpp", own / "llama.cpp")]
    found += [("lm studio", folder) for folder in _lm_studio(home)]
    found += [("ollama", Path(named)) for named in _given(environ, "OLLAMA_MODELS")]
    found += [("ollama", home / ".ollama" / "models")]
    found += [("ollama", Path("/usr/share/ollama/.ollama/models"))]
    found += [("exo", Path(named)) for named in _given(environ, "EXO_MODELS_DIR")]
    found += [("exo", home / ".exo" / "models")]
    found += [("folder", folder.expanduser()) for folder in model_folders]
    found += [("folder", home / "models")]
    made: dict[str, Place] = {}
    for source, folder in found:
        path = os.path.abspath(folder)  # noqa: PTH100 - links in it stay as they are named
        made.setdefault(path, Place(source, path))
    return tuple(made.values())


def _given(environ: Mapping[str, str], name: str) -> list[str]:
    value = environ.get(name, "").strip()
    return [value] if value else []


def _hub(environ: Mapping[str, str], home: Path, cache: Path) -> list[Path]:
    named = [*_given(environ, "HF_HUB_CACHE"), *_given(environ, "HUGGINGFACE_HUB_CACHE")]
    homes = [*_given(environ, "HF_HOME"), str(cache / "huggingface")]
    homes.append(str(home / ".cache" / "huggingface"))
    found = [Path(folder) for folder in named] + [Path(folder) / "hub" for folder in homes]
    return [folder.expanduser() for folder in found]


def _lm_studio(home: Path) -> list[Path]:
    homes = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    pointer = _text(home / ".lmstudio-home-pointer").strip()
    if pointer:
        homes.insert(0, Path(pointer))
    found = []
    for folder in homes:
        settings = _json(folder / "settings.json")
        chosen = settings.get("downloadsFolder") if isinstance(settings, dict) else None
        found += [Path(chosen)] if isinstance(chosen, str) and chosen else []
        found.append(folder / "models")
    return found


def files_in(place: Place, walk: Walk) -> Iterator[FoundFile]:
    """Every file of a model in a place; raises ``Stopped`` when the walk is."""
    if place.source == "hub":
        yield from _hub_files(place, walk)
    elif place.source == "llama.cpp":
        yield from _llama_cpp_files(place, walk)
    elif place.source == "ollama":
        yield from _ollama_files(place, walk)
    elif place.source in ("lm studio", "exo"):
        yield from _by_folder(place, walk)
    else:
        for seen in walk.model_files(place.path):
            yield FoundFile(seen.path, place.source, seen.version)


# -- Hugging Face --------------------------------------------------------------------------------


def _hub_files(place: Place, walk: Walk) -> Iterator[FoundFile]:
    for entry in walk.entries(place.path):
        match = _HUB_FOLDER.fullmatch(entry.name)
        if match is None:
            continue
        repo = f"{match['owner']}/{match['repo']}"
        main = _text(Path(entry.path, "refs", "main")).strip()
        for revision in walk.entries(f"{entry.path}/snapshots"):
            seen = list(walk.model_files(revision.path))
            rank = 0 if revision.name == main else 1
            yield from _of_repo(repo, revision.path, seen, "hub", rank)


def _of_repo(
    repo: str, root: str, seen: list[Seen], source: Source, rank: int = 0
) -> Iterator[FoundFile]:
    """Files that lie below ``root`` as they do in their repository."""
    names = {each.path: each.path[len(root) + 1 :] for each in seen}
    references = _references(repo, names.values())
    for each in seen:
        name = names[each.path]
        reference = references.get(name, "")
        yield FoundFile(each.path, source, each.version, "", reference, repo, name, rank)


def _references(repo: str, names: Iterable[str]) -> dict[str, str]:
    """By file in the repository: its label where that tells it from the others that are here."""
    first: dict[str, str] = {}
    for name in sorted(names):
        first.setdefault(_PART.sub(".gguf", name), name)
    labels = {stem: label_in(stem) for stem in first if not _is_companion(stem)}
    counts = Counter(labels.values())
    found = {}
    for name in names:
        stem = _PART.sub(".gguf", name)
        label = labels.get(stem, "")
        is_only = bool(label) and counts[label] == 1
        found[name] = f"{repo}:{label}" if is_only else f"{repo}/{first[stem]}"
    return found


def _is_companion(name: str) -> bool:
    return kind_by_name(name.rpartition("/")[2]) != MODEL


# -- llama.cpp -----------------------------------------------------------------------------------


def _llama_cpp_files(place: Place, walk: Walk) -> Iterator[FoundFile]:
    seen = list(walk.model_files(place.path))
    told = dict(_told_by_manifests(place, walk)) if seen else {}
    by_repo: dict[str, list[tuple[Seen, str]]] = {}
    for each in seen:
        repo, file = told.get(each.name) or _told_by_name(each.name)
        by_repo.setdefault(repo, []).append((each, file))
    for repo, files in by_repo.items():
        references = _references(repo, [file for _, file in files]) if repo else {}
        for each, file in files:
            reference = references.get(file, "")
            yield FoundFile(each.path, "llama.cpp", each.version, "", reference, repo, file)


def _told_by_manifests(place: Place, walk: Walk) -> Iterator[tuple[str, tuple[str, str]]]:
    """Names of cached files, with repository and file there: ``manifest=OWNER=REPO=TAG.json``."""
    for entry in walk.entries(place.path):
        parts = entry.name.removesuffix(".json").split("=")
        if len(parts) != 4 or parts[0] != "manifest" or not entry.name.endswith(".json"):
            continue
        repo = f"{parts[1]}/{parts[2]}"
        manifest = _json(Path(entry.path))
        for key in ("ggufFile", "mmprojFile"):
            file = manifest.get(key) if isinstance(manifest, dict) else None
            name = file.get("rfilename") if isinstance(file, dict) else None
            if isinstance(name, str) and name:
                yield from _all_parts(repo, name)


def _all_parts(repo: str, name: str) -> Iterator[tuple[str, tuple[str, str]]]:
    match = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", name)
    names = [name]
    if match and int(match[2]) <= 1000:
        numbers = range(1, int(match[2]) + 1)
        names = [f"{match[1]}-{number:05d}-of-{match[2]}.gguf" for number in numbers]
    for each in names:
        yield f"{repo}_{each}".replace("/", "_"), (repo, each)


def _told_by_name(name: str) -> tuple[str, str]:
    """``OWNER_REPO-GGUF_FILE.gguf``; where the repository is called otherwise, nobody can say."""
    match = _CACHED_NAME.fullmatch(name)
    return (f"{match['owner']}/{match['repo']}", match["file"]) if match else ("", name)


# -- LM Studio and exo ---------------------------------------------------------------------------


def _by_folder(place: Place, walk: Walk) -> Iterator[FoundFile]:
    """``OWNER/REPO/FILE`` or, of exo, ``OWNER--REPO/FILE``."""
    seen = list(walk.model_files(place.path))

    def root(each: Seen) -> str:
        parts = each.path[len(place.path) + 1 :].split("/")
        if place.source == "exo":
            return parts[0] if len(parts) > 1 and "--" in parts[0] else ""
        return "/".join(parts[:2]) if len(parts) > 2 else ""

    for folder, files in groupby(sorted(seen, key=root), key=root):
        if not folder:
            for each in files:
                yield FoundFile(each.path, place.source, each.version)
            continue
        repo = folder.replace("--", "/", 1) if place.source == "exo" else folder
        yield from _of_repo(repo, f"{place.path}/{folder}", list(files), place.source)


# -- Ollama --------------------------------------------------------------------------------------


def _ollama_files(place: Place, walk: Walk) -> Iterator[FoundFile]:
    root = f"{place.path}/manifests"
    for registry in walk.entries(root):
        for namespace in walk.entries(registry.path):
            for model in walk.entries(namespace.path):
                for tag in walk.entries(model.path):
                    if tag.name.startswith("."):
                        continue
                    named = (registry.name, namespace.name, model.name, tag.name)
                    yield from _of_manifest(place, walk, named, tag.path)


def _of_manifest(
    place: Place, walk: Walk, named: tuple[str, str, str, str], path: str
) -> Iterator[FoundFile]:
    layers = _layers(_json(Path(path)))
    blobs = [digest for kind, digest in layers if kind == OLLAMA_MODEL]
    if not blobs:
        return
    blob = f"{place.path}/blobs/{blobs[0]}"
    version = walk.version(blob)
    if version is None:
        return
    projector = next((digest for kind, digest in layers if kind == OLLAMA_PROJECTOR), "")
    registry, namespace, model, tag = named
    is_hub = registry in ("hf.co", "huggingface.co")
    name = ollama_name(*named)
    yield FoundFile(
        blob,
        "ollama",
        version,
        name,
        f"{namespace}/{model}:{tag}" if is_hub else name,
        f"{namespace}/{model}" if is_hub else "",
        "",
        0,
        f"{place.path}/blobs/{projector}" if projector else "",
    )


def ollama_name(registry: str, namespace: str, model: str, tag: str) -> str:
    """What ``ollama run`` takes."""
    if registry != "registry.ollama.ai":
        return f"{registry}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == "library" else f"{namespace}/{model}:{tag}"


def _layers(manifest: Any) -> list[tuple[str, str]]:
    """Kind and blob's name of each; a digest that is none could lead out of the folder."""
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    found = []
    for layer in layers if isinstance(layers, list) else []:
        if not isinstance(layer, dict):
            continue
        digest = str(layer.get("digest", ""))
        if _DIGEST.fullmatch(digest):
            found.append((str(layer.get("mediaType", "")), digest.replace(":", "-")))
    return found


# -- small files ---------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_JSON_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path) or "null")
    except (ValueError, RecursionError):
        return None
