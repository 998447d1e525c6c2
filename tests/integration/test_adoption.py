"""kill -9 of the supervisor is no event for who is being served; its next start takes over."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Cluster, engine_pids, eventually, link_pids

from agents import ports


@pytest.fixture
async def kept(cluster: Cluster) -> Cluster:
    """A supervisor that can come back at the same ports, and two workers."""
    await begin(cluster)
    await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
    return cluster


PORTS: dict[Path, int] = {}


async def begin(cluster: Cluster) -> None:
    """Start it, or start it again."""
    if cluster.folder not in PORTS:
        PORTS[cluster.folder] = ports.reserve("127.0.0.1", from_top=True).port
    await cluster.supervisor(join_port=PORTS[cluster.folder])


async def killed(cluster: Cluster) -> None:
    supervisor = [p for p in cluster.programs if p.name == "supervisor"][-1]
    await asyncio.to_thread(supervisor.stop, signal.SIGKILL)


def llama_pid(deployment: dict[str, Any], record: dict[str, Any]) -> int:
    assert record["id"] == deployment["launch_id"]
    return int(record["pid"])


async def record_of(cluster: Cluster, deployment: dict[str, Any]) -> dict[str, Any]:
    path = f"/api/launches/{deployment['launch_id']}"
    return dict((await cluster.http.get(path)).json())


async def test_a_running_launch_is_taken_over_while_a_stream_goes_on(
    kept: Cluster, random_model: Path
) -> None:
    await kept.launch(random_model)
    before = await kept.settled()
    record = await record_of(kept, before)
    expected = await kept.complete(tokens=200)
    engines = set(engine_pids())
    body = {"prompt": "Hello", "n_predict": 200, "temperature": 0, "stream": True}
    text = ""
    base_url = f"http://127.0.0.1:{before['port']}"
    async with (
        httpx.AsyncClient(base_url=base_url, headers=kept.engine_headers, timeout=60) as http,
        http.stream("POST", "/completion", json=body) as answer,
    ):
        lines = answer.aiter_lines()
        text += _content(await anext(lines))
        await killed(kept)
        began_s = time.monotonic()
        await begin(kept)
        after = await kept.settled()
        took_s = time.monotonic() - began_s
        async for line in lines:
            text += _content(line)
    assert text == expected, "the stream went on"
    assert after["state"] == "ready"
    assert after["launch_id"] == before["launch_id"]
    assert set(engine_pids()) == engines, "nothing was started, nothing was killed"
    assert await kept.complete(tokens=200) == expected
    print(f"serving again {took_s:.2f} s after the start of the supervisor")
    again = await record_of(kept, after)
    assert (again["pid"], again["ended_at"]) == (record["pid"], "")
    await kept.http.post("/api/deployments/test/stop")
    assert not engine_pids()
    assert (await record_of(kept, after))["outcome"] == "stopped"


def _content(line: str) -> str:
    if not line.startswith("data: {"):
        return ""
    return str(json.loads(line.removeprefix("data: ")).get("content", ""))


async def test_a_launch_that_is_taken_over_is_watched(kept: Cluster, demo_model: Path) -> None:
    await kept.launch(demo_model)
    before = await kept.settled()
    await killed(kept)
    await begin(kept)
    assert (await kept.settled())["launch_id"] == before["launch_id"]
    os.kill(llama_pid(before, await record_of(kept, before)), signal.SIGKILL)

    async def is_repaired() -> dict[str, Any] | None:
        now = dict((await kept.http.get("/api/deployments/test")).json())
        is_new = now["launch_id"] != before["launch_id"]
        return now if now["state"] == "ready" and is_new else None

    await eventually(is_repaired, within_s=30, what="the launch is repeated")
    record = await record_of(kept, before)
    assert record["ended_at"]
    assert record["cause"]["code"].startswith("engine_")


@pytest.mark.parametrize("victim", ["llama-server", "link"])
async def test_what_died_meanwhile_is_launched_again_and_the_rest_is_ended(
    kept: Cluster, demo_model: Path, victim: str
) -> None:
    await kept.launch(demo_model)
    before = await kept.settled()
    record = await record_of(kept, before)
    await killed(kept)
    os.kill(record["pid"] if victim == "llama-server" else record["link_pid"], signal.SIGKILL)
    left = set(engine_pids())
    await begin(kept)

    async def is_new() -> dict[str, Any] | None:
        now = dict((await kept.http.get("/api/deployments/test")).json())
        return now if now["state"] == "ready" else None

    after = await eventually(is_new, within_s=40, what="ready again")
    assert after["launch_id"] > before["launch_id"]
    assert not left & set(engine_pids()), "nothing of the old launch is left"
    assert (await record_of(kept, before))["ended_at"]
    assert await kept.complete(tokens=4)
    assert len(link_pids()) <= 2, "the one of the launch, and the spare one"


@pytest.mark.parametrize("phase", ["workers", "connect", "load", "first token"])
async def test_a_supervisor_killed_while_it_launches_ends_with_one_that_serves(
    kept: Cluster, demo_model: Path, phase: str
) -> None:
    asking = asyncio.create_task(kept.launch(demo_model))

    async def is_there() -> bool:
        try:
            found = dict((await kept.http.get("/api/deployments/test")).json())
        except httpx.TransportError:
            return False
        return phase == found.get("phase") or found.get("state") == "ready"

    await eventually(is_there, within_s=20, what=f"phase {phase}")
    await killed(kept)
    await asyncio.gather(asking, return_exceptions=True)
    await begin(kept)
    after = await kept.settled()
    assert after["state"] == "ready", after["reason"]
    assert await kept.complete(tokens=4)
    assert len(engine_pids()) == 3, "one llama-server, two rpc-servers"
    records = (await kept.http.get("/api/launches")).json()
    assert [r["id"] for r in records if not r["ended_at"]] == [after["launch_id"]]


async def test_a_deployment_that_was_stopped_stays_so(kept: Cluster, demo_model: Path) -> None:
    await kept.launch(demo_model)
    await kept.settled()
    await kept.http.post("/api/deployments/test/stop")
    await killed(kept)
    await begin(kept)
    assert (await kept.settled())["state"] == "stopped"
    assert not engine_pids()
