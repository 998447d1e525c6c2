"""Devices give each other weights while a model is pushed, and nothing is sent twice."""

import asyncio
import contextlib
import hashlib
import json
import random
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually
from lab.links import Link, emulated_link

from supervisor.demo_model import write_demo_model

RATE = 3e6
"""Bytes per second each way, of every device's network."""


@pytest.fixture(scope="session")
def spread_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 60 MB, all of it in tensors that are kept."""
    path = tmp_path_factory.mktemp("models") / "spread.gguf"
    write_demo_model(path, feed_forward=3072, recite=False)
    return path


def free_port() -> int:
    """Below those that the system gives to outgoing connections, and not where others look."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.asynccontextmanager
async def behind_a_link(cluster: Cluster, name: str) -> AsyncIterator[Link]:
    """A device whose link, from the main host and from other devices, passes through a relay."""
    port = free_port()
    async with emulated_link(port) as link:
        where = ("--link-port", str(port), "--link-address", f"127.0.0.1:{link.port}")
        await cluster.agent(name, *where)
        yield link


async def push(cluster: Cluster, model: Path, *, whole: bool = False, **spec: Any) -> list[Any]:
    """The last word on each device; the push must come to its end."""
    body = {"model": str(model), "ctx_tokens": 512, **spec}
    event, views = "", []
    async with cluster.http.stream(
        "POST", "/api/models/push", json=body, params={"whole": whole}, timeout=120
    ) as lines:
        async for line in lines.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                views = json.loads(line.removeprefix("data: "))
                assert event != "problem", views
    assert event == "result"
    return list(views)


def chunks_in(cluster: Cluster, name: str) -> list[Path]:
    folder = cluster.folder / name / "chunks"
    whole = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".new")
    return sorted(whole)


def assert_sound(cluster: Cluster, *names: str) -> None:
    for name in names:
        for path in chunks_in(cluster, name):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def stored_bytes(cluster: Cluster, name: str) -> int:
    return sum(path.stat().st_size for path in chunks_in(cluster, name))


async def holdings(cluster: Cluster, model: Path) -> dict[str, dict[str, Any]]:
    answer = await cluster.http.get("/api/models/holdings", params={"model": str(model)})
    assert answer.status_code == 200, answer.text
    return {view["device"]: view for view in answer.json()}


async def test_two_devices_that_each_lack_the_other_s_half_give_it_to_each_other(
    cluster: Cluster, spread_model: Path
) -> None:
    await cluster.supervisor()
    async with behind_a_link(cluster, "one") as first, behind_a_link(cluster, "two") as second:
        halves = await push(cluster, spread_model, order=["one", "two"])
        assert [view["from_peers_bytes"] for view in halves] == [0, 0], "nobody had anything"
        before = await holdings(cluster, spread_model)
        total_bytes = before["one"]["total_bytes"]
        for view in before.values():
            assert 0.3 < view["held_bytes"] / total_bytes < 0.7
        for link in (first, second):
            await link.set(rate_bytes_per_s=RATE)
        views = await push(cluster, spread_model, whole=True, order=["one", "two"])
        lacked_bytes = sum(total_bytes - view["held_bytes"] for view in before.values())
        from_peers_bytes = sum(view["from_peers_bytes"] for view in views)
        from_main_bytes = sum(view["sent_bytes"] for view in views)
        assert from_main_bytes + from_peers_bytes == lacked_bytes, "nothing came twice"
        assert 0.25 < from_peers_bytes / lacked_bytes < 0.75
        after = await holdings(cluster, spread_model)
        assert all(view["held_bytes"] == total_bytes for view in after.values())
        assert_sound(cluster, "one", "two")
        again = await push(cluster, spread_model, whole=True, order=["one", "two"])
        assert [(v["sent_bytes"], v["from_peers_bytes"]) for v in again] == [(0, 0), (0, 0)]


async def test_a_device_that_dies_while_it_gives_costs_nothing_but_time(
    cluster: Cluster, spread_model: Path
) -> None:
    await cluster.supervisor()
    giver = await cluster.agent("giver")
    await push(cluster, spread_model, whole=True, devices=["giver"])
    async with behind_a_link(cluster, "one") as link:
        await link.set(rate_bytes_per_s=RATE)
        pushing = asyncio.create_task(push(cluster, spread_model, whole=True, devices=["one"]))

        async def is_giving() -> bool:
            return "peer.admitted" in giver.said() and stored_bytes(cluster, "one") > 4 << 20

        await eventually(is_giving, within_s=30, what="the other device gives")
        giver.stop(signal.SIGKILL)
        (view,) = await pushing
    assert view["done_bytes"] == view["total_bytes"]
    assert view["from_peers_bytes"] > 0
    assert view["sent_bytes"] + view["from_peers_bytes"] == view["total_bytes"]
    assert stored_bytes(cluster, "one") == stored_bytes(cluster, "giver")
    assert_sound(cluster, "one")


async def test_kill_9_of_the_receiver_and_the_push_goes_on_where_it_was(
    cluster: Cluster, spread_model: Path
) -> None:
    await cluster.supervisor()
    await cluster.agent("giver")
    await push(cluster, spread_model, whole=True, devices=["giver"])
    async with behind_a_link(cluster, "one") as link:
        await link.set(rate_bytes_per_s=RATE)
        pushing = asyncio.create_task(push(cluster, spread_model, whole=True, devices=["one"]))

        async def has_some() -> bool:
            return stored_bytes(cluster, "one") > 10 << 20

        await eventually(has_some, within_s=30, what="some chunks came")
        receiver = next(p for p in reversed(cluster.programs) if p.name == "one")
        receiver.stop(signal.SIGKILL)
        with pytest.raises(AssertionError, match="link_lost"):
            await pushing
    kept_bytes = stored_bytes(cluster, "one")
    before = await cluster.device("one")
    await cluster.agent("one", wait=False)

    async def is_back() -> bool:
        found = await cluster.device("one")
        assert found and before
        same = found["facts"]["agent_start"] == before["facts"]["agent_start"]
        return found["state"] == "ready" and not same

    await eventually(is_back, within_s=30, what="the new agent is heard of")
    (view,) = await push(cluster, spread_model, whole=True, devices=["one"])
    came_bytes = view["sent_bytes"] + view["from_peers_bytes"]
    assert came_bytes <= view["total_bytes"] - kept_bytes
    assert stored_bytes(cluster, "one") == stored_bytes(cluster, "giver")
    assert_sound(cluster, "one")


async def test_what_is_pushed_keeps_to_the_limit(cluster: Cluster, spread_model: Path) -> None:
    limit = 8 << 20
    await cluster.supervisor(spread_limit_mib_s=limit >> 20)
    await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
    started_s = time.monotonic()
    views = await push(cluster, spread_model, order=["one", "two"])
    took_s = time.monotonic() - started_s
    sent_bytes = sum(view["sent_bytes"] for view in views)
    assert sum(view["from_peers_bytes"] for view in views) == 0
    assert sent_bytes / took_s < limit * 1.1, "both devices together"


async def test_holdings_of_a_model_that_nobody_has_and_of_none(
    cluster: Cluster, spread_model: Path
) -> None:
    await cluster.supervisor()
    await cluster.agent("one")
    found = (await holdings(cluster, spread_model))["one"]
    assert found["is_known"]
    assert found["held_bytes"] == found["needed_held_bytes"] == 0
    assert 0 < found["needed_bytes"] <= found["total_bytes"]
    answer = await cluster.http.get("/api/models/holdings", params={"model": "/nowhere.gguf"})
    assert answer.status_code >= 400


async def test_an_idle_device_helps_a_launch(cluster: Cluster, spread_model: Path) -> None:
    await cluster.supervisor()
    await cluster.agent("giver")
    await push(cluster, spread_model, whole=True, devices=["giver"])
    weights_bytes = stored_bytes(cluster, "giver")
    async with behind_a_link(cluster, "one") as link:
        await link.set(rate_bytes_per_s=RATE)
        body = {"model": str(spread_model), "name": "test", "ctx_tokens": 512, "order": ["one"]}
        assert (await cluster.http.post("/api/deployments", json=body)).status_code == 201
        deployment = await cluster.settled(within_s=120)
        assert deployment["state"] == "ready", deployment["reason"]
        assert (await link.traffic()).up_bytes < 0.8 * weights_bytes, "the rest came from the giver"
        assert await cluster.complete()
    assert stored_bytes(cluster, "one") > 0.8 * weights_bytes
    assert_sound(cluster, "one")
