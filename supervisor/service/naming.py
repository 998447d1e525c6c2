"""Names the chunks of a model on this host: hashed once, remembered in the link's index."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from agents.chunks import ChunkName
from supervisor.core.seeding import FileTensor
from supervisor.link.model_chunks import ModelChunks

Chunks = tuple[tuple[ChunkName, int], ...]
"""Names and sizes, in the order of the tensors, each name once."""

Listener = Callable[[int, int], None]
"""Is told the bytes that are named, and how many there are."""

_TELL_S: Final = 0.5


class ChunkNamer:
    """Hashes one model at a time; who comes meanwhile waits and finds the names."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is the one that link processes use, so that nothing is hashed twice."""
        self._folder = folder
        self._one_at_a_time = asyncio.Lock()

    async def named(
        self, shares: Mapping[str, Sequence[FileTensor]], tell: Listener
    ) -> dict[str, Chunks]:
        """The chunks of every share. Takes as long as hashing takes the first time.

        Files that cannot be read have no chunks, as for a push.
        """
        async with self._one_at_a_time:
            work = _Naming(self._folder, shares)
            hashing = asyncio.ensure_future(asyncio.to_thread(work.run))
            try:
                while not hashing.done():
                    await asyncio.wait({hashing}, timeout=_TELL_S)
                    tell(work.done_bytes, work.total_bytes)
                return hashing.result()
            finally:
                work.cancelled.set()
                await asyncio.gather(hashing, return_exceptions=True)


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
        self.total_bytes = sum(t.size_bytes for share in shares.values() for t in share)

    def run(self) -> dict[str, Chunks]:
        files = {tensor.file for share in self._shares.values() for tensor in share}
        chunks = ModelChunks(self._folder, files)
        return {key: self._share(chunks, share) for key, share in self._shares.items()}

    def _share(self, chunks: ModelChunks, share: Sequence[FileTensor]) -> Chunks:
        found: dict[ChunkName, int] = {}
        for place, known in chunks.chunks_of(share):
            if self.cancelled.is_set():
                break
            name = known or chunks.name_of(place)
            if name is not None:
                found.setdefault(name, place.size_bytes)
            self.done_bytes += place.size_bytes
        return tuple(found.items())
