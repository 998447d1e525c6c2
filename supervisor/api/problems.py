"""Errors as RFC 9457 answers: one table from class to status."""

import math
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from agents.errors import AgentError, DiskFull, ProjectError
from agents.requests import problem
from supervisor import errors

# The first class that matches wins, so special cases come before their bases.
_STATUS: tuple[tuple[type[ProjectError], int], ...] = (
    (errors.KeyRequired, 401),
    (errors.OriginRefused, 403),
    (errors.ScopeMissing, 403),
    (errors.RouteWithheld, 403),
    (errors.RemoteMediaRefused, 403),
    (errors.RouteUnknown, 404),
    (errors.ApiKeyUnknown, 404),
    (errors.RequestTooLarge, 413),
    (errors.RateLimited, 429),
    (errors.QueueFull, 429),
    (errors.BadToken, 403),
    (errors.DeviceUnknown, 404),
    (errors.DeploymentUnknown, 404),
    (errors.LaunchUnknown, 404),
    (errors.InputError, 422),
    (errors.DeploymentNotReady, 503),
    (errors.WaitedTooLong, 503),
    (errors.TooManyStreams, 503),
    (errors.AnswerLost, 502),
    (errors.EngineUnreachable, 502),
    (errors.StoreUnusable, 507),
    (errors.StateError, 409),
    (errors.CapacityError, 409),
    (errors.PeerError, 409),
    (errors.EngineError, 409),
    (DiskFull, 507),
    (AgentError, 409),
    (ProjectError, 500),
)


_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "code", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "code": {"type": "string", "description": "stable; docs/errors.md has a section for each"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what happened, and what to do"},
    },
}
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {
        "description": "A problem (RFC 9457)",
        "content": {"application/problem+json": {"schema": _PROBLEM}},
    }
}


def status_of(error: ProjectError) -> int:
    """HTTP status for an error."""
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def _validation_text(exc: RequestValidationError) -> str:
    first = exc.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def install(app: FastAPI) -> None:
    """Make every error of the API a problem document, and say so of all routes to come."""
    app.router.responses = _RESPONSES

    @app.exception_handler(ProjectError)
    async def on_project_error(_: Request, exc: ProjectError) -> Response:
        more = {"shortfall": exc.shortfall} if isinstance(exc, errors.InsufficientMemory) else {}
        answer = problem(status_of(exc), exc.code, str(exc), **more)
        if isinstance(exc, errors.RateLimited):
            answer.headers["Retry-After"] = str(max(math.ceil(exc.retry_after_s), 1))
        return answer

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, exc: RequestValidationError) -> Response:
        return problem(422, errors.BadRequest.code, _validation_text(exc))

    @app.exception_handler(HTTPException)
    async def on_http(_: Request, exc: HTTPException) -> Response:
        kind = errors.RequestTooLarge if exc.status_code == 413 else errors.BadRequest
        return problem(exc.status_code, kind.code, str(exc.detail))
