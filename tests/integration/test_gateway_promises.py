"""The gateway's promises with real engines: streams outlive workers, requests wait for repairs."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Cluster, eventually

from supervisor.demo_model import SENTENCE, write_demo_model

QUESTION = {"messages": [{"role": "user", "content": "What happened?"}], "temperature": 0}
LONG_S = 120.0


@pytest.fixture(scope="module")
def slow_recital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recites, but takes its time for each word, so that cuts come in the middle."""
    path = tmp_path_factory.mktemp("models") / "slow.gguf"
    write_demo_model(path, layers=16, embedding=1024, feed_forward=4096, heads=16, kv_heads=8)
    return path


@dataclass
class Told:
    """A streamed chat as a client got it."""

    texts: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    ends: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def take(self, line: str) -> None:
        """One line of the stream, which must be of the right form."""
        assert not self.is_done or not line
        if line.startswith(":"):
            self.comments.append(line)
        elif line == "data: [DONE]":
            self.is_done = True
        elif line:
            self._take(json.loads(line.removeprefix("data: ")))

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.errors.append(event["error"])
            return
        self.ids.add(event["id"])
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            assert not self.ends
            self.texts += filter(None, [choice["delta"].get("content")])
            self.ends += filter(None, [choice["finish_reason"]])


async def stream(url: str, *, heard: Callable[[Told], None] = lambda _: None, **body: Any) -> Told:
    """Ask and listen to the end."""
    told = Told()
    asked = {**QUESTION, "stream": True, "stream_options": {"include_usage": True}, **body}
    limits = httpx.Timeout(LONG_S, connect=10)
    async with (
        httpx.AsyncClient(base_url=url, timeout=limits, trust_env=False) as http,
        http.stream("POST", "/v1/chat/completions", json=asked) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            told.take(line)
            heard(told)
    return told


def assert_whole(told: Told) -> None:
    assert told.text == SENTENCE
    assert told.ends == ["stop"]
    assert told.is_done
    assert not told.errors
    assert len(told.ids) == 1


async def worker_pid(cluster: Cluster, name: str) -> int:
    device = await cluster.device(name)
    assert device is not None
    return int(device["rpc_server"]["pid"])


def killing(pid: int, *, at: int) -> Callable[[Told], None]:
    """Kills a process when the first who listens has so many words, once."""
    killed: list[int] = []

    def heard(told: Told) -> None:
        if len(told.texts) >= at and not killed:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    return heard


async def ready(cluster: Cluster, model: Path, **spec: Any) -> None:
    answer = await cluster.launch(model, **spec)
    assert answer.status_code == 201, answer.text
    assert (await cluster.settled())["state"] == "ready"


async def records(cluster: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await cluster.http.get("/api/requests")).json()
    return found


async def test_twenty_streams_outlive_a_worker(pair: Cluster, slow_recital: Path) -> None:
    await ready(pair, slow_recital, slots=20, ctx_tokens=20 * 256)
    kill = killing(await worker_pid(pair, "one"), at=5)
    everyone = await asyncio.gather(*(stream(pair.url, heard=kill) for _ in range(20)))
    for told in everyone:
        assert_whole(told)
    assert {told.usage["completion_tokens"] for told in everyone} == {
        everyone[0].usage["completion_tokens"]
    }
    kept = await records(pair)
    assert sum(record["resumed"] + record["retries"] for record in kept) >= 20
    assert {record["status"] for record in kept} == {200}


async def test_a_stream_goes_on_after_cuts_anywhere_in_it(
    pair: Cluster, slow_recital: Path
) -> None:
    """Each answer loses a worker after another token; a second loss hits some of them, too."""
    await ready(pair, slow_recital)
    whole = await stream(pair.url)
    assert_whole(whole)
    for cut in (1, 2, 3, 7, len(whole.texts) - 2):
        pid = await worker_pid(pair, "one" if cut % 2 else "two")
        told = await stream(pair.url, heard=killing(pid, at=cut))
        assert_whole(told)
        assert told.usage["completion_tokens"] == whole.usage["completion_tokens"]
        assert told.usage["prompt_tokens"] == whole.usage["prompt_tokens"]


async def test_answers_that_do_not_stream_go_on_too(pair: Cluster, slow_recital: Path) -> None:
    await ready(pair, slow_recital)
    pid = await worker_pid(pair, "two")
    asking = asyncio.create_task(pair.http.post("/v1/chat/completions", json=QUESTION))
    await eventually(lambda: _has_words(pair, 5), within_s=30, what="the answer has begun")
    os.kill(pid, signal.SIGKILL)
    answer = await asking
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == SENTENCE
    (record,) = [each for each in await records(pair) if each["path"] != "/slots"]
    assert (record["resumed"], record["retries"], record["is_stream"]) == (1, 0, False)


async def test_an_answer_by_a_grammar_ends_with_the_reason(
    pair: Cluster, slow_recital: Path
) -> None:
    await ready(pair, slow_recital)
    kill = killing(await worker_pid(pair, "one"), at=3)
    told = await stream(pair.url, heard=kill, grammar="root ::= [a-z ]+", max_tokens=200)
    assert told.errors[0]["code"] == "answer_lost"
    assert "grammar" in told.errors[0]["message"]


async def test_who_waits_for_a_lost_device_is_answered_when_it_is_back(
    cluster: Cluster, slow_recital: Path
) -> None:
    """A phone that sleeps: streams and waiting requests outlive it, and hear what is wrong."""
    await cluster.supervisor(keep_alive_s=0.5)
    phone = await cluster.agent("phone")
    await ready(cluster, slow_recital, devices=["phone"])
    woken: list[asyncio.Task[Any]] = []

    def sleep(told: Told) -> None:
        if len(told.texts) == 5 and phone.process.poll() is None:
            phone.process.kill()
        if len(told.comments) == 4 and not woken:
            woken.append(asyncio.create_task(cluster.agent("phone", wait=False)))

    streaming = asyncio.create_task(stream(cluster.url, heard=sleep))
    await eventually(_has_ended(phone), within_s=30, what="the phone sleeps")
    impatient = await cluster.http.post(
        "/v1/chat/completions", json=QUESTION, headers={"Prefer": "wait=0.5"}
    )
    assert impatient.status_code == 503
    told_why = impatient.json()["error"]["supervisor"]
    assert told_why["state"] in ("degraded", "backoff", "pending")
    assert told_why["cause"]["sentence"]
    told = await streaming
    assert woken
    await woken[0]
    assert any("phone" in comment for comment in told.comments)
    assert_whole(told)


def _has_ended(program: Any) -> Callable[[], Any]:
    async def check() -> bool:
        return program.process.poll() is not None

    return check


async def test_a_client_that_leaves_frees_its_slot_within_a_second(
    pair: Cluster, slow_recital: Path
) -> None:
    await ready(pair, slow_recital)
    async with httpx.AsyncClient(base_url=pair.url, timeout=60, trust_env=False) as http:
        body = {"prompt": "Hi", "max_tokens": 400, "stream": True, "ignore_eos": True}
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            # The second waits in the queue, and leaves it.
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/v1/completions", json={**body, "stream": False}, timeout=0.5)
            assert await busy_slots(pair) == 1
    left_s = time.monotonic()
    await eventually(lambda: _is_idle(pair), within_s=10, what="the slot is free")
    assert time.monotonic() - left_s < 1.0
    kept = await records(pair)
    assert sum(record["status"] == 499 for record in kept) == 2


async def test_a_client_that_wants_a_whole_answer_may_leave_while_others_are_answered(
    pair: Cluster, slow_recital: Path
) -> None:
    """llama-server alone would compute it to the end: others' tokens keep it from looking."""
    await ready(pair, slow_recital, slots=2, ctx_tokens=2048)
    body = {"prompt": "Hi", "max_tokens": 800, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=pair.url, timeout=60, trust_env=False) as http:
        asked = {**body, "stream": True}
        async with http.stream("POST", "/v1/completions", json=asked) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/v1/completions", json=body, timeout=1.0)
            left_s = time.monotonic()
            await eventually(lambda: _is_busy(pair, 1), within_s=10, what="one slot is free")
            assert time.monotonic() - left_s < 1.0
            await anext(lines)


async def busy_slots(cluster: Cluster) -> int:
    slots = (await cluster.http.get("/slots")).json()
    return sum(slot["is_processing"] for slot in slots)


async def _has_words(cluster: Cluster, tokens: int) -> bool:
    (slot,) = (await cluster.http.get("/slots")).json()
    return bool(slot["is_processing"] and slot["next_token"][0]["n_decoded"] >= tokens)


async def _is_idle(cluster: Cluster) -> bool:
    return await _is_busy(cluster, 0)


async def _is_busy(cluster: Cluster, slots: int) -> bool:
    return await busy_slots(cluster) == slots


async def test_a_request_launches_a_model_and_its_ttl_stops_it(
    pair: Cluster, demo_model: Path
) -> None:
    await ready(pair, demo_model, on_demand=True, ttl_s=1.5, aliases=["my-model"])
    stopped = await pair.settled_as("stopped", within_s=30)
    assert stopped["state"] == "stopped"
    answer = await pair.http.post("/v1/chat/completions", json={**QUESTION, "model": "My-Model"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == SENTENCE
    listed = (await pair.http.get("/v1/models")).json()["data"]
    assert [each["id"] for each in listed] == ["test"]


async def test_nothing_is_behind_the_allow_list(pair: Cluster, demo_model: Path) -> None:
    await ready(pair, demo_model)
    for path in ("/cors-proxy", "/tools", "/slots/0?action=save", "/models/load", "/lora-adapters"):
        answer = await pair.http.post(path, json={})
        assert answer.status_code == 403, path
        assert answer.json()["error"]["reason"] == "route_withheld"
    for method, path in (("POST", "/props"), ("DELETE", "/v1/models"), ("GET", "/v1/nothing")):
        answer = await pair.http.request(method, path, json={})
        assert answer.status_code == 404, (method, path)


@pytest.fixture
async def listener() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Another host of the network, to which nobody should be sent."""
    heard: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/image.png", heard


async def test_a_key_for_inference_sends_the_main_host_nowhere(
    pair: Cluster, demo_model: Path, listener: tuple[str, list[bytes]]
) -> None:
    await ready(pair, demo_model)
    url, heard = listener
    made = await pair.http.post("/api/keys", json={"name": "app", "scopes": ["inference"]})
    assert made.status_code == 201, made.text
    headers = {"Authorization": f"Bearer {made.json()['text']}"}
    content = [{"type": "image_url", "image_url": {"url": url}}]
    body = {"messages": [{"role": "user", "content": content}]}
    answer = await pair.http.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "remote_media_refused"
    assert heard == []
