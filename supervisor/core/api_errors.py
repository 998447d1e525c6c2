"""Errors in the shape of the API that was called, as a whole answer or as an event of a stream.

Source:
    OpenAI and Anthropic API references; llama.cpp: ``tools/server/server-common.cpp``
    (``format_error_response``), which clients of llama-server know.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from supervisor.core.gateway_routes import Api

_OPENAI_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(
    api: Api, status: int, code: str, message: str, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON body of an error.

    Args:
        api: Which was called.
        status: Of HTTP.
        code: Ours, stable; docs/errors.md has a section for each.
        message: One sentence: what happened, the numbers, what to do.
        more: What programs may want to know beside it, such as state, progress and cause.
    """
    other = "invalid_request_error" if status < 500 else "server_error"
    also = {"supervisor": dict(more)} if more else {}
    if api is Api.MESSAGES:
        kind = _ANTHROPIC_TYPES.get(status) or ("api_error" if status >= 500 else other)
        error = {"type": kind, "message": message, "code": code, **also}
        return {"type": "error", "error": error}
    kind = _OPENAI_TYPES.get(status, other)
    if api is Api.NATIVE:
        native = {"code": status, "message": message, "type": kind, "reason": code, **also}
        return {"error": native}
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **also}}


def error_event(api: Api, body: Mapping[str, Any]) -> bytes:
    """The same as the last event of a stream that has begun.

    Args:
        api: Which was called.
        body: As from :func:`error_body`, or as the engine sent it.
    """
    if api is Api.MESSAGES:
        shaped = body if body.get("type") == "error" else {"type": "error", **body}
        return b"event: error\ndata: " + _json(shaped) + b"\n\n"
    if api is Api.RESPONSES:
        error = body.get("error", body)
        flat = {"param": None, **error, "kind": error.get("type"), "type": "error"}
        return b"event: error\ndata: " + _json(flat) + b"\n\n"
    ended = b"" if api is Api.NATIVE else b"data: [DONE]\n\n"
    return b"data: " + _json(body) + b"\n\n" + ended


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()
