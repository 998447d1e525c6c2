"""Changes of state, for whoever watches: one stream per reader, never blocking the writer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
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


@dataclass(slots=True)
class _Told:
    """What was published of one subject, and when; ``due`` if it changed too soon after that."""

    body: dict[str, Any] | None = None
    at_s: float = float("-inf")
    due: asyncio.TimerHandle | None = None


class Paced:
    """Publishes what may change all the time: the first change at once, the last one always.

    Those in between are left out, and a subject is read only when it is published, so a change
    costs next to nothing. Nothing runs while nothing changes.
    """

    def __init__(
        self,
        bus: EventBus,
        name: str,
        read: Callable[[str], dict[str, Any] | None],
        every_s: float = 0.5,
    ) -> None:
        """``read`` gives the body of a subject as it is now; None: it is no more."""
        self._bus = bus
        self._name = name
        self._read = read
        self._every_s = every_s
        self._told: dict[str, _Told] = {}

    def changed(self, subject: str) -> None:
        """Publish a subject, now or soon."""
        told = self._told.setdefault(subject, _Told())
        if told.due is not None:
            return
        loop = asyncio.get_running_loop()
        due_s = told.at_s + self._every_s
        if loop.time() >= due_s:
            self._publish(subject, told)
        else:
            told.due = loop.call_at(due_s, self._publish, subject, told)

    def _publish(self, subject: str, told: _Told) -> None:
        told.due, body = None, self._read(subject)
        if body is None:
            del self._told[subject]
        elif body != told.body:
            told.body, told.at_s = body, asyncio.get_running_loop().time()
            self._bus.publish(self._name, body)
