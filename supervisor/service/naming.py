"""Names the chunks of a model on this host: hashed once, remembered in the link's index."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from agents.chunks import SMALLEST_TENSOR_BYTES, ChunkName
from supervisor.core.seeding import FileTensor
from supervisor.link.model_chunks import ModelChunks

Chunks = tuple[tuple[ChunkName, int], ...]
"""Names and sizes, in the order of the tensors, each name once."""

Listener = Callable[[int, int], None]
"""Is told the bytes that are named, and how many there are."""

_TELL_S: Final = 0.5


class ChunkNamer:
    """Hashes one model at a time, whoever asks; who comes meanwhile waits and finds the names."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is the one that link processes use, so that nothing is hashed twice."""
        self._folder = folder
        self._one_at_a_time = asyncio.Lock()
        self._work: _Naming | None = None

    async def named(
        self, shares: Mapping[str, Sequence[FileTensor]], tell: Listener
    ) -> dict[str, Chunks]:
        """The chunks of every share. Takes as long as hashing takes the first time.

        Files that cannot be read have no chunks, as for a push.
        """
        turn = asyncio.ensure_future(self._one_at_a_time.acquire())
        try:
            while not turn.done():
                await asyncio.wait({turn}, timeout=_TELL_S)
                if self._work is not None:  # of whoever is before us, perhaps of the same model
                    tell(self._work.done_bytes, self._work.total_bytes)
            return await self._named(shares, tell)
        finally:
            if turn.cancel():
                await asyncio.gather(turn, return_exceptions=True)
            if not turn.cancelled():
                self._one_at_a_time.release()

    async def _named(
        self, shares: Mapping[str, Sequence[FileTensor]], tell: Listener
    ) -> dict[str, Chunks]:
        work = self._work = _Naming(self._folder, shares)
        hashing = asyncio.ensure_future(asyncio.to_thread(work.run))
        try:
            while not hashing.done():
                await asyncio.wait({hashing}, timeout=_TELL_S)
                tell(work.done_bytes, work.total_bytes)
            return hashing.result()
        finally:
            work.cancelled.set()
            await asyncio.gather(hashing, return_exceptions=True)
            self._work = None


def known_chunks(
    folder: Path, shares: Mapping[str, Sequence[FileTensor]]
) -> dict[str, Chunks] | None:
    """The same without hashing anything; None if a name is missing. Blocks."""
    files = {tensor.file for share in shares.values() for tensor in share}
    chunks = ModelChunks(folder, files)
    found = {}
    for key, share in shares.items():
        named = [(name, place.size_bytes) for place, name in chunks.chunks_of(share) if name]
        if len(named) < sum(1 for _ in chunks.chunks_of(share)):
            return None
        found[key] = tuple(dict(named).items())
    return found


class _Naming:
    def __init__(self, folder: Path, shares: Mapping[str, Sequence[FileTensor]]) -> None:
        self._folder = folder
        self._shares = shares
        self.cancelled = threading.Event()
        self.done_bytes = 0
        every = dict.fromkeys(tensor for share in shares.values() for tensor in share)
        self._tensors = [each for each in every if each.size_bytes >= SMALLEST_TENSOR_BYTES]
        """Each once, however many devices are to have it."""
        self.total_bytes = sum(tensor.size_bytes for tensor in self._tensors)

    def run(self) -> dict[str, Chunks]:
        chunks = ModelChunks(self._folder, {tensor.file for tensor in self._tensors})
        for place, known in chunks.chunks_of(self._tensors):
            if self.cancelled.is_set():
                break
            if known is None:
                chunks.name_of(place)
            self.done_bytes += place.size_bytes
        return {key: _chunks(chunks, share) for key, share in self._shares.items()}


def _chunks(chunks: ModelChunks, share: Sequence[FileTensor]) -> Chunks:
    found: dict[ChunkName, int] = {}
    for place, name in chunks.chunks_of(share):
        if name is not None:
            found.setdefault(name, place.size_bytes)
    return tuple(found.items())
