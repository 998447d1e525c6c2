"""The agent's routes about chunks that devices give each other."""

import json
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agents.contract import read
from agents.errors import BadMessage
from agents.peer_chunks import PeerChunks
from agents.peer_fetch import Fetches
from agents.peer_messages import FetchOrder, PeerGrant
from agents.requests import read_body

_MAX_ORDER_BYTES = 1 << 20
"""Some 15 000 names."""
_MAX_GRANT_BYTES = 4 << 10


def peer_routes(peers: PeerChunks, fetches: Fetches) -> list[Route]:
    """Let another device read here, and get chunks from another one."""

    async def put_grant(request: Request) -> Response:
        peers.allow(read(PeerGrant, await _body(request, _MAX_GRANT_BYTES)))
        return JSONResponse({})

    async def put_fetch(request: Request) -> Response:
        order = read(FetchOrder, await _body(request, _MAX_ORDER_BYTES))
        return JSONResponse(asdict(fetches.order(order)), 202)

    async def get_fetch(request: Request) -> Response:
        return JSONResponse(asdict(fetches.status(request.path_params["id"])))

    async def delete_fetch(request: Request) -> Response:
        return JSONResponse(asdict(await fetches.end(request.path_params["id"])))

    return [
        Route("/grants", put_grant, methods=["PUT"]),
        Route("/fetches", put_fetch, methods=["PUT"]),
        Route("/fetches/{id}", get_fetch),
        Route("/fetches/{id}", delete_fetch, methods=["DELETE"]),
    ]


async def _body(request: Request, limit_bytes: int) -> Any:
    try:
        return json.loads(await read_body(request, limit_bytes, BadMessage))
    except ValueError as exc:
        raise BadMessage(f"body is not JSON: {exc}") from exc
