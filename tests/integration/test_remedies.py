"""A repair changes what failed, and remembers it: a real worker that fails on demand."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually

from agents.contract import EngineFacts

TESTS = Path(__file__).parent.parent
METAL = TESTS / "unit" / "logs" / "metal"


def failing_engine(folder: Path, engine: EngineFacts, last_words: Path) -> Path:
    """An engine folder whose rpc-server fails when it is told to."""
    folder.mkdir()
    (folder / "llama-server").symlink_to(engine.llama_server)
    fake = TESTS / "fakes" / "failing_rpc_server.py"
    script = folder / "ggml-rpc-server"
    words = f'--real "{engine.rpc_server}" --last-words "{last_words}"'
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{fake}" {words} "$@"\n')
    script.chmod(0o755)
    return folder


async def fails(cluster: Cluster, name: str) -> dict[str, Any]:
    """Let the worker fail; the record of the launch that it ended, once another one serves."""
    before = await cluster.settled()
    assert before["state"] == "ready", before["reason"]
    device = await cluster.device(name)
    assert device is not None
    os.kill(device["rpc_server"]["pid"], signal.SIGUSR1)

    async def serves_again() -> bool:
        now = (await cluster.http.get("/api/deployments/test")).json()
        assert now["state"] != "failed", now["reason"]
        return bool(now["state"] == "ready" and now["launch_id"] > before["launch_id"])

    await eventually(serves_again, within_s=40, what="it serves again")
    return dict((await cluster.http.get(f"/api/launches/{before['launch_id']}")).json())


async def test_a_gpu_that_timed_out_gets_smaller_batches_and_keeps_them(
    cluster: Cluster, demo_model: Path, engine: EngineFacts, tmp_path: Path
) -> None:
    await cluster.supervisor()
    folder = failing_engine(tmp_path / "mac", engine, METAL / "rpc-server-timeout.log")
    await cluster.agent("mac", "--engine", str(folder))
    await cluster.launch(demo_model)
    first = (await cluster.settled())["plan"]["ubatch"]
    record = await fails(cluster, "mac")
    assert record["cause"]["code"] == "gpu_timeout"
    assert record["cause"]["device"] == "mac"
    assert any("kIOGPUCommandBufferCallbackErrorTimeout" in e for e in record["cause"]["evidence"])
    now = await cluster.settled()
    assert now["plan"]["ubatch"] <= first // 2
    assert any("mac" in reason and "at once" in reason for reason in now["plan"]["reasons"])
    again = await fails(cluster, "mac")
    assert again["plan"]["ubatch"] == now["plan"]["ubatch"]
    smallest = (await cluster.settled())["plan"]["ubatch"]
    assert smallest <= first // 4
    await cluster.http.post("/api/deployments/test/stop")
    await cluster.http.post("/api/deployments/test/start")
    assert (await cluster.settled())["plan"]["ubatch"] == smallest, "remembered"
    assert await cluster.complete(tokens=4)


@pytest.mark.parametrize("log", ["rpc-server-out_of_memory.log", "rpc-server-refused.log"])
async def test_a_device_that_ran_out_of_memory_gets_a_smaller_share(
    cluster: Cluster, demo_model: Path, engine: EngineFacts, tmp_path: Path, log: str
) -> None:
    await cluster.supervisor()
    folder = failing_engine(tmp_path / "mac", engine, METAL / log)
    await cluster.agent("mac", "--engine", str(folder))
    await cluster.agent("pc")
    await cluster.launch(demo_model)
    held = {s["device"]: s["peak_bytes"] for s in (await cluster.settled())["plan"]["shards"]}
    record = await fails(cluster, "mac")
    assert record["cause"]["code"] in ("gpu_out_of_memory", "allocation_refused")
    holds = {s["device"]: s["peak_bytes"] for s in (await cluster.settled())["plan"]["shards"]}
    assert holds.get("mac", 0) <= held["mac"] * 0.81
    assert "pc" in holds
