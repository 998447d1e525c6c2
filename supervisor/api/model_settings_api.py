"""REST API of what is kept for models."""

import asyncio
from typing import Any

from fastapi import APIRouter, Response

from supervisor.api.parameters import ModelName
from supervisor.core.model_settings import ModelSettings
from supervisor.service.model_settings import ModelSettingsBook


def create_model_settings_router(book: ModelSettingsBook) -> APIRouter:
    """Routes under ``/api/models/settings``."""
    router = APIRouter(prefix="/api/models")

    @router.get("/settings")
    async def settings(model: ModelName | None = None) -> list[ModelSettings]:
        """Of one model, with or without values, or of all that have any."""
        if model is None:
            return await asyncio.to_thread(book.all)
        return [await asyncio.to_thread(book.get, model)]

    @router.put("/settings")
    async def keep(model: ModelName, values: dict[str, Any]) -> ModelSettings:
        """Keep these values in place of those before."""
        return await asyncio.to_thread(book.put, model, values)

    @router.delete("/settings", status_code=204)
    async def forget(model: ModelName) -> Response:
        await asyncio.to_thread(book.forget, model)
        return Response(status_code=204)

    return router
