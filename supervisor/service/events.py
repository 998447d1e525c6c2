"""Changes of state, for whoever watches: one stream per reader, never blocking the writer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

_BACKLOG = 2000


@dataclass(frozen=True, slots=True)
class Change:
    """One named change with its JSON body."""

    name: str
    body: dict[str, Any]


class EventBus:
    """Publishes changes to all subscribers."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Change | None]] = set()

    def publish(self, name: str, body: dict[str, Any]) -> None:
        """Hand a change to every subscriber; one that lags too far is cut off and reconnects."""
        for queue in list(self._queues):
            if queue.qsize() >= _BACKLOG:
                self._queues.discard(queue)
                queue.put_nowait(None)  # after what it has: nothing in between is left out
            else:
                queue.put_nowait(Change(name, body))

    def close(self) -> None:
        """End every stream."""
        for queue in list(self._queues):
            queue.put_nowait(None)

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[AsyncIterator[Change]]:
        """A stream that begins now: take a snapshot inside the block and nothing is missed."""
        queue: asyncio.Queue[Change | None] = asyncio.Queue()
        self._queues.add(queue)

        async def stream() -> AsyncIterator[Change]:
            while (change := await queue.get()) is not None:
                yield change

        try:
            yield stream()
        finally:
            self._queues.discard(queue)
