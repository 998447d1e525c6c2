"""Who may call, and what: whoever shows a key, and anybody on this host as far as settings go.

A browser on this host may be driven by any web page, so keyless access also wants a loopback
``Host`` (no DNS rebinding) and no foreign ``Origin`` (no cross-site requests).

A key that is unknown counts as none. Clients of OpenAI's API must send some key, and send "dummy"
where none is needed: to refuse these on this host would protect nothing, since they may leave it
out as well. A key that is known decides, also on this host: who shows it gets its rights and
limits, no more.

A browser that has signed in shows a session in a cookie in place of its key, which counts only for
requests of our own page.
"""

import ipaddress
import secrets
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from agents import privatefile
from agents.errors import FolderNotWritable, ProjectError
from agents.requests import problem
from supervisor.api.problems import status_of
from supervisor.core.api_errors import error_body
from supervisor.core.callers import CALLER, LOCAL, Caller, Scope
from supervisor.core.gateway_routes import HEALTH_PATHS, api_of, is_gateway_path
from supervisor.core.keys import KeylessLoopback
from supervisor.errors import KeyRequired, OriginRefused, ScopeMissing
from supervisor.service.keyring import KeyRing, new_text
from supervisor.service.sessions import LEAST_SECRET_CHARS, Sessions

ANY_ORIGIN: Final = "*"

_COOKIE: Final = "supervisor_session"
_SECRET_BYTES: Final = 32
_SESSION: Final = "/api/session"
_PUBLIC_PATHS: Final = ("/", "/favicon.ico", *HEALTH_PATHS)
_PUBLIC_PREFIXES: Final = ("/assets/",)
_LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_READING: Final = ("GET", "HEAD")
_FOR_ADMINS: Final = (
    "/api/keys",
    "/api/models/search",
    "/api/models/repo",
    "/api/models/suggest",
)
"""Who has keys, and for what, is for those who give them; and the hub is asked in the name of the
main host."""

_OWN_PAGE: Final = (None, "same-origin", "none")
"""``Sec-Fetch-Site`` of our own page, and of an address that somebody typed; None: not told."""

_WRONG_KEY: Final = "; the one that came is unknown or was revoked"
_WRONG_SESSION: Final = "; the session that came has ended, so sign in again"

_GUEST: Final = Caller(LOCAL.name, frozenset({Scope.INFERENCE}))
"""Without a key, where only the gateway is open to such."""


def needed_scope(method: str, path: str) -> Scope | None:
    """What a key must be good for; None: no key is needed.

    ``POST /api/plan`` changes nothing, and needs admin like every other ``POST``: it reads the
    file that it is told to, wherever that is, and asks the hub in the name of the main host.
    """
    if path in _PUBLIC_PATHS or path.startswith(_PUBLIC_PREFIXES):
        return None
    if is_gateway_path(path):
        return Scope.INFERENCE
    is_reading = method in _READING
    if path == _SESSION and not is_reading:
        return None  # to sign in, and out
    return Scope.READ if is_reading and path not in _FOR_ADMINS else Scope.ADMIN


def load_or_make_key(folder: Path) -> str:
    """The API key of this supervisor, readable by its user alone.

    Raises:
        FolderNotWritable: It cannot be stored.
    """
    # An empty file is what a full disk leaves behind; an empty key would let everybody in.
    return _load_or_make(folder / "api.key", "key", new_text, least_chars=1)


def load_or_make_session_secret(folder: Path) -> str:
    """What sessions are signed with, readable by our user alone; without it all of them end.

    Raises:
        FolderNotWritable: It cannot be stored.
    """
    path = folder / "session.secret"
    return _load_or_make(
        path,
        "secret of sessions",
        lambda: secrets.token_urlsafe(_SECRET_BYTES),
        least_chars=LEAST_SECRET_CHARS,
    )


def _load_or_make(path: Path, what: str, make: Callable[[], str], *, least_chars: int) -> str:
    try:
        if path.exists() and len(kept := path.read_text().strip()) >= least_chars:
            return kept
        text = make()
        privatefile.write(path, text)
    except OSError as exc:
        raise FolderNotWritable(f"cannot keep the {what} in {path}: {exc.strerror}") from exc
    return text


def cookie_name(headers: Headers) -> str:
    """Name of the session's cookie.

    Cookies are the same for all ports of a host: without the port, two supervisors that a browser
    finds under one name, such as localhost, would sign each other's users out.
    """
    try:
        port = urlsplit(f"//{headers.get('host', '')}").port
    except ValueError:
        port = None
    return _COOKIE if port is None else f"{_COOKIE}_{port}"


def is_own_page(headers: Headers) -> bool:
    """Whether this comes from our own page, or from no page at all.

    Browsers do not tell the origin of a plain GET, such as of an image. To this host, and where
    there is TLS, they tell the site: "same-site" for a page on another port of the same host, to
    whose requests they add even strict cookies.
    """
    return _is_same_origin(headers) and headers.get("sec-fetch-site") in _OWN_PAGE


class RequireKey:
    """Finds the caller of each request, and refuses what this one may not do.

    Whoever it is stands in the scope under ``CALLER``; nobody does where no key is needed.
    """

    def __init__(
        self,
        app: ASGIApp,
        keyring: KeyRing,
        sessions: Sessions,
        keyless: KeylessLoopback = "all",
        cors_origins: Collection[str] = (),
    ) -> None:
        self._app = app
        self._keyring = keyring
        self._sessions = sessions
        self._keyless = keyless
        # A page of any origin at all gets no keyless access: that would be every web page.
        self._origins = frozenset(cors_origins) - {ANY_ORIGIN}

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                if caller := self._caller(scope):
                    scope[CALLER] = caller
            except (KeyRequired, OriginRefused, ScopeMissing) as exc:
                await refusal(scope["path"], exc)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _caller(self, scope: AsgiScope) -> Caller | None:
        headers, path = Headers(scope=scope), scope["path"]
        needed = needed_scope(scope["method"], path)
        if needed is None:
            return None
        keys, session = _keys(headers), _session(headers)
        known = next(filter(None, map(self._keyring.caller, keys)), None)
        if known is None and session:
            known = self._sessions.caller(session)
        wrong = _WRONG_KEY if keys else _WRONG_SESSION if session else ""
        caller = known or self._keyless_caller(scope, headers, wrong)
        if not caller.may(needed):
            raise ScopeMissing(
                f"key {caller.name} is good for {', '.join(sorted(caller.scopes))}, and this needs "
                f"{needed}: use another key"
            )
        return caller

    def _keyless_caller(self, scope: AsgiScope, headers: Headers, wrong: str) -> Caller:
        is_gateway = is_gateway_path(scope["path"])
        is_open = self._keyless == "all" or (self._keyless == "v1" and is_gateway)
        is_here = _is_loopback(scope)
        if not (is_here and is_open):
            where = (
                "on this host, too (setting keyless_loopback)" if is_here else "from other hosts"
            )
            raise KeyRequired(f"a key is needed {where}: Authorization: Bearer KEY{wrong}")
        if not _has_loopback_name(headers):
            raise OriginRefused("without a key, this host must be called by a loopback name")
        if is_own_page(headers):
            return LOCAL if self._keyless == "all" else _GUEST
        if is_gateway and headers.get("origin") in self._origins:
            return _GUEST
        raise OriginRefused("requests of other sites' pages need the key")


class GatewayCors:
    """Lets pages of other sites call the gateway, and nothing else."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._cors = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            # Whatever it wants to send: Authorization, x-api-key, anthropic-version, x-stainless-…
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=("Retry-After",),
        )

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        is_gateway = scope["type"] == "http" and is_gateway_path(scope["path"])
        await (self._cors if is_gateway else self._app)(scope, receive, send)


def refusal(path: str, error: ProjectError) -> JSONResponse:
    """An error in the shape of the API that has this path."""
    status, text = status_of(error), str(error)
    if is_gateway_path(path):
        answer = JSONResponse(error_body(api_of(path), status, error.code, text), status)
    else:
        answer = problem(status, error.code, text)
    if status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _keys(headers: Headers) -> list[str]:
    """What was shown as keys. Some clients show a dummy in one header and ours in another."""
    given = headers.get("authorization", "").strip()
    scheme, _, rest = given.partition(" ")
    texts = [rest.strip() if scheme.lower() == "bearer" else given, headers.get("x-api-key", "")]
    return [text for text in texts if text]


def _session(headers: Headers) -> str:
    """The session that was shown, which another site's page cannot do."""
    if not is_own_page(headers):
        return ""
    # Other programs of this host may have set cookies that http.cookies would stumble over.
    return cookie_parser(headers.get("cookie", "")).get(cookie_name(headers), "")


def _is_loopback(scope: AsgiScope) -> bool:
    client = scope.get("client")
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def _has_loopback_name(headers: Headers) -> bool:
    try:
        name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    except ValueError:  # such as "[::1": not a name, so not ours
        return False
    return name in _LOOPBACK_NAMES


def _is_same_origin(headers: Headers) -> bool:
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("host", "")
    except ValueError:
        return False
