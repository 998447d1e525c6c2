"""The address for agents (TLS): join, heartbeats, the agent program itself, and engines."""

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from agents import tls
from agents.contract import AGENT_PROTOCOL, Heartbeat, HeartbeatReply, JoinRequest
from agents.errors import ProjectError
from agents.requests import problem, read_body
from supervisor.api.problems import status_of
from supervisor.core.entities import AgentId
from supervisor.errors import BadRequest, BadToken, ReleaseUnknown
from supervisor.service.registry import Registry

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 256 * 1024

_UNKNOWN = "this device was removed, or joined anew; join it again with a new code"

M = TypeVar("M", Heartbeat, JoinRequest)

_HEARTBEAT = TypeAdapter(Heartbeat)
_JOIN = TypeAdapter(JoinRequest)


def create_join_app(
    registry: Registry,
    authority_pem: str,
    files: Callable[[str], Path | None],
    heartbeat_s: float,
    lease_s: float,
    engines: Callable[[str], Path | None] = lambda _: None,
) -> Starlette:
    """Routes for agents. ``files`` and ``engines`` map a download's name to its path.

    Agents send a heartbeat every ``heartbeat_s`` seconds, and stop their rpc-server when none was
    answered for ``lease_s``.
    """

    def caller(request: Request) -> AgentId | None:
        """The device that asks, if its certificate is its current one."""
        agent_id = AgentId(request.scope.get(tls.PEER, "").removeprefix("agent-"))
        is_known = registry.recognises(agent_id, request.scope.get(tls.SERIAL, ""))
        return agent_id if is_known else None

    async def get_authority(_: Request) -> Response:
        return PlainTextResponse(authority_pem, media_type="application/x-pem-file")

    async def get_file(request: Request) -> Response:
        path = await asyncio.to_thread(files, request.path_params["name"])
        if path is None:
            return problem(404, BadRequest.code, "no such file")
        return FileResponse(path)

    async def post_join(request: Request) -> Response:
        reply = registry.join(await _read(_JOIN, request))
        return JSONResponse(asdict(reply))

    async def post_heartbeat(request: Request) -> Response:
        if (agent_id := caller(request)) is None:
            return problem(403, BadToken.code, _UNKNOWN)
        message = await _read(_HEARTBEAT, request)
        peer = request.client.host if request.client else ""
        await registry.heard(agent_id, message, peer)
        return JSONResponse(asdict(HeartbeatReply(heartbeat_s, lease_s)))

    async def get_engine(request: Request) -> Response:
        if (agent_id := caller(request)) is None:
            return problem(403, BadToken.code, _UNKNOWN)
        name = request.path_params["archive"]
        path = await asyncio.to_thread(engines, name)
        if path is None:
            return problem(404, ReleaseUnknown.code, f"no engine {name[:100]!r} is on the shelf")
        asked = {"device": agent_id, "archive": name, "range": request.headers.get("range", "all")}
        log.info("engine.asked_for", extra=asked)
        return FileResponse(path)

    async def on_error(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, ProjectError)
        return problem(status_of(exc), exc.code, str(exc))

    routes = [
        Route("/authority.pem", get_authority),
        Route("/files/{name}", get_file),
        Route("/engines/{archive}", get_engine),
        Route("/join", post_join, methods=["POST"]),
        Route("/heartbeat", post_heartbeat, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={ProjectError: on_error})


async def _read(adapter: TypeAdapter[M], request: Request) -> M:
    body = await read_body(request, MAX_BODY_BYTES, BadRequest)
    try:
        message = adapter.validate_python(json.loads(body))
    except (ValueError, ValidationError) as exc:
        raise BadRequest(f"cannot read the message: {exc}") from exc
    if message.protocol != AGENT_PROTOCOL:
        raise BadRequest(
            f"this agent speaks protocol {message.protocol}, the supervisor {AGENT_PROTOCOL}; "
            "update the older of the two"
        )
    return message
