"""REST API of what happened: read it, and follow it without a gap."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from supervisor.api import sse
from supervisor.api.views import RowNumber
from supervisor.core.entities import EventRecord, LaunchId
from supervisor.service.events import EventBus
from supervisor.service.journal import EVENT, Journal

_PAGE = 1000
_ID_DIGITS = 18
"""Longer ids are not ours."""

After = Annotated[RowNumber | None, Query(description="begin after this one; else the newest")]
Limit = Annotated[int, Query(ge=0, le=_PAGE)]
Subject = Annotated[str | None, Query(description="name of a deployment or device")]
Launch = Annotated[RowNumber | None, Query(description="number of a launch")]


def create_events_router(journal: Journal, bus: EventBus) -> APIRouter:
    """Routes under ``/api`` that tell what happened."""
    router = APIRouter(prefix="/api")

    @router.get("/history")
    async def history(
        after: After = None, limit: Limit = 100, subject: Subject = None, launch: Launch = None
    ) -> list[EventRecord]:
        return await journal.events(after, limit, subject, _number(launch))

    @router.get("/history/stream", response_class=EventSourceResponse)
    async def stream(
        after: After = None,
        limit: Limit = 100,
        subject: Subject = None,
        launch: Launch = None,
        last_event_id: Annotated[str, Header()] = "",
    ) -> AsyncIterator[ServerSentEvent]:
        if last_event_id.isdecimal() and len(last_event_id) <= _ID_DIGITS:
            after = int(last_event_id)
        events = followed(journal, bus, after, limit, subject, _number(launch))
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    return router


async def followed(
    journal: Journal,
    bus: EventBus,
    after_id: int | None,
    limit: int,
    subject: str | None,
    launch_id: LaunchId | None,
) -> AsyncGenerator[ServerSentEvent, None]:
    """``following``, then an ``event`` for each of the past and of those that come.

    Without ``after_id`` the past is the newest ``limit``, else everything after it. The id of an
    event that is not on disk yet is that of the newest which is: its own number would be given
    anew if we were killed, so who reconnects hears of it again.
    """
    if after_id is not None and after_id > journal.newest_id:
        after_id = 0  # of another database, which was there before
    with bus.subscribe() as changes:
        last_id = journal.stored_id if after_id is None else after_id
        yield sse.sent("following", {"after": last_id}, event_id=last_id)
        async for record in _past(journal, after_id, limit, subject, launch_id):
            last_id = record.id
            yield _sent(journal, record)
        async for change in changes:
            if change.name != EVENT or change.body["id"] <= last_id:
                continue
            record = EventRecord.model_validate(change.body)
            last_id = record.id
            if subject in (None, record.subject) and launch_id in (None, record.launch_id):
                yield _sent(journal, record)


async def _past(
    journal: Journal,
    after_id: int | None,
    limit: int,
    subject: str | None,
    launch_id: LaunchId | None,
) -> AsyncIterator[EventRecord]:
    """In pages, as it may be long."""
    if after_id is None:
        for record in await journal.events(None, limit, subject, launch_id):
            yield record
        return
    while page := await journal.events(after_id, _PAGE, subject, launch_id):
        for record in page:
            yield record
        after_id = page[-1].id


def _sent(journal: Journal, record: EventRecord) -> ServerSentEvent:
    event_id = min(record.id, journal.stored_id)
    return sse.sent(EVENT, record.model_dump(mode="json"), event_id=event_id)


def _number(launch: int | None) -> LaunchId | None:
    return None if launch is None else LaunchId(launch)
