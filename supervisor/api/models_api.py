"""REST API of the models of this host: list, locate, check and delete them."""

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from supervisor.api import sse
from supervisor.api.parameters import ModelName
from supervisor.core.entities import FrozenModel
from supervisor.core.library import LibraryModel
from supervisor.core.library_views import (
    ModelPlaces,
    PlaceView,
    Removal,
    VerifiedModel,
    VerifyProgress,
)
from supervisor.service.library import Library
from supervisor.service.model_upkeep import ModelUpkeep

Work = Coroutine[Any, Any, tuple[VerifiedModel, ...]]


class PlacesView(FrozenModel):
    """Where models are looked for, and what could not be looked at."""

    places: tuple[PlaceView, ...]
    skipped: tuple[str, ...]
    unread: int


def create_models_router(library: Library, upkeep: ModelUpkeep) -> APIRouter:
    """Routes under ``/api/models`` about files of this host."""
    router = APIRouter(prefix="/api/models")

    @router.get("")
    async def models(
        max_age_s: Annotated[
            float | None, Query(ge=0, description="look for changes if the last look is older")
        ] = None,
        *,
        companions: Annotated[
            bool, Query(description="projectors, adapters and the like as well")
        ] = False,
    ) -> list[LibraryModel]:
        listing = await library.models(max_age_s)
        return [model for model in listing.models if companions or not model.is_companion]

    @router.get("/places")
    async def places() -> PlacesView:
        found, listing = await upkeep.places()
        return PlacesView(places=tuple(found), skipped=listing.skipped, unread=listing.unread)

    @router.get("/where")
    async def where(model: ModelName) -> ModelPlaces:
        return await upkeep.where(model)

    @router.delete("")
    async def remove(
        path: ModelName,
        *,
        dry_run: Annotated[bool, Query(description="only say what would go")] = False,
    ) -> Removal:
        return await upkeep.remove(path, dry_run=dry_run)

    @router.post("/verify", response_class=EventSourceResponse)
    async def verify(
        model: Annotated[
            str | None, Query(max_length=2048, description="None: all of them")
        ] = None,
    ) -> AsyncIterator[ServerSentEvent]:
        def work(tell: Callable[[VerifyProgress], None]) -> Work:
            return upkeep.verify(model, tell)

        stream = sse.working(work, shown=_plain, answered=_all_plain)
        async with contextlib.aclosing(stream):
            async for event in stream:
                yield event

    return router


def _plain(progress: VerifyProgress) -> dict[str, object]:
    return progress.model_dump(mode="json")


def _all_plain(found: tuple[VerifiedModel, ...]) -> list[dict[str, object]]:
    return [each.model_dump(mode="json") for each in found]
