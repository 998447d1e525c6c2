"""What is kept of the requests that the gateway answered: the newest in memory, all in the store.

A request never waits for the disk: records are written in batches, and what the disk does not take
waits in memory until it does.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from supervisor.core.request_record import RequestRecord
from supervisor.errors import StoreUnusable
from supervisor.ports import StorePort

log = logging.getLogger(__name__)

REQUEST: Final = "request"
"""Event: a record."""

KEPT: Final = 1000
"""The newest, which are answered without a look at the disk."""

SHOWN: Final = 50
"""The newest, which are known at once, also of before our start."""

_EVERY_S: Final = 1.0
_MOST_WAITING: Final = 5000
"""That wait to be written; the oldest of more are dropped, and counted."""
_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class LaneCount:
    """How busy a deployment is: requests with a slot, requests without one, and its slots."""

    deployment: str
    active: int
    waiting: int
    slots: int


class RequestLog:
    """Takes a record at the end of each request. Everything runs in one event loop."""

    def __init__(
        self, store: StorePort, *, every_s: float = _EVERY_S, most_waiting: int = _MOST_WAITING
    ) -> None:
        self._store = store
        self._every_s = every_s
        self._most_waiting = most_waiting
        self._newest: deque[RequestRecord] = deque(maxlen=KEPT)
        self._waiting: deque[RequestRecord] = deque()
        self._dropped = 0
        self._problem = ""
        self._has_news = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self.on_note: list[Callable[[RequestRecord], None]] = []
        """Told of each record, at once."""

    def note(self, record: RequestRecord) -> None:
        """Take a record. It is at once, never fails, and the record is on disk a second later."""
        self._newest.append(record)
        self._waiting.append(record)
        if len(self._waiting) > self._most_waiting:
            self._waiting.popleft()
            self._dropped += 1
        self._has_news.set()
        for tell in self.on_note:
            tell(record)

    def latest(self) -> list[RequestRecord]:
        """The newest ``SHOWN`` at most, newest first, without a look at the disk."""
        return list(islice(reversed(self._newest), SHOWN))

    async def newest(
        self, limit: int = 100, deployment: str | None = None, caller: str | None = None
    ) -> list[RequestRecord]:
        """The newest first, each once, of all or of one deployment or caller.

        Raises:
            StoreUnusable: Memory does not hold so many, and the store cannot be read.
        """
        found = _wanted(self._newest, deployment, caller)
        if len(found) >= limit:
            return found[:limit]
        async with self._writing:  # or what is being written would be in both
            waiting = _wanted(self._waiting, deployment, caller)
            stored = await asyncio.to_thread(self._store.requests, limit, deployment, caller)
        return [*waiting, *stored][:limit]

    async def run(self) -> None:
        """Write what was noted, about once a second. Runs for ever."""
        await self._recall()
        while True:
            await self._has_news.wait()
            await asyncio.sleep(self._every_s)
            await self._write()

    async def _recall(self) -> None:
        """Know the newest of before our start; nothing of ours is written yet."""
        try:
            stored = await asyncio.to_thread(self._store.requests, SHOWN)
        except StoreUnusable as exc:
            log.warning("request_log.not_recalled", extra={"reason": str(exc)})
            return
        self._newest.extendleft(stored[: KEPT - len(self._newest)])

    async def close(self) -> None:
        """Write what still waits; what cannot be written now is lost, and said."""
        for _ in range(2):  # the first may have joined a write that began before
            await self._write()
        if waiting := len(self._waiting):
            log.error("request_log.lost", extra={"records": waiting, "reason": self._problem})

    async def _write(self) -> None:
        """Write what waits, in a task that goes on when the caller is cancelled.

        Nobody could say otherwise whether its batch still has to be written.
        """
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        await asyncio.shield(self._writer)

    async def _write_all(self) -> None:
        """Not what comes meanwhile: under load that would be a write for every few records."""
        self._has_news.clear()
        async with self._writing:
            left = len(self._waiting)
            while left > 0:
                batch = list(islice(self._waiting, min(left, _AT_ONCE)))
                try:
                    await asyncio.to_thread(self._store.save_requests, batch)
                except StoreUnusable as exc:
                    self._failed(str(exc))
                    return
                self._wrote(batch)
                left -= len(batch)
        if self._problem:
            self._works()

    def _wrote(self, batch: Sequence[RequestRecord]) -> None:
        for record in batch:
            if self._waiting and self._waiting[0] is record:  # or it was dropped meanwhile
                self._waiting.popleft()

    def _failed(self, problem: str) -> None:
        is_new, self._problem = not self._problem, problem
        self._has_news.set()  # it has to be tried again even if nothing else comes
        if is_new:
            log.error("request_log.failing", extra={"reason": problem})

    def _works(self) -> None:
        self._problem = ""
        dropped, self._dropped = self._dropped, 0
        log.info("request_log.works_again", extra={"records_dropped": dropped})


def _wanted(
    records: Iterable[RequestRecord], deployment: str | None, caller: str | None
) -> list[RequestRecord]:
    """Newest first, from records in the order in which they came."""
    found = [
        record
        for record in records
        if deployment in (None, record.deployment) and caller in (None, record.caller)
    ]
    return found[::-1]
