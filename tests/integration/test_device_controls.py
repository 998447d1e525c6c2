"""Excluding, draining and renaming devices, and changing what runs, with the real engine."""

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from cluster import Cluster, engine_pids, eventually
from test_cli import as_json, cli
from test_stopping import LONG_S, streaming

from agents import ports

TEST = "/api/deployments/test"


async def ready_pair(cluster: Cluster, model: Path, **settings: object) -> None:
    """A deployment over two workers, whose requests have time to end."""
    await cluster.supervisor(**{"drain_s": LONG_S, **settings})  # type: ignore[arg-type]
    await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
    await cluster.launch(model, ctx_tokens=4096)
    assert devices_of(await cluster.settled()) == ["one", "two"]


def devices_of(deployment: dict[str, Any]) -> list[str]:
    assert deployment["state"] == "ready", deployment["reason"]
    return [shard["device"] for shard in deployment["plan"]["shards"]]


async def relaunched(cluster: Cluster, before: int, name: str = "test") -> dict[str, Any]:
    """The deployment when it serves with a newer launch than ``before``."""

    async def is_newer() -> dict[str, Any] | None:
        deployment: dict[str, Any] = (await cluster.http.get(f"/api/deployments/{name}")).json()
        is_ready = deployment["state"] == "ready" and deployment["launch_id"] > before
        return deployment if is_ready else None

    found: dict[str, Any] = await eventually(is_newer, within_s=60, what=f"{name} is relaunched")
    return found


def refused(answer: httpx.Response, code: str, *words: str) -> None:
    problem = answer.json()
    assert 400 <= answer.status_code < 500, problem
    assert problem["code"] == code, problem
    for word in words:
        assert word in problem["detail"], problem


async def change(cluster: Cluster, device: str, **wanted: object) -> httpx.Response:
    return await cluster.http.patch(f"/api/devices/{device}", json=wanted)


# -- devices ---------------------------------------------------------------------------------------


async def test_an_excluded_device_is_not_planned_with_until_it_is_included(
    pair: Cluster, demo_model: Path
) -> None:
    changed = await change(pair, "one", excluded=True)
    assert changed.json()["excluded"] is True
    launched = await pair.http.post(
        "/api/deployments", json={"model": str(demo_model), "name": "test", "ctx_tokens": 512}
    )
    assert launched.status_code == 201, launched.text
    deployment = await pair.settled()
    assert devices_of(deployment) == ["two"]
    left_out = {left["name"]: left["reason"] for left in deployment["plan"]["left_out"]}
    assert left_out["one"] == "you excluded it"
    doing = {name: (await pair.device(name) or {})["doing"] for name in ("one", "two")}
    assert doing == {"one": "", "two": "serving test"}
    named = {"model": str(demo_model), "name": "other", "ctx_tokens": 512, "order": ["one"]}
    answer = await pair.http.post("/api/deployments", json=named)
    refused(answer, "device_excluded", "'supervisor devices include one'")
    await change(pair, "one", excluded=False)
    assert (await pair.http.post("/api/deployments", json=named)).status_code == 201
    assert devices_of(await pair.settled("other")) == ["one"]


async def test_draining_a_worker_lets_its_stream_end_and_goes_on_without_it(
    cluster: Cluster, random_model: Path
) -> None:
    await ready_pair(cluster, random_model)
    before = (await cluster.settled())["launch_id"]
    async with streaming(cluster) as pieces:
        draining = asyncio.create_task(cluster.http.post("/api/devices/two/drain", timeout=LONG_S))
        await cluster.settled_as("degraded")
        waiting = asyncio.create_task(cluster.complete(tokens=2))
        assert [piece async for piece in pieces][-1] == "[DONE]"
    drained = (await draining).json()
    assert (drained["excluded"], drained["used_by"], drained["doing"]) == (True, None, "")
    deployment = await relaunched(cluster, before)
    assert devices_of(deployment) == ["one"]
    assert deployment["launch_id"] == before + 1, "once, and not as a repair"
    assert await waiting, "what came meanwhile has waited"
    records = (await cluster.http.get("/api/launches")).json()
    assert records[-1]["outcome"] == "relaunched"


async def test_a_device_that_cannot_be_done_without_is_not_drained(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model, devices=["one"])
    before = await pair.settled()
    answer = await pair.http.post("/api/devices/one/drain")
    refused(answer, "device_excluded", "names no other device", "one")
    device = await pair.device("one")
    assert device is not None
    assert (device["excluded"], device["used_by"]) == (False, "test")
    after = (await pair.http.get(TEST)).json()
    assert (after["state"], after["launch_id"]) == ("ready", before["launch_id"])
    idle = (await pair.http.post("/api/devices/two/drain")).json()
    assert idle["excluded"] is True
    refused(await pair.http.post("/api/devices/three/drain"), "device_unknown", "one, two")


async def test_what_was_decided_survives_a_restart_and_specs_follow_a_new_name(
    cluster: Cluster, demo_model: Path
) -> None:
    with joining_at() as join_port:
        supervisor = await cluster.supervisor(join_port=join_port)
        await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
        await cluster.launch(demo_model)
        assert devices_of(await cluster.settled()) == ["one", "two"]
        refused(await change(cluster, "two", name="desk"), "worker_busy", "two is serving test")
        refused(await change(cluster, "two", name="one"), "bad_request", "another device")
        refused(await change(cluster, "two", name="a desk"), "bad_request", "no name for a device")
        await cluster.http.post(f"{TEST}/stop")
        changed = (await change(cluster, "two", name="desk", excluded=True)).json()
        assert (changed["name"], changed["excluded"]) == ("desk", True)
        assert (await cluster.http.get(TEST)).json()["spec"]["order"] == ["one", "desk"]
        await asyncio.to_thread(supervisor.stop)
        await cluster.supervisor(join_port=join_port)
        await cluster.device_state("one", "ready")
        assert (await cluster.device_state("desk", "ready"))["excluded"] is True
        assert await cluster.device("two") is None
        assert (await change(cluster, "desk", excluded=False)).json()["excluded"] is False
        await cluster.http.post(f"{TEST}/start")
        assert devices_of(await cluster.settled_as("ready", "failed")) == ["one", "desk"]


@contextmanager
def joining_at() -> Iterator[int]:
    """A port where devices find a supervisor again that is started anew."""
    reserved = ports.reserve("127.0.0.1", from_top=True)
    try:
        yield reserved.port
    finally:
        reserved.release()


# -- deployments -----------------------------------------------------------------------------------


async def test_a_replaced_deployment_takes_the_new_spec_and_keeps_its_name(
    cluster: Cluster, random_model: Path
) -> None:
    await ready_pair(cluster, random_model)
    before = await cluster.settled()
    spec = {**before["spec"], "ctx_tokens": 2048, "aliases": ["mine"], "name": None}
    async with streaming(cluster) as pieces:
        replacing = asyncio.create_task(cluster.http.put(TEST, json=spec, timeout=LONG_S))
        await cluster.settled_as("degraded")
        assert [piece async for piece in pieces][-1] == "[DONE]"
    replaced = (await replacing).json()
    assert replaced["spec"] == {**spec, "name": "test"}
    after = await relaunched(cluster, before["launch_id"])
    assert (after["plan"]["ctx_tokens"], after["launch_id"]) == (2048, before["launch_id"] + 1)
    answer = await cluster.http.post(
        "/v1/completions", json={"model": "mine", "prompt": "Hello", "max_tokens": 2}
    )
    assert answer.status_code == 200


async def test_a_replacement_that_cannot_be_leaves_the_old_one_alone(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    before = await pair.settled()
    spec = before["spec"]
    for wrong, code in (
        ({"ctx_tokens": 10_000_000}, "insufficient_memory"),
        ({"model": "/nowhere/x.gguf"}, "model_missing"),
        ({"order": ["one", "three"]}, "device_unknown"),
        ({"name": "another"}, "bad_request"),
        ({"ctx_tokens": 1}, "bad_request"),
    ):
        refused(await pair.http.put(TEST, json={**spec, **wrong}), code)
    refused(await pair.http.put("/api/deployments/nobody", json=spec), "bad_request", "nobody")
    unnamed = {**spec, "name": None}
    refused(await pair.http.put("/api/deployments/nobody", json=unnamed), "deployment_unknown")
    after = (await pair.http.get(TEST)).json()
    assert (after["launch_id"], after["spec"]) == (before["launch_id"], spec)
    assert await pair.complete(tokens=2)


async def test_replacements_at_once_and_during_a_stop_end_with_the_last(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    spec = (await pair.settled())["spec"]

    async def replaced(ctx_tokens: int) -> httpx.Response:
        return await pair.http.put(TEST, json={**spec, "ctx_tokens": ctx_tokens})

    stopping = asyncio.create_task(pair.http.post(f"{TEST}/stop"))
    answers = await asyncio.gather(*(replaced(ctx) for ctx in (768, 1024, 1280)), stopping)
    assert [answer.status_code for answer in answers] == [200] * 4
    final = await pair.settled()
    if final["state"] == "ready":  # unless the stop came last
        assert final["plan"]["ctx_tokens"] == final["spec"]["ctx_tokens"]
    assert final["spec"]["ctx_tokens"] in (768, 1024, 1280)
    assert (await replaced(512)).status_code == 200
    final = await pair.settled()
    assert devices_of(final) == ["one", "two"]
    assert final["plan"]["ctx_tokens"] == 512
    assert len(engine_pids()) == 3


async def test_who_is_removed_or_launched_anew_meanwhile_keeps_nobody_waiting(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    spec = (await pair.settled())["spec"]
    for _ in range(3):
        await pair.http.post(f"{TEST}/stop")
        async with asyncio.timeout(60):
            answers = await asyncio.gather(
                pair.http.put(TEST, json=spec),
                pair.http.delete(TEST),
                pair.http.post("/api/deployments", json=spec),
                pair.http.post(f"{TEST}/restart"),
            )
        assert {answer.status_code for answer in answers} <= {200, 201, 204, 404, 409}
        await pair.http.post("/api/deployments", json=spec)
        assert devices_of(await pair.settled()) == ["one", "two"]


async def test_a_plan_can_be_asked_for_in_place_of_what_runs(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    spec = {**(await pair.settled())["spec"], "ctx_tokens": 1024}
    refused(await pair.http.post("/api/plan", json=spec), "worker_busy", "deployment test")
    answer = await pair.http.post("/api/plan", params={"replaces": "test"}, json=spec)
    assert answer.json()["plan"]["ctx_tokens"] == 1024
    unknown = await pair.http.post("/api/plan", params={"replaces": "nobody"}, json=spec)
    refused(unknown, "deployment_unknown", "nobody")


async def test_a_restart_launches_again_whatever_the_state(pair: Cluster, demo_model: Path) -> None:
    await pair.launch(demo_model)
    first = (await pair.settled())["launch_id"]
    assert (await pair.http.post(f"{TEST}/restart")).status_code == 200
    second = await relaunched(pair, first)
    assert second["launch_id"] == first + 1
    await pair.http.post(f"{TEST}/stop")
    assert (await pair.http.post(f"{TEST}/restart")).json()["state"] != "stopped"
    third = await relaunched(pair, second["launch_id"])
    assert await pair.complete(tokens=2)
    await change(pair, "two", excluded=True)
    await pair.http.post(f"{TEST}/stop")
    refused(await pair.http.post(f"{TEST}/restart"), "device_excluded", "include two")
    after = (await pair.http.get(TEST)).json()
    assert (after["state"], after["launch_id"]) == ("stopped", third["launch_id"])


async def test_who_asks_for_what_is_so_already_disturbs_nothing(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    seen = []
    while (started := (await pair.http.post(f"{TEST}/start")).json())["state"] != "ready":
        seen.append(started["state"])
        assert set(seen) <= {"pending", "fetching", "starting"}, started
        await asyncio.sleep(0.02)
    assert "starting" in seen
    assert started["launch_id"] == 1
    for _ in range(2):
        assert (await pair.http.post(f"{TEST}/stop?now=true")).json()["state"] == "stopped"
    assert "Traceback" not in pair.programs[0].said()


# -- the command line ------------------------------------------------------------------------------


async def test_the_command_line_changes_devices_and_deployments(
    pair: Cluster, demo_model: Path
) -> None:
    listed = await cli(pair, "devices")
    assert listed.returncode == 0
    assert "excluded" not in listed.stdout
    excluded = await cli(pair, "devices", "exclude", "two")
    assert "ready, excluded" in excluded.stdout
    assert "ready, excluded" in (await cli(pair, "devices")).stdout
    assert (await as_json(pair, "devices", "include", "two"))["excluded"] is False
    assert (await as_json(pair, "devices", "rename", "two", "desk"))["name"] == "desk"
    launched = await cli(pair, "launch", str(demo_model), "--name", "m", "--ctx", "512", "--wait")
    assert launched.returncode == 0, launched.stderr
    wishes = ("--ctx", "1024", "--order", "one,desk")
    planned = await as_json(pair, "launch", str(demo_model), "--replace", "--dry-run", *wishes)
    assert [shard["device"] for shard in planned["plan"]["shards"]] == ["one", "desk"]
    replaced = await as_json(pair, "launch", str(demo_model), "--replace", *wishes, "--wait")
    assert (replaced["id"], replaced["plan"]["ctx_tokens"]) == ("m", 1024)
    assert devices_of(replaced) == ["one", "desk"]
    assert (await as_json(pair, "devices", "drain", "desk"))["excluded"] is True
    assert devices_of(await relaunched(pair, replaced["launch_id"], "m")) == ["one"]
    assert (await as_json(pair, "restart", "m"))["id"] == "m"
    refusals = (
        (("devices", "drain", "one"), "no other device"),
        (("devices", "rename", "one", "a b"), "no name for a device"),
        (("devices", "exclude", "three"), "joined devices: desk, one"),
        (("restart", "nobody"), "no deployment 'nobody'"),
    )
    for arguments, says in refusals:
        done: subprocess.CompletedProcess[str] = await cli(pair, *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert says in done.stderr
