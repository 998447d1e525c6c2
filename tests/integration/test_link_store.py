"""Whatever happens to the chunks that a worker keeps, the next load is correct."""

import asyncio
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster, eventually

from supervisor.demo_model import write_demo_model


@pytest.fixture(scope="session")
def kept_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 20 MB of random weights, whose output shows the smallest difference."""
    path = tmp_path_factory.mktemp("models") / "kept.gguf"
    write_demo_model(path, recite=False)
    return path


async def answered(cluster: Cluster, model: Path) -> tuple[str, int]:
    """What a launch answers, and how many bytes its links carried."""
    assert (await cluster.launch(model)).status_code == 201
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    text = await cluster.complete()
    await cluster.http.post("/api/deployments/test/stop")
    record = (await cluster.http.get(f"/api/launches/{deployment['launch_id']}")).json()
    return text, sum(link["sent_bytes"] for link in record["links"])


def chunks_of(cluster: Cluster, name: str = "one") -> list[Path]:
    folder = cluster.folder / name / "chunks"
    return sorted(path for path in folder.rglob("*") if path.is_file())


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 3)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes((byte ^ 4,)))


@pytest.mark.parametrize(
    "harm", [truncate, flip_a_bit, Path.unlink], ids=lambda harm: harm.__name__
)
async def test_a_chunk_that_is_not_what_it_was_is_fetched_again(
    cluster: Cluster, kept_model: Path, harm: Callable[[Path], None]
) -> None:
    await cluster.supervisor()
    await cluster.agent("one")
    text, all_bytes = await answered(cluster, kept_model)
    victims = random.Random(1).sample(chunks_of(cluster), 3)
    for victim in victims:
        harm(victim)
    again, some_bytes = await answered(cluster, kept_model)
    assert again == text
    assert 0 < some_bytes < all_bytes / 2, "only what was harmed"
    last, no_bytes = await answered(cluster, kept_model)
    assert last == text
    assert no_bytes < some_bytes, "and it is kept again"


async def test_a_store_that_is_too_small_keeps_what_it_can(
    cluster: Cluster, kept_model: Path
) -> None:
    await cluster.supervisor()
    await cluster.agent("one", "--store-gib", str(5 / 1024))
    text, all_bytes = await answered(cluster, kept_model)
    again, some_bytes = await answered(cluster, kept_model)
    assert again == text
    assert some_bytes < all_bytes - (3 << 20)
    assert sum(path.stat().st_size for path in chunks_of(cluster)) <= 5 << 20


async def test_a_disk_that_takes_nothing_costs_nothing_but_time(
    cluster: Cluster, kept_model: Path
) -> None:
    """A file where the folder should be: what even root cannot write to."""
    await cluster.supervisor()
    (cluster.folder / "one").mkdir()
    (cluster.folder / "one" / "chunks").write_text("in the way")
    await cluster.agent("one")
    text, all_bytes = await answered(cluster, kept_model)
    again, as_many = await answered(cluster, kept_model)
    assert again == text
    weights_bytes = kept_model.stat().st_size * 0.9
    assert weights_bytes < as_many, "nothing was kept"
    assert all_bytes < weights_bytes * 1.3, "and hardly anything was sent for nothing"
    assert "chunk_store.stopped_storing" in (cluster.folder / "one.log").read_text()


async def test_kill_9_of_the_agent_in_the_middle_of_a_write(
    cluster: Cluster, kept_model: Path
) -> None:
    await cluster.supervisor(retry_limit=0)
    agent = await cluster.agent("one")
    text, _ = await answered(cluster, kept_model)
    for chunk in chunks_of(cluster):
        chunk.unlink()
    launching = asyncio.create_task(cluster.launch(kept_model))

    async def has_some() -> bool:
        return len(chunks_of(cluster)) > 2

    await eventually(has_some, within_s=20, what="some chunks are written")
    agent.stop(signal.SIGKILL)
    await launching
    await cluster.settled()
    await cluster.http.post("/api/deployments/test/stop")
    await cluster.agent("one")

    async def is_heard() -> bool:
        device = await cluster.device("one")
        return bool(device and device["rpc_server"]["generation"] == 0)

    await eventually(is_heard, within_s=15, what="the new agent is heard of")
    again, _ = await answered(cluster, kept_model)
    assert again == text
    assert not [path for path in chunks_of(cluster) if path.suffix == ".new"]
