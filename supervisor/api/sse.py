"""Server-sent events: what all streams of the API share."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi.sse import ServerSentEvent

from agents.errors import ProjectError
from supervisor.api.problems import status_of

U = TypeVar("U")
R = TypeVar("R")


def sent(name: str, body: Any, *, event_id: int | None = None) -> ServerSentEvent:
    """An event whose body is plain JSON already; FastAPI would walk it once more."""
    id_text = None if event_id is None else str(event_id)
    return ServerSentEvent(event=name, raw_data=json.dumps(body), id=id_text)


async def working(
    work: Callable[[Callable[[U], None]], Coroutine[Any, Any, R]],
    shown: Callable[[U], Any],
    answered: Callable[[R], Any],
) -> AsyncGenerator[ServerSentEvent, None]:
    """``progress`` events, then ``result`` or ``problem``. Who leaves the stream ends the work.

    Args:
        work: Takes what it is to call with each update.
        shown: Plain JSON of an update.
        answered: Plain JSON of the result.
    """
    updates: asyncio.Queue[U | None] = asyncio.Queue()
    task = asyncio.create_task(work(updates.put_nowait))
    task.add_done_callback(lambda _: updates.put_nowait(None))
    try:
        while (update := await updates.get()) is not None:
            yield ServerSentEvent(event="progress", data=shown(update))
        try:
            yield ServerSentEvent(event="result", data=answered(await task))
        except ProjectError as exc:
            problem = {"code": exc.code, "status": status_of(exc), "detail": str(exc)}
            yield ServerSentEvent(event="problem", data=problem)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
