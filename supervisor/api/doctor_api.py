"""REST API of the doctor."""

from typing import Annotated

from fastapi import APIRouter, Query

from supervisor.core.doctor import DeviceFindings
from supervisor.service.doctoring import Doctoring
from supervisor.service.model_memory import USUAL_CTX_TOKENS, Question

Names = Annotated[
    list[str] | None, Query(description="only these devices; 'main host' is this one")
]
Model = Annotated[
    str | None, Query(min_length=1, description="file here, or REPO[:QUANT]: does it fit?")
]
Ctx = Annotated[int, Query(ge=256, le=10_000_000, description="context of that model, tokens")]
KvType = Annotated[str | None, Query(description="type of its KV cache")]


def create_doctor_router(doctoring: Doctoring) -> APIRouter:
    """The route under ``/api`` that examines the cluster."""
    router = APIRouter(prefix="/api")

    @router.get("/doctor")
    async def examine(
        device: Names = None,
        model: Model = None,
        ctx_tokens: Ctx = USUAL_CTX_TOKENS,
        kv_type: KvType = None,
    ) -> list[DeviceFindings]:
        question = None if model is None else Question(model, ctx_tokens, kv_type)
        return await doctoring.report(device or (), question)

    return router
