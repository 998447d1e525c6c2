"""Bounds of what a request may bring: its head, and its body unless it is for the gateway."""

from collections.abc import Iterable
from typing import Final

from anyio import BrokenResourceError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agents.requests import problem
from supervisor.api.auth import refusal
from supervisor.core.api_errors import error_body
from supervisor.core.gateway_routes import api_of, is_gateway_path
from supervisor.errors import BadRequest, RequestTooLarge

HEAD_BYTES: Final = 64 * 1024
HEADERS: Final = 200
BODY_BYTES: Final = 64 * 1024
"""Of a request that is not for the gateway, which has a limit of its own."""

_LARGE: Final = f"the request has more than {BODY_BYTES // 1024} KiB; send less"


class Bounded:
    """Refuses heads that are too large, bodies but for the gateway's, and to be a proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        if scope["type"] == "http":
            path, headers = scope["path"], scope["headers"]
            if scope["method"] == "CONNECT":
                app = problem(405, BadRequest.code, "this is no proxy")  # 200 would make it one
            elif _is_large(scope):
                app = _large_head(path, _head_bytes(scope), len(headers))
            elif not is_gateway_path(path):
                if _announced_bytes(headers) > BODY_BYTES:
                    app = refusal(path, RequestTooLarge(_LARGE))
                receive = _bounded(receive)
        try:
            await app(scope, receive, send)
        except* BrokenResourceError:
            pass  # of FastAPI's pump of events, if a client leaves just then: fastapi #15725


def _is_large(scope: Scope) -> bool:
    """Whether the head of a request is too large."""
    return _head_bytes(scope) > HEAD_BYTES or len(scope["headers"]) > HEADERS


def _head_bytes(scope: Scope) -> int:
    size_bytes: int = len(scope["raw_path"]) + len(scope["query_string"])
    return size_bytes + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _bounded(receive: Receive) -> Receive:
    read_bytes = 0

    async def receive_bounded() -> Message:
        nonlocal read_bytes
        message = await receive()
        read_bytes += len(message.get("body", b""))
        if read_bytes > BODY_BYTES:
            raise HTTPException(413, _LARGE)  # FastAPI lets nothing else through
        return message

    return receive_bounded


def _announced_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """0 if the request does not say; h11 has seen to it that it is a number."""
    return next((int(value) for name, value in headers if name == b"content-length"), 0)


def _large_head(path: str, size_bytes: int, headers: int) -> JSONResponse:
    text = (
        f"the head of the request has {headers} headers and {size_bytes} bytes, and may have "
        f"{HEADERS} and {HEAD_BYTES}; send less, such as fewer cookies"
    )
    if is_gateway_path(path):
        return JSONResponse(error_body(api_of(path), 431, RequestTooLarge.code, text), 431)
    return problem(431, RequestTooLarge.code, text)
