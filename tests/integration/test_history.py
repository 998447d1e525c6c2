"""What happened, as a user sees it: kept over a restart, and followed without a gap."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually


async def cli(cluster: Cluster, *arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of a command, in a wide terminal."""
    process = await _started(cluster, *arguments)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def _started(cluster: Cluster, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "supervisor",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "200", "SUPERVISOR_URL": cluster.url, "TZ": "UTC"},
    )


class Following:
    """``supervisor events -f``, and what it has printed so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.errors: list[str] = []

    async def read(self, stream: asyncio.StreamReader | None, into: list[str]) -> None:
        assert stream is not None
        while line := await stream.readline():
            into.append(line.decode().rstrip())

    async def says(self, *words: str, within_s: float = 30.0) -> None:
        """Wait for a line with all these words."""

        async def has_said() -> bool:
            lines = [*self.lines, *self.errors]
            return any(all(word in line for word in words) for line in lines)

        await eventually(has_said, within_s=within_s, what=f"{words} is said")

    async def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            return await self.process.wait()


@asynccontextmanager
async def following(cluster: Cluster, *arguments: str) -> AsyncIterator[Following]:
    made = Following(await _started(cluster, "events", "-f", *arguments))
    reading = [
        asyncio.create_task(made.read(made.process.stdout, made.lines)),
        asyncio.create_task(made.read(made.process.stderr, made.errors)),
    ]
    try:
        yield made
    finally:
        if made.process.returncode is None:
            made.process.kill()
        await asyncio.gather(*reading)
        await made.process.wait()


async def history(cluster: Cluster, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await cluster.http.get("/api/history", params=params)).json()
    return found


def changes(events: list[dict[str, Any]], subject: str) -> list[str]:
    return [event["change"] for event in events if event["subject"] == subject]


async def test_what_happened_is_kept_shown_and_found(pair: Cluster, demo_model: Path) -> None:
    await pair.launch(demo_model)
    assert (await pair.settled())["state"] == "ready"
    await pair.http.post("/api/deployments/test/stop")
    events = await history(pair)
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert changes(events, "one") == ["joined", "lost -> ready"]
    assert changes(events, "test")[-4:] == [
        "fetching -> starting",
        "starting -> ready",
        "ready -> stopping",
        "stopping -> stopped",
    ]
    ready = next(event for event in events if event["change"] == "starting -> ready")
    assert ready["launch_id"] == 1
    assert changes(await history(pair, launch=1), "test")[0].startswith("starting -> ")
    status, out, err = await cli(pair, "events", "-n", "3", "test", "--json")
    assert status == 0, err
    assert json.loads(out) == [e for e in events if e["subject"] == "test"][-3:]
    status, out, err = await cli(pair, "events")
    assert status == 0, err
    for word in ("time", "what", "change", "reason", "one", "starting -> ready", "(launch 1)"):
        assert word in out
    local = events[0]["at"].replace("T", " ")[:19]
    assert local in out, "in local time, which is UTC here"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_following_goes_on_over_a_restart_and_misses_nothing(
    cluster: Cluster, end: signal.Signals
) -> None:
    first = await cluster.supervisor()
    await cluster.agent("one")
    port, join_port = int(cluster.url.rpartition(":")[2]), await joins_at(cluster)
    async with following(cluster, "--json") as program, following(cluster, "one") as table:
        for each in (program, table):
            await each.says("lost -> ready")
        first.stop(end)
        for each in (program, table):
            await each.says("waiting:")
            each.process.send_signal(signal.SIGSTOP)
        await cluster.supervisor(port=port, join_port=join_port)
        # Nobody hears of this when it happens; it is told afterwards, from the database.
        await cluster.device_state("one", "ready")
        for each in (program, table):
            each.process.send_signal(signal.SIGCONT)
            await each.says("connected again")
        await cluster.http.delete("/api/devices/one")
        for each in (program, table):
            await each.says("removed")
            assert await each.interrupt() == 0
    shown = [json.loads(line) for line in program.lines]
    assert shown == await history(cluster), "each once, in order, none left out"
    assert [event["id"] for event in shown] == list(range(1, len(shown) + 1))
    told = ["joined", "lost -> ready", "lost -> ready", "removed"]
    assert changes(shown, "one") == told
    assert [line.split(" one ")[1].strip() for line in table.lines] == told
    for each in (program, table):
        assert len(each.errors) == 2, "said once each"


async def joins_at(cluster: Cluster) -> int:
    code = await cluster.code()
    return int(code.partition("/")[0].rpartition(":")[2])


async def test_nobody_to_follow_is_an_error_and_not_a_wait(cluster: Cluster) -> None:
    cluster.url = "http://127.0.0.1:9"
    for command in (["events"], ["events", "-f"], ["report"]):
        status, out, err = await cli(cluster, *command)
        assert (status, out) == (1, "")
        assert "start one with 'supervisor up'" in err
