"""The agent's routes about its engine."""

import json
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agents.contract import EngineOffer, read
from agents.engine_install import EngineInstaller
from agents.errors import BadMessage
from agents.requests import read_body

_MAX_BODY_BYTES = 16 * 1024


def engine_routes(installer: EngineInstaller) -> list[Route]:
    """Take an offer, tell what became of it, and change the engine."""

    async def put_engine(request: Request) -> Response:
        install = await installer.offer(read(EngineOffer, await _body(request)))
        return JSONResponse(asdict(install), 202)

    async def get_engine(_: Request) -> Response:
        install = installer.status()
        return JSONResponse(asdict(install) if install else None)

    async def post_use(request: Request) -> Response:
        body = await _body(request)
        build = body.get("build") if isinstance(body, dict) else None
        if not isinstance(build, str) or not build:
            raise BadMessage('say which build to use: {"build": "b10516"}')
        return JSONResponse(asdict(await installer.use(build)))

    return [
        Route("/engine", get_engine),
        Route("/engine", put_engine, methods=["PUT"]),
        Route("/engine/use", post_use, methods=["POST"]),
    ]


async def _body(request: Request) -> Any:
    try:
        return json.loads(await read_body(request, _MAX_BODY_BYTES, BadMessage))
    except ValueError as exc:
        raise BadMessage(f"body is not JSON: {exc}") from exc
