"""REST API of pushes: send a model's weights ahead and watch it."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.sse import EventSourceResponse, ServerSentEvent

from agents.errors import ProjectError
from supervisor.api.problems import status_of
from supervisor.core.entities import DeploymentSpec, PushView
from supervisor.service.pushing import Pusher


def create_push_router(pusher: Pusher) -> APIRouter:
    """Routes under ``/api`` that push."""
    router = APIRouter(prefix="/api")

    @router.post("/models/push", response_class=EventSourceResponse)
    async def push(spec: DeploymentSpec) -> AsyncIterator[ServerSentEvent]:
        async for event in _events(pusher, spec):
            yield event

    return router


async def _events(pusher: Pusher, spec: DeploymentSpec) -> AsyncIterator[ServerSentEvent]:
    """``progress`` events, then ``result`` or ``problem``. Leaving ends the push."""
    updates: asyncio.Queue[tuple[PushView, ...] | None] = asyncio.Queue()
    pushing = asyncio.create_task(pusher.push(spec, updates.put_nowait))
    pushing.add_done_callback(lambda _: updates.put_nowait(None))
    try:
        while (views := await updates.get()) is not None:
            yield ServerSentEvent(event="progress", data=_plain(views))
        try:
            yield ServerSentEvent(event="result", data=_plain(await pushing))
        except ProjectError as exc:
            problem = {"code": exc.code, "detail": str(exc), "status": status_of(exc)}
            yield ServerSentEvent(event="problem", data=problem)
    finally:
        pushing.cancel()
        await asyncio.gather(pushing, return_exceptions=True)


def _plain(views: tuple[PushView, ...]) -> list[dict[str, object]]:
    return [view.model_dump(mode="json") for view in views]
