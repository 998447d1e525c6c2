"""REST API of what to run: suggestions for a repository or a task, and whether a model fits.

Suggestions ask the hub in the name of the main host, so they need admin; a fit is of a model that
is on this host, and only told.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from supervisor.api import sse
from supervisor.api.parameters import ModelName
from supervisor.core.suggesting import USUAL_MIN_SPEED, ModelFit
from supervisor.service.suggesting import Suggester, SuggestWish

R = TypeVar("R")

CtxTokens = Annotated[int | None, Query(ge=256, le=10_000_000, description="None: 8192 or less")]


def create_suggest_router(suggester: Suggester) -> APIRouter:
    """``GET /api/models/suggest`` and ``GET /api/models/fit``."""
    router = APIRouter(prefix="/api/models")

    @router.get("/suggest", response_class=EventSourceResponse)
    async def suggest(
        q: Annotated[str, Query(max_length=200, description="OWNER/REPO, a task, or empty")] = "",
        ctx_tokens: CtxTokens = None,
        min_tokens_per_s: Annotated[float, Query(ge=0, le=1000)] = USUAL_MIN_SPEED,
    ) -> AsyncIterator[ServerSentEvent]:
        wish = SuggestWish(q, ctx_tokens, min_tokens_per_s)
        stream = sse.working(
            lambda tell: suggester.suggest(wish, tell),
            shown=asdict,
            answered=lambda result: result.model_dump(mode="json"),
        )
        async with contextlib.aclosing(stream):
            async for event in stream:
                yield event

    @router.get("/fit")
    async def fit(
        request: Request,
        model: ModelName,
        ctx_tokens: CtxTokens = None,
    ) -> ModelFit:
        return await _while_there(request, suggester.fitter.of_file(model, ctx_tokens))

    return router


async def _while_there(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """The outcome of ``work``, which ends when the caller hangs up."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        return await task
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
