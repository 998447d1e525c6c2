"""The chunks of one model that lies on this host: where they are, how they are called, their bytes.

What llama-server sends is what its files hold, so it can be sent ahead from there.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from agents.chunks import SMALLEST_TENSOR_BYTES, ChunkName, cut
from agents.gguf_index import GgufIndex, Span
from agents.gguf_tensors import NotIndexable

log = logging.getLogger(__name__)


class TensorInFile(Protocol):
    """One tensor of the model; ``offset_bytes`` counts from the start of its file."""

    @property
    def file(self) -> Path: ...
    @property
    def offset_bytes(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...


class ChunkPlace(NamedTuple):
    """Where one chunk is."""

    file: Path
    offset_bytes: int
    size_bytes: int


class ModelChunks:
    """The chunks of the GGUF files of one model. Blocks; may be used from any thread.

    Naming takes as long as hashing, so only what is asked for is named, when it is asked for; the
    index's cache keeps each name for the next launch. Nothing of a file that changes is named any
    more, and ``read`` never gives bytes other than those asked for.
    """

    def __init__(self, folder: Path, files: Iterable[Path]) -> None:
        """Recall the names that are known from before.

        Args:
            folder: Of the caches, as ``GgufIndex`` keeps them; others may use it as well.
            files: Of the model, as its tensors call them. One that cannot be used has no chunks.
        """
        self._index = GgufIndex(folder)
        self._names: dict[ChunkPlace, ChunkName] = {}
        self._usable = set(files)
        for file in tuple(self._usable):
            self._recall(file)

    def chunks_of(
        self, tensors: Iterable[TensorInFile]
    ) -> Iterator[tuple[ChunkPlace, ChunkName | None]]:
        """Each chunk of ``tensors``, in order, with its name if that is known already."""
        for tensor in tensors:
            if tensor.size_bytes < SMALLEST_TENSOR_BYTES:
                continue
            for offset, size_bytes in cut(tensor.size_bytes):
                place = ChunkPlace(tensor.file, tensor.offset_bytes + offset, size_bytes)
                yield place, self._names.get(place)

    def name_of(self, place: ChunkPlace) -> ChunkName | None:
        """The chunk's name, remembered or from its bytes; ``None`` if its file cannot be used."""
        if (known := self._names.get(place)) is not None:
            return known
        if place.file not in self._usable:
            return None
        try:
            name = self._index.name_chunk(place.file, Span(place.offset_bytes, place.size_bytes))
        except (OSError, NotIndexable) as exc:
            self._refuse(place.file, exc)
            return None
        self._names[place] = name
        return name

    def read(self, name: ChunkName) -> bytes | None:
        """A chunk that was named, verified; ``None`` if no file holds it any more."""
        return self._index.get(name)

    def _recall(self, file: Path) -> None:
        try:
            known = self._index.recall(file)
        except (OSError, NotIndexable) as exc:
            self._refuse(file, exc)
        else:
            self._names |= {ChunkPlace(file, *span): name for span, name in known.items()}

    def _refuse(self, file: Path, exc: Exception) -> None:
        if file in self._usable:
            self._usable.discard(file)
            log.warning("model_chunks.file_refused", extra={"path": file, "reason": str(exc)})
