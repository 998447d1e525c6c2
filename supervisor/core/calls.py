"""A request to the gateway as far as it is looked into; the rest is passed on as it is."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from supervisor.core.callers import Caller
from supervisor.core.gateway_routes import GatewayRoute, Work

_MEDIA_TYPES: Final = frozenset(
    {"image_url", "input_image", "image", "document", "input_audio", "input_video", "video_url"}
)
_MEDIA_KEYS: Final = ("image_url", "input_audio", "input_video", "video_url", "source")
_ADDRESS: Final = re.compile(r"\s*(https?|file|ftp):", re.IGNORECASE)
_WAIT: Final = re.compile(r"\bwait\s*=\s*(\d{1,6}(?:\.\d{1,3})?)", re.IGNORECASE)
_DEEPEST: Final = 16
"""Content parts lie within messages within tool results; nothing that is meant lies deeper."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the gateway."""

    route: GatewayRoute
    caller: Caller
    query: str = ""
    content_type: str = "application/json"
    body: bytes = b""
    parsed: Mapping[str, Any] | None = None
    """The body, where it is a JSON object."""
    model: str | None = None
    wait_s: float = 0.0
    """The longest that it may wait for its deployment."""

    @property
    def is_stream(self) -> bool:
        """Whether the answer comes in events."""
        asked = self.parsed is not None and self.parsed.get("stream") is True
        return asked and self.route.work is Work.GENERATES

    @property
    def target(self) -> str:
        """Path and query, for the engine."""
        return f"{self.route.path}?{self.query}" if self.query else self.route.path


def with_members(body: bytes, members: Mapping[str, Any]) -> bytes:
    """A JSON object with more members, or other values of some, and else byte for byte the same.

    They are put before the last brace: of two members with one name the engine takes the last one.
    """
    if not members:
        return body
    end = body.rindex(b"}")
    comma = b"," if body[body.index(b"{") + 1 : end].strip() else b""
    added = json.dumps(members, separators=(",", ":")).encode()[1:]
    return body[:end] + comma + added + body[end + 1 :]


def wait_s(prefer: str, limit_s: float | None, usual_s: float) -> float:
    """How long a request may wait.

    Args:
        prefer: Its ``Prefer`` headers (RFC 7240), such as ``wait=30``.
        limit_s: Of its key; ``None``: none.
        usual_s: Where it does not say.
    """
    asked = _WAIT.search(prefer)
    wanted_s = float(asked[1]) if asked else usual_s if limit_s is None else limit_s
    return wanted_s if limit_s is None else min(wanted_s, limit_s)


def remote_media(body: Mapping[str, Any]) -> str | None:
    """An address that the engine would fetch media from, if the request has one.

    llama-server takes whatever begins with ``http`` or ``file://`` as an address, in any part of a
    message that is an image, a sound or a film.
    """
    contents = (body.get("messages"), body.get("input"), body.get("system"), body.get("prompt"))
    for part in _parts(contents, _DEEPEST):
        if part.get("type") not in _MEDIA_TYPES:
            continue  # such as the arguments of a tool call, which are text
        for key in _MEDIA_KEYS:
            found = next((t for t in _texts(part.get(key)) if _is_address(t)), None)
            if found is not None:
                return found[:200]
    return None


def _parts(value: object, depth: int) -> Iterator[Mapping[str, Any]]:
    if depth and isinstance(value, Mapping):
        yield value
        for each in value.values():
            yield from _parts(each, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for each in value:
            yield from _parts(each, depth - 1)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (each for each in value.values() if isinstance(each, str))


def _is_address(text: str) -> bool:
    return text.startswith("http") or _ADDRESS.match(text) is not None
