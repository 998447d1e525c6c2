"""What a scrape of a real cluster says, against what was really asked, launched and sent."""

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from supervisor.core.request_record import RequestRecord

METRICS_MD = Path(__file__).parents[2] / "docs" / "metrics.md"
CHAT = "/v1/chat/completions"


class Scrape:
    """One answer of ``/metrics``."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))

    def samples(self, name: str, **labels: str) -> list[Sample]:
        """Those of a metric that have at least these labels."""
        return [
            sample
            for family in self.families
            for sample in family.samples
            if sample.name == f"supervisor_{name}" and labels.items() <= sample.labels.items()
        ]

    def value(self, name: str, **labels: str) -> float:
        (sample,) = self.samples(name, **labels)
        return sample.value

    def sum(self, name: str, **labels: str) -> float:
        return sum(sample.value for sample in self.samples(name, **labels))

    def shapes(self) -> dict[str, tuple[str, frozenset[str]]]:
        """Type and labels by name, as the document has it."""
        found = {}
        for family in self.families:
            labels = {label for sample in family.samples for label in sample.labels}
            name = family.name + ("_total" if family.type == "counter" else "")
            found[name] = family.type, frozenset(labels - {"le"})
        return found


async def scrape(cluster: Cluster) -> Scrape:
    answer = await cluster.http.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Scrape(answer.text)


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", METRICS_MD.read_text(), re.MULTILINE)
    return {
        name: (kind, frozenset() if labels == "-" else frozenset(labels.split(", ")))
        for name, kind, labels in rows
    }


async def generated(cluster: Cluster, prompt: str, tokens: int, **more: Any) -> int:
    """Tokens of an answer, as llama-server counts them."""
    body = {"model": "test", "prompt": prompt, "max_tokens": tokens, "temperature": 0, **more}
    answer = await cluster.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["completion_tokens"])


async def engine_says(cluster: Cluster, tokens: int) -> Scrape:
    """A scrape in which llama-server has generated so many tokens; it is asked once a second."""

    async def has_said() -> Scrape | None:
        said = await scrape(cluster)
        return said if said.sum("engine_generated_tokens_total") >= tokens else None

    found: Scrape = await eventually(has_said, within_s=15, what=f"{tokens} tokens are told")
    assert found.value("engine_generated_tokens_total", deployment="test") == tokens
    return found


async def links_are_measured(cluster: Cluster) -> None:
    """Both, after the requests; they are looked at every other second."""

    async def are_measured() -> bool:
        said = await scrape(cluster)
        times = said.samples("link_compute_seconds_total")
        is_used = len(times) == 2 and all(sample.value for sample in times)
        return is_used and len(said.samples("link_round_trip_seconds")) == 2

    await eventually(are_measured, within_s=20, what="the links are measured")


async def test_a_scrape_says_what_a_real_cluster_did(pair: Cluster, random_model: Path) -> None:
    said = await scrape(pair)
    assert said.value("device_up", device="one") == said.value("device_up", device="two") == 1
    assert said.value("device_rpc_server_running", device="one") == 0
    assert not said.samples("deployment_state")
    assert (await pair.launch(random_model)).status_code == 201
    deployment = await pair.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    answered = [await generated(pair, f"Number {n}", 16) for n in range(3)]
    await links_are_measured(pair)
    views = (await pair.http.get("/api/deployments/test")).json()["links"]
    said = await engine_says(pair, sum(answered) + 1)  # and the one that proved it ready
    assert said.value("engine_generation_seconds_total") > 0

    # Everything runs, so all that is documented is there, and nothing else.
    found, promised = said.shapes(), documented()
    assert sorted(found) == sorted(promised)
    unknown_here = {name for name, (_, labels) in found.items() if not labels}
    told = found.keys() - unknown_here
    assert {name: found[name] for name in told} == {name: promised[name] for name in told}
    assert {"supervisor_link_sent_bytes_total", "supervisor_device_state"} <= told

    assert said.value("deployment_state", deployment="test", state="ready") == 1
    assert said.sum("deployment_state", deployment="test") == 1
    assert said.value("deployment_launches_total", deployment="test") == 1
    assert said.value("deployment_restarts_total", deployment="test") == 0
    for name in ("one", "two"):
        place = {"deployment": "test", "device": name}
        view = next(link for link in views if link["device"] == name)
        assert said.value("link_weight_bytes_total", **place) == view["weight_bytes"] > 0
        assert said.value("link_sent_bytes_total", **place) >= view["sent_bytes"] > 0
        assert said.value("link_received_bytes_total", **place) > 0
        assert 0 < said.value("link_round_trip_seconds", **place) < 1
        wire, compute = (
            said.value(f"link_{of}_seconds_total", **place) for of in ("wire", "compute")
        )
        assert compute > 0
        assert wire / (wire + compute) == pytest.approx(
            said.value("link_wire_ratio", **place), abs=0.01
        )
        assert said.value("device_rpc_server_running", device=name) == 1
        total = said.value("device_memory_total_bytes", device=name)
        assert total > said.value("device_memory_available_bytes", device=name) > 1 << 20
        assert said.value("device_silent_seconds", device=name) < 30


async def test_a_repair_is_a_restart_and_counts_anew(pair: Cluster, random_model: Path) -> None:
    await pair.launch(random_model)
    first = await pair.settled()
    await engine_says(pair, await generated(pair, "Hello", 16) + 1)
    record = (await pair.http.get(f"/api/launches/{first['launch_id']}")).json()
    os.kill(record["pid"], signal.SIGKILL)

    async def is_repaired() -> dict[str, Any] | None:
        found: dict[str, Any] = (await pair.http.get("/api/deployments/test")).json()
        is_other = found["launch_id"] != first["launch_id"]
        return found if is_other and found["state"] == "ready" else None

    await eventually(is_repaired, within_s=60, what="the deployment is repaired")
    said = await engine_says(pair, 1)
    assert said.value("deployment_launches_total", deployment="test") == 2
    assert said.value("deployment_restarts_total", deployment="test") == 1
    await pair.http.post("/api/deployments/test/stop")
    await pair.http.post("/api/deployments/test/start")
    assert (await pair.settled())["state"] == "ready"
    said = await engine_says(pair, 1)
    assert said.value("deployment_launches_total", deployment="test") == 3
    assert said.value("deployment_restarts_total", deployment="test") == 1


# -- requests through the gateway ------------------------------------------------------------


async def requests(cluster: Cluster, **params: Any) -> list[RequestRecord]:
    answer = await cluster.http.get("/api/requests", params=params)
    assert answer.status_code == 200, answer.text
    return [RequestRecord.model_validate(each) for each in answer.json()]


async def stream(cluster: Cluster, tokens: int) -> int:
    """Ask for a chat as a stream; tokens of the answer, as llama-server counts them."""
    body = {
        "model": "test",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "temperature": 0,
    }
    last = ""
    async with cluster.http.stream("POST", CHAT, json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                last = line.removeprefix("data: ")
    return int(json.loads(last)["usage"]["completion_tokens"])


async def cli(cluster: Cluster, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "supervisor",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "240", "SUPERVISOR_URL": cluster.url, "TZ": "UTC"},
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_requests_are_counted_shown_and_kept(cluster: Cluster, random_model: Path) -> None:
    supervisor = await cluster.supervisor()
    await cluster.agent("one")
    await cluster.launch(random_model)
    assert (await cluster.settled())["state"] == "ready"
    assert await requests(cluster) == []
    tokens = [await generated(cluster, f"Number {n}", 16) for n in range(3)]
    of_stream = await stream(cluster, 24)
    body = {"model": "test", "messages": "none"}
    assert (await cluster.http.post(CHAT, json=body)).status_code >= 400
    assert (await cluster.http.post("/v1/nothing", json={"model": "test"})).status_code == 404

    async def are_noted() -> list[RequestRecord] | None:
        found = [each for each in await requests(cluster) if each.deployment == "test"]
        return found if len(found) >= 5 else None

    noted: list[RequestRecord] = await eventually(are_noted, within_s=10, what="all are noted")
    refused, streamed, *plain = noted
    assert [each.path for each in noted] == [CHAT, CHAT, *["/v1/completions"] * 3]
    assert refused.status >= 400
    assert streamed.is_stream
    assert streamed.generated_tokens == of_stream
    assert streamed.first_token_s is not None
    assert streamed.queue_s <= streamed.first_token_s <= streamed.total_s
    assert [each.generated_tokens for each in reversed(plain)] == tokens
    assert all(each.prompt_tokens and not each.is_stream for each in plain)
    assert all(each.caller == "local" and each.launch_id == 1 for each in noted)

    said = await scrape(cluster)
    completions = {"deployment": "test", "path": "/v1/completions", "status": "200"}
    assert said.value("requests_total", **completions) == 3
    assert said.value("requests_total", deployment="test", path=CHAT, status="200") == 1
    assert said.sum("requests_total", deployment="test", path=CHAT) == 2
    assert (
        said.value("request_generated_tokens_total", deployment="test") == sum(tokens) + of_stream
    )
    assert said.value("time_to_first_token_seconds_count", deployment="test") == 1
    assert said.value("request_duration_seconds_count", deployment="test") == 5
    assert said.sum("request_retries_total") == said.sum("request_resumed_total") == 0
    paths = {sample.labels["path"] for sample in said.samples("requests_total")}
    assert paths <= {CHAT, "/v1/completions", "other"}

    assert json.loads(await cli(cluster, "requests", "--json", "--limit", "2")) == [
        each.model_dump(mode="json") for each in (await requests(cluster, limit=2))
    ]
    table = await cli(cluster, "requests", "--deployment", "test")
    assert len(table.splitlines()) == 2 + 5
    for word in ("first token", "local", CHAT, "tok/s", f"+ {tokens[0]} tok"):
        assert word in table

    before = await requests(cluster)
    supervisor.stop()
    await cluster.supervisor()
    assert await requests(cluster) == before
    assert (await scrape(cluster)).samples("requests_total") == []


async def test_lanes_tell_who_waits(cluster: Cluster, random_model: Path) -> None:
    await cluster.supervisor()
    await cluster.agent("one")
    await cluster.launch(random_model, ctx_tokens=4096)
    assert (await cluster.settled())["state"] == "ready"
    asking = [asyncio.create_task(stream(cluster, 2000)) for _ in range(4)]

    async def are_busy() -> bool:
        said = await scrape(cluster)
        return said.sum("requests_active") == 1 and said.sum("requests_waiting") == 3

    try:
        await eventually(are_busy, within_s=20, what="one is answered and three wait")
        assert (await scrape(cluster)).value("slots", deployment="test") == 1
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def is_idle() -> bool:
        said = await scrape(cluster)
        return said.sum("requests_active") == said.sum("requests_waiting") == 0

    await eventually(is_idle, within_s=20, what="nobody waits any more")
