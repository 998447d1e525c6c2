"""Made-up models in the folders of each tool, laid out as the tool itself does."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from made_gguf import STRING, TENSORS, Tensor, gguf, pair, text, u16, u32

from supervisor.adapters.header_store import HeaderStore
from supervisor.adapters.model_places import Place, places
from supervisor.adapters.model_scanner import ModelScanner

REPO = "owner/Small-GGUF"


def model(
    name: str = "Small",
    *,
    architecture: str = "llama",
    file_type: int = 15,
    rows: int = 2,
    more: Sequence[bytes] = (),
    tokenizer: bool = True,
    template: bool = True,
) -> bytes:
    """A whole model of ``32 + 4 * rows`` parameters."""
    pairs = [
        pair("general.architecture", STRING, text(architecture)),
        pair("general.name", STRING, text(name)),
        u32("general.file_type", file_type),
        u32(f"{architecture}.block_count", 2),
        u32(f"{architecture}.context_length", 4096),
        *more,
    ]
    if tokenizer:
        pairs.append(pair("tokenizer.ggml.model", STRING, text("gpt2")))
    if template:
        pairs.append(pair("tokenizer.chat_template", STRING, text("{{ messages }}")))
    first = 4 * rows * 4
    second = (first + 31) // 32 * 32
    tensors: list[Tensor] = [("a", (4, rows), 0, 0), ("b", (32,), 8, second)]
    return gguf(pairs, tensors, data_bytes=second + 34)


def projector() -> bytes:
    return gguf([pair("general.architecture", STRING, text("clip"))])


def split(
    count: int, number: int, *, says_count: int | None = None, tensors: int | None = None
) -> bytes:
    """Part ``number`` from 1 of a model; all parts together have two tensors each."""
    names: list[Tensor] = [(f"{name}{number}", *rest) for name, *rest in TENSORS]  # type: ignore[misc]
    both = [
        u16("split.no", number - 1),
        u16("split.count", says_count or count),
        pair("split.tensors.count", 5, (tensors or 2 * count).to_bytes(4, "little")),
    ]
    if number > 1:
        return gguf(both, names)
    head = [
        pair("general.architecture", STRING, text("llama")),
        u32("llama.block_count", 2),
        pair("tokenizer.ggml.model", STRING, text("gpt2")),
    ]
    return gguf([*head, *both], names)


def part_name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


def hub_repo(
    cache: Path, repo: str, revisions: dict[str, dict[str, bytes]], main: str = ""
) -> Path:
    """A repository in the cache of the hub: blobs once, links by revision."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    for revision, files in revisions.items():
        for name, content in files.items():
            blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            link = folder / "snapshots" / revision / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(main)
    return folder


def ollama_model(
    models: Path,
    name: str,
    content: bytes,
    *,
    registry: str = "registry.ollama.ai",
    projector: bytes = b"",
) -> Path:
    """``NAMESPACE/NAME:TAG`` or ``NAME:TAG``; returns its blob."""
    path, _, tag = name.partition(":")
    namespaced = path if "/" in path else f"library/{path}"
    layers = [("template", b"{{ .Prompt }}"), ("model", content)]
    layers += [("projector", projector)] if projector else []
    manifest = {"schemaVersion": 2, "layers": [_layer(models, *layer) for layer in layers]}
    file = models / "manifests" / registry / namespaced / tag
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(manifest))
    return models / "blobs" / f"sha256-{hashlib.sha256(content).hexdigest()}"


def _layer(models: Path, kind: str, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    (models / "blobs").mkdir(parents=True, exist_ok=True)
    (models / "blobs" / f"sha256-{digest}").write_bytes(content)
    return {
        "mediaType": f"application/vnd.ollama.image.{kind}",
        "digest": f"sha256:{digest}",
        "size": len(content),
    }


def llama_cpp_file(cache: Path, repo: str, file: str, content: bytes, tag: str = "") -> Path:
    """A download of ``llama-server -hf``, with its manifest if a tag is given."""
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{repo}_{file}".replace("/", "_")
    path.write_bytes(content)
    Path(f"{path}.etag").write_text(f'"{hashlib.sha256(content).hexdigest()}"')
    if tag:
        manifest = {"ggufFile": {"rfilename": file, "size": len(content)}}
        name = f"manifest={repo.replace('/', '=')}={tag}.json"
        (cache / name).write_text(json.dumps(manifest))
    return path


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def settled(folder: Path) -> None:
    """Make all files older than file times are coarse."""
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.utime(Path(root, name), (1_700_000_000, 1_700_000_000), follow_symlinks=False)
    os.utime(folder, (1_700_000_000, 1_700_000_000))


def own_places(home: Path, folders: Sequence[Path] = (), **environ: str) -> tuple[Place, ...]:
    """Of a made-up home; those of the whole host are left out."""
    found = places(environ, home, folders, platform="linux")
    return tuple(place for place in found if not place.path.startswith("/usr/"))


def scanner(home: Path, folders: Sequence[Path] = (), **environ: str) -> ModelScanner:
    headers = HeaderStore(home / "library.json")
    return ModelScanner(lambda: own_places(home, folders, **environ), headers)
