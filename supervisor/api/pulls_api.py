"""REST API of pulls: fetch models from the hub, and pause, resume and remove that.

Progress comes with the events (``pull``) and the snapshot.
"""

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field

from supervisor.core.entities import FrozenModel, PullView
from supervisor.service.pulls import Pulls


class PullWish(FrozenModel):
    """A model to fetch."""

    reference: Annotated[str, Field(min_length=1, max_length=700)] = Field(
        description="OWNER/REPO, OWNER/REPO:QUANT or OWNER/REPO/FILE.gguf"
    )


def create_pulls_router(pulls: Pulls) -> APIRouter:
    """Routes under ``/api/models/pulls``."""
    router = APIRouter(prefix="/api/models")

    @router.get("/pulls")
    async def all_pulls() -> list[PullView]:
        return pulls.views()

    @router.post("/pulls", status_code=201)
    async def fetch(wish: PullWish) -> PullView:
        return await pulls.fetch(wish.reference)

    @router.post("/pulls/{pull_id}/pause")
    async def pause(pull_id: str) -> PullView:
        return await pulls.pause(pull_id)

    @router.post("/pulls/{pull_id}/resume")
    async def resume(pull_id: str) -> PullView:
        return await pulls.resume(pull_id)

    @router.delete("/pulls/{pull_id}", status_code=204)
    async def remove(pull_id: str) -> Response:
        await pulls.remove(pull_id)
        return Response(status_code=204)

    return router
