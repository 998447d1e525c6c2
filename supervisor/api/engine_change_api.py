"""REST API of the cluster's engine: move all devices to another build, and watch it."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import Field

from supervisor.api import sse
from supervisor.core.engine_change import EngineChange
from supervisor.core.entities import FrozenModel
from supervisor.service.engine_change import EngineChanger


class ChangeRequest(FrozenModel):
    """What to move the cluster to."""

    build: str = Field(min_length=1, max_length=100, examples=["b10516"])


def create_engine_change_router(changer: EngineChanger) -> APIRouter:
    """Routes under ``/api`` that change the engine."""
    router = APIRouter(prefix="/api")

    async def begun(request: ChangeRequest) -> None:
        # Before the stream begins, so that a refusal has a status of its own.
        await changer.begin(request.build)

    @router.post(
        "/engine-change", response_class=EventSourceResponse, dependencies=[Depends(begun)]
    )
    async def change() -> AsyncIterator[ServerSentEvent]:
        stream = sse.working(changer.follow, shown=_plain, answered=_plain)
        async with contextlib.aclosing(stream):
            async for event in stream:
                yield event

    @router.get("/engine-change")
    async def latest() -> EngineChange | None:
        return changer.latest

    return router


def _plain(change: EngineChange) -> dict[str, object]:
    return change.model_dump(mode="json")
