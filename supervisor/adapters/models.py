"""Model files as planning sees them."""

import os
from collections.abc import Iterable
from pathlib import Path

from supervisor.adapters.gguf import read_header
from supervisor.core.entities import ModelFacts

_MAX_LISTED = 500


def read_model(path: str) -> ModelFacts:
    """Read the header of a GGUF file, or of all parts of a split one.

    Raises:
        ModelMissing, ModelBroken: With the file's name and the remedy.
    """
    header = read_header(Path(path).expanduser())
    return ModelFacts(
        path=str(header.path.absolute()),
        name=header.name,
        architecture=header.architecture,
        block_count=header.block_count,
        size_bytes=sum(tensor.size_bytes for tensor in header.tensors),
        ctx_train_tokens=header.context_length,
    )


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
