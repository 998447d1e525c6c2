"""What the page shows of a real cluster at work: where tokens go, who waits, what is logged."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually

Body = dict[str, Any]


class Stream:
    """An SSE stream that is read all the time."""

    def __init__(self, cluster: Cluster, path: str, **params: Any) -> None:
        self.events: list[tuple[str, Body]] = []
        self.status = 0
        self._reading = asyncio.create_task(self._read(cluster, path, params))

    async def _read(self, cluster: Cluster, path: str, params: dict[str, Any]) -> None:
        async with cluster.http.stream("GET", path, params=params, timeout=None) as answer:
            self.status = answer.status_code
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self.events.append((name, json.loads(line.removeprefix("data: "))))

    def bodies(self, name: str) -> list[Body]:
        return [body for event, body in self.events if event == name]

    def text(self, process: str, file: str = "") -> str:
        """What a process logged."""
        found = (b for b in self.bodies("lines") if b["process"] == process)
        return "".join(b["text"] for b in found if b["file"].startswith(file))

    async def until(self, check: Any, what: str, within_s: float = 30.0) -> Any:
        async def checked() -> Any:
            if self._reading.done() and not check():
                await self._reading
                raise AssertionError(f"{what}: the stream ended")
            return check()

        return await eventually(checked, within_s=within_s, what=what)

    async def ended(self) -> None:
        async with asyncio.timeout(30):
            await self._reading

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


@contextlib.asynccontextmanager
async def stream(cluster: Cluster, path: str, **params: Any) -> AsyncIterator[Stream]:
    made = Stream(cluster, path, **params)
    try:
        yield made
    finally:
        await made.close()


async def launched(cluster: Cluster, model: Path, **spec: Any) -> Body:
    assert (await cluster.launch(model, **spec)).status_code == 201
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    return deployment


LOGS = "/api/deployments/test/logs/stream"


async def test_the_time_of_tokens_is_told_while_they_come(pair: Cluster, demo_model: Path) -> None:
    deployment = await launched(pair, demo_model, ctx_tokens=8192)
    assert deployment["token_time"] is None
    asked = tokens = 0
    wall_s = 0.0
    async with stream(pair, "/api/events") as events:

        def told() -> list[Body]:
            found = (b["token_time"] for b in events.bodies("deployment") if b["id"] == "test")
            by_end = {each["at"]: each for each in found if each}
            return list(by_end.values())

        async with asyncio.timeout(120):
            while len(told()) < 2:
                # Another prompt each time, whose reading is not to be booked on tokens.
                prompt = f"{asked} the river is " * 100
                began_s = time.monotonic()
                body = {"model": "test", "prompt": prompt, "max_tokens": 1000, "temperature": 0}
                answer = await pair.http.post("/v1/completions", json={**body, "ignore_eos": True})
                wall_s += time.monotonic() - began_s
                assert answer.status_code == 200, answer.text
                tokens += answer.json()["usage"]["completion_tokens"]
                asked += 1
        figures = told()
        (last,) = figures[-1:]
        status = (await pair.http.get("/api/status")).json()
        (now,) = status["deployments"]
        assert now["token_time"] == last
    spent_ms = 0.0
    for each in figures:
        parts = [worker[part] for worker in each["workers"] for part in ("compute_ms", "wire_ms")]
        total_ms = each["host_ms"] + sum(parts)
        assert [worker["device"] for worker in each["workers"]] == ["one", "two"]
        assert all(worker["compute_ms"] > 0 for worker in each["workers"])
        assert min(each["host_ms"], *parts) >= 0
        assert total_ms > 0
        spent_ms += each["tokens"] * total_ms
    # Nothing is booked twice: all that was told happened within the requests.
    assert sum(each["tokens"] for each in figures) <= tokens
    assert spent_ms <= 1.5 * wall_s * 1e3

    assert (await pair.http.post("/api/deployments/test/stop")).status_code == 200
    assert (await pair.http.post("/api/deployments/test/start")).status_code == 200
    assert (await pair.settled())["state"] == "ready"

    async def is_forgotten() -> bool:
        found = (await pair.http.get("/api/deployments/test")).json()
        return bool(found["token_time"] is None)

    await eventually(is_forgotten, within_s=10, what="another launch has figures of its own")


async def test_requests_and_traffic_are_events(cluster: Cluster, demo_model: Path) -> None:
    supervisor = await cluster.supervisor()
    await cluster.agent("one")
    await launched(cluster, demo_model, ctx_tokens=4096)
    async with stream(cluster, "/api/events") as events:
        await events.until(lambda: events.bodies("snapshot"), "the snapshot")
        (snapshot,) = events.bodies("snapshot")
        assert snapshot["requests"] == []
        assert all(row["active"] == row["waiting"] == 0 for row in snapshot["traffic"])
        asking = [
            asyncio.create_task(cluster.complete(f"{n}", 600, ignore_eos=True)) for n in range(4)
        ]

        def rows() -> list[tuple[int, int]]:
            return [(b["active"], b["waiting"]) for b in events.bodies("traffic")]

        await events.until(lambda: (1, 3) in rows(), "one is answered and three wait")
        await asyncio.gather(*asking)
        await events.until(lambda: rows()[-1] == (0, 0), "nobody is left")
        assert all(b["deployment"] == "test" and b["slots"] == 1 for b in events.bodies("traffic"))
        await events.until(lambda: len(events.bodies("request")) == 4, "all were told")
        told = events.bodies("request")
    assert all(each["generated_tokens"] == 600 and each["status"] == 200 for each in told)
    status = (await cluster.http.get("/api/status")).json()
    assert status["requests"] == told[::-1]
    assert status["traffic"] == [{"deployment": "test", "active": 0, "waiting": 0, "slots": 1}]

    supervisor.stop()
    await cluster.supervisor()

    async def are_known() -> bool:
        found = (await cluster.http.get("/api/status")).json()
        return bool(found["requests"] == told[::-1])

    await eventually(are_known, within_s=10, what="the newest requests of before the restart")


async def test_logs_of_all_processes_follow_the_launches(pair: Cluster, demo_model: Path) -> None:
    first = await launched(pair, demo_model)
    async with stream(pair, LOGS) as logs:
        await logs.until(lambda: "listening" in logs.text("llama-server"), "llama-server")
        for name in ("one", "two"):
            await logs.until(lambda: logs.text(name), f"the rpc-server of {name}")  # noqa: B023
        before = len(logs.text("llama-server"))
        await pair.complete(tokens=8)
        await logs.until(lambda: len(logs.text("llama-server")) > before, "what a request logs")
        await pair.http.post("/api/deployments/test/stop")
        await pair.http.post("/api/deployments/test/start")
        second = await pair.settled()
        assert second["launch_id"] == first["launch_id"] + 1
        await logs.until(
            lambda: "listening" in logs.text("llama-server", f"llama-server-{second['launch_id']}"),
            "llama-server of the next launch",
        )
        for name in ("one", "two"):
            file = f"rpc-server-{second['launch_id']}."
            await logs.until(lambda: logs.text(name, file), f"the next one of {name}")  # noqa: B023
        assert logs.bodies("silent") == []
        whole = all(body["text"].endswith("\n") for body in logs.bodies("lines"))
        assert whole

        # The link has something to say when an rpc-server ends under it.
        device = await pair.device("two")
        assert device is not None
        os.kill(device["rpc_server"]["pid"], signal.SIGKILL)
        await logs.until(lambda: "rpc_server.hung_up" in logs.text("link"), "the link")
        await pair.settled_as("ready")
        await pair.http.post("/api/deployments/test/stop")
        assert (await pair.http.delete("/api/deployments/test")).status_code == 204
        await logs.ended()


async def test_an_agent_that_is_killed_is_silent(pair: Cluster, demo_model: Path) -> None:
    await launched(pair, demo_model)
    async with stream(pair, LOGS, process="two") as logs:
        await logs.until(lambda: logs.text("two"), "the rpc-server of two")
        agent = next(each for each in pair.programs if each.name == "two")
        agent.stop(signal.SIGKILL)
        await logs.until(lambda: logs.bodies("silent"), "it is silent")
        (silent,) = logs.bodies("silent")
        assert silent["process"] == "two"
        assert "does not answer" in silent["detail"]
        assert {body["process"] for body in logs.bodies("lines")} == {"two"}


async def test_listeners_are_bounded_and_end_with_the_supervisor(
    cluster: Cluster, demo_model: Path
) -> None:
    supervisor = await cluster.supervisor()
    await cluster.agent("one")
    assert (await cluster.http.get("/api/deployments/none/logs/stream")).status_code == 404
    await launched(cluster, demo_model)
    unknown = await cluster.http.get(LOGS, params={"process": "nobody"})
    assert unknown.status_code == 404
    assert unknown.json()["code"] == "device_unknown"
    async with contextlib.AsyncExitStack() as stack:
        many = [await stack.enter_async_context(stream(cluster, LOGS)) for _ in range(16)]
        for each in many:
            await each.until(lambda: each.text("llama-server"), "all of them read")  # noqa: B023
        refused = await cluster.http.get(LOGS)
        assert refused.status_code == 503
        assert refused.json()["code"] == "too_many_streams"
        await many[0].close()

        async def has_room() -> bool:
            async with cluster.http.stream("GET", LOGS) as answer:
                return answer.status_code == 200

        await eventually(has_room, within_s=10, what="who left makes room")
        assert supervisor.stop() == 0
        for each in many[1:]:
            await each.ended()
    assert "Traceback" not in supervisor.said()


async def test_the_command_line_follows_all_logs(pair: Cluster, demo_model: Path) -> None:
    await launched(pair, demo_model)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "supervisor",
        "logs",
        "-f",
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "SUPERVISOR_URL": pair.url},
    )
    assert process.stdout is not None
    seen: set[str] = set()
    async with asyncio.timeout(60):
        while not {"llama-server", "one", "two"} <= seen:
            line = (await process.stdout.readline()).decode()
            name, bar, _ = line.partition(" | ")
            assert bar, line
            seen.add(name)
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        await process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize("process", ["one", "llama-server"])
async def test_the_command_line_follows_one_log_as_it_is(
    cluster: Cluster, demo_model: Path, process: str
) -> None:
    await cluster.supervisor()
    await cluster.agent("one")
    await launched(cluster, demo_model)
    arguments = ["-m", "supervisor", "logs", "-f", "--process", process]
    following = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "SUPERVISOR_URL": cluster.url},
    )
    log = (await cluster.http.get("/api/deployments/test/logs", params={"process": process})).json()
    assert following.stdout is not None
    async with asyncio.timeout(60):
        first = (await following.stdout.readline()).decode()
    assert first in log["text"]
    following.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        await following.communicate()
