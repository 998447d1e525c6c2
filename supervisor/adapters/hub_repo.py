"""Headers of all models of one repository on the hub, for little more than one of them.

All quantisations of a model share their metadata, of which the vocabulary alone is megabytes, and
differ in their table of tensors: names, shapes, and a type for each. So one header is read whole,
and of the others a range around the place where that one has its table. What is found there must
have the same tensors in the same shapes, and its types must add up to the size of the file to the
byte; if anything differs, that header is read whole, too.
"""

import asyncio
import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from agents.doctor.reading import in_thread
from agents.errors import FolderNotWritable
from supervisor.adapters.gguf import LocalSource, read_header
from supervisor.adapters.gguf_parse import DEFAULT_ALIGNMENT, GgufPart, TensorInfo, parse_part
from supervisor.adapters.models import read_model, read_remote_model
from supervisor.adapters.sparse_model import PartStart, sparse_model
from supervisor.core.model_reference import OfferedModel, choose, offered, parse_reference
from supervisor.errors import ModelBroken, ModelMissing
from supervisor.ports import Model

if TYPE_CHECKING:
    from supervisor.adapters.hub_http import Hub, Listing, RemotePart

T = TypeVar("T")

AROUND_BYTES: Final = 96 << 10
"""How much longer or shorter another header's metadata may be: chat templates, notes on how it was
quantised."""

LATER_PART_BYTES: Final = 256 << 10
MORE_BYTES: Final = 4 << 20
_PREAMBLE: Final = struct.Struct("<4sIQQ")
_ONE_FILE: Final = ("split.count", "split.no")
_Named = tuple[str, tuple[int, ...]]
"""Name and shape of a tensor."""


class _Differs(Exception):
    """The table is not where, or not as, it should be; the header has to be read whole."""


@dataclass(frozen=True, slots=True)
class _Table:
    """The tensors of a whole model as GGUF entries, with the offsets of a single file."""

    count: int
    entries: bytes
    data_bytes: int


@dataclass(frozen=True, slots=True)
class _Whole:
    """The header that was read whole."""

    model: Model
    keys: int
    version: int
    metadata: bytes
    """Encoded; of a split model as if it were one file."""

    first: bytes
    """How the table begins: the name and the shape of the first tensor."""

    tensors_at: int
    alignment: int
    shapes: frozenset[_Named]
    table_bytes: int


@dataclass(slots=True)
class _Ranged:
    """A remote file as ``parse_part`` reads it."""

    hub: "Hub"
    part: "RemotePart"
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
            more = MORE_BYTES if at else LATER_PART_BYTES
            self.start += self.hub.fetch(self.part, at, min(at + more, self.size_bytes))
        return bytes(self.start[offset_bytes:end])


class RepoHeaders:
    """Opens repositories."""

    def __init__(self, folder: Path, connect: "Callable[[], Hub] | None" = None) -> None:
        """
        Args:
            folder: Keeps headers for the next time.
            connect: Gives the hub to ask: unless given, the one that the environment names.
        """
        self._folder = folder
        self._connect = connect or _hub

    async def open(self, repo: str) -> "OpenRepo":
        """Ask what a repository has.

        Raises:
            ModelMissing, ModelForbidden, HubOffline, HubUnreachable: With reason and remedy.
        """
        stop = threading.Event()

        def asked() -> "tuple[Hub, Listing]":
            hub = replace(self._connect(), stop=stop)
            return hub, hub.listing(repo)

        hub, listing = await _while_wanted(stop, asked)
        models = offered(listing.files, listing.repo)
        if not models:
            raise ModelMissing(
                f"{listing.repo} has no GGUF model; look for a repository of the same model with"
                " GGUF in its name"
            )
        return OpenRepo(hub, listing, models, self._folder)


class OpenRepo:
    """A repository in one version."""

    def __init__(
        self,
        hub: "Hub",
        listing: "Listing",
        models: tuple[OfferedModel, ...],
        folder: Path,
    ) -> None:
        self.models = models
        """What there is to choose from, the smallest first."""
        self._hub, self._listing, self._folder = hub, listing, folder
        self._whole: _Whole | None = None

    @property
    def repo(self) -> str:
        """Its name, which may be newer than the one that was asked for."""
        return self._listing.repo

    @property
    def ctx_train_tokens(self) -> int | None:
        """What the model was trained for, if it says so; known after ``begin``."""
        return self._whole.model.facts.ctx_train_tokens if self._whole else None

    def version(self, reference: str) -> str:
        """Changes as soon as a file of that model does."""
        parts = self._parts(reference)
        told = "\0".join(f"{part.path}\0{part.size_bytes}\0{part.etag}" for part in parts)
        endpoint = f"{self._hub.endpoint}\0{self.repo}\0"
        return hashlib.sha256((endpoint + told).encode()).hexdigest()[:24]

    async def begin(self) -> None:
        """Read one header whole, the smallest that there is; some megabytes.

        Raises:
            ProjectError: Of the kinds that ``hub.read_remote`` names.
        """
        if self._whole is None:
            self._whole = await _while_wanted(self._hub.stop, self._read_whole)

    async def read(self, reference: str, folder: Path) -> Model:
        """What planning needs of one of the models, with a stand-in for the engine in ``folder``.

        Call ``begin`` before.

        Raises:
            ProjectError: Of the kinds that ``hub.read_remote`` names.
        """
        return await _while_wanted(self._hub.stop, lambda: self._read(reference, folder))

    # -- in a thread -------------------------------------------------------------------------------

    def _read(self, reference: str, folder: Path) -> Model:
        whole = self._whole
        assert whole is not None
        if reference == whole.model.facts.path and whole.model.file.exists():
            return whole.model  # unless many others were kept since
        try:
            table = self._kept_table(whole, reference)
            return _with_table(whole, table, reference, folder)
        except (_Differs, ModelBroken):
            return read_remote_model(reference, self._folder, self._hub)
        except OSError as exc:
            raise FolderNotWritable(
                f"a header cannot be kept in {folder}: {exc.strerror or exc}; free space there, or"
                " choose another data folder"
            ) from exc

    def _parts(self, reference: str) -> "list[RemotePart]":
        from supervisor.adapters.hub_http import RemotePart

        wanted, listing = parse_reference(reference), self._listing
        assert wanted is not None
        return [
            RemotePart(
                listing.repo,
                listing.revision,
                file.path,
                file.size_bytes,
                listing.etags[file.path],
            )
            for file in choose(listing.files, wanted)
        ]

    def _read_whole(self) -> _Whole:
        """Of the smallest; if that one is broken, of one that was made otherwise."""
        models = sorted(self.models, key=lambda model: (model.parts > 1, model.size_bytes))
        failure: ModelBroken | None = None
        for at in dict.fromkeys((0, len(models) // 2, len(models) - 1)):
            model = models[at]
            try:
                found = read_remote_model(model.reference, self._folder, self._hub)
                return _taken_apart(found)
            except ModelBroken as exc:
                failure = failure or exc
        assert failure is not None
        raise failure

    def _kept_table(self, whole: _Whole, reference: str) -> _Table:
        """Of an earlier time, or else from the hub."""
        kept = whole.model.file.parent / "tables" / self.version(reference)
        try:
            content = kept.read_bytes()
            count, data_bytes = struct.unpack_from("<QQ", content)
            return _Table(count, content[16:], data_bytes)
        except (OSError, struct.error):
            pass
        table = self._fetched_table(whole, self._parts(reference))
        try:
            kept.parent.mkdir(exist_ok=True)
            unfinished = kept.with_suffix(f".{os.getpid()}")
            unfinished.write_bytes(
                struct.pack("<QQ", table.count, table.data_bytes) + table.entries
            )
            unfinished.replace(kept)
        except OSError:
            pass  # it is asked for again the next time
        return table

    def _fetched_table(self, whole: _Whole, parts: "Sequence[RemotePart]") -> _Table:
        tensors = list(self._first_part(whole, parts[0]))
        for part in parts[1:]:
            tensors += parse_part(_Ranged(self._hub, part)).tensors
        found = {(tensor.name, tensor.shape) for tensor in tensors}
        if len(found) != len(tensors) or _without_output(found) != _without_output(whole.shapes):
            raise _Differs
        return _table_of(tensors, whole.alignment)

    def _first_part(self, whole: _Whole, part: "RemotePart") -> tuple[TensorInfo, ...]:
        """The tensors of the file that has the metadata, from a range around its table."""
        if part.size_bytes < _PREAMBLE.size:
            raise _Differs
        magic, version, count, _ = _PREAMBLE.unpack(self._hub.fetch(part, 0, _PREAMBLE.size))
        start = max(_PREAMBLE.size, whole.tensors_at - AROUND_BYTES)
        end = min(part.size_bytes, whole.tensors_at + whole.table_bytes + AROUND_BYTES)
        is_like = (magic, version) == (b"GGUF", whole.version)
        if not is_like or not whole.first or not count or start >= end:
            raise _Differs
        window = self._hub.fetch(part, start, end)
        at = window.find(whole.first)
        if at < 0:
            raise _Differs
        preamble = _PREAMBLE.pack(b"GGUF", whole.version, count, whole.keys)
        content = preamble + whole.metadata + window[at:]
        made = parse_part(PartStart(part.name, content, part.size_bytes + 2 * len(content)))
        _check_size(made, start + at, part.size_bytes, whole.alignment)
        return made.tensors


def _taken_apart(model: Model) -> _Whole:
    path = model.file
    with path.open("rb") as file:
        size_bytes = path.stat().st_size
        part = parse_part(LocalSource(str(path), size_bytes, file))
        file.seek(0)
        header = file.read(part.header_bytes)
    _, version, _, keys = _PREAMBLE.unpack_from(header)
    first = _entry_start(part.tensors[0].name, part.tensors[0].shape) if part.tensors else b""
    table_bytes = sum(len(_entry(t.name, t.shape, 0, 0)) for t in part.tensors)
    alignment = _alignment(part)
    least = part.header_bytes - table_bytes - alignment
    tensors_at = header.find(first, max(0, least)) if first else -1
    shapes = {(tensor.name, tensor.shape) for tensor in read_header(path).tensors}
    return _Whole(
        model=model,
        keys=keys,
        version=version,
        metadata=_as_one_file(header[_PREAMBLE.size : tensors_at]),
        first=first if tensors_at > 0 else b"",
        tensors_at=max(tensors_at, 0),
        alignment=alignment,
        shapes=frozenset(shapes),
        table_bytes=sum(len(_entry(name, shape, 0, 0)) for name, shape in shapes),
    )


def _with_table(whole: _Whole, table: _Table, reference: str, folder: Path) -> Model:
    """A model of the same metadata with other types."""
    preamble = _PREAMBLE.pack(b"GGUF", whole.version, table.count, whole.keys)
    header = preamble + whole.metadata + table.entries
    header += bytes(-len(header) % whole.alignment)
    name = hashlib.sha256(reference.encode()).hexdigest()[:16] + ".gguf"
    path = sparse_model([PartStart(name, header, len(header) + table.data_bytes)], folder)
    found = read_model(str(path))
    facts = found.facts.model_copy(update={"path": reference})
    return replace(found, facts=facts, stand_in=path, tensors=())


def _table_of(tensors: Sequence[TensorInfo], alignment: int) -> _Table:
    entries, offset = bytearray(), 0
    for tensor in tensors:
        entries += _entry(tensor.name, tensor.shape, tensor.type_id, offset)
        offset += -(-tensor.size_bytes // alignment) * alignment
    return _Table(len(tensors), bytes(entries), offset)


def _check_size(made: GgufPart, table_at: int, size_bytes: int, alignment: int) -> None:
    """That the types of all tensors add up to the size of the file."""
    table_bytes = sum(len(_entry(t.name, t.shape, 0, 0)) for t in made.tensors)
    data_start = -(-(table_at + table_bytes) // alignment) * alignment
    last = made.tensors[-1]
    end = data_start + last.offset_bytes + last.size_bytes - made.header_bytes
    if not 0 <= size_bytes - end < alignment:
        raise _Differs


def _entry_start(name: str, shape: Sequence[int]) -> bytes:
    encoded = name.encode()
    return (
        struct.pack("<Q", len(encoded))
        + encoded
        + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    )


def _entry(name: str, shape: Sequence[int], type_id: int, offset: int) -> bytes:
    return _entry_start(name, shape) + struct.pack("<IQ", type_id, offset)


def _as_one_file(metadata: bytes) -> bytes:
    """Without the claim to be one of several files; the keys stay, as long as they were."""
    made = bytearray(metadata)
    for key, value in zip(_ONE_FILE, (1, 0), strict=True):
        begin = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 2)
        if (at := made.find(begin)) >= 0:
            struct.pack_into("<H", made, at + len(begin), value)
    return bytes(made)


def _alignment(part: GgufPart) -> int:
    found = part.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    return found if isinstance(found, int) and found > 0 else DEFAULT_ALIGNMENT


def _without_output(shapes: Iterable[_Named]) -> set[_Named]:
    """A coarse quantisation may have an output matrix of its own where others share one."""
    return {(name, shape) for name, shape in shapes if name != "output.weight"}


async def _while_wanted(stop: threading.Event, work: Callable[[], T]) -> T:
    """What ``work`` returns; it is told to end when nobody waits for it any more."""
    try:
        return await in_thread(work)  # and the end of the program waits for none that is silent
    except asyncio.CancelledError:
        stop.set()
        raise


def _hub() -> "Hub":
    """The hub of the environment, for somebody who waits for an answer."""
    from supervisor.adapters.hub_http import Hub, Patience  # half a second, and seldom needed

    patience = Patience(
        connect_s=5.0,
        silence_s=10.0,
        range_s=60.0,
        tries=3,
        first_pause_s=0.3,
        longest_pause_s=10.0,
    )
    return Hub(patience)
