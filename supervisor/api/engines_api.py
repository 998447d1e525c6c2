"""REST API of the shelf: which builds of llama.cpp are on it, install one, remove one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import Field

from agents.errors import ProjectError
from supervisor.api import sse
from supervisor.core.engine_builds import checked_build
from supervisor.core.entities import FrozenModel
from supervisor.service.engine_change import EngineChanger
from supervisor.service.engine_installing import (
    BuildView,
    EngineInstaller,
    InstalledBuild,
    InstallProgress,
    Tell,
)

Variant = Annotated[str, Field(max_length=64, examples=["ubuntu-vulkan-x64"])]


class InstallWish(FrozenModel):
    """Which build to install, and what of it."""

    build: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="such as b10516; none for the newest release"
    )
    variants: tuple[Variant, ...] = Field(
        default=(), max_length=64, description="empty: what devices and main host need"
    )


class RemovedBuild(FrozenModel):
    """The archives that are gone."""

    archives: tuple[str, ...]


def create_engines_router(installer: EngineInstaller, changer: EngineChanger) -> APIRouter:
    """Routes under ``/api/engine-builds``."""
    router = APIRouter(prefix="/api")

    async def _taken_into_use(result: InstalledBuild) -> InstalledBuild:
        """Who has nothing to lose need not be asked."""
        try:
            await changer.begin(result.build)
        except ProjectError as exc:
            note = f"the main host has no engine, and cannot use this one: {exc}"
        else:
            note = f"the main host had no engine; it and its devices take {result.build} into use"
        return result.model_copy(update={"notes": (*result.notes, note)})

    async def admitted(wish: InstallWish) -> InstallWish:
        # Before the stream begins, so that a refusal has a status of its own.
        if wish.build is not None:
            checked_build(wish.build)
        return wish

    @router.get("/engine-builds")
    async def builds() -> list[BuildView]:
        return await asyncio.to_thread(installer.builds)

    @router.post("/engine-builds", response_class=EventSourceResponse)
    async def install(
        wish: Annotated[InstallWish, Depends(admitted)],
    ) -> AsyncIterator[ServerSentEvent]:
        async def work(tell: Tell) -> InstalledBuild:
            result = await installer.install(wish.build, wish.variants, tell)
            return await _taken_into_use(result) if installer.is_wanted_here else result

        stream = sse.working(work, shown=_plain, answered=_plain)
        async with contextlib.aclosing(stream):
            async for event in stream:
                yield event

    @router.delete("/engine-builds/{build}")
    async def remove(build: Annotated[str, Path(max_length=64)]) -> RemovedBuild:
        # Not in a thread: nothing of it may be offered while it goes.
        return RemovedBuild(archives=installer.remove(build))

    return router


def _plain(shown: InstallProgress | InstalledBuild) -> Any:
    return shown.model_dump(mode="json")
