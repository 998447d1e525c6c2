"""What the HTTP edges of both programs share: bounded bodies and problem documents."""

from starlette.requests import Request
from starlette.responses import JSONResponse

from agents.errors import ProjectError


async def read_body(request: Request, limit_bytes: int, too_large: type[ProjectError]) -> bytes:
    """The whole body of a request, at most ``limit_bytes`` of it.

    Raises:
        ProjectError: ``too_large``, as soon as more has arrived.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise too_large(f"the request has more than {limit_bytes} bytes; send less")
    return bytes(body)


def problem(status: int, code: str, detail: str, **more: object) -> JSONResponse:
    """An RFC 9457 answer; ``more`` are members of its own."""
    body = {"type": f"errors.md#{code}", "code": code, "status": status, "detail": detail, **more}
    return JSONResponse(body, status, media_type="application/problem+json")
