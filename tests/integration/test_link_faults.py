"""Links that go silent, break, or lose one of their ends, on the real engine; and harmed stores."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Program, eventually
from lab.links import Link, emulated_link

from agents import ports
from supervisor.demo_model import write_demo_model

MIB = 1 << 20
QUICK_S, USUAL_S = 1.5, 5.0
"""``link_silence_s``: for quick tests, and the default."""
LATE_S = 2.0
"""The issue's: a lost link is known so long after the silence that is allowed."""
SETTINGS = {"heartbeat_s": 0.5, "retry_limit": 0}
"""After READY a launch repairs itself; here its end is looked at."""


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 MB, enough for seconds of load over a slow link and of prefill."""
    path = tmp_path_factory.mktemp("models") / "slow.gguf"
    write_demo_model(path, layers=6, embedding=768, feed_forward=2048, heads=12, recite=False)
    return path


class Lossy:
    """A supervisor and one agent, whose link leads through an emulated one."""

    def __init__(self, cluster: Cluster, link: Link, agent: Program) -> None:
        self.cluster = cluster
        self.link = link
        self.agent = agent

    async def launched(self, model: Path, **spec: Any) -> dict[str, Any]:
        answer = await self.cluster.launch(model, **spec)
        assert answer.status_code == 201, answer.text
        deployment = await self.cluster.settled()
        assert deployment["state"] == "ready", deployment["reason"]
        return deployment

    async def deployment(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.cluster.http.get("/api/deployments/test")).json()
        return found

    async def record(self) -> dict[str, Any]:
        launch = (await self.deployment())["launch_id"]
        found: dict[str, Any] = (await self.cluster.http.get(f"/api/launches/{launch}")).json()
        return found

    async def device(self) -> dict[str, Any]:
        found = await self.cluster.device("far")
        assert found is not None
        return found

    async def stop(self) -> None:
        assert (await self.cluster.http.post("/api/deployments/test/stop")).status_code == 200

    async def failed(self, since_s: float, engine_pid: int, within_s: float) -> tuple[str, float]:
        """The reason, and when llama-server was gone and the reason known."""

        async def is_over() -> bool:
            is_gone = not Path(f"/proc/{engine_pid}").exists()
            return is_gone and (await self.deployment())["state"] == "failed"

        await eventually(is_over, within_s=within_s + 10, what="the launch fails")
        took_s = time.monotonic() - since_s
        return str((await self.deployment())["reason"]), took_s


@contextlib.asynccontextmanager
async def lossy(cluster: Cluster, silence_s: float, **shape: Any) -> AsyncIterator[Lossy]:
    await cluster.supervisor(**SETTINGS, link_silence_s=silence_s)
    reservation = ports.reserve("127.0.0.1")
    async with emulated_link(reservation.port, **shape) as link:
        place = ["--link-port", str(reservation.port), "--link-address", f"127.0.0.1:{link.port}"]
        agent = await cluster.agent("far", *place)
        try:
            yield Lossy(cluster, link, agent)
        finally:
            reservation.release()


def generating(cluster: Cluster, prompt: str = "The river", tokens: int = 400) -> asyncio.Task[str]:
    """A completion that goes on until its launch fails; nobody hears how it ends."""

    async def complete() -> str:
        with contextlib.suppress(AssertionError):
            return await cluster.complete(prompt, tokens=tokens, ignore_eos=True)
        return ""

    return asyncio.create_task(complete())


async def works_again(lossy: Lossy, model: Path, pids: list[int]) -> None:
    """A new launch on the same device, with the same agent and supervisor."""
    await lossy.stop()
    await lossy.link.heal()
    await lossy.link.set(rate_bytes_per_s=0.0)
    await lossy.launched(model, devices=["far"])
    assert (await lossy.cluster.complete("The river", tokens=8)).strip()
    assert [p.process.pid for p in lossy.cluster.programs if p.process.poll() is None] == pids


def check_reason(reason: str, *parts: str) -> None:
    for part in parts:
        assert part in reason, reason


async def test_decode(cluster: Cluster, slow_model: Path) -> None:
    async with lossy(cluster, QUICK_S) as world:
        pids = [p.process.pid for p in cluster.programs]
        await world.launched(slow_model, devices=["far"])
        pid = (await world.record())["pid"]
        task = generating(cluster)
        await asyncio.sleep(1.0)
        view = (await world.deployment())
        print(view["links"])
        t0 = time.monotonic()
        await world.link.black_hole()
        reason, took = await world.failed(t0, pid, QUICK_S)
        print("DECODE", took, reason)
        await task
        t0 = time.monotonic()
        await works_again(world, slow_model, pids)
        print("again", time.monotonic() - t0)


async def test_prefill(cluster: Cluster, slow_model: Path) -> None:
    async with lossy(cluster, QUICK_S) as world:
        await world.launched(slow_model, devices=["far"], ctx_tokens=4096)
        pid = (await world.record())["pid"]
        t0 = time.monotonic()
        task = generating(cluster, "The river is wide and the " * 300, 1)
        for _ in range(10):
            await asyncio.sleep(0.2)
            print([(l["phase"], l.get("last_command"), l.get("waiting_s")) for l in (await world.deployment())["links"]], time.monotonic()-t0)
        t0 = time.monotonic()
        await world.link.black_hole()
        reason, took = await world.failed(t0, pid, QUICK_S)
        print("PREFILL", took, reason)
        await task


async def test_load(cluster: Cluster, slow_model: Path) -> None:
    async with lossy(cluster, QUICK_S, rate_bytes_per_s=3e6) as world:
        answer = await cluster.launch(slow_model, devices=["far"])
        for _ in range(16):
            await asyncio.sleep(0.25)
            d = await world.deployment()
            print(d["state"], d["phase"], [(l["phase"], l.get("last_command"), l.get("sent_bytes"), l.get("round_trip_ms")) for l in d["links"]])
        pid = (await world.record())["pid"]
        t0 = time.monotonic()
        await world.link.black_hole()
        reason, took = await world.failed(t0, pid, QUICK_S)
        print("LOAD", took, reason)
