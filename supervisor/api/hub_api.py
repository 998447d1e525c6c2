"""REST API of the hub: search it, and see what a repository has to choose from.

Asking the hub reaches beyond this cluster, in the name of the main host, so both need admin.
"""

from typing import Annotated

from fastapi import APIRouter, Query

from supervisor.adapters.hub_search import HubSearch, RepoModels
from supervisor.core.model_reference import FoundRepo, parse_reference
from supervisor.errors import BadRequest


def create_hub_router(hub: HubSearch) -> APIRouter:
    """``GET /api/models/search`` and ``GET /api/models/repo``."""
    router = APIRouter(prefix="/api/models")

    @router.get("/search")
    async def search(
        q: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> list[FoundRepo]:
        return await hub.search(q, limit)

    @router.get("/repo")
    async def repo(repo: Annotated[str, Query(max_length=200)]) -> RepoModels:
        reference = parse_reference(repo)
        if reference is None or reference.repo != repo:
            raise BadRequest(f"{repo!r} is no repository of a hub; give OWNER/REPO")
        return await hub.models(repo)

    return router
