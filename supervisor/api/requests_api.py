"""REST API of the requests that were answered."""

from typing import Annotated

from fastapi import APIRouter, Query

from supervisor.core.request_record import RequestRecord
from supervisor.service.request_log import KEPT, RequestLog

Limit = Annotated[int, Query(ge=0, le=KEPT, description="how many at most")]
Deployment = Annotated[str | None, Query(description="only of this deployment")]
Caller = Annotated[str | None, Query(description="only of this key, or 'local'")]


def create_requests_router(request_log: RequestLog) -> APIRouter:
    """Routes under ``/api`` that tell what was asked; never a word of what it was."""
    router = APIRouter(prefix="/api")

    @router.get("/requests")
    async def requests(
        limit: Limit = 100, deployment: Deployment = None, caller: Caller = None
    ) -> list[RequestRecord]:
        return await request_log.newest(limit, deployment, caller)

    return router
