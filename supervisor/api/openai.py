"""The OpenAI endpoint: requests go to the deployment's llama-server and come back as they are.

A thin path; queueing, keys per user and resuming streams are the gateway's later work.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from agents.errors import ProjectError
from agents.requests import read_body
from supervisor.api.problems import status_of
from supervisor.core.lifecycle import State
from supervisor.errors import BadRequest
from supervisor.service.reconciler import Reconciler

# Only what computes: nothing that lets a caller reach files, hosts or processes.
_ROUTES = ("chat/completions", "completions", "embeddings", "responses")
_MAX_BODY_BYTES = 64 * 1024 * 1024
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "date", "server")


def _openai_error(error: ProjectError) -> JSONResponse:
    status = status_of(error)
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": str(error), "type": kind, "code": error.code}}
    return JSONResponse(body, status, headers={"Retry-After": "5"} if status == 503 else None)


def create_router(reconciler: Reconciler, http: httpx.AsyncClient) -> APIRouter:
    """Routes under ``/v1``. ``http`` has no read time-out: a slow phone is no failure."""
    router = APIRouter(prefix="/v1")

    async def forward(request: Request) -> Response:
        try:
            body = await read_body(request, _MAX_BODY_BYTES, BadRequest)
            port = reconciler.serving(_model(body)).port
        except ProjectError as exc:
            return _openai_error(exc)
        upstream = http.build_request(
            "POST",
            f"http://127.0.0.1:{port}{request.url.path}",
            content=body,
            headers={"content-type": request.headers.get("content-type", "application/json")},
        )
        try:
            answer = await http.send(upstream, stream=True)
        except httpx.TransportError as exc:
            reason = str(exc) or type(exc).__name__
            message = f"llama-server does not answer ({reason}); see 'supervisor status'"
            error = {"message": message, "type": "server_error", "code": "engine_unreachable"}
            return JSONResponse({"error": error}, 502)
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
        return StreamingResponse(_stream(answer), answer.status_code, headers)

    for route in _ROUTES:
        router.add_api_route(f"/{route}", forward, methods=["POST"], response_model=None)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        ready = [d for d in reconciler.all() if d.state is State.READY]
        data = [{"id": d.id, "object": "model", "owned_by": "llama.cpp"} for d in ready]
        return {"object": "list", "data": data}

    return router


def _model(body: bytes) -> str | None:
    try:
        request = json.loads(body)
    except ValueError as exc:
        raise BadRequest(f"the request is not JSON: {exc}") from exc
    if not isinstance(request, dict):
        raise BadRequest("the request is not a JSON object")
    model = request.get("model")
    return model if isinstance(model, str) else None


async def _stream(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        # Also when the client left: closing upstream frees the slot.
        await answer.aclose()
