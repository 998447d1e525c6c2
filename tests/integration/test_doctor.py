"""The doctor on a real cluster: it finds what is wrong, and disturbs nobody."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually
from doctor_runs import (
    FROM_HERE,
    HOST_ALONE,
    OF_AGENTS,
    PATIENT_S,
    blocking,
    from_main_host,
    on_device,
    ours,
    run,
)

from agents.contract import EngineFacts
from supervisor.core import doctor
from supervisor.core.planning import NoFit
from supervisor.core.units import gib

HEARTBEAT_S = 5.0


# -- the whole cluster -------------------------------------------------------------------------


async def test_a_cluster_that_is_well_is_told_in_full(pair: Cluster) -> None:
    status, found = await from_main_host(pair)
    assert status == 0
    assert list(found) == ["main host", "one", "two"]
    assert HOST_ALONE | (ours() - OF_AGENTS) <= set(found["main host"])
    for name in ("one", "two"):
        # Instead of "wires" there may be something to say of this machine's networks.
        assert ours() - {"wires"} | FROM_HERE <= set(found[name])
        assert not blocking(found[name])
    for finding in (f for group in found.values() for f in group.values()):
        assert set(finding) == {"check", "title", "verdict", "found", "remedy"}
        assert finding["found"]
        if finding["check"] in doctor.TITLES:
            assert finding["title"] == doctor.TITLES[finding["check"]]
    well = ("engine", "main_host", "clock", "same_engine", "certificate", "rest_api", "link")
    assert {found["one"][check]["verdict"] for check in well} == {"ok"}
    assert "pinned" in found["one"]["main_host"]["found"]


async def test_people_read_it_by_device_with_one_line_in_the_end(pair: Cluster) -> None:
    argv = (sys.executable, "-m", "supervisor", "doctor", "two", "--url", pair.url)
    status, said, _ = await run(*argv, environment={"COLUMNS": "200"})
    assert status == 0
    lines = said.splitlines()
    assert lines[0].strip() == "two"
    assert "Part of the cluster" in said
    assert "block" in lines[-1] or "warning" in lines[-1]
    assert "Dashboard" not in said


async def test_an_unknown_device_is_an_error_in_one_sentence(pair: Cluster) -> None:
    status, _, errors = await run(
        sys.executable, "-m", "supervisor", "doctor", "three", "--url", pair.url
    )
    assert status == 1
    assert "no device 'three'; joined devices: one, two" in errors
    answer = await pair.http.get("/api/doctor", params={"device": "three"})
    assert (answer.status_code, answer.json()["code"]) == (404, "device_unknown")


async def test_an_agent_that_is_down_and_one_that_is_stopped_block(pair: Cluster) -> None:
    down = next(program for program in pair.programs if program.name == "one")
    frozen = next(program for program in pair.programs if program.name == "two")
    down.stop(signal.SIGKILL)
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        status, found = await from_main_host(pair)
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    assert status == 1
    assert {"rest_api", "link"} <= blocking(found["one"])
    assert {"rest_api", "link"} <= blocking(found["two"])
    assert "no answer within" in found["two"]["rest_api"]["found"]
    assert found["one"]["examination"]["verdict"] == "unknown"
    assert not blocking(found["main host"])
    argv = (sys.executable, "-m", "supervisor", "doctor", "one", "--url", pair.url)
    _, said, _ = await run(*argv, environment={"COLUMNS": "200"})
    first = said.splitlines()[1]
    assert first.split()[0] == "blocks"


async def test_an_engine_without_rpc_blocks(cluster: Cluster, engine: EngineFacts) -> None:
    """llama-server alone, as a package of it without RPC would be."""
    half = cluster.folder / "half"
    half.mkdir()
    (half / "llama-server").symlink_to(engine.llama_server)
    await cluster.supervisor()
    await cluster.agent("one", "--engine", str(half), wait=False)
    await cluster.device_state("one", "unusable")
    status, found = await from_main_host(cluster)
    assert status == 1
    assert {"engine", "membership"} <= blocking(found["one"])
    assert "ggml-rpc-server" in found["one"]["engine"]["found"]
    assert found["one"]["engine"]["remedy"]
    status, alone = await on_device(cluster.folder / "one", "--engine", str(half))
    assert (status, blocking(alone)) == (1, {"engine"})


async def test_a_device_that_serves_is_not_disturbed(pair: Cluster, demo_model: Path) -> None:
    """A stream goes on while everybody is examined, by the same processes as before."""
    assert (await pair.launch(demo_model)).status_code < 300
    before = await pair.settled()
    assert before["state"] == "ready"
    workers = await eventually(
        lambda: attached(pair), within_s=PATIENT_S, what="heartbeats tell of the link as a client"
    )
    examinations = 0

    async def examine() -> None:
        nonlocal examinations
        while not streaming.done():
            status, found = await from_main_host(pair)
            assert status == 0, {name: blocking(group) for name, group in found.items()}
            assert "serves test" in found["one"]["membership"]["found"]
            _, alone = await on_device(pair.folder / "two")
            assert "not run now" in alone["engine"]["found"]
            examinations += 1

    streaming = asyncio.create_task(streamed(pair, requests=12))
    await examine()
    assert await streaming == 12
    assert examinations
    # Whatever was accepted meanwhile is in the next heartbeat.
    await asyncio.sleep(2 * HEARTBEAT_S)
    after = await pair.settled()
    assert (after["state"], after["launch_id"]) == ("ready", before["launch_id"])
    for device in (await pair.http.get("/api/devices")).json():
        now, then = device["rpc_server"], workers[device["name"]]
        assert now["pid"] == then["pid"]
        assert now["clients_accepted"] == then["clients_accepted"]


async def attached(cluster: Cluster) -> dict[str, Any] | None:
    """The rpc-servers once each has told of two clients: the agent's proof, and the link."""
    devices = (await cluster.http.get("/api/devices")).json()
    servers = {device["name"]: device["rpc_server"] for device in devices}
    return servers if all(s["clients_accepted"] == 2 for s in servers.values()) else None


async def streamed(cluster: Cluster, *, requests: int) -> int:
    """Streams that came to their end, one after the other."""
    whole = 0
    for _ in range(requests):
        body = {"model": "test", "prompt": "Hello", "max_tokens": 64, "stream": True}
        body["ignore_eos"] = True
        async with cluster.http.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            lines = [line async for line in answer.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        whole += 1
    return whole


# -- does it fit -------------------------------------------------------------------------------


async def test_a_model_that_fits_has_the_figures_of_its_plan(
    pair: Cluster, demo_model: Path
) -> None:
    spec = {"model": str(demo_model), "ctx_tokens": 2048}
    plan = (await pair.http.post("/api/plan", json=spec)).json()["plan"]
    status, found = await from_main_host(pair, "--model", str(demo_model), "--context", "2048")
    assert status == 0
    overall = found["main host"]["model_fit"]
    assert overall["verdict"] == "ok"
    assert overall["found"] == f"2,048 tokens fit with an {plan['kv_type']} cache"
    for shard in plan["shards"]:
        share = found[shard["device"]]["model_share"]["found"]
        assert f"needs {gib(shard['peak_bytes'])}" in share
        assert f"{shard['layers']} of {plan['model']['block_count'] + 1} layers" in share
    assert f"needs {gib(plan['host']['peak_bytes'])}" in found["main host"]["model_share"]["found"]
    for left_out in plan["left_out"]:
        assert found[left_out["name"]]["model_share"]["found"].startswith("not needed")


async def test_a_context_that_does_not_fit_is_told_with_the_planners_figures(
    pair: Cluster, demo_model: Path
) -> None:
    """And what is said to fit does, for each type of cache."""
    wish = {"model": str(demo_model), "ctx_tokens": 10_000_000}
    refused = await pair.http.post("/api/plan", json=wish)
    assert refused.json()["code"] == "insufficient_memory"
    status, found = await from_main_host(
        pair, "main host", "--model", str(demo_model), "--context", "10000000"
    )
    assert status == 1
    overall = found["main host"]["model_fit"]
    assert overall["verdict"] == "blocks"
    shortfall = NoFit.model_validate(refused.json()["shortfall"])
    *parts, missing = overall["found"].split("; ")
    # Memory of a machine at work differs a little from one moment to the next.
    told_gib = float(missing.removeprefix("10,000,000 needs ").split()[0])
    assert told_gib == pytest.approx(shortfall.missing_bytes / 2**30, rel=0.2)
    kv_types = [part.split()[-2] for part in parts]
    sizes = [int(part.split()[0].replace(",", "")) for part in parts]
    assert kv_types == ["f16", "q8_0", "q4_0"][: len(parts)]
    assert sizes == sorted(sizes)
    for ctx_tokens, kv_type in zip(sizes, kv_types, strict=True):
        fits = wish | {"ctx_tokens": int(ctx_tokens * 0.9), "kv_type": kv_type}
        assert (await pair.http.post("/api/plan", json=fits)).status_code == 200
        more = wish | {"ctx_tokens": min(int(ctx_tokens * 1.6), 10_000_000), "kv_type": kv_type}
        assert (await pair.http.post("/api/plan", json=more)).status_code == 409
    assert f"--ctx {sizes[-1]} --kv {kv_types[-1]}" in overall["remedy"]


async def test_a_model_that_is_not_there_is_a_finding_beside_the_others(pair: Cluster) -> None:
    status, found = await from_main_host(pair, "one", "--model", "/no/such.gguf")
    assert status == 1
    assert list(found) == ["main host", "one"]
    assert blocking(found["main host"]) == {"model_fit"}
    assert "/no/such.gguf" in found["main host"]["model_fit"]["found"]
    assert found["one"]["engine"]["verdict"] == "ok"


def test_findings_are_plain_json(tmp_path: Path) -> None:
    """What the page reads; a change here breaks it."""
    made: Any = doctor.DeviceFindings(device="x", findings=(doctor.ok("store", "fine"),))
    assert made.model_dump(mode="json") == {
        "device": "x",
        "findings": [
            {"check": "store", "title": "Store", "verdict": "ok", "found": "fine", "remedy": ""}
        ],
    }
