"""Sends a worker its planned weights ahead of llama-server, which serves one worker at a time."""

import asyncio
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from agents.chunks import ChunkName
from agents.pacing import Pace
from supervisor.link.job import PlannedTensor
from supervisor.link.model_chunks import ChunkPlace, ModelChunks
from supervisor.link.outbox import Outbox

log = logging.getLogger(__name__)

_BATCH_CHUNKS: Final = 32
"""Named and asked about at once: little of a phone's memory, one round trip per 32 MiB."""


class Seeder:
    """One worker's share of the model, from the files on this host.

    Chunks that another device brings are lent to it: they are left out here, until they are there
    or given back.
    """

    def __init__(
        self,
        outbox: Outbox,
        chunks: ModelChunks,
        tensors: Sequence[PlannedTensor],
        pace: Pace | None = None,
    ) -> None:
        """``pace`` bounds the rate, together with others that share it."""
        self._outbox = outbox
        self._chunks = chunks
        self._tensors = tensors
        self._pace = pace or Pace()
        self._claimed: set[ChunkName] = set()
        self._away: set[ChunkName] = set()
        self._from_peers: set[ChunkName] = set()
        self._late: list[tuple[ChunkName, ChunkPlace]] = []
        self._news = asyncio.Event()
        self._own_bytes = 0
        self.peer_bytes = 0
        """That other devices brought."""
        self.total_bytes = sum(tensor.size_bytes for tensor in tensors)

    @property
    def done_bytes(self) -> int:
        """Of the total, what is there or was looked at."""
        return min(self._own_bytes + self.peer_bytes, self.total_bytes)

    def lend(self, names: Iterable[ChunkName]) -> list[ChunkName]:
        """Leave out those of ``names`` that are neither there nor begun; returns which."""
        out = self._outbox
        lent = [n for n in names if not (n in self._claimed or n in out.held)]
        lent = [name for name in lent if name not in out.on_their_way]
        self._away.update(lent)
        return lent

    def settle(self, arrived: Mapping[ChunkName, int], back: Iterable[ChunkName]) -> None:
        """Of what was lent, this is there now, with its size, and that is to be sent after all."""
        for name, size_bytes in arrived.items():
            if name in self._away:
                self._away.discard(name)
                self._from_peers.add(name)
                self._outbox.held.add(name)
                self.peer_bytes += size_bytes
        self._away.difference_update(back)
        self._news.set()

    async def run(self) -> None:
        """Until everything is there, or the far end has no room."""
        await self._ask_about_known()
        places = self._chunks.chunks_of(_Located(tensor) for tensor in self._tensors)
        while batch := list(itertools.islice(places, _BATCH_CHUNKS)):
            if self._outbox.refuses_seeds:
                return
            await self._send([place for place, _ in batch])
        await self._send_late()
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
            if name in self._away:
                self._late.append((name, place))
                continue
            await self._send_one(name, place)
            if self._outbox.refuses_seeds:
                return

    async def _send_one(self, name: ChunkName, place: ChunkPlace) -> None:
        if name not in self._outbox.held and name not in self._outbox.on_their_way:
            self._claimed.add(name)
            data = await asyncio.to_thread(self._chunks.read, name)
            if data is None:
                return  # the file changed; llama-server will send what it has
            if wait_s := self._pace.wait_s(len(data)):
                await asyncio.sleep(wait_s)
            await self._outbox.seed(name, data)
        if name in self._from_peers:
            self._from_peers.discard(name)  # its first place was counted when it came
        else:
            self._own_bytes += place.size_bytes

    async def _send_late(self) -> None:
        """What was lent and given back; wait for the rest of it."""
        while self._late and not self._outbox.refuses_seeds:
            mine = [each for each in self._late if each[0] not in self._away]
            self._late = [each for each in self._late if each[0] in self._away]
            for name, place in mine:
                await self._send_one(name, place)
            if not mine:
                self._news.clear()
                await self._news.wait()

    def _named(self, places: Sequence[ChunkPlace]) -> list[tuple[ChunkName, ChunkPlace]]:
        names = ((self._chunks.name_of(place), place) for place in places)
        return [(name, place) for name, place in names if name is not None]


class _Located:
    """A planned tensor as ``ModelChunks`` takes it."""

    def __init__(self, tensor: PlannedTensor) -> None:
        self.file = Path(tensor.file)
        self.offset_bytes = tensor.offset_bytes
        self.size_bytes = tensor.size_bytes
