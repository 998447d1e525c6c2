"""API keys against a real supervisor: scopes, limits, usage, and who needs one."""

import asyncio
import contextlib
import gzip
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Cluster, eventually
from qr_reading import drawn_in_svg, text_of

from agents import ports

PROMPT = {"model": "test", "prompt": "Hello", "max_tokens": 4, "temperature": 0}


async def cli(
    cluster: Cluster, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, with the supervisor's address unless the environment is given."""
    where = {"SUPERVISOR_URL": cluster.url} if environment is None else environment
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "supervisor", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200", **where},
        check=False,
    )


async def create(cluster: Cluster, name: str, **values: Any) -> str:
    """Text of a new key."""
    answer = await cluster.http.post("/api/keys", json={"name": name, **values})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["text"])


async def key_of(cluster: Cluster, name: str) -> dict[str, Any]:
    keys = (await cluster.http.get("/api/keys")).json()
    return next(key for key in keys if key["name"] == name)


@contextlib.contextmanager
def default_folder(cluster: Cluster) -> Iterator[dict[str, str]]:
    """An environment in which the supervisor's folder is that of the command line."""
    home = cluster.folder / "home"
    (home / "llama-rpc-supervisor").mkdir(parents=True)
    (home / "llama-rpc-supervisor" / "supervisor").symlink_to(cluster.folder / "supervisor")
    yield {"XDG_DATA_HOME": str(home)}


async def test_the_life_of_a_key_on_the_command_line(cluster: Cluster) -> None:
    program = await cluster.supervisor(log_level="debug")
    limits = ("--per-minute", "60", "--concurrent", "2", "--wait", "30")
    made = await cli(cluster, "keys", "create", "alice", "--scope", "inference,read", *limits)
    assert made.returncode == 0, made.stderr
    text = made.stdout.splitlines()[0]
    line = f"export OPENAI_BASE_URL={cluster.url}/v1 OPENAI_API_KEY={text}"
    assert line in made.stdout.splitlines()
    listed = await cli(cluster, "keys")
    for word in ("main", "alice", text[:7], "inference, read", "60 a minute", "waits 30 s"):
        assert word in listed.stdout
    assert text not in listed.stdout
    bob = await cli(cluster, "keys", "create", "bob", "--json")
    assert json.loads(bob.stdout)["key"]["scopes"] == ["inference"]
    again = await cli(cluster, "keys", "create", "alice")
    assert (again.returncode, again.stdout) == (1, "")
    assert "there is a key 'alice' already" in again.stderr
    wrong = await cli(cluster, "keys", "create", "carol", "--scope", "everything")
    assert wrong.returncode == 1
    assert "scopes" in wrong.stderr
    assert (await cli(cluster, "status", "--key", text)).returncode == 0
    refused = await cli(cluster, "invite", "--key", text)
    assert refused.returncode == 1
    assert "key alice is good for inference, read, and this needs admin" in refused.stderr
    assert (await cli(cluster, "keys", "revoke", "alice")).returncode == 0
    gone = await cli(cluster, "keys", "revoke", "alice")
    assert "there is no key 'alice'" in gone.stderr
    names = [key["name"] for key in json.loads((await cli(cluster, "keys", "--json")).stdout)]
    assert names == ["bob", "main"]
    report = gzip.decompress((await cluster.http.get("/api/report")).content)
    for secret in (text, json.loads(bob.stdout)["text"]):
        assert secret not in program.said()
        assert secret.encode() not in report
    assert "key.created" in program.said()


async def test_scopes_are_kept_on_every_route(cluster: Cluster) -> None:
    await cluster.supervisor()
    texts = {scope: await create(cluster, scope, scopes=[scope]) for scope in ("inference", "read")}
    main = (cluster.folder / "supervisor" / "api.key").read_text().strip()

    async def status(key: str, method: str, path: str, body: Any = None) -> int:
        headers = {"authorization": f"Bearer {key}"}
        return (await cluster.http.request(method, path, json=body, headers=headers)).status_code

    for key, models, snapshot, create_key in (
        (texts["inference"], 200, 403, 403),
        (texts["read"], 403, 200, 403),
        (main, 200, 200, 201),
    ):
        assert await status(key, "GET", "/v1/models") == models
        assert await status(key, "GET", "/api/status") == snapshot
        assert await status(key, "GET", "/metrics") == snapshot
        assert await status(key, "GET", "/api/history") == snapshot
        assert await status(key, "POST", "/api/keys", {"name": "x"}) == create_key
        assert await status(key, "GET", "/v1/health") in (200, 503)
    made = await cluster.http.post("/api/keys", json={"name": "y"})
    assert made.headers["cache-control"] == "no-store"
    assert await status(texts["read"], "DELETE", "/api/keys/y") == 403
    assert await status(main, "DELETE", "/api/keys/y") == 204
    assert await status(main, "DELETE", "/api/keys/y") == 404
    for wrong in ({"name": "a b"}, {"name": "z", "concurrent": 0}, {"name": "z", "text": "mine"}):
        answer = await cluster.http.post("/api/keys", json=wrong)
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_request")


async def test_a_page_may_sign_in_with_any_key_that_may_look(cluster: Cluster) -> None:
    await cluster.supervisor(keyless_loopback="none")
    main = (cluster.folder / "supervisor" / "api.key").read_text().strip()
    cluster.http.headers["x-api-key"] = main
    read = await create(cluster, "reader", scopes=["read"])
    inference = await create(cluster, "user")
    async with httpx.AsyncClient(base_url=cluster.url, trust_env=False) as page:
        for key, status in ((inference, 403), ("sk-wrong", 401), ("", 401)):
            assert (await page.post("/api/session", json={"key": key})).status_code == status
        assert (await page.get("/api/status")).status_code == 401
        assert (await page.post("/api/session", json={"key": read})).status_code == 204
        assert (await page.get("/api/status")).status_code == 200
        assert (await page.post("/api/join-code")).status_code == 403
        assert (await page.get("/api/models/search")).status_code == 403
        settings = {s["name"]: s for s in (await page.get("/api/settings")).json()["settings"]}
        assert settings["keyless_loopback"]["value"] == "none"
        assert settings["keyless_loopback"]["source"] == "environment"
        assert settings["port"]["source"] == "option"
        await cluster.http.delete("/api/keys/reader")
        assert (await page.get("/api/status")).status_code == 401, "revoked: the cookie is nothing"


async def test_a_session_outlives_the_supervisor_and_ends_when_its_user_signs_out(
    cluster: Cluster,
) -> None:
    program = await cluster.supervisor(keyless_loopback="none", log_level="debug")
    main = (cluster.folder / "supervisor" / "api.key").read_text().strip()
    port = httpx.URL(cluster.url).port
    async with httpx.AsyncClient(base_url=cluster.url, trust_env=False) as page:
        assert (await page.post("/api/session", json={"key": main})).status_code == 204
        (cookie,) = page.cookies.jar
        assert cookie.name == f"supervisor_session_{port}"
        assert main not in str(cookie.value)
        assert program.stop() == 0
        await cluster.supervisor(keyless_loopback="none", port=port or 0)
        assert (await page.get("/api/session")).json() == {
            "caller": "main",
            "scopes": ["inference", "read", "admin"],
            "is_keyless": False,
        }
        report = gzip.decompress((await page.get("/api/report")).content)
        secret = (cluster.folder / "supervisor" / "session.secret").read_text()
        for text in (secret, str(cookie.value)):
            assert text.encode() not in report
            assert text not in program.said()
        assert (await page.delete("/api/session")).status_code == 204
        assert (await page.get("/api/session")).status_code == 401


async def test_an_invitation_has_the_lines_of_all_platforms(cluster: Cluster) -> None:
    await cluster.supervisor()
    invited = await cli(cluster, "invite", "--json")
    view = json.loads(invited.stdout)
    lines = {line["platform"]: line for line in view["lines"]}
    assert list(lines) == ["termux", "macos", "linux"]
    assert lines["termux"]["command"] == view["termux_command"]
    assert lines["macos"]["command"] == lines["linux"]["command"] == view["command"]
    for line in lines.values():
        assert view["code"] in line["command"]
        assert text_of(drawn_in_svg(line["qr"])) == line["command"]
    piped = await cli(cluster, "invite")
    assert "█" not in piped.stdout, "no terminal"


@contextlib.asynccontextmanager
async def streaming(cluster: Cluster, key: str) -> AsyncIterator[AsyncIterator[str]]:
    """The lines of a long answer, of which the first has come."""
    body = PROMPT | {"max_tokens": 3000, "stream": True, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}"}
    async with (
        httpx.AsyncClient(base_url=cluster.url, timeout=60, trust_env=False) as http,
        http.stream("POST", "/v1/completions", json=body, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        await anext(lines)
        yield lines


async def test_limits_usage_and_revocation_of_a_key_that_is_in_use(
    cluster: Cluster, random_model: Path
) -> None:
    program = await cluster.supervisor()
    await cluster.agent("one")
    await cluster.launch(random_model, ctx_tokens=4096, slots=2)
    assert (await cluster.settled())["state"] == "ready"
    one = await create(cluster, "one-at-a-time", concurrent=1)
    few = await create(cluster, "few", requests_per_minute=2)

    async def ask(key: str, path: str = "/v1/completions") -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return await cluster.http.post(path, json=PROMPT, headers=headers)

    async with streaming(cluster, one) as lines:
        refused = await ask(one)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limited")
        assert "has 1 requests open, and may have 1" in error["message"]
        assert (await ask(few)).status_code == 200, "the limit is of one key"
        # Revoked in the middle of its answer: that goes on, and nothing new begins.
        assert (await cluster.http.delete("/api/keys/one-at-a-time")).status_code == 204
        assert [await anext(lines) for _ in range(20)]

    again = await create(cluster, "one-at-a-time", concurrent=1)
    for _ in range(2):
        assert (await ask(again)).status_code == 200
    assert (await ask(few)).status_code == 200
    refused = await ask(few)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "has made 2 requests in the last minute, and may make 2" in refused.text

    async def is_counted() -> Any:
        key = await key_of(cluster, "few")
        counts = key["requests"], key["generated_tokens"]
        return counts == (3, 8) and key["prompt_tokens"] >= 2 and key["last_used_at"]

    await eventually(is_counted, within_s=10, what="usage is counted")
    before = await key_of(cluster, "few")
    assert program.stop() == 0
    await cluster.supervisor()
    after = await key_of(cluster, "few")
    assert after == before, "keys and usage outlive a restart"
    headers = {"authorization": f"Bearer {few}"}
    assert (await cluster.http.get("/api/status", headers=headers)).status_code == 403


async def test_another_address_of_this_host_needs_a_key(cluster: Cluster) -> None:
    address = ports.local_address_towards("192.0.2.1")
    if address == "127.0.0.1":
        pytest.skip("this host has no address but loopback")
    await cluster.supervisor(host="0.0.0.0")
    text = await create(cluster, "user", scopes=["inference"])
    url = cluster.url.replace("127.0.0.1", address)
    async with httpx.AsyncClient(base_url=url, trust_env=False) as other:
        for path in ("/v1/models", "/api/status", "/metrics"):
            refused = await other.get(path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.headers["x-content-type-options"] == "nosniff"
        assert (await other.get("/")).status_code == 200
        headers = {"x-api-key": text}
        assert (await other.get("/v1/models", headers=headers)).status_code == 200
        assert (await other.get("/api/status", headers=headers)).status_code == 403
        assert (await other.get("/v1/models", headers={"x-api-key": text + "x"})).status_code == 401


async def test_a_site_that_is_configured_is_answered_with_its_name(cluster: Cluster) -> None:
    site = "https://chat.example"
    await cluster.supervisor(cors_origins=f"http://a.example:3000, {site}")
    answer = await cluster.http.get("/v1/models", headers={"origin": site})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == site
    refused = await cluster.http.get("/api/status", headers={"origin": site})
    assert refused.status_code == 403
    preflight = {
        "origin": site,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    allowed = await cluster.http.options("/v1/chat/completions", headers=preflight)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == site


@pytest.mark.parametrize("keyless", ["v1", "none"])
async def test_commands_on_this_host_work_where_a_key_is_needed(
    cluster: Cluster, keyless: str
) -> None:
    await cluster.supervisor(keyless_loopback=keyless)
    assert (await cluster.http.get("/api/status")).status_code == 401
    assert (await cluster.http.get("/v1/models")).status_code == (200 if keyless == "v1" else 401)
    with default_folder(cluster) as environment:
        for command in ("status", "devices", "invite", "keys"):
            done = await cli(cluster, command, environment=environment)
            assert done.returncode == 0, done.stderr
        given = await cli(cluster, "status", "--key", "sk-other", environment=environment)
        assert given.returncode == 1, "a key that was given is the one that is shown"
        stranger = await cli(cluster, "status", environment={"SUPERVISOR_URL": cluster.url})
        assert stranger.returncode == 1
        assert "a key is needed on this host, too" in stranger.stderr


async def test_the_key_is_not_shown_to_whoever_listens_in_place_of_a_supervisor_that_was_killed(
    cluster: Cluster,
) -> None:
    program = await cluster.supervisor()
    program.stop(signal.SIGKILL)
    port = httpx.URL(cluster.url).port
    heard: list[bytes] = []

    class Stranger(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            heard.append(self.request.recv(65536))
            self.wfile.write(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    socketserver.TCPServer.allow_reuse_address = True
    with (
        socketserver.TCPServer(("127.0.0.1", int(port or 0)), Stranger) as server,
        default_folder(cluster) as environment,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = await cli(cluster, "status", environment=environment)
        server.shutdown()
    assert done.returncode == 1
    assert len(heard) == 1
    assert b"GET /api/status" in heard[0]
    assert b"sk-" not in heard[0]
    assert b"authorization" not in heard[0].lower()
