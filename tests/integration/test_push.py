"""Weights that are there before a launch: pushed by command, or in files of the device."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually

from supervisor.demo_model import write_demo_model

FEW = 0.02
"""Of the model: what a launch sends that has no weights to send."""


@pytest.fixture(scope="session")
def weighty_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 30 MB in tensors that are large enough to be stored."""
    path = tmp_path_factory.mktemp("models") / "weighty.gguf"
    write_demo_model(path, feed_forward=1536, recite=False)
    return path


async def pushed(cluster: Cluster, model: Path, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "supervisor", "models", "push", str(model), "--json"]
    argv += ["--url", cluster.url, *more]
    return await asyncio.to_thread(
        subprocess.run, argv, capture_output=True, text=True, timeout=60, check=False
    )


async def sent_by_launch(cluster: Cluster, model: Path, **spec: Any) -> int:
    """Bytes on all links of one launch that becomes ready, and is stopped then."""
    assert (await cluster.launch(model, **spec)).status_code == 201
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    await cluster.http.post("/api/deployments/test/stop")
    record = (await cluster.http.get(f"/api/launches/{deployment['launch_id']}")).json()
    return sum(link["sent_bytes"] for link in record["links"])


async def test_a_push_fills_the_stores_and_the_launch_sends_nothing(
    pair: Cluster, weighty_model: Path
) -> None:
    first = await pushed(pair, weighty_model, "--devices", "one,two")
    assert first.returncode == 0, first.stderr
    views = json.loads(first.stdout)
    assert [view["device"] for view in views] == ["one", "two"]
    assert all(view["state"] == "done" for view in views)
    assert all(view["sent_bytes"] == view["total_bytes"] > 1 << 20 for view in views)
    again = json.loads((await pushed(pair, weighty_model, "--devices", "one,two")).stdout)
    assert [view["sent_bytes"] for view in again] == [0, 0]
    assert [view["done_bytes"] for view in again] == [view["total_bytes"] for view in views]
    assert await sent_by_launch(pair, weighty_model) < FEW * weighty_model.stat().st_size


async def test_a_push_that_was_cut_off_goes_on_where_it_was(
    cluster: Cluster, weighty_model: Path
) -> None:
    await cluster.supervisor()
    await cluster.agent("one")
    body = {"model": str(weighty_model), "devices": ["one"], "ctx_tokens": 512}
    sent = 0
    async with cluster.http.stream("POST", "/api/models/push", json=body) as events:
        async for line in events.aiter_lines():
            if line.startswith("data: "):
                views = json.loads(line.removeprefix("data: "))
                sent = views[0]["sent_bytes"] if views else 0
            if sent:
                break  # hangs up in the middle, which ends the push
    chunks = cluster.folder / "one" / "chunks"

    async def has_some() -> bool:
        return any(chunks.rglob("*"))

    await eventually(has_some, within_s=10, what="something was stored")
    rest = json.loads((await pushed(cluster, weighty_model, "--devices", "one")).stdout)[0]
    assert rest["done_bytes"] == rest["total_bytes"]
    last = json.loads((await pushed(cluster, weighty_model, "--devices", "one")).stdout)[0]
    assert last["sent_bytes"] == 0


async def test_a_device_that_keeps_nothing_refuses_a_push_and_serves_all_the_same(
    cluster: Cluster, weighty_model: Path
) -> None:
    await cluster.supervisor()
    await cluster.agent("one", "--store-gib", "0")
    refused = await pushed(cluster, weighty_model, "--devices", "one")
    assert refused.returncode == 1
    assert "keeps no weights" in refused.stderr
    assert await sent_by_launch(cluster, weighty_model) > 1 << 20
    assert await sent_by_launch(cluster, weighty_model) > 1 << 20
    assert not (cluster.folder / "one" / "chunks").exists()


async def test_a_model_that_the_device_has_already_is_not_sent(
    cluster: Cluster, weighty_model: Path
) -> None:
    """Under another name, in a folder of the device."""
    there = cluster.folder / "on-the-device"
    there.mkdir()
    (there / "renamed.gguf").write_bytes(weighty_model.read_bytes())
    await cluster.supervisor()
    await cluster.agent("one", "--models", str(there))

    async def is_indexed() -> bool:
        return any((cluster.folder / "one" / "index").glob("*.index"))

    await eventually(is_indexed, within_s=20, what="the device has named its weights")
    await asyncio.sleep(0.5)
    assert await sent_by_launch(cluster, weighty_model) < FEW * weighty_model.stat().st_size
    assert not (cluster.folder / "one" / "chunks").exists(), "a copy of what is there is no use"
