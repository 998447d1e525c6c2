"""Models on the hub that are not downloaded: which files they are, and their headers.

A header is read by ranges and kept as a sparse file of the model's full size (a stand-in), which
the engine can plan with; a second plan of the same version asks the hub for its listing alone.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Final

from agents.errors import FolderNotWritable
from supervisor.adapters.gguf import GgufHeader, joined, part_paths, read_header
from supervisor.adapters.gguf_parse import GgufPart, parse_part
from supervisor.adapters.hub_http import Hub, RemotePart
from supervisor.adapters.sparse_model import PartStart, local_parts, sparse_model
from supervisor.core.model_reference import choose, parse_reference, projector
from supervisor.errors import ModelBroken, ModelMissing

MIB: Final = 1 << 20
FIRST_RANGES_BYTES: Final = (4 * MIB,)
LATER_RANGES_BYTES: Final = (MIB // 4, 4 * MIB)
"""Later parts of a split model have no vocabulary: some kilobytes."""

MORE_BYTES: Final = 8 * MIB
AT_ONCE: Final = 4
"""Later parts that are read side by side; the hub limits those who ask for more."""

KEPT_MODELS: Final = 32
_CACHE_TAG: Final = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Headers of models on a hub, as sparse files. Backups skip this folder: bford.info/cachedir\n"
)


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model on the hub by its header; the paths in ``header`` are names of its files there."""

    reference: str
    parts: tuple[RemotePart, ...]
    header: GgufHeader
    stand_in: Path
    """The first of its sparse files here: the engine can plan with it, not run it."""

    def starts(self) -> list[PartStart]:
        """The parts as ``sparse_model`` takes them.

        Raises:
            ModelMissing, ModelBroken: The stand-in was removed or changed meanwhile.
        """
        return local_parts(read_header(self.stand_in))


def is_reference(text: str) -> bool:
    """Whether ``text`` names a model on the hub and not a file here.

    ``OWNER/REPO``, ``OWNER/REPO:QUANT`` and ``OWNER/REPO/FILE.gguf`` do, unless such a file or
    folder exists; what starts with a dot, a slash or ``~`` does not.
    """
    reference = parse_reference(text)
    if reference is None:
        return False
    here = reference.repo if reference.file else text
    # Path.exists would raise where the rights to look are missing, or the name is too long.
    return not os.path.exists(here)  # noqa: PTH110


def resolve(
    reference: str, hub: Hub | None = None, *, with_projector: bool = False
) -> list[RemotePart]:
    """Ask the hub for the files of a model, in order.

    Args:
        reference: See ``is_reference``.
        hub: The one that the environment names, unless given.
        with_projector: At last what it needs to see images, unless one file was named.

    Raises:
        ModelMissing, ModelAmbiguous: With what there is to choose from.
        ModelForbidden, HubOffline, HubUnreachable: With reason, link and remedy.
    """
    wanted = parse_reference(reference)
    if wanted is None:
        raise ModelMissing(
            f"{reference!r} is no name of a model on the hub; give OWNER/REPO, OWNER/REPO:QUANT or"
            " OWNER/REPO/FILE.gguf"
        )
    found = (hub or Hub()).listing(wanted.repo)
    files = choose(found.files, wanted)
    if with_projector and not wanted.file and (beside := projector(found.files, files)):
        files = (*files, beside)
    return [
        RemotePart(found.repo, found.revision, file.path, file.size_bytes, found.etags[file.path])
        for file in files
    ]


def read_remote(reference: str, folder: Path, hub: Hub | None = None) -> RemoteModel:
    """Read the header of a model on the hub; some megabytes, whatever its size.

    Args:
        reference: See ``is_reference``.
        folder: Keeps headers for the next time; is made if it does not exist.
        hub: The one that the environment names, unless given.

    Raises:
        ModelMissing, ModelAmbiguous, ModelForbidden, HubOffline, HubUnreachable: As ``resolve``.
        ModelBroken: It is not a GGUF that llama-server can load.
        FolderNotWritable: The header cannot be kept.
    """
    hub = hub or Hub()
    parts = tuple(resolve(reference, hub))
    place = folder / _key(hub, parts)
    header = _kept(place, parts)
    if header is None:
        header, starts = _fetched(hub, parts)
        _keep(folder, place, parts, starts)
    return RemoteModel(reference, parts, header, place / Path(parts[0].path).name)


# -- reading -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Growing:
    """The first bytes of a remote file, fetched as far as somebody reads."""

    hub: Hub
    part: RemotePart
    ranges_bytes: Iterator[int]
    start: bytearray = field(default_factory=bytearray)

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def size_bytes(self) -> int:
        return self.part.size_bytes

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        end = min(offset_bytes + size_bytes, self.size_bytes)
        while len(self.start) < end:
            at = len(self.start)
            more = next(self.ranges_bytes, MORE_BYTES)
            self.start += self.hub.fetch(self.part, at, min(at + more, self.size_bytes))
        return bytes(self.start[offset_bytes:end])


def _fetched(hub: Hub, parts: tuple[RemotePart, ...]) -> tuple[GgufHeader, list[PartStart]]:
    """The header of all parts; the first tells whether the others are worth reading."""
    starts: dict[str, PartStart] = {}

    def read(part: RemotePart, ranges_bytes: tuple[int, ...] = LATER_RANGES_BYTES) -> GgufPart:
        source = _Growing(hub, part, iter(ranges_bytes))
        found = parse_part(source)
        start = bytes(source.start[: found.header_bytes])
        starts[part.path] = PartStart(Path(part.path).name, start, part.size_bytes)
        return found

    first = read(parts[0], FIRST_RANGES_BYTES)
    paths = part_paths(Path(parts[0].name), first.metadata)
    if len(paths) != len(parts):
        raise ModelBroken(
            f"{parts[0].name} says that it has {len(paths)} parts, its name says {len(parts)};"
            " choose another"
        )
    with ThreadPoolExecutor(AT_ONCE) as pool:
        header = joined(paths, chain([first], pool.map(read, parts[1:])))
    return header, [starts[part.path] for part in parts]


# -- keeping -----------------------------------------------------------------------------------


def _key(hub: Hub, parts: tuple[RemotePart, ...]) -> str:
    """A folder's name for exactly these versions of these files."""
    digest = hashlib.sha256(hub.endpoint.encode())
    for part in parts:
        version = part.etag or part.revision
        digest.update(f"\0{part.repo}\0{part.path}\0{part.size_bytes}\0{version}".encode())
    return f"{parts[0].repo.replace('/', '--')}-{digest.hexdigest()[:16]}"


def _kept(place: Path, parts: tuple[RemotePart, ...]) -> GgufHeader | None:
    """The header that was kept, if it is there and whole."""
    files = [place / Path(part.path).name for part in parts]
    try:
        if [file.stat().st_size for file in files] != [part.size_bytes for part in parts]:
            return None
        header = read_header(files[0])
        os.utime(place)  # what is used stays
    except (OSError, ModelMissing, ModelBroken):
        return None
    names = tuple(Path(part.name) for part in parts)
    return replace(header, path=names[0], parts=names)


def _keep(
    folder: Path, place: Path, parts: tuple[RemotePart, ...], starts: list[PartStart]
) -> None:
    """Write the stand-in under another name first, so that nobody finds half of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "CACHEDIR.TAG").write_text(_CACHE_TAG)
        unfinished = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
        try:
            sparse_model(starts, unfinished)
            if _kept(place, parts) is None:  # else another plan was faster, and uses its own
                shutil.rmtree(place, ignore_errors=True)
                unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        _forget_oldest(folder)
    except OSError as exc:
        raise FolderNotWritable(
            f"the header of a model cannot be kept in {folder}: {exc.strerror or exc}; free space"
            " there, or choose another data folder"
        ) from exc


def _forget_oldest(folder: Path) -> None:
    ages = []
    for entry in folder.iterdir():
        with suppress(FileNotFoundError):  # another plan forgets as well
            ages.append((entry.stat().st_mtime, entry))
    folders = [entry for _, entry in sorted(ages, reverse=True) if entry.is_dir()]
    for entry in folders[KEPT_MODELS:]:
        shutil.rmtree(entry, ignore_errors=True)
