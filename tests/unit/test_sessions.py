"""Sign-in sessions: whose they are, what ends them, and what happens to who tries keys."""

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from agents.errors import FolderNotWritable
from supervisor.adapters.store import Store
from supervisor.api import problems
from supervisor.api.auth import RequireKey, load_or_make_session_secret
from supervisor.api.session_api import create_session_router
from supervisor.core.callers import Scope
from supervisor.core.keys import KeylessLoopback, KeyWanted
from supervisor.errors import RateLimited
from supervisor.service.keyring import KeyRing
from supervisor.service.sessions import (
    LIFETIME_S,
    WRONG_TRIES,
    WRONG_WINDOW_S,
    Sessions,
    WrongTries,
)

KEY = "sk-right"
SECRET = "a secret of at least 32 characters"
OTHER_SECRET = "b secret of at least 32 characters"
URL = "http://desk.local:8100"
COOKIE = "supervisor_session_8100"


class Clock:
    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[KeyRing]:
    store = Store(tmp_path / "s.db")
    yield KeyRing(store, KEY)
    store.close()


def named(sessions: Sessions, text: str) -> str:
    """Name of the caller whose session this is; empty: nobody's."""
    caller = sessions.caller(text)
    return caller.name if caller else ""


# -- what is no session ------------------------------------------------------------------------


def test_what_others_wrote_is_no_session(keys: KeyRing) -> None:
    sessions = Sessions(SECRET, keys)
    good = sessions.begin("main")
    body, _, signature = good.partition(".")
    assert named(sessions, good) == "main"
    forged = json.dumps(["main", "0" * 32, 0, 2**40]).encode()
    forged_body = base64.urlsafe_b64encode(forged).decode().rstrip("=")
    for text in (
        "",
        ".",
        "a.b",
        KEY,
        body,
        f"{body}.",
        f".{signature}",
        f"{body}.{signature[:-1]}",
        f"{body[:-1]}.{signature}",
        f"{body}={good[len(body) :]}",
        f"{body}.{signature}=",
        f"{body}.{signature}.{signature}",
        f"{body}\n.{signature}",
        f" {good}",
        f"{signature}.{body}",
        f"{forged_body}.{signature}",
        good.swapcase(),
        "é" + good,
        "\ud800" + good,
        good * 50,
        "x" * 5000,
        Sessions(OTHER_SECRET, keys).begin("main"),
    ):
        assert named(sessions, text) == "", text


def test_every_change_of_one_character_is_noticed(keys: KeyRing) -> None:
    sessions = Sessions(SECRET, keys)
    good = sessions.begin("main")
    for at, was in enumerate(good):
        changed = good[:at] + ("A" if was != "A" else "B") + good[at + 1 :]
        assert named(sessions, changed) == "", at


def test_a_session_ends_with_its_time_and_not_before(keys: KeyRing) -> None:
    clock = Clock()
    sessions = Sessions(SECRET, keys, clock)
    text = sessions.begin("main")
    clock.now_s += LIFETIME_S - 1
    assert named(sessions, text) == "main"
    clock.now_s += 1
    assert named(sessions, text) == ""


def test_a_session_ends_with_its_key_also_if_that_is_made_anew(keys: KeyRing) -> None:
    sessions = Sessions(SECRET, keys)
    keys.create(KeyWanted(name="alice", scopes=(Scope.READ,)))
    text = sessions.begin("alice")
    assert named(sessions, text) == "alice"
    keys.revoke("alice")
    assert named(sessions, text) == ""
    keys.create(KeyWanted(name="alice", scopes=(Scope.ADMIN,)))
    assert named(sessions, text) == ""
    assert named(sessions, sessions.begin("alice")) == "alice"


def test_a_session_of_a_key_that_never_was_is_none(keys: KeyRing) -> None:
    sessions = Sessions(SECRET, keys)
    assert named(sessions, sessions.begin("nobody")) == ""


# -- what is one -------------------------------------------------------------------------------


def test_a_session_has_the_rights_and_limits_of_its_key_and_counts_as_its_use(
    keys: KeyRing,
) -> None:
    wanted = KeyWanted(name="x.Ünal-1", scopes=(Scope.READ,), requests_per_minute=9)
    _, text = keys.create(wanted)
    sessions = Sessions(SECRET, keys)
    assert sessions.caller(sessions.begin("x.Ünal-1")) == keys.caller(text)
    keys.create(KeyWanted(name="unused"))
    sessions.caller(sessions.begin("unused"))
    assert next(key for key in keys.all() if key.name == "unused").last_used_at


def test_a_session_outlives_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db")
    secret = load_or_make_session_secret(tmp_path)
    text = Sessions(secret, KeyRing(store, KEY)).begin("main")
    store.close()
    store = Store(tmp_path / "s.db")
    again = Sessions(load_or_make_session_secret(tmp_path), KeyRing(store, KEY))
    assert named(again, text) == "main"
    other_key = Sessions(secret, KeyRing(store, "sk-made-anew"))
    assert named(other_key, text) == "", "the file api.key was replaced"
    store.close()


def test_a_session_tells_nothing_of_its_key(keys: KeyRing) -> None:
    body = Sessions(SECRET, keys).begin("main").partition(".")[0]
    shown = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode()
    assert KEY not in shown
    assert keys.hash_of("main")[:16] not in shown
    assert SECRET not in shown


# -- the secret --------------------------------------------------------------------------------


def test_the_secret_is_made_once_and_readable_by_its_user_alone(tmp_path: Path) -> None:
    secret = load_or_make_session_secret(tmp_path)
    assert len(secret) >= 43
    assert load_or_make_session_secret(tmp_path) == secret
    assert stat.S_IMODE((tmp_path / "session.secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("left", ["", "\n", "x" * 31])
def test_what_is_left_of_a_secret_is_not_taken_for_one(tmp_path: Path, left: str) -> None:
    (tmp_path / "session.secret").write_text(left)
    assert len(load_or_make_session_secret(tmp_path)) >= 43


def test_a_secret_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FolderNotWritable, match="cannot keep the secret of sessions in"):
        load_or_make_session_secret(tmp_path / "missing")


def test_no_secret_signs_nothing(keys: KeyRing) -> None:
    with pytest.raises(ValueError, match="could be guessed"):
        Sessions("", keys)


# -- who tries keys ----------------------------------------------------------------------------


def test_who_tries_too_many_keys_has_to_wait_until_the_first_is_a_minute_old() -> None:
    clock = Clock()
    tries = WrongTries(clock)
    for _ in range(WRONG_TRIES):
        tries.check("10.0.0.7")
        tries.note("10.0.0.7")
        clock.now_s += 1
    with pytest.raises(RateLimited, match=r"5 wrong keys came from 10\.0\.0\.7") as caught:
        tries.check("10.0.0.7")
    assert caught.value.retry_after_s == WRONG_WINDOW_S - WRONG_TRIES
    tries.check("10.0.0.8")
    clock.now_s += caught.value.retry_after_s
    tries.check("10.0.0.7")
    tries.note("10.0.0.7")
    with pytest.raises(RateLimited):
        tries.check("10.0.0.7")


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.7", "10.0.0.7", True),
        ("::ffff:10.0.0.7", "::ffff:10.0.0.8", False),
        ("::1", "127.0.0.1", False),
        ("10.0.0.7", "10.0.0.8", False),
        ("unix", "unix", True),
        ("unix", "", False),
    ],
)
def test_a_host_is_known_by_all_its_addresses(one: str, other: str, is_same: bool) -> None:
    tries = WrongTries(Clock())
    for _ in range(WRONG_TRIES):
        tries.note(one)
    if is_same:
        with pytest.raises(RateLimited):
            tries.check(other)
    else:
        tries.check(other)


def test_a_flood_from_many_addresses_fills_no_memory() -> None:
    tries = WrongTries(Clock(), most_addresses=10)
    for number in range(1000):
        for _ in range(WRONG_TRIES + 2):
            tries.note(f"10.0.{number >> 8}.{number & 255}")
    assert len(tries._times_s) == 10
    assert all(len(times_s) <= WRONG_TRIES for times_s in tries._times_s.values())
    with pytest.raises(RateLimited):
        tries.check("10.0.3.231")


# -- over HTTP ---------------------------------------------------------------------------------


def supervisor(
    keys: KeyRing,
    client: str = "10.0.0.7",
    secret: str = SECRET,
    keyless: KeylessLoopback = "all",
) -> httpx.ASGITransport:
    """The routes of sessions and one that needs more, as somebody at this address finds them."""
    app = FastAPI()
    problems.install(app)
    sessions = Sessions(secret, keys)
    app.include_router(create_session_router(keys, sessions))

    @app.post("/api/plan")
    async def plan() -> str:
        return "planned"

    app.add_middleware(RequireKey, keyring=keys, sessions=sessions, keyless=keyless)
    return httpx.ASGITransport(app, client=(client, 4711))


def browser(keys: KeyRing, url: str = URL, **where: Any) -> httpx.AsyncClient:
    """Somebody with cookies, and none yet; ``where`` as in ``supervisor``."""
    return httpx.AsyncClient(transport=supervisor(keys, **where), base_url=url)


async def sign_in(page: httpx.AsyncClient, key: str = KEY, **headers: str) -> httpx.Response:
    return await page.post("/api/session", json={"key": key}, headers=headers)


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


async def test_without_a_session_another_host_is_told_to_sign_in(keys: KeyRing) -> None:
    page = browser(keys)
    answer = await page.get("/api/session")
    assert problem(answer) == (401, "key_required")
    assert answer.headers["www-authenticate"] == "Bearer"
    page.cookies.set(COOKIE, "forged.session")
    ended = await page.get("/api/session")
    assert problem(ended) == (401, "key_required")
    assert "the session that came has ended, so sign in again" in ended.json()["detail"]


async def test_a_cookie_with_the_key_itself_is_nothing(keys: KeyRing) -> None:
    page = browser(keys)
    for name in (COOKIE, "supervisor_session", "supervisor_key"):
        page.cookies.set(name, KEY)
    assert problem(await page.get("/api/session")) == (401, "key_required")


async def test_the_cookie_of_another_supervisor_is_nothing(keys: KeyRing) -> None:
    theirs, ours = browser(keys, secret=OTHER_SECRET), browser(keys)
    assert (await sign_in(theirs)).status_code == 204
    ours.cookies = theirs.cookies
    assert (await theirs.get("/api/session")).status_code == 200
    assert problem(await ours.get("/api/session")) == (401, "key_required")


async def test_a_revoked_key_ends_its_sessions_at_once(keys: KeyRing) -> None:
    _, text = keys.create(KeyWanted(name="alice", scopes=(Scope.READ,)))
    page = browser(keys)
    assert (await sign_in(page, text)).status_code == 204
    assert (await page.get("/api/session")).status_code == 200
    keys.revoke("alice")
    assert problem(await page.get("/api/session")) == (401, "key_required")


async def test_a_flood_of_wrong_keys_is_slowed_for_its_sender_alone(keys: KeyRing) -> None:
    page = browser(keys)
    for number in range(WRONG_TRIES):
        assert problem(await sign_in(page, f"sk-{number}")) == (401, "key_required")
    slowed = await sign_in(page, KEY)
    assert problem(slowed) == (429, "rate_limited")
    assert 1 <= int(slowed.headers["retry-after"]) <= WRONG_WINDOW_S
    assert "set-cookie" not in slowed.headers, "or the right key would show among the wrong ones"
    bearer = {"authorization": f"Bearer {KEY}"}
    assert (await page.get("/api/session", headers=bearer)).status_code == 200


async def test_who_has_signed_in_is_not_slowed(keys: KeyRing) -> None:
    page = browser(keys)
    await sign_in(page)
    for _ in range(WRONG_TRIES + 1):
        await sign_in(page, "sk-wrong")
    assert (await page.get("/api/session")).status_code == 200


async def test_a_key_of_the_gateway_is_none_for_the_page(keys: KeyRing) -> None:
    _, text = keys.create(KeyWanted(name="user"))
    page = browser(keys)
    for _ in range(WRONG_TRIES + 1):  # it is no wrong one
        assert problem(await sign_in(page, text)) == (403, "scope_missing")
    assert not page.cookies


@pytest.mark.parametrize("body", [{}, {"key": 1}, {"key": "x" * 513}, {"key": KEY, "more": 1}, []])
async def test_what_is_no_sign_in_is_refused(keys: KeyRing, body: Any) -> None:
    answer = await browser(keys).post("/api/session", json=body)
    assert problem(answer) == (422, "bad_request")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://desk.local:3000", "sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"},
    ],
)
async def test_another_sites_page_signs_nobody_in_or_out(
    keys: KeyRing, headers: dict[str, str]
) -> None:
    page = browser(keys)
    for _ in range(WRONG_TRIES + 1):  # nor does it use up its visitor's tries
        assert problem(await sign_in(page, "sk-wrong", **headers)) == (403, "origin_refused")
    assert problem(await sign_in(page, KEY, **headers)) == (403, "origin_refused")
    assert (await sign_in(page)).status_code == 204
    answer = await page.delete("/api/session", headers=headers)
    assert problem(answer) == (403, "origin_refused")
    assert "set-cookie" not in answer.headers
    assert problem(await page.get("/api/session", headers=headers)) == (401, "key_required")


async def test_who_signs_in_has_a_cookie_for_this_page_alone(keys: KeyRing) -> None:
    page = browser(keys)
    answer = await sign_in(page, origin=URL, **{"sec-fetch-site": "same-origin"})
    assert (answer.status_code, answer.content) == (204, b"")
    name_and_value, *attributes = answer.headers["set-cookie"].split("; ")
    assert name_and_value.startswith(f"{COOKIE}=")
    assert {text.lower() for text in attributes} == {
        "httponly",
        "samesite=strict",
        "path=/",
        f"max-age={LIFETIME_S}",
    }
    assert KEY not in answer.headers["set-cookie"]
    assert (await page.get("/api/session")).json() == {
        "caller": "main",
        "scopes": ["inference", "read", "admin"],
        "is_keyless": False,
    }
    assert (await page.post("/api/plan", headers={"origin": URL})).json() == "planned"


async def test_a_session_may_what_its_key_may(keys: KeyRing) -> None:
    _, text = keys.create(KeyWanted(name="alice", scopes=(Scope.READ,)))
    page = browser(keys)
    await sign_in(page, text)
    shown = (await page.get("/api/session")).json()
    assert shown == {"caller": "alice", "scopes": ["read"], "is_keyless": False}
    assert problem(await page.post("/api/plan")) == (403, "scope_missing")


async def test_signing_out_makes_the_browser_forget(keys: KeyRing) -> None:
    page = browser(keys)
    await sign_in(page)
    answer = await page.delete("/api/session")
    assert answer.status_code == 204
    assert "max-age=0" in answer.headers["set-cookie"].lower()
    assert not page.cookies
    assert problem(await page.get("/api/session")) == (401, "key_required")
    assert (await page.delete("/api/session")).status_code == 204, "nobody is signed out again"


async def test_on_this_host_nobody_needs_to_sign_in(keys: KeyRing) -> None:
    local = "http://127.0.0.1:8100"
    page = browser(keys, client="127.0.0.1", url=local)
    assert (await page.get("/api/session")).json() == {
        "caller": "local",
        "scopes": ["inference", "read", "admin"],
        "is_keyless": True,
    }
    for keyless in ("v1", "none"):
        closed = browser(keys, client="127.0.0.1", url=local, keyless=keyless)
        assert problem(await closed.get("/api/session")) == (401, "key_required")
        await sign_in(closed)
        shown = (await closed.get("/api/session")).json()
        assert (shown["caller"], shown["is_keyless"]) == ("main", False)


async def test_two_supervisors_on_one_host_do_not_sign_each_others_users_out(
    keys: KeyRing, tmp_path: Path
) -> None:
    other_store = Store(tmp_path / "other.db")
    one, other = "http://desk.local:8100/api/session", "http://desk.local:8200/api/session"
    mounts = {
        "all://*:8100": supervisor(keys),
        "all://*:8200": supervisor(KeyRing(other_store, "sk-other"), secret=OTHER_SECRET),
    }
    async with httpx.AsyncClient(mounts=mounts) as page:
        assert (await page.post(one, json={"key": KEY})).status_code == 204
        assert (await page.post(other, json={"key": "sk-other"})).status_code == 204
        assert (await page.get(one)).status_code == 200
        assert (await page.get(other)).status_code == 200
        assert (await page.delete(other)).status_code == 204
        assert (await page.get(one)).status_code == 200
        assert (await page.get(other)).status_code == 401
    other_store.close()


@pytest.mark.parametrize(
    "url", ["http://desk.local", "http://10.0.0.1:8100", "http://[fd00::1]:8100"]
)
async def test_a_page_may_be_found_under_any_name(keys: KeyRing, url: str) -> None:
    page = browser(keys, url=url)
    assert (await sign_in(page, origin=url)).status_code == 204
    assert (await page.get("/api/session")).status_code == 200


async def test_cookies_of_other_programs_of_the_host_are_no_hindrance(keys: KeyRing) -> None:
    page = browser(keys)
    cookie = (await sign_in(page)).headers["set-cookie"].split(";")[0]
    page.cookies.clear()
    strange = f'a={{"b": 1}}; ;=; é=1; x[y]="; {cookie}; z'.encode("latin-1")
    answer = await page.get("/api/session", headers=[(b"cookie", strange)])
    assert answer.status_code == 200
