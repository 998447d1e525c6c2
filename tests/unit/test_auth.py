"""Who may call, and what: keys and their scopes, this host, and no other site's page."""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from agents.errors import FolderNotWritable
from supervisor.adapters.store import Store
from supervisor.api.auth import GatewayCors, RequireKey, load_or_make_key, needed_scope
from supervisor.core.callers import CALLER, Scope
from supervisor.core.gateway_routes import ROUTES
from supervisor.core.keys import KeylessLoopback, KeyWanted
from supervisor.errors import BadSettings
from supervisor.service.keyring import KeyRing
from supervisor.service.sessions import Sessions
from supervisor.settings import Settings, load

KEY = "sk-right"
LOCAL, REMOTE = "127.0.0.1", "10.0.0.7"
HOST = "127.0.0.1:8100"
COOKIE = "supervisor_session_8100"
CHAT = "/v1/chat/completions"
SITE = "https://chat.example"


class Edge:
    """The middleware as the supervisor has it, over an app that answers who calls."""

    def __init__(self, store: Store) -> None:
        self.keys = KeyRing(store, KEY)
        self.sessions = Sessions("a secret of at least 32 characters", self.keys)
        self.texts = {
            scope.value: self.keys.create(KeyWanted(name=f"{scope}-key", scopes=(scope,)))[1]
            for scope in Scope
        }

    def app(
        self, keyless: KeylessLoopback = "all", origins: tuple[str, ...] = ()
    ) -> GatewayCors | RequireKey:
        routes = Starlette(routes=[_ANY])
        inner = RequireKey(routes, self.keys, self.sessions, keyless, origins)
        return GatewayCors(inner, origins) if origins else inner

    async def call(
        self,
        client: str | None = LOCAL,
        path: str = "/api/devices",
        method: str = "GET",
        *,
        keyless: KeylessLoopback = "all",
        origins: tuple[str, ...] = (),
        **headers: str,
    ) -> httpx.Response:
        """One request; header names come with _ for -."""
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "client": (client, 4711) if client is not None else None,
            "headers": [
                (name.replace("_", "-").encode(), text.encode("latin-1"))
                for name, text in {"host": HOST, **headers}.items()
            ],
        }
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(keyless, origins)(scope, receive, send)
        body = b"".join(message.get("body", b"") for message in sent)
        return httpx.Response(sent[0]["status"], headers=sent[0]["headers"], content=body)

    async def code(self, *args: Any, **kwargs: Any) -> tuple[int, str]:
        """Status and error code; 200 when it was let through."""
        answer = await self.call(*args, **kwargs)
        return answer.status_code, answer.json().get("code", "")


async def _who(request: Request) -> JSONResponse:
    caller = request.scope.get(CALLER)
    rights = sorted(caller.scopes) if caller else []
    return JSONResponse({"caller": caller and caller.name, "scopes": rights})


_ANY = Route("/{path:path}", _who, methods=["GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS"])


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    store = Store(tmp_path / "s.db")
    yield Edge(store)
    store.close()


# -- this host, and others ---------------------------------------------------------------------


@pytest.mark.parametrize("host", [HOST, "localhost:8100", "[::1]:8100", "LOCALHOST", "localhost"])
async def test_this_host_needs_no_key(edge: Edge, host: str) -> None:
    for answer in (
        await edge.call(host=host),
        await edge.call("::1", host=host),
        await edge.call(host=host, origin=f"http://{host}"),
        await edge.call(path=CHAT, method="POST", host=host),
        await edge.call(path="/api/keys", method="POST", host=host),
    ):
        assert answer.json() == {"caller": "local", "scopes": ["admin", "inference", "read"]}


@pytest.mark.parametrize("client", [REMOTE, "8.8.8.8", "fe80::1", "unix", "", None])
async def test_another_host_needs_a_key(edge: Edge, client: str | None) -> None:
    for keyless in ("all", "v1", "none"):
        for path in ("/api/devices", CHAT, "/metrics", "/v1/models"):
            answer = await edge.call(client, path, keyless=keyless)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "a key is needed from other hosts" in answer.text
            allowed = await edge.call(client, path, keyless=keyless, x_api_key=KEY)
            assert allowed.json() == {"caller": "main", "scopes": ["admin"]}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY} "},
        {"authorization": KEY},
        {"x_api_key": KEY},
        {"authorization": "Bearer dummy", "x_api_key": KEY},
        {"authorization": f"Bearer {KEY}", "x_api_key": "dummy"},
    ],
)
async def test_the_key_may_come_in_each_way_that_tools_send_it(
    edge: Edge, headers: dict[str, Any]
) -> None:
    assert await edge.code(REMOTE, **headers) == (200, "")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-wrong"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer {KEY}x"},
        {"authorization": "Bearer schlüssel"},
        {"x_api_key": ""},
        {"cookie": f"{COOKIE}=sk-wrong"},
        {"cookie": f"{COOKIE}={KEY}"},
        {"cookie": f"{COOKIE}="},
        {"cookie": ";;;=\x01"},
        {"cookie": f"x{COOKIE}={KEY}"},
    ],
)
async def test_a_wrong_key_is_no_key(edge: Edge, headers: dict[str, Any]) -> None:
    assert await edge.code(REMOTE, **headers) == (401, "key_required")
    assert await edge.code(LOCAL, keyless="none", **headers) == (401, "key_required")
    # Clients of OpenAI's API must send something, where nothing is needed too.
    answer = await edge.call(LOCAL, CHAT, "POST", **headers)
    assert answer.json()["caller"] == "local"


async def test_a_session_counts_under_the_name_for_the_port_and_no_other(edge: Edge) -> None:
    session = edge.sessions.begin("main")
    for cookie in (f"{COOKIE}={session}", f"a=b; {COOKIE}={session}; c=d"):
        assert (await edge.call(REMOTE, cookie=cookie)).json()["caller"] == "main"
        assert await edge.code(REMOTE, cookie=cookie, host="127.0.0.1:8200") == (
            401,
            "key_required",
        )
    for name in ("supervisor_session", "supervisor_session_8200", "supervisor_key", f"x{COOKIE}"):
        refused = await edge.code(REMOTE, cookie=f"{name}={session}")
        assert refused == (401, "key_required")
    no_port: Any = {"cookie": f"supervisor_session={session}", "host": "desk.local"}
    assert await edge.code(REMOTE, **no_port) == (200, "")
    assert await edge.code(REMOTE, authorization=f"Bearer {session}") == (401, "key_required")
    assert await edge.code(REMOTE, x_api_key=session) == (401, "key_required")


async def test_a_key_that_is_shown_decides_over_a_session(edge: Edge) -> None:
    cookie = f"{COOKIE}={edge.sessions.begin('main')}"
    answer = await edge.call(REMOTE, cookie=cookie, x_api_key=edge.texts["read"])
    assert answer.json()["caller"] == "read-key"
    # And one that is unknown counts as none, here too.
    answer = await edge.call(REMOTE, cookie=cookie, x_api_key="dummy")
    assert answer.json()["caller"] == "main"


async def test_a_revoked_key_is_no_key_from_that_moment(edge: Edge) -> None:
    text = edge.texts["admin"]
    assert await edge.code(REMOTE, x_api_key=text) == (200, "")
    edge.keys.revoke("admin-key")
    answer = await edge.call(REMOTE, x_api_key=text)
    assert answer.status_code == 401
    assert "the one that came is unknown or was revoked" in answer.json()["detail"]
    assert "unknown" not in (await edge.call(REMOTE)).json()["detail"]


@pytest.mark.parametrize(
    ("keyless", "gateway", "rest"), [("all", 200, 200), ("v1", 200, 401), ("none", 401, 401)]
)
async def test_what_is_open_to_this_host_is_a_setting(
    edge: Edge, keyless: KeylessLoopback, gateway: int, rest: int
) -> None:
    for path in (CHAT, "/v1/models", "/completion", "/tokenize"):
        assert (await edge.call(path=path, keyless=keyless)).status_code == gateway
    for path in ("/api/devices", "/metrics", "/nothing"):
        answer = await edge.call(path=path, keyless=keyless)
        assert answer.status_code == rest
        if rest == 401:
            assert "on this host, too (setting keyless_loopback)" in answer.json()["detail"]
    for path in ("/", "/health", "/v1/health", "/assets/app.mjs"):
        assert (await edge.call(path=path, keyless=keyless)).status_code == 200
    assert (await edge.call(path="/api/session", method="POST", keyless=keyless)).status_code == 200
    assert (await edge.call(keyless=keyless, x_api_key=KEY)).status_code == 200


async def test_who_may_only_use_the_gateway_may_no_more_there_than_that(edge: Edge) -> None:
    """Such as to name media by an address, which needs admin."""
    answer = await edge.call(path=CHAT, keyless="v1")
    assert answer.json() == {"caller": "local", "scopes": ["inference"]}


# -- scopes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/api/status", Scope.READ),
        ("HEAD", "/api/status", Scope.READ),
        ("GET", "/api/events", Scope.READ),
        ("GET", "/api/history", Scope.READ),
        ("GET", "/api/report", Scope.READ),
        ("GET", "/api/requests", Scope.READ),
        ("GET", "/api/openapi.json", Scope.READ),
        ("GET", "/metrics", Scope.READ),
        ("GET", "/api/keys", Scope.ADMIN),
        ("HEAD", "/api/keys", Scope.ADMIN),
        ("POST", "/api/keys", Scope.ADMIN),
        ("DELETE", "/api/keys/a", Scope.ADMIN),
        ("POST", "/api/plan", Scope.ADMIN),
        ("POST", "/api/join-code", Scope.ADMIN),
        ("POST", "/api/deployments", Scope.ADMIN),
        ("DELETE", "/api/deployments/x", Scope.ADMIN),
        ("POST", "/api/devices/x/measure", Scope.ADMIN),
        ("POST", "/api/models/push", Scope.ADMIN),
        ("PATCH", "/metrics", Scope.ADMIN),
        ("OPTIONS", "/api/status", Scope.ADMIN),
        ("GET", "//", Scope.READ),
        ("GET", "/assets", Scope.READ),
        ("GET", "/api/session/x", Scope.READ),
        ("POST", "/api/v1/models", Scope.ADMIN),
        ("GET", "/v1/models", Scope.INFERENCE),
        ("GET", "/v1/models/x", Scope.INFERENCE),
        ("GET", "/v1/nothing", Scope.INFERENCE),
        ("POST", "/v1/../api/keys", Scope.INFERENCE),  # a path of the gateway, which has none such
        ("POST", "/tools", Scope.INFERENCE),
        ("GET", "/", None),
        ("GET", "/assets/app.mjs", None),
        ("GET", "/favicon.ico", None),
        ("POST", "/api/session", None),
        ("DELETE", "/api/session", None),
        ("GET", "/api/session", Scope.READ),
        ("HEAD", "/api/session", Scope.READ),
        ("GET", "/api/settings", Scope.READ),
        ("GET", "/api/models", Scope.READ),
        ("GET", "/api/models/search", Scope.ADMIN),
        ("HEAD", "/api/models/search", Scope.ADMIN),
        ("GET", "/api/models/repo", Scope.ADMIN),
        ("GET", "/api/models/suggest", Scope.ADMIN),
        ("GET", "/api/models/fit", Scope.READ),
        ("GET", "/health", None),
        ("GET", "/v1/health", None),
    ],
)
def test_what_a_key_must_be_good_for(method: str, path: str, scope: Scope | None) -> None:
    assert needed_scope(method, path) is scope


@pytest.mark.parametrize(("method", "path"), list(ROUTES))
def test_every_route_of_the_gateway_is_inference(method: str, path: str) -> None:
    assert needed_scope(method, path) is Scope.INFERENCE


@pytest.mark.parametrize(
    ("key", "allowed"),
    [("inference", {CHAT}), ("read", {"GET"}), ("admin", {CHAT, "GET", "POST"})],
)
@pytest.mark.parametrize("client", [LOCAL, REMOTE])
async def test_a_key_is_good_for_its_scopes_also_on_this_host(
    edge: Edge, key: str, allowed: set[str], client: str
) -> None:
    for name, method, path in (
        (CHAT, "POST", CHAT),
        ("GET", "GET", "/api/devices"),
        ("POST", "POST", "/api/deployments"),
    ):
        answer = await edge.call(client, path, method, x_api_key=edge.texts[key])
        if name in allowed:
            assert answer.json()["caller"] == f"{key}-key"
        else:
            assert answer.status_code == 403
            assert "scope_missing" in answer.text
            assert f"key {key}-key is good for {key}, and this needs" in answer.text


async def test_where_no_key_is_needed_nobody_is_asked(edge: Edge) -> None:
    for path in ("/", "/health"):
        answer = await edge.call(REMOTE, path, x_api_key=KEY)
        assert answer.json() == {"caller": None, "scopes": []}


# -- errors ------------------------------------------------------------------------------------


async def test_a_refusal_has_the_shape_of_the_api_that_was_called(edge: Edge) -> None:
    chat = (await edge.call(REMOTE, CHAT, "POST")).json()["error"]
    assert (chat["type"], chat["code"]) == ("authentication_error", "key_required")
    messages = (await edge.call(REMOTE, "/v1/messages", "POST")).json()
    assert (messages["type"], messages["error"]["type"]) == ("error", "authentication_error")
    native = (await edge.call(REMOTE, "/completion", "POST")).json()["error"]
    assert (native["code"], native["reason"]) == (401, "key_required")
    missing = (await edge.call(REMOTE, CHAT, "POST", x_api_key=edge.texts["read"])).json()["error"]
    assert (missing["type"], missing["code"]) == ("permission_error", "scope_missing")
    rest = await edge.call(REMOTE)
    assert rest.headers["content-type"] == "application/problem+json"
    assert rest.json()["type"] == "errors.md#key_required"


# -- pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example:8100", "127.0.0.1.evil.example", "10.0.0.1:8100", "", "[::1", "a@b:c"]
)
async def test_a_rebound_name_does_not_get_the_keyless_access(edge: Edge, host: str) -> None:
    assert await edge.code(host=host) == (403, "origin_refused")
    assert (await edge.call(path=CHAT, keyless="v1", host=host)).status_code == 403
    assert await edge.code(host=host, authorization=f"Bearer {KEY}") == (200, "")


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://localhost:8100",  # not the name that it was asked under
        "http://127.0.0.1:3000",
        "http://127.0.0.1",
        "null",
        "http://[::1",
    ],
)
async def test_another_sites_page_does_not_get_the_keyless_access(edge: Edge, origin: str) -> None:
    for origins in ((), (SITE,), ("*",)):
        assert await edge.code(origin=origin, origins=origins) == (403, "origin_refused")
        answer = await edge.call(path=CHAT, method="POST", origin=origin, origins=origins)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "origin_refused"


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "anything"])
async def test_a_plain_get_of_another_sites_page_is_told_from_ours(edge: Edge, site: str) -> None:
    """Browsers send no origin with an image, but say from what site it comes."""
    cookie = f"{COOKIE}={edge.sessions.begin('main')}"
    for path in ("/api/devices", "/api/models/search", "/v1/models", "/metrics"):
        given: Any = {"path": path, "sec_fetch_site": site, "origins": (SITE,)}
        assert (await edge.call(LOCAL, **given)).status_code == 403
        assert (await edge.call(LOCAL, cookie=cookie, **given)).status_code == 403
        assert (await edge.call(REMOTE, cookie=cookie, **given)).status_code == 401
        assert (await edge.call(REMOTE, x_api_key=KEY, **given)).status_code == 200
    for path in ("/", "/assets/app.mjs", "/health"):  # a link to the page is good
        assert (await edge.call(REMOTE, path, sec_fetch_site=site)).status_code == 200


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_our_own_page_and_what_somebody_typed_have_what_they_had(
    edge: Edge, site: str
) -> None:
    cookie = f"{COOKIE}={edge.sessions.begin('main')}"
    assert await edge.code(LOCAL, sec_fetch_site=site) == (200, "")
    assert await edge.code(REMOTE, cookie=cookie, sec_fetch_site=site) == (200, "")
    own: Any = {"method": "POST", "origin": f"http://{HOST}", "sec_fetch_site": site}
    assert await edge.code(LOCAL, **own) == (200, "")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[::1", SITE])
async def test_a_cookie_counts_only_for_our_own_page(edge: Edge, origin: str) -> None:
    cookie = f"{COOKIE}={edge.sessions.begin('main')}"
    own = await edge.code(REMOTE, origin=f"http://{HOST}", cookie=cookie)
    assert own == (200, "")
    for path in ("/api/devices", "/v1/models"):
        given: Any = {"path": path, "origin": origin, "cookie": cookie, "origins": (SITE,)}
        assert (await edge.call(REMOTE, **given)).status_code == 401
    assert await edge.code(LOCAL, origin=origin, cookie=cookie) == (403, "origin_refused")
    bearer = f"Bearer {KEY}"
    assert await edge.code(REMOTE, origin=origin, authorization=bearer) == (200, "")


async def test_a_site_that_is_configured_may_use_the_gateway_and_nothing_else(edge: Edge) -> None:
    for keyless in ("all", "v1"):
        given: Any = {"keyless": keyless, "origin": SITE, "origins": ("http://a.example", SITE)}
        answer = await edge.call(path=CHAT, method="POST", **given)
        assert answer.json() == {"caller": "local", "scopes": ["inference"]}
        assert answer.headers["access-control-allow-origin"] == SITE
        assert "access-control-allow-credentials" not in answer.headers
        refused = await edge.call(path="/api/devices", **given)
        assert refused.status_code == (403 if keyless == "all" else 401)
        assert "access-control-allow-origin" not in refused.headers
    answer = await edge.call(path=CHAT, keyless="none", origin=SITE, origins=(SITE,))
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == SITE, "or its page cannot read why"
    rebound = await edge.call(path=CHAT, origin=SITE, origins=(SITE,), host="evil.example")
    assert rebound.status_code == 403


async def test_a_browser_asks_first_and_is_answered_without_a_key(edge: Edge) -> None:
    asked = "authorization,content-type,x-api-key,anthropic-version,x-stainless-os,prefer"
    preflight: Any = {
        "method": "OPTIONS",
        "access_control_request_method": "POST",
        "access_control_request_headers": asked,
        "origin": SITE,
    }
    answer = await edge.call(REMOTE, CHAT, origins=(SITE,), **preflight)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == SITE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert set(asked.split(",")) <= set(
        re.split(r",\s*", answer.headers["access-control-allow-headers"])
    )
    for path, origins in ((CHAT, ()), ("/api/devices", (SITE,)), (CHAT, ("http://b.example",))):
        refused = await edge.call(REMOTE, path, origins=origins, **preflight)
        assert refused.status_code >= 400
        assert "access-control-allow-origin" not in refused.headers


async def test_any_site_may_be_allowed_but_not_without_a_key(edge: Edge) -> None:
    given: Any = {"path": CHAT, "origin": "https://any.example", "origins": ("*",)}
    assert (await edge.call(LOCAL, **given)).status_code == 403
    answer = await edge.call(LOCAL, authorization=f"Bearer {KEY}", **given)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"


# -- settings ----------------------------------------------------------------------------------


def _loaded(toml_text: str = "", **environ: str) -> Settings:
    return load(toml_text, environ, default_folder=Path("/data"))


def test_sites_come_from_the_file_or_from_the_environment() -> None:
    two = ("https://a.example:8443", "http://b.example")
    assert _loaded(f"cors_origins = {json.dumps(two)}").cors_origins == two
    assert _loaded(SUPERVISOR_CORS_ORIGINS=f"{two[0]},{two[1]}").cors_origins == two
    assert _loaded(SUPERVISOR_CORS_ORIGINS=f" {two[0]}, {two[1]}\n").cors_origins == two
    assert _loaded(SUPERVISOR_CORS_ORIGINS="*").cors_origins == ("*",)
    assert _loaded(SUPERVISOR_CORS_ORIGINS="").cors_origins == ()
    assert _loaded(SUPERVISOR_KEYLESS_LOOPBACK="v1").keyless_loopback == "v1"


@pytest.mark.parametrize(
    "origin", ["chat.example", "https://chat.example/", "https://chat.example/x", "null", "**"]
)
def test_what_is_no_site_is_refused(origin: str) -> None:
    with pytest.raises(BadSettings, match=r"setting cors_origins\.0 = "):
        _loaded(SUPERVISOR_CORS_ORIGINS=origin)


# -- what is not http, and the main key --------------------------------------------------------


async def test_what_is_not_http_passes(edge: Edge) -> None:
    seen = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    app: ASGIApp = GatewayCors(RequireKey(inner, edge.keys, edge.sessions), (SITE,))
    await app({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]


def test_the_key_is_made_once_and_readable_by_its_user_alone(tmp_path: Path) -> None:
    key = load_or_make_key(tmp_path)
    assert key.startswith("sk-")
    assert len(key) >= 32
    assert load_or_make_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "api.key").stat().st_mode) == 0o600
    (tmp_path / "other").mkdir()
    assert load_or_make_key(tmp_path / "other") != key


@pytest.mark.parametrize("left", ["api.key", "api.new"])
def test_what_a_full_disk_left_of_the_key_is_not_taken_for_one(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("\n")
    assert load_or_make_key(tmp_path).startswith("sk-")


def test_a_key_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FolderNotWritable, match="cannot keep the key in"):
        load_or_make_key(tmp_path / "missing")
