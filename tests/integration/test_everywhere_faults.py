"""Pushes that somebody disturbs: lost devices, other pushes, launches, old agents, Ctrl-C."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually, link_pids
from spread_world import RATE, assert_sound, behind_a_link, holdings, push, stored_bytes

from agents.cli import CODE_VARIABLE
from supervisor.demo_model import write_demo_model

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def pushed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 30 MB, all of it in tensors that are kept."""
    path = tmp_path_factory.mktemp("models") / "pushed.gguf"
    write_demo_model(path, feed_forward=1024, recite=False)
    return path


async def has_some(cluster: Cluster, name: str, least_bytes: int = 4 << 20) -> None:
    async def is_there() -> bool:
        return stored_bytes(cluster, name) > least_bytes

    await eventually(is_there, within_s=30, what=f"{name} has {least_bytes} bytes")


async def test_a_device_that_is_lost_does_not_end_the_push_to_the_others(
    cluster: Cluster, pushed_model: Path
) -> None:
    await cluster.supervisor(model_folders=pushed_model.parent)
    async with behind_a_link(cluster, "one") as first, behind_a_link(cluster, "two") as second:
        for link in (first, second):
            await link.set(rate_bytes_per_s=RATE)
        order = ["one", "two"]
        pushing = asyncio.create_task(push(cluster, pushed_model, whole=True, order=order))
        await has_some(cluster, "one")
        next(p for p in cluster.programs if p.name == "one").stop(signal.SIGKILL)
        with pytest.raises(AssertionError, match=r"one: .*1 other devices have all of it"):
            await pushing
        found = await holdings(cluster, pushed_model)
    assert found["two"]["held_bytes"] == found["two"]["total_bytes"]
    assert_sound(cluster, "two")


async def test_two_pushes_of_one_model_send_nothing_twice(
    cluster: Cluster, pushed_model: Path
) -> None:
    await cluster.supervisor(spread_limit_mib_s=8)
    await cluster.agent("one")
    pushes = [push(cluster, pushed_model, whole=True, devices=["one"]) for _ in range(2)]
    found = [view for (view,) in await asyncio.gather(*pushes)]
    assert sum(view["sent_bytes"] for view in found) == stored_bytes(cluster, "one")
    assert all(view["done_bytes"] == view["total_bytes"] for view in found)


async def test_the_limit_is_of_all_pushes_together(
    cluster: Cluster, pushed_model: Path, tmp_path: Path
) -> None:
    limit = 8 << 20
    other = tmp_path / "other.gguf"
    write_demo_model(other, feed_forward=1024, recite=False, seed=2)
    await cluster.supervisor(spread_limit_mib_s=limit >> 20, spread_peers="false")
    await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
    started_s = asyncio.get_running_loop().time()
    pushes = [
        push(cluster, pushed_model, whole=True, devices=["one"]),
        push(cluster, other, whole=True, devices=["two"]),
    ]
    views = [view for (view,) in await asyncio.gather(*pushes)]
    took_s = asyncio.get_running_loop().time() - started_s
    assert sum(view["sent_bytes"] for view in views) / took_s < limit * 1.1


async def test_a_launch_of_the_model_takes_over_from_a_push(
    cluster: Cluster, pushed_model: Path
) -> None:
    await cluster.supervisor()
    async with behind_a_link(cluster, "one") as link:
        await link.set(rate_bytes_per_s=RATE)
        pushing = asyncio.create_task(push(cluster, pushed_model, devices=["one"]))
        await has_some(cluster, "one")
        launched = await cluster.launch(pushed_model, order=["one"])
        assert launched.status_code == 201, launched.text
        with pytest.raises(AssertionError, match="deployment test is loading"):
            await pushing
        deployment = await cluster.settled(within_s=120)
        assert deployment["state"] == "ready", deployment["reason"]
        sent_bytes = (await link.traffic()).up_bytes
    # What was under way when the push ended is sent again, at most a window of it.
    assert sent_bytes < 1.3 * stored_bytes(cluster, "one")


async def test_who_hangs_up_ends_the_push_everywhere(cluster: Cluster, pushed_model: Path) -> None:
    await cluster.supervisor()
    giver = await cluster.agent("giver")
    await push(cluster, pushed_model, whole=True, devices=["giver"])
    spare = set(link_pids())
    async with behind_a_link(cluster, "one") as link:
        await link.set(rate_bytes_per_s=RATE)
        body = {"model": str(pushed_model), "ctx_tokens": 512, "devices": ["one"]}
        async with cluster.http.stream(
            "POST", "/api/models/push", json=body, params={"whole": True}
        ) as lines:
            async for _ in lines.aiter_lines():
                if "peer.admitted" in giver.said() and stored_bytes(cluster, "one") > 4 << 20:
                    break

        async def is_over() -> bool:
            said = giver.said()
            is_quiet = said.count("peer.ended") == said.count("peer.admitted")
            return is_quiet and len(link_pids()) <= 1

        await eventually(is_over, within_s=15, what="links and fetches are over")
        device = await cluster.device("one")
        assert device is not None
        assert not device["doing"]
    assert len(spare) <= 1
    assert stored_bytes(cluster, "one") < stored_bytes(cluster, "giver")
    assert_sound(cluster, "one")


async def test_an_agent_of_old_gets_everything_from_the_main_host_and_the_push_says_so(
    cluster: Cluster, pushed_model: Path
) -> None:
    await cluster.supervisor(spread_limit_mib_s=4)
    await cluster.agent("giver")
    await push(cluster, pushed_model, whole=True, devices=["giver"])
    arguments = ["join", "-", "--data", str(cluster.folder / "old"), "--name", "old"]
    environment = {CODE_VARIABLE: await cluster.code(), "PYTHONPATH": str(TESTS)}
    cluster.run("old", "fakes.agent_of_old", *arguments, environment=environment)
    await cluster.device_state("old", "ready")
    (view,) = await push(cluster, pushed_model, whole=True, devices=["old"])
    assert view["from_peers_bytes"] == 0
    assert view["done_bytes"] == view["total_bytes"] == view["sent_bytes"]
    assert "the agent of old is too old" in view["note"]
    assert_sound(cluster, "old")


async def test_a_model_that_changes_while_it_is_pushed_is_not_called_pushed(
    cluster: Cluster, tmp_path: Path
) -> None:
    model = tmp_path / "changing.gguf"
    write_demo_model(model, feed_forward=1024, recite=False)
    await cluster.supervisor(spread_limit_mib_s=4)
    await cluster.agent("one")
    pushing = asyncio.create_task(push(cluster, model, whole=True, devices=["one"]))
    await has_some(cluster, "one")
    with model.open("r+b") as file:
        file.truncate(model.stat().st_size // 2)
        file.seek(0, 2)
        file.write(os.urandom(1 << 20))
    with pytest.raises(AssertionError, match="file changed or cannot be read"):
        await pushing
    assert_sound(cluster, "one")


async def test_holdings_are_told_of_listed_models_alone_and_need_a_key_that_reads(
    cluster: Cluster, pushed_model: Path, tmp_path: Path
) -> None:
    await cluster.supervisor(model_folders=tmp_path, keyless_loopback="none")
    headers = {"Authorization": f"Bearer {_key(cluster)}"}
    made = await cluster.http.post(
        "/api/keys", json={"name": "looker", "scopes": ["read"]}, headers=headers
    )
    assert made.status_code == 201, made.text
    reading = {"Authorization": f"Bearer {made.json()['text']}"}
    for path in ("/api/models/holdings", "/api/models/holdings/stream"):
        params = {"model": str(pushed_model)}
        assert (await cluster.http.get(path, params=params)).status_code == 401
        answer = await cluster.http.get(path, params=params, headers=reading)
        assert "model_missing" in answer.text
    listed = tmp_path / "listed.gguf"
    os.link(pushed_model, listed)
    await cluster.http.get("/api/models", params={"max_age_s": 0}, headers=reading)
    answer = await cluster.http.get(
        "/api/models/holdings", params={"model": str(listed)}, headers=reading
    )
    assert answer.json() == []


def _key(cluster: Cluster) -> str:
    return (cluster.folder / "supervisor" / "api.key").read_text().strip()


async def test_what_a_device_needs_is_what_its_deployment_gives_it(
    cluster: Cluster, pushed_model: Path
) -> None:
    await cluster.supervisor()
    await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
    assert (await cluster.launch(pushed_model, devices=["one"])).status_code == 201
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    found = await holdings(cluster, pushed_model)  # in use, though it is in no folder of models
    assert not found["one"]["plan_problem"]
    assert found["one"]["needed_bytes"] == found["one"]["needed_held_bytes"] > 0
    assert found["two"]["needed_bytes"] == 0


async def test_where_shows_what_devices_hold(cluster: Cluster, pushed_model: Path) -> None:
    await cluster.supervisor(model_folders=pushed_model.parent)
    await cluster.agent("one")
    await push(cluster, pushed_model, whole=True, devices=["one"])
    arguments = ("models", "where", "pushed", "--url", cluster.url, "--json")
    asked = cluster.run("asked", "supervisor", *arguments)
    assert await asyncio.to_thread(asked.process.wait, 60) == 0, asked.said()
    found: dict[str, Any] = json.loads(asked.said())
    (device,) = found["devices"]
    assert device["held_bytes"] == device["total_bytes"] > 0
