"""What of llama-server's API the gateway offers: a list of what is allowed, and of what is not.

Everything else is unknown. A route that lets a caller reach other hosts, files or processes is
withheld, whatever the engine's own settings are.

Source:
    llama.cpp: ``tools/server/server.cpp``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Api(StrEnum):
    """Whose shapes of requests, events and errors a route has."""

    CHAT = "chat"
    """OpenAI's chat completions."""
    COMPLETIONS = "completions"
    """OpenAI's completions."""
    RESPONSES = "responses"
    """OpenAI's responses."""
    MESSAGES = "messages"
    """Anthropic's messages."""
    NATIVE = "native"
    """llama-server's own, and those of OpenAI that look the same in both."""


class Work(StrEnum):
    """What a request costs the engine."""

    GENERATES = "generates"
    """It takes a slot, may stream, and can be continued."""
    COMPUTES = "computes"
    """It takes a slot and has one answer."""
    ASKS = "asks"
    """It needs the engine, and no device."""


@dataclass(frozen=True, slots=True)
class GatewayRoute:
    """One route of the gateway."""

    method: str
    path: str
    api: Api
    work: Work


def _routes(work: Work, api: Api, *paths: str, method: str = "POST") -> list[GatewayRoute]:
    return [GatewayRoute(method, path, api, work) for path in paths]


_ALL: Final = (
    *_routes(Work.GENERATES, Api.CHAT, "/v1/chat/completions", "/chat/completions"),
    *_routes(Work.GENERATES, Api.COMPLETIONS, "/v1/completions"),
    *_routes(Work.GENERATES, Api.RESPONSES, "/v1/responses", "/responses"),
    *_routes(Work.GENERATES, Api.MESSAGES, "/v1/messages"),
    *_routes(Work.GENERATES, Api.NATIVE, "/completion", "/completions", "/infill"),
    *_routes(Work.COMPUTES, Api.NATIVE, "/v1/embeddings", "/embeddings", "/embedding"),
    *_routes(Work.COMPUTES, Api.NATIVE, "/v1/rerank", "/v1/reranking", "/rerank", "/reranking"),
    *_routes(Work.ASKS, Api.NATIVE, "/tokenize", "/detokenize", "/apply-template"),
    *_routes(Work.ASKS, Api.CHAT, "/v1/chat/completions/input_tokens"),
    *_routes(Work.ASKS, Api.CHAT, "/chat/completions/input_tokens"),
    *_routes(Work.ASKS, Api.RESPONSES, "/v1/responses/input_tokens", "/responses/input_tokens"),
    *_routes(Work.ASKS, Api.MESSAGES, "/v1/messages/count_tokens"),
    *_routes(Work.ASKS, Api.NATIVE, "/props", "/slots", method="GET"),
)

ROUTES: Final[Mapping[tuple[str, str], GatewayRoute]] = {(r.method, r.path): r for r in _ALL}
"""By method and path: those that go to an engine."""

MODELS_PATHS: Final = ("/v1/models", "/models")
"""Answered by the gateway itself, for all deployments. One model: its name after a slash."""

HEALTH_PATHS: Final = ("/health", "/v1/health")
"""Answered by the gateway itself, to anybody, as by llama-server."""

_STEERS = "it would let a caller read or steer the answers of others"
_STARTS = "deployments are launched and stopped with 'supervisor launch' and 'supervisor stop'"

_WITHHELD: Final = (
    ("/cors-proxy", "it would let a caller reach other hosts through this one"),
    ("/tools", "it would let a caller run programs and read files on this host"),
    ("/slots/", "it would let a caller read and write files on this host"),
    ("/models/load", _STARTS),
    ("/models/unload", _STARTS),
    ("/models/sse", "'supervisor events' and GET /api/events tell what happens"),
    ("/lora-adapters", "it would change the model for everybody"),
    ("/v1/stream", _STEERS),
    ("/v1/chat/completions/control", _STEERS),
    ("/v1/audio/", "no deployment takes audio"),
    ("/audio/", "no deployment takes audio"),
)
"""The beginning of the path of other routes that llama-server has, and why they are not here."""

_PATHS: Final = frozenset({r.path for r in _ALL} | {*MODELS_PATHS, *HEALTH_PATHS})


def is_gateway_path(path: str) -> bool:
    """Whether a path is the gateway's, whatever it answers there."""
    return path.startswith(("/v1/", "/models/")) or path in _PATHS or bool(why_withheld(path))


def api_of(path: str) -> Api:
    """Whose shape an error at a path has."""
    return next((route.api for route in _ALL if route.path == path), Api.NATIVE)


def why_withheld(path: str) -> str:
    """Why a route of llama-server is not offered; empty: it is, or there is none such."""
    return next((why for start, why in _WITHHELD if path.startswith(start)), "")
