"""Model files as planning sees them, here or on the hub."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.adapters.gguf import GgufHeader, read_header
from supervisor.core.entities import ModelFacts
from supervisor.core.model_reference import parse_reference
from supervisor.core.model_shape import shape_of
from supervisor.errors import ModelMissing
from supervisor.ports import Model

if TYPE_CHECKING:
    from supervisor.adapters.hub_http import Hub

_MAX_LISTED = 500


def read_model(path: str) -> Model:
    """Read the header of a GGUF file, or of all parts of a split one.

    Raises:
        ModelMissing, ModelBroken: With the file's name and the remedy.
    """
    if parse_reference(path) is not None and not Path(path).expanduser().exists():
        raise ModelMissing(
            f"{path} is not on this host; it can be planned, but fetch it before a launch and give "
            "the path of its .gguf file (of several, the first)"
        )
    header = read_header(Path(path).expanduser())
    return _model(header, str(header.path.absolute()))


def read_remote_model(reference: str, folder: Path, hub: "Hub | None" = None) -> Model:
    """Read the header of a model on the hub; its path is the reference itself.

    Args:
        reference: Such as ``OWNER/REPO:QUANT``; see ``hub.is_reference``.
        folder: Keeps headers, and the sparse files that the engine plans with.
        hub: The one that the environment names, unless given.

    Raises:
        ProjectError: Of the kinds that ``hub.read_remote`` names.
    """
    from supervisor.adapters.hub import read_remote  # half a second, and seldom needed

    remote = read_remote(reference, folder, hub)
    return _model(remote.header, reference, remote.stand_in)


def read_any_model(text: str, folder: Path) -> Model:
    """Read the header of a file here, or of a model on the hub, whichever ``text`` names.

    Raises:
        ProjectError: Of the kinds that ``read_model`` and ``read_remote_model`` name.
    """
    if parse_reference(text) is not None:
        from supervisor.adapters.hub import is_reference

        if is_reference(text):
            return read_remote_model(text, folder)
    return read_model(text)


def _model(header: GgufHeader, path: str, stand_in: Path | None = None) -> Model:
    tensors = ((t.name, t.shape, t.type_id, t.size_bytes) for t in header.tensors)
    facts = ModelFacts(
        path=path,
        name=header.name,
        architecture=header.architecture,
        block_count=header.block_count,
        size_bytes=sum(tensor.size_bytes for tensor in header.tensors),
        ctx_train_tokens=header.context_length,
    )
    return Model(facts, shape_of(header.metadata, tensors), stand_in)


def list_models(folders: Iterable[Path]) -> list[dict[str, object]]:
    """GGUF files in ``folders``; later parts of split models are not repeated."""
    found: list[dict[str, object]] = []
    for folder in folders:
        for root, _, names in os.walk(folder, onerror=lambda _: None):
            for name in sorted(names):
                if not name.endswith(".gguf") or _is_later_part(name):
                    continue
                path = Path(root) / name
                try:
                    size_bytes = path.stat().st_size
                except OSError:
                    continue
                found.append({"path": str(path), "name": path.stem, "size_bytes": size_bytes})
                if len(found) >= _MAX_LISTED:
                    return found
    return found


def _is_later_part(name: str) -> bool:
    return "-of-" in name and not name.rsplit("-of-", 1)[0].endswith("-00001")
