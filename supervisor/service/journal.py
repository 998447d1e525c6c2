"""What is kept of deployments, launches and events: the one place through which they are written.

A disk that is full loses nothing while we live: what cannot be written waits in memory, in order,
and is tried again every few seconds. Nothing here decides what happens to a deployment.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, Literal, TypeVar

from agents.errors import DiskFull
from supervisor.core.entities import Deployment, DeploymentId, EventRecord, LaunchId, LaunchRecord
from supervisor.errors import StoreUnusable
from supervisor.ports import StorePort
from supervisor.service.clock import timestamp
from supervisor.service.events import EventBus

log = logging.getLogger(__name__)

EVENT: Final = "event"
"""Name of the change that is published for each event."""

_RETRY_S: Final = 2.0
_MOST_EVENTS: Final = 5000
"""That wait in memory; the oldest of more are dropped, and counted."""
_EVENTS_AT_ONCE: Final = 500
_FULL: Final = "disk is full"
"""As SQLite says it."""

K = TypeVar("K")
V = TypeVar("V")
Kind = Literal["deployment", "device", "supervisor"]


class Journal:
    """Writes in order, and keeps what it cannot write until it can.

    ``note`` is at once and never fails; the ``save`` methods return when it is on disk, or when
    the disk does not take it and it waits in memory. Only the ``_now`` methods raise.
    """

    def __init__(
        self,
        store: StorePort,
        bus: EventBus,
        clock: Callable[[], str] = timestamp,
        *,
        retry_s: float = _RETRY_S,
        most_events: int = _MOST_EVENTS,
    ) -> None:
        """Go on with the number of the newest event.

        Raises:
            StoreUnusable: It cannot even be read.
        """
        self._store = store
        self._bus = bus
        self._clock = clock
        self._retry_s = retry_s
        self._most_events = most_events
        self._deployments: dict[DeploymentId, Deployment | None] = {}
        self._launches: dict[LaunchId, LaunchRecord] = {}
        self._events: deque[EventRecord] = deque()
        self._newest_id = self._stored_id = self._published_id = store.last_event_id()
        self._dropped = 0
        self._problem = ""
        self._writer: asyncio.Task[None] | None = None
        self._has_news = asyncio.Event()

    # -- writing -----------------------------------------------------------------------------

    def note(
        self,
        kind: Kind,
        subject: str,
        change: str,
        *,
        launch_id: LaunchId | None = None,
        code: str = "",
        text: str = "",
    ) -> EventRecord:
        """Take an event. It is written with whatever is saved next, or by ``run`` at once."""
        self._newest_id += 1
        record = EventRecord(
            id=self._newest_id,
            at=self._clock(),
            kind=kind,
            subject=subject,
            change=change,
            launch_id=launch_id,
            code=code,
            text=" ".join(text.split()),
        )
        self._events.append(record)
        if len(self._events) > self._most_events:
            self._events.popleft()
            self._dropped += 1
        if self._problem:
            self._publish(record)
        self._has_news.set()
        return record

    async def record_event(
        self,
        kind: Kind,
        subject: str,
        change: str,
        *,
        launch_id: LaunchId | None = None,
        code: str = "",
        text: str = "",
    ) -> EventRecord:
        """Take an event and write it."""
        record = self.note(kind, subject, change, launch_id=launch_id, code=code, text=text)
        await self._save()
        return record

    async def save_deployment(self, deployment: Deployment) -> None:
        """Keep the newest state of a deployment."""
        self._deployments[deployment.id] = deployment
        await self._save()

    async def delete_deployment(self, name: DeploymentId) -> None:
        """Forget a deployment."""
        self._deployments[name] = None
        await self._save()

    async def save_launch(self, record: LaunchRecord) -> None:
        """Keep the newest version of a launch record."""
        self._launches[record.id] = record
        await self._save()

    async def save_deployment_now(self, deployment: Deployment) -> None:
        """Keep a deployment that must not be accepted otherwise.

        Raises:
            StoreUnusable: It is not on disk; it does not wait to be written either.
        """
        await self._write_now(self._deployments, deployment.id, deployment)

    async def save_launch_now(self, record: LaunchRecord) -> None:
        """Keep the record of a launch before anything of it is started.

        Raises:
            StoreUnusable: It is not on disk; it does not wait to be written either.
        """
        await self._write_now(self._launches, record.id, record)

    async def run(self) -> None:
        """Write what was noted, and try again what could not be written. Runs for ever."""
        while True:
            if self._problem:
                await asyncio.sleep(self._retry_s)
            else:
                await self._has_news.wait()
            await self._write()

    async def close(self) -> None:
        """Write what still waits; what cannot be written now is lost, and said."""
        await self._write()
        if waiting := self._waiting:
            log.error("journal.lost", extra={"records": waiting, "reason": self._problem})

    # -- reading -----------------------------------------------------------------------------

    @property
    def is_failing(self) -> bool:
        """Whether something waits because it could not be written."""
        return bool(self._problem)

    @property
    def problem(self) -> str:
        """Why nothing can be written now, and what to do; empty: all is well."""
        if not self._problem:
            return ""
        dropped = f", {self._dropped} older events were dropped" if self._dropped else ""
        return (
            f"{self._problem}; {self._waiting} records wait in memory until it can be written"
            f"{dropped}"
        )

    @property
    def newest_id(self) -> int:
        """Number of the newest event."""
        return self._newest_id

    @property
    def stored_id(self) -> int:
        """Number of the newest event that is on disk."""
        return self._stored_id

    async def events(
        self,
        after_id: int | None = None,
        limit: int = 100,
        subject: str | None = None,
        launch_id: LaunchId | None = None,
    ) -> list[EventRecord]:
        """As of the store, with those that wait to be written."""
        # Taken first: what is written meanwhile is seen twice rather than not at all.
        waiting = [
            record
            for record in self._events
            if record.id > (after_id or 0)
            and subject in (None, record.subject)
            and launch_id in (None, record.launch_id)
        ]
        stored = await asyncio.to_thread(self._store.events, after_id, limit, subject, launch_id)
        found = sorted({r.id: r for r in (*stored, *waiting)}.values(), key=lambda r: r.id)
        return found[:limit] if after_id is not None else found[max(len(found) - limit, 0) :]

    def launches(self, limit: int = 100) -> list[LaunchRecord]:
        """Newest first, each as it is now."""
        waiting = dict(self._launches)
        newest = {record.id: record for record in self._store.launches(limit)} | waiting
        return [newest[number] for number in sorted(newest, reverse=True)[:limit]]

    def launch(self, launch_id: LaunchId) -> LaunchRecord:
        """One record as it is now.

        Raises:
            LaunchUnknown: There is none with that number.
        """
        return self._launches.get(launch_id) or self._store.launch(launch_id)

    # -- plumbing ----------------------------------------------------------------------------

    @property
    def _waiting(self) -> int:
        return len(self._deployments) + len(self._launches) + len(self._events)

    async def _save(self) -> None:
        """Write what waits; while the disk does not take it, leave that to ``run``."""
        if not self._problem:
            await self._write()

    async def _write_now(self, waiting: dict[K, V], key: K, value: V) -> None:
        waiting[key] = value
        for _ in range(2):  # the first may have joined a try that began before
            await self._write()
            if waiting.get(key) is not value:
                return
        del waiting[key]
        raise StoreUnusable(self._problem)

    async def _write(self) -> None:
        """Write what waits, in a task that goes on when the caller is cancelled.

        A write whose end nobody awaits could otherwise overtake the next one.
        """
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        await asyncio.shield(self._writer)

    async def _write_all(self) -> None:
        self._has_news.clear()
        while self._waiting:
            deployments, launches = dict(self._deployments), list(self._launches.values())
            events = list(islice(self._events, _EVENTS_AT_ONCE))
            try:
                await asyncio.to_thread(self._store.save_together, deployments, launches, events)
            except StoreUnusable as exc:
                self._failed(str(exc))
                return
            self._wrote(deployments, launches, events)
            if self._problem and not self._waiting:
                self._works()

    def _wrote(
        self,
        deployments: dict[DeploymentId, Deployment | None],
        launches: list[LaunchRecord],
        events: list[EventRecord],
    ) -> None:
        """What was changed meanwhile still waits."""
        for name, deployment in deployments.items():
            if name in self._deployments and self._deployments[name] is deployment:
                del self._deployments[name]
        for record in launches:
            if self._launches.get(record.id) is record:
                del self._launches[record.id]
        for event in events:
            if self._events and self._events[0] is event:  # or it was dropped meanwhile
                self._events.popleft()
            self._stored_id = event.id
            self._publish(event)

    def _failed(self, problem: str) -> None:
        is_new, self._problem = not self._problem, problem
        if is_new:
            log.error("journal.failing", extra={"reason": problem})
            for event in self._events:
                self._publish(event)
            self._note_own("storing -> failing", problem, problem)

    def _works(self) -> None:
        problem, self._problem = self._problem, ""
        dropped, self._dropped = self._dropped, 0
        log.info("journal.works_again", extra={"events_dropped": dropped})
        kept = f"{dropped} events were dropped" if dropped else "nothing was lost"
        text = f"the database can be written again; {kept}"
        self._note_own("failing -> storing", problem, text)

    def _note_own(self, change: str, problem: str, text: str) -> None:
        code = DiskFull.code if _FULL in problem else StoreUnusable.code
        self.note("supervisor", "supervisor", change, code=code, text=text)

    def _publish(self, event: EventRecord) -> None:
        """Once each, in order: when it is on disk, or when that has to wait."""
        if event.id > self._published_id:
            self._published_id = event.id
            self._bus.publish(EVENT, event.model_dump(mode="json"))
