"""Loads that are slow, that hang, and that nobody disturbs."""

import itertools
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, engine_pids, eventually

from agents.contract import EngineFacts

pytestmark = pytest.mark.alone

FAKES = Path(__file__).parent.parent / "fakes"
MIB = 1 << 20


def engine_folder(tmp_path: Path, engine: EngineFacts, program: str, *flags: str) -> Path:
    """A folder with the real llama-server and one of our stand-ins as rpc-server."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "llama-server").symlink_to(engine.llama_server)
    script = folder / "ggml-rpc-server"
    command = f'exec "{sys.executable}" "{FAKES / program}" {" ".join(flags)} "$@"'
    script.write_text(f"#!/bin/sh\n{command}\n")
    script.chmod(0o755)
    return folder


async def test_a_worker_that_falls_silent_before_the_load_is_named(
    cluster: Cluster, demo_model: Path, engine: EngineFacts, tmp_path: Path
) -> None:
    """llama-server itself would print nothing, open no port, and wait for ever."""
    await cluster.supervisor(connect_s=6)
    await cluster.agent("good")
    flags = [f'--state "{tmp_path}/state"', "--later-hangs-after 2"]  # its agent's probe, and ours
    folder = engine_folder(tmp_path, engine, "rpc_server.py", *flags)
    await cluster.agent("silent", "--engine", str(folder))
    started_s = time.monotonic()
    await cluster.launch(demo_model, devices=["good", "silent"], transport="direct")
    deployment = await cluster.settled()
    assert deployment["state"] == "failed"
    assert deployment["error_code"] == "connect_stalled", deployment["reason"]
    assert "phase: connect" in deployment["reason"]
    assert "worker silent" in deployment["reason"]
    assert time.monotonic() - started_s < 25
    assert not engine_pids()


async def test_a_worker_that_falls_silent_behind_its_link_is_named(
    cluster: Cluster, demo_model: Path, engine: EngineFacts, tmp_path: Path
) -> None:
    """Its agent proved it, and beats on the link; it is the rpc-server that says nothing."""
    await cluster.supervisor()
    await cluster.agent("good")
    flags = [f'--state "{tmp_path}/state"', "--later-hangs-after 1"]
    folder = engine_folder(tmp_path, engine, "rpc_server.py", *flags)
    await cluster.agent("silent", "--engine", str(folder))
    started_s = time.monotonic()
    await cluster.launch(demo_model, devices=["good", "silent"])
    deployment = await cluster.settled()
    assert deployment["state"] == "failed"
    assert deployment["error_code"] == "link_lost", deployment["reason"]
    (launch, *_) = (await cluster.http.get("/api/launches")).json()
    details = {link["device"]: link["detail"] for link in launch["links"]}
    assert "did not answer HELLO" in details["silent"]
    assert details["good"] == ""
    assert time.monotonic() - started_s < 20
    assert not engine_pids()


async def test_a_link_that_goes_silent_while_weights_travel_is_named(
    cluster: Cluster, demo_model: Path, engine: EngineFacts, tmp_path: Path
) -> None:
    await cluster.supervisor(stall_s=3)
    await cluster.agent("good")
    folder = engine_folder(
        tmp_path,
        engine,
        "relayed_rpc_server.py",
        f'--real "{engine.rpc_server}"',
        f"--stall-after {4 * MIB}",
    )
    await cluster.agent("hole", "--engine", str(folder))
    await cluster.launch(demo_model, devices=["good", "hole"])
    deployment = await cluster.settled()
    assert deployment["error_code"] == "load_stalled", deployment["reason"]
    assert "phase: load" in deployment["reason"]
    assert "hole" in deployment["reason"]
    assert "last seen" in deployment["reason"]


async def test_a_slow_load_is_not_killed_as_long_as_it_moves(
    cluster: Cluster, demo_model: Path, engine: EngineFacts, tmp_path: Path
) -> None:
    """The load takes several times the stall deadline: a fixed time-out would have killed it."""
    await cluster.supervisor(stall_s=2)
    folder = engine_folder(
        tmp_path,
        engine,
        "relayed_rpc_server.py",
        f'--real "{engine.rpc_server}"',
        f"--bytes-per-s {3 * MIB}",
    )
    await cluster.agent("slow", "--engine", str(folder))
    started_s = time.monotonic()
    await cluster.launch(demo_model)
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    assert time.monotonic() - started_s > 5, "the relay was not slow, so nothing was proven"


async def test_nobody_connects_to_an_rpc_port_that_llama_server_uses(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    await pair.settled()
    accepted = await _accepted(pair)
    # The agent's probe, the main host's, and what llama-server itself opens with -fit off.
    assert all(count <= 2 + 8 for count in accepted), accepted
    await pair.http.get("/api/status")
    await pair.http.post("/api/plan", json={"model": str(demo_model), "name": "other"})
    await pair.complete(tokens=8)

    async def a_heartbeat_passed() -> bool:
        return "heartbeats" in await _silences(pair)

    await eventually(a_heartbeat_passed, within_s=15, what="two heartbeats pass")
    assert await _accepted(pair) == accepted


async def _accepted(cluster: Cluster) -> list[int]:
    counts = []
    for name in ("one", "two"):
        answer = await cluster.http.get("/api/deployments/test/logs", params={"process": name})
        counts.append(len(re.findall("Accepted client connection", answer.json()["text"])))
    return counts


_seen: dict[int, list[float]] = {}


async def _silences(cluster: Cluster) -> str:
    """``heartbeats`` once device one was silent, heard, silent and heard again."""
    device: dict[str, Any] | None = await cluster.device("one")
    assert device is not None
    history = _seen.setdefault(id(cluster), [])
    if not history or device["silent_s"] != history[-1]:
        history.append(device["silent_s"])
    drops = sum(later < earlier for earlier, later in itertools.pairwise(history))
    return "heartbeats" if drops >= 2 else ""


@pytest.mark.parametrize("count", [1, 3])
async def test_any_number_of_workers_serves(cluster: Cluster, demo_model: Path, count: int) -> None:
    await cluster.supervisor()
    names = [f"w{number}" for number in range(count)]
    for name in names:
        await cluster.agent(name)
    await cluster.launch(demo_model, devices=names)
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    assert [s["device"] for s in deployment["plan"]["shards"]] == names
    assert sum(s["layers"] for s in deployment["plan"]["shards"]) == 9
