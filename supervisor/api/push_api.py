"""REST API of pushes: send a model's weights ahead and watch it."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.sse import EventSourceResponse, ServerSentEvent

from supervisor.api import sse
from supervisor.core.entities import DeploymentSpec, PushView
from supervisor.service.pushing import Pusher


def create_push_router(pusher: Pusher) -> APIRouter:
    """Routes under ``/api`` that push."""
    router = APIRouter(prefix="/api")

    @router.post("/models/push", response_class=EventSourceResponse)
    async def push(spec: DeploymentSpec) -> AsyncIterator[ServerSentEvent]:
        stream = sse.working(lambda tell: pusher.push(spec, tell), shown=_plain, answered=_plain)
        async with contextlib.aclosing(stream):
            async for event in stream:
                yield event

    return router


def _plain(views: tuple[PushView, ...]) -> list[dict[str, object]]:
    return [view.model_dump(mode="json") for view in views]
