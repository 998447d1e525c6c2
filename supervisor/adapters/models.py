"""Model files as planning sees them, here or on the hub."""

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from supervisor.adapters.gguf import GgufHeader, read_header
from supervisor.core.entities import ModelFacts
from supervisor.core.model_reference import parse_reference
from supervisor.core.model_shape import shape_of
from supervisor.core.seeding import FileTensor
from supervisor.errors import ModelMissing
from supervisor.ports import Model

if TYPE_CHECKING:
    from supervisor.adapters.hub_http import Hub

_KEPT_MODELS: Final = 32
_SETTLED_NS: Final = 2_000_000_000
"""What was written within this time is read again: file times are coarse."""


class _Version(NamedTuple):
    """What differs as soon as a file is written or replaced; nobody can set ``changed_ns``."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class _Known:
    """A model, and what its files were when it was read."""

    model: Model
    versions: dict[Path, _Version]


_known: OrderedDict[Path, _Known] = OrderedDict()


def read_model(path: str) -> Model:
    """Read the header of a GGUF file, or of all parts of a split one; once until one changes.

    Raises:
        ModelMissing, ModelBroken: With the file's name and the remedy.
    """
    try:
        file = Path(path).expanduser()
    except RuntimeError as exc:  # such as "~nobody/model.gguf"
        raise ModelMissing(f"{path} is not on this host: {exc}") from exc
    if parse_reference(path) is not None and not file.exists():
        raise ModelMissing(
            f"{path} is not on this host; it can be planned, but fetch it before a launch and give "
            "the path of its .gguf file (of several, the first)"
        )
    key = file.absolute()
    known = _known.get(key)
    if known is not None and _versions(known.versions) == known.versions:
        return known.model
    settled_ns = time.time_ns() - _SETTLED_NS
    header = read_header(file)
    model = _model(header, str(key))
    versions = _versions(part.absolute() for part in header.parts)
    if versions and all(version.changed_ns < settled_ns for version in versions.values()):
        _known[key] = _Known(model, versions)
        while len(_known) > _KEPT_MODELS:
            _known.popitem(last=False)
    return model


def _versions(paths: Iterable[Path]) -> dict[Path, _Version]:
    """By file; none if one of them is not there, about which reading says more."""
    try:
        found = {path: path.stat() for path in paths}
    except (OSError, ValueError):
        return {}
    return {
        path: _Version(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        for path, s in found.items()
    }


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
    located = (
        ()
        if stand_in
        else tuple(
            FileTensor(t.name, file.absolute(), t.offset_bytes, t.size_bytes)
            for file, t in header.located()
        )
    )
    return Model(facts, shape_of(header.metadata, tensors), stand_in, located)
