"""Devices give each other weights while a model is pushed, and nothing is sent twice."""

import asyncio
import signal
import time
from pathlib import Path

import pytest
from cluster import Cluster, eventually
from spread_world import (
    RATE,
    assert_sound,
    behind_a_link,
    holdings,
    push,
    stored_bytes,
)

from supervisor.demo_model import write_demo_model


@pytest.fixture(scope="session")
def spread_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 60 MB, all of it in tensors that are kept."""
    path = tmp_path_factory.mktemp("models") / "spread.gguf"
    write_demo_model(path, feed_forward=3072, recite=False)
    return path


async def test_two_devices_that_each_lack_the_other_s_half_give_it_to_each_other(
    cluster: Cluster, spread_model: Path
) -> None:
    await cluster.supervisor(model_folders=spread_model.parent)
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
    await cluster.supervisor(model_folders=spread_model.parent)
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
    await cluster.supervisor(model_folders=spread_model.parent)
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
    await cluster.supervisor(model_folders=spread_model.parent)
    await cluster.agent("one")
    found = (await holdings(cluster, spread_model))["one"]
    assert found["is_known"]
    assert found["held_bytes"] == found["needed_held_bytes"] == 0
    assert 0 < found["needed_bytes"] <= found["total_bytes"]
    answer = await cluster.http.get("/api/models/holdings", params={"model": "/nowhere.gguf"})
    assert answer.status_code >= 400


async def test_an_idle_device_helps_a_launch(cluster: Cluster, spread_model: Path) -> None:
    await cluster.supervisor(model_folders=spread_model.parent)
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
