"""Who may call: anybody on this host, whoever shows the key, and no other site's page."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from agents.errors import FolderNotWritable
from supervisor.api.auth import COOKIE, RequireKey, load_or_make_key

KEY = "sk-right"
LOCAL, REMOTE = "127.0.0.1", "10.0.0.7"
HOST = "127.0.0.1:8100"


async def call(
    client: str | None = LOCAL, path: str = "/api/devices", **headers: str
) -> tuple[int, str]:
    """Status and error code of one request; 200 when it was let through."""

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"host": HOST, **{name.replace("_", "-"): text for name, text in headers.items()}}
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "client": (client, 4711) if client is not None else None,
        "headers": [(name.encode(), text.encode("latin-1")) for name, text in given.items()],
    }
    await RequireKey(inner, KEY)(scope, receive, send)
    body = json.loads(b"".join(m.get("body", b"") for m in sent))
    return sent[0]["status"], body.get("code", "")


@pytest.mark.parametrize("host", [HOST, "localhost:8100", "[::1]:8100", "LOCALHOST", "localhost"])
async def test_this_host_needs_no_key(host: str) -> None:
    assert await call(host=host) == (200, "")
    assert await call("::1", host=host) == (200, "")
    assert await call(host=host, origin=f"http://{host}") == (200, "")


@pytest.mark.parametrize("client", [REMOTE, "8.8.8.8", "fe80::1", "unix", "", None])
async def test_another_host_needs_the_key(client: str | None) -> None:
    assert await call(client) == (401, "key_required")
    assert await call(client, authorization=f"Bearer {KEY}") == (200, "")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": KEY},
        {"x_api_key": KEY},
        {"cookie": f"{COOKIE}={KEY}"},
        {"cookie": f"a=b; {COOKIE}={KEY}; c=d"},
    ],
)
async def test_the_key_may_come_in_each_way_that_tools_send_it(headers: dict[str, str]) -> None:
    assert await call(REMOTE, **headers) == (200, "")


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
        {"cookie": f"{COOKIE}="},
        {"cookie": ";;;=\x01"},
        {"cookie": f"x{COOKIE}={KEY}"},
    ],
)
async def test_a_wrong_key_is_no_key(headers: dict[str, str]) -> None:
    assert await call(REMOTE, **headers) == (401, "key_required")


@pytest.mark.parametrize(
    "host", ["evil.example:8100", "127.0.0.1.evil.example", "10.0.0.1:8100", "", "[::1", "a@b:c"]
)
async def test_a_rebound_name_does_not_get_the_keyless_access(host: str) -> None:
    assert await call(host=host) == (403, "origin_refused")
    assert await call(host=host, authorization=f"Bearer {KEY}") == (200, "")


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
async def test_another_sites_page_does_not_get_the_keyless_access(origin: str) -> None:
    assert await call(origin=origin) == (403, "origin_refused")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[::1"])
async def test_a_cookie_counts_only_for_our_own_page(origin: str) -> None:
    cookie = f"{COOKIE}={KEY}"
    assert await call(REMOTE, origin=f"http://{HOST}", cookie=cookie) == (200, "")
    assert await call(REMOTE, origin=origin, cookie=cookie) == (401, "key_required")
    assert await call(LOCAL, origin=origin, cookie=cookie) == (403, "origin_refused")
    assert await call(REMOTE, origin=origin, authorization=f"Bearer {KEY}") == (200, "")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/assets/app.js", 200),
        ("/api/session", 200),
        ("/favicon.ico", 200),
        ("/assets", 401),
        ("/api/session/x", 401),
        ("/api/devices", 401),
        ("/v1/models", 401),
        ("//", 401),
    ],
)
async def test_only_the_page_itself_is_for_everybody(path: str, status: int) -> None:
    assert (await call(REMOTE, path))[0] == status


async def test_what_is_not_http_passes() -> None:
    seen = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    await RequireKey(inner, KEY)({"type": "lifespan"}, nothing, nothing)
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


async def test_no_key_is_never_the_right_key() -> None:
    assert not RequireKey(lambda *_: None, "")._has_key(Headers())  # type: ignore[arg-type]


def test_a_key_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FolderNotWritable, match="cannot keep the key in"):
        load_or_make_key(tmp_path / "missing")
