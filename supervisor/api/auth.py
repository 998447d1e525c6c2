"""Who may call: anybody on this host, and whoever shows the key.

A browser on this host may be driven by any web page, so keyless access also wants a loopback
``Host`` (no DNS rebinding) and no foreign ``Origin`` (no cross-site requests).
"""

import hmac
import ipaddress
import secrets
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from agents import privatefile
from agents.errors import FolderNotWritable
from agents.requests import problem
from supervisor.errors import KeyRequired, OriginRefused

COOKIE = "supervisor_key"
_PUBLIC_PATHS = ("/", "/api/session", "/favicon.ico")
_PUBLIC_PREFIXES = ("/assets/",)
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def load_or_make_key(folder: Path) -> str:
    """The API key of this supervisor, readable by its user alone.

    Raises:
        FolderNotWritable: It cannot be stored.
    """
    path = folder / "api.key"
    try:
        # An empty file is what a full disk leaves behind; an empty key would let everybody in.
        if path.exists() and (kept := path.read_text().strip()):
            return kept
        key = "sk-" + secrets.token_urlsafe(24)
        privatefile.write(path, key)
    except OSError as exc:
        raise FolderNotWritable(f"cannot keep the key in {path}: {exc.strerror}") from exc
    return key


class RequireKey:
    """Refuses callers from elsewhere without the key, and other sites' pages everywhere."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await problem(*refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        headers = Headers(scope=scope)
        if self._has_key(headers):
            return None
        path = scope["path"]
        if path in _PUBLIC_PATHS or path.startswith(_PUBLIC_PREFIXES):
            return None
        if not _is_loopback(scope):
            return 401, KeyRequired.code, "a key is needed from other hosts: Authorization: Bearer"
        if not _is_own_page(headers):
            return 403, OriginRefused.code, "requests of other sites' pages need the key"
        return None

    def _has_key(self, headers: Headers) -> bool:
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        given = given or headers.get("x-api-key", "")
        if not given and _is_same_origin(headers):
            given = _cookie(headers.get("cookie", ""))
        return bool(given) and hmac.compare_digest(given.encode(), self._key.encode())


def _cookie(text: str) -> str:
    try:
        morsel = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _is_loopback(scope: Scope) -> bool:
    client = scope.get("client")
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def _is_own_page(headers: Headers) -> bool:
    try:
        name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:  # such as "[::1": not a name, so not ours
        return False
    return name in _LOOPBACK_NAMES and _is_same_origin(headers)


def _is_same_origin(headers: Headers) -> bool:
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("host", "")
    except ValueError:
        return False
