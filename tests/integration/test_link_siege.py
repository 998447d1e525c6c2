"""Hundreds of callers without any right at both ends of a link, while a launch works through it."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually
from lab.siege import Plan, siege

from supervisor.adapters.authority import Authority

pytestmark = pytest.mark.alone

MIB = 1 << 20
CLIENTS = 500
NEAR_CLIENTS = 150
"""Of all; they call llama-server's side, on the main host itself."""
PROMPT = "The river is wide and"
TOKENS = 200
CTX_TOKENS = 512
ALL_HERE_S = 3.0
"""The first waves have come."""
GONE_S = 15.0
MOST_GROWTH_BYTES = 24 * MIB
MOST_GROWTH_AMID_BYTES = 40 * MIB
"""While they are there: 32 unproven callers have 256 KiB each in asyncio's TLS alone."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds."""

    descriptors: int
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> "Held":
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(len(list(Path(f"/proc/{pid}/fd").iterdir())), pages * 4096)

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors, {self.resident_bytes / MIB:.1f} MiB"


@dataclass(slots=True)
class Speaker:
    """Asks for the same text again and again."""

    cluster: Cluster
    tokens_per_s: list[float]

    async def text(self) -> str:
        started_s = time.monotonic()
        text = await self.cluster.complete(PROMPT, tokens=TOKENS, cache_prompt=False)
        self.tokens_per_s.append(TOKENS / (time.monotonic() - started_s))
        return text


async def launched(cluster: Cluster, model: Path, device: str, name: str = "test") -> str:
    """A launch that is ready; returns its id."""
    answer = await cluster.launch(model, name=name, devices=[device], ctx_tokens=CTX_TOKENS)
    assert answer.status_code == 201, answer.text
    deployment = await cluster.settled(name)
    assert deployment["state"] == "ready", deployment["reason"]
    return str(deployment["launch_id"])


async def record_of(cluster: Cluster, launch: str) -> dict[str, Any]:
    found: dict[str, Any] = (await cluster.http.get(f"/api/launches/{launch}")).json()
    return found


async def plan_of(cluster: Cluster, **more: Any) -> Plan:
    """Callers of agent ``one``: strangers, and a device of the cluster that is no supervisor."""
    device = await cluster.device_state("one", "ready")
    foreign = Authority(cluster.folder / "foreign")
    identity = cluster.folder / "one" / "identity"
    return Plan(
        far_port=device["link_port"],
        foreign=(str(foreign.supervisor_certificate), str(foreign.supervisor_key)),
        agent=(str(identity / "agent.crt"), str(identity / "agent.key")),
        **more,
    )


async def test_a_siege_neither_disturbs_a_launch_nor_leaves_anything(
    pair: Cluster, random_model: Path, tmp_path: Path
) -> None:
    record = await record_of(pair, await launched(pair, random_model, "one"))
    one = next(program for program in pair.programs if program.name == "one")
    pids = {"agent": one.process.pid, "link": int(record["link_pid"])}
    quiet, loud = Speaker(pair, []), Speaker(pair, [])
    expected = await quiet.text()
    assert len(expected) > TOKENS
    assert {await quiet.text() for _ in range(3)} == {expected}

    before = {name: Held.of(pid) for name, pid in pids.items()}
    plan = await plan_of(
        pair,
        far_clients=CLIENTS - NEAR_CLIENTS,
        near_clients=NEAR_CLIENTS,
        near_ports=[worker["port"] for worker in record["workers"]],
    )
    async with siege(plan, tmp_path / "plan.json") as besieging:
        texts = set()
        until_s = time.monotonic() + ALL_HERE_S
        while time.monotonic() < until_s:
            texts.add(await loud.text())
        amid = {name: Held.of(pid) for name, pid in pids.items()}
        second = asyncio.create_task(launched(pair, random_model, "two", "second"))
        while not second.done():
            texts.add(await loud.text())
        await second
    assert texts == {expected}
    assert besieging.calls >= CLIENTS
    after: dict[str, Held] = {}

    async def is_back() -> bool:
        after.update({name: Held.of(pid) for name, pid in pids.items()})
        return all(after[name].descriptors <= before[name].descriptors for name in pids)

    try:
        await eventually(is_back, within_s=GONE_S, what="nothing of the siege is left")
    finally:
        for name in pids:
            print(f"{name}: {before[name]} → {amid[name]} → {after[name]}")
        print("undisturbed, tokens/s:", *(f"{speed:.0f}" for speed in quiet.tokens_per_s))
        print("besieged, tokens/s:", *(f"{speed:.0f}" for speed in loud.tokens_per_s))
        for kind, counts in besieging.counts.items():
            print(kind, counts)
    for name in pids:
        for later, most_bytes in (
            (amid[name], MOST_GROWTH_AMID_BYTES),
            (after[name], MOST_GROWTH_BYTES),
        ):
            growth_bytes = later.resident_bytes - before[name].resident_bytes
            assert growth_bytes < most_bytes, f"{name}: {before[name]} → {later}"
    assert await quiet.text() == expected
    for program in pair.programs:
        assert "Traceback" not in program.said(), program.said()


async def test_the_supervisor_gets_in_through_the_siege(
    cluster: Cluster, random_model: Path, tmp_path: Path
) -> None:
    """One attempt, no second."""
    await cluster.supervisor(retry_limit=0)
    await cluster.agent("one")
    first = await launched(cluster, random_model, "one")
    expected = await Speaker(cluster, []).text()
    plan = await plan_of(cluster, far_clients=CLIENTS)
    async with siege(plan, tmp_path / "plan.json") as besieging:
        await asyncio.sleep(ALL_HERE_S)
        assert (await cluster.http.post("/api/deployments/test/stop")).status_code == 200
        await cluster.settled()
        started_s = time.monotonic()
        assert (await cluster.http.post("/api/deployments/test/start")).status_code < 300

        async def is_ready() -> bool:
            state = (await cluster.http.get("/api/deployments/test")).json()
            assert state["state"] != "failed", state["reason"]
            return bool(state["state"] == "ready" and state["launch_id"] != first)

        await eventually(is_ready, within_s=20, what="the launch is ready")
        print(f"ready after {time.monotonic() - started_s:.2f} s")
        assert await Speaker(cluster, []).text() == expected
    assert besieging.calls >= CLIENTS
