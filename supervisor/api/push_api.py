"""REST API of pushes: who holds what of a model; send its weights ahead and watch it."""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from supervisor.api import sse
from supervisor.api.parameters import ModelName
from supervisor.core.entities import DeploymentSpec, PushView
from supervisor.core.holdings import HoldingView
from supervisor.service.holdings import Holdings
from supervisor.service.pushing import Pusher


def create_push_router(pusher: Pusher, holdings: Holdings) -> APIRouter:
    """Routes under ``/api`` that push, and tell what need not be pushed."""
    router = APIRouter(prefix="/api")

    @router.post("/models/push", response_class=EventSourceResponse)
    async def push(
        spec: DeploymentSpec,
        whole: Annotated[bool, Query(description="all of the model to each device")] = False,
    ) -> AsyncIterator[ServerSentEvent]:
        stream = sse.working(
            lambda tell: pusher.push(spec, tell, whole=whole), shown=_plain, answered=_plain
        )
        async with contextlib.aclosing(stream):
            async for event in stream:
                yield event

    @router.get("/models/holdings")
    async def get_holdings(model: ModelName) -> tuple[HoldingView, ...]:
        """Takes as long as hashing the model does, the first time."""
        return await holdings.holdings(model)

    @router.get("/models/holdings/stream", response_class=EventSourceResponse)
    async def stream_holdings(model: ModelName) -> AsyncIterator[ServerSentEvent]:
        """The same with progress while the model is hashed."""
        stream = sse.working(
            lambda tell: holdings.holdings(model, lambda *bytes_: tell(bytes_)),
            shown=_progress,
            answered=lambda views: [view.model_dump(mode="json") for view in views],
        )
        async with contextlib.aclosing(stream):
            async for event in stream:
                yield event

    return router


def _progress(named: tuple[int, ...]) -> dict[str, int]:
    done_bytes, total_bytes = named
    return {"done_bytes": done_bytes, "total_bytes": total_bytes}


def _plain(views: tuple[PushView, ...]) -> list[dict[str, object]]:
    return [view.model_dump(mode="json") for view in views]
