"""Sends a worker its planned weights ahead of llama-server, which serves one worker at a time."""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agents.chunks import ChunkName
from supervisor.link.job import PlannedTensor
from supervisor.link.model_chunks import ChunkPlace, ModelChunks
from supervisor.link.outbox import Outbox

log = logging.getLogger(__name__)

_BATCH_CHUNKS: Final = 32
"""Named and asked about at once: little of a phone's memory, one round trip per 32 MiB."""


class Seeder:
    """One worker's share of the model, from the files on this host."""

    def __init__(
        self, outbox: Outbox, chunks: ModelChunks, tensors: Sequence[PlannedTensor]
    ) -> None:
        self._outbox = outbox
        self._chunks = chunks
        self._tensors = tensors
        self.total_bytes = sum(tensor.size_bytes for tensor in tensors)
        self.done_bytes = 0

    async def run(self) -> None:
        """Until everything is there, or the far end has no room."""
        await self._ask_about_known()
        places = self._chunks.chunks_of(_Located(tensor) for tensor in self._tensors)
        while batch := list(itertools.islice(places, _BATCH_CHUNKS)):
            if self._outbox.refuses_seeds:
                return
            await self._send([place for place, _ in batch])
        await self._outbox.seeds_settled()

    async def _ask_about_known(self) -> None:
        """All that an earlier launch has named, in one question."""
        places = self._chunks.chunks_of(_Located(tensor) for tensor in self._tensors)
        known = [(name, place.size_bytes) for place, name in places if name is not None]
        await self._outbox.ask(known)

    async def _send(self, places: Sequence[ChunkPlace]) -> None:
        named = await asyncio.to_thread(self._named, places)
        held = self._outbox.held
        await self._outbox.ask([(n, place.size_bytes) for n, place in named if n not in held])
        for name, place in named:
            if name not in held and name not in self._outbox.on_their_way:
                data = await asyncio.to_thread(self._chunks.read, name)
                if data is None:
                    continue  # the file changed; llama-server will send what it has
                await self._outbox.seed(name, data)
            self.done_bytes += place.size_bytes
            if self._outbox.refuses_seeds:
                return

    def _named(self, places: Sequence[ChunkPlace]) -> list[tuple[ChunkName, ChunkPlace]]:
        names = ((self._chunks.name_of(place), place) for place in places)
        return [(name, place) for name, place in names if name is not None]


class _Located:
    """A planned tensor as ``ModelChunks`` takes it."""

    def __init__(self, tensor: PlannedTensor) -> None:
        self.file = Path(tensor.file)
        self.offset_bytes = tensor.offset_bytes
        self.size_bytes = tensor.size_bytes
