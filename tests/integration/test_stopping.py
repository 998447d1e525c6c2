"""Stopping lets running requests end, within limits; who is in a hurry is obeyed at once."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from cluster import Cluster, engine_pids, link_pids

TOKENS = 1200
"""Takes some seconds, so that a stop comes in the middle."""
LONG_S = 120.0
"""Longer than that takes on a busy host."""


@asynccontextmanager
async def streaming(cluster: Cluster) -> AsyncIterator[AsyncIterator[str]]:
    """The text of a long answer through the gateway, piece by piece; the first has come."""
    body = {"model": "test", "prompt": "Hello", "max_tokens": TOKENS, "stream": True}
    body |= {"temperature": 0, "ignore_eos": True}
    async with (
        httpx.AsyncClient(base_url=cluster.url, timeout=60, trust_env=False) as http,
        http.stream("POST", "/v1/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        pieces = _pieces(answer)
        await anext(pieces)
        yield pieces


async def _pieces(answer: httpx.Response) -> AsyncIterator[str]:
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            yield str(json.loads(line.removeprefix("data: "))["choices"][0]["text"])
        elif line == "data: [DONE]":
            yield "[DONE]"


async def ready(cluster: Cluster, model: Path, **settings: object) -> None:
    await cluster.supervisor(**{"port": 0, "drain_s": LONG_S, **settings})  # type: ignore[arg-type]
    await cluster.agent("one")
    await cluster.launch(model, ctx_tokens=4096)
    assert (await cluster.settled())["state"] == "ready"


async def test_a_stop_lets_the_answer_end(cluster: Cluster, random_model: Path) -> None:
    await ready(cluster, random_model)
    async with streaming(cluster) as pieces:
        stopping = asyncio.create_task(cluster.http.post("/api/deployments/test/stop"))
        last = [piece async for piece in pieces][-1]
        assert last == "[DONE]"
        assert (await stopping).json()["state"] == "stopped"
    assert not engine_pids()


async def test_while_it_drains_new_requests_are_refused(
    cluster: Cluster, random_model: Path
) -> None:
    await ready(cluster, random_model)
    async with streaming(cluster) as pieces:
        stopping = asyncio.create_task(cluster.http.post("/api/deployments/test/stop"))
        while (await cluster.http.get("/api/deployments/test")).json()["state"] != "stopping":
            await asyncio.sleep(0.01)
        body = {"model": "test", "prompt": "Hello", "max_tokens": 1}
        refused = await cluster.http.post("/v1/completions", json=body)
        assert refused.status_code in (404, 503)
        assert [piece async for piece in pieces][-1] == "[DONE]"
        await stopping


async def test_a_stop_waits_only_as_long_as_is_set(cluster: Cluster, random_model: Path) -> None:
    await ready(cluster, random_model, drain_s=0.3)
    async with streaming(cluster):
        began_s = time.monotonic()
        stopped = await cluster.http.post("/api/deployments/test/stop")
        assert stopped.json()["state"] == "stopped"
        print(f"stopped after {time.monotonic() - began_s:.1f} s")
    assert not engine_pids()


async def test_a_stop_now_does_not_wait(cluster: Cluster, random_model: Path) -> None:
    await ready(cluster, random_model, drain_s=600, grace_s=600)
    async with streaming(cluster):
        async with asyncio.timeout(30):
            waiting = asyncio.create_task(cluster.http.post("/api/deployments/test/stop"))
            await asyncio.sleep(0.3)
            hurried = await cluster.http.post("/api/deployments/test/stop?now=true")
            assert hurried.json()["state"] == "stopped"
            await waiting
    assert not engine_pids()


async def test_ctrl_c_lets_the_answer_end_and_takes_everything_along(
    cluster: Cluster, random_model: Path
) -> None:
    await ready(cluster, random_model)
    supervisor = cluster.programs[0]
    async with streaming(cluster) as pieces:
        supervisor.process.send_signal(signal.SIGINT)
        assert [piece async for piece in pieces][-1] == "[DONE]"
    assert await asyncio.to_thread(supervisor.process.wait, 60) == 0
    assert not engine_pids()
    assert not link_pids()


async def test_a_second_ctrl_c_is_immediate(cluster: Cluster, random_model: Path) -> None:
    await ready(cluster, random_model, drain_s=600, grace_s=600)
    supervisor = cluster.programs[0]
    async with streaming(cluster):
        supervisor.process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.5)
        assert supervisor.process.poll() is None, "it waits for the answer"
        supervisor.process.send_signal(signal.SIGINT)
        await asyncio.to_thread(supervisor.process.wait, 15)
    assert not engine_pids()
    assert not link_pids()
