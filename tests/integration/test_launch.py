"""The main job on the real engine: launch, answer, record, stop, repeat by hand."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Cluster, engine_headers, eventually

from supervisor.core.memory import MIB
from supervisor.demo_model import SENTENCE


async def test_two_workers_answer_exactly_like_one(pair: Cluster, random_model: Path) -> None:
    answers = []
    for devices in (["one"], ["one", "two"]):
        assert (await pair.launch(random_model, devices=devices)).status_code == 201
        deployment = await pair.settled()
        assert deployment["state"] == "ready", deployment["reason"]
        answers.append(await pair.complete("The quick brown fox", tokens=48))
        await pair.http.post("/api/deployments/test/stop")
    assert answers[0] == answers[1]
    assert answers[0].strip()


async def test_a_chat_completion_streams_through_the_openai_endpoint(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    await pair.settled()
    body = {
        "model": "test",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "temperature": 0,
        "max_tokens": 128,
    }
    text, chunks = "", 0
    async with pair.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
                    chunks += 1
    assert text.strip() == SENTENCE
    assert chunks > 10, "the answer came in one piece, so it was buffered"


async def test_the_record_is_on_disk_with_everything_that_ran(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model, split=[6, 3], devices=["one", "two"])
    deployment = await pair.settled()
    record = (await pair.http.get(f"/api/launches/{deployment['launch_id']}")).json()
    argv = record["argv"]
    assert argv[argv.index("--tensor-split") + 1] == "6,3"
    assert argv[argv.index("--device") + 1] == "RPC0,RPC1"
    endpoints = ",".join(f"{w['host']}:{w['port']}" for w in record["workers"])
    assert argv[argv.index("--rpc") + 1] == endpoints
    real = Path(f"/proc/{record['pid']}/cmdline").read_bytes().split(b"\0")[:-1]
    assert [word.decode() for word in real] == argv
    assert record["environment"]["GGML_NO_BACKTRACE"] == "1"
    assert record["engine"]["rpc_protocol"] == "7.0.0"
    for worker in record["workers"]:
        assert worker["rpc_protocol"] == "7.0.0"
        assert worker["argv"][0].endswith("rpc-server")
        assert worker["environment"]["GGML_NO_BACKTRACE"] == "1"
    names = [m["name"] for m in record["timeline"]]
    expected = ["planned", "workers ready", "verified", "connected", "loaded", "first token"]
    assert names == expected
    assert "offloaded 9/9 layers" in Path(record["log_path"]).read_text()


async def test_the_record_has_predicted_and_measured_memory_of_every_process(
    pair: Cluster, random_model: Path
) -> None:
    await pair.launch(random_model, split=[6, 3], devices=["one", "two"])
    deployment = await pair.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    await pair.complete("The quick brown fox", tokens=32)
    path = f"/api/launches/{deployment['launch_id']}"

    async def is_noted() -> bool:
        memory = (await pair.http.get(path)).json()["memory"]
        return all(process["ready"] for process in memory)

    await eventually(is_noted, within_s=10, what="memory is noted after READY")
    assert all(p["ended"] is None for p in (await pair.http.get(path)).json()["memory"])
    await pair.http.post("/api/deployments/test/stop")
    record = (await pair.http.get(path)).json()
    memory = {process["process"]: process for process in record["memory"]}
    assert list(memory) == ["one", "two", "llama-server"]
    assert record["outcome"] == "stopped"
    for shard in record["plan"]["shards"]:
        worker, weights = memory[shard["device"]], shard["weight_bytes"]
        for moment in ("loading", "ready", "ended"):
            sample = worker[moment]
            assert weights < sample["resident_bytes"] <= sample["peak_bytes"], moment
            assert sample["peak_bytes"] < weights + 40 * MIB, moment
        if worker["predicted_bytes"]:
            assert worker["predicted_bytes"] >= worker["measured_bytes"] * 0.9
            assert worker["predicted_bytes"] <= worker["budget_bytes"]
    size_bytes = random_model.stat().st_size
    for moment in ("loading", "ready", "ended"):
        sample = memory["llama-server"][moment]
        assert 2 * MIB < sample["resident_bytes"] < 300 * MIB, moment
        assert 2 * MIB < sample["file_bytes"] < size_bytes + 100 * MIB, moment
        assert sample["peak_bytes"] >= sample["resident_bytes"], moment


async def test_llama_server_runs_alone_when_the_main_host_holds_all_layers(
    cluster: Cluster, random_model: Path
) -> None:
    await cluster.supervisor(host_layers="true")
    await cluster.launch(random_model)
    first = await cluster.settled()
    assert first["state"] == "ready", first["reason"]
    assert first["plan"]["shards"] == []
    names = [m["name"] for m in first["timeline"]]
    assert names == ["planned", "connected", "loaded", "first token"]
    assert (await cluster.complete(tokens=8)).strip()
    path = f"/api/launches/{first['launch_id']}"
    record = (await cluster.http.get(path)).json()
    assert "--rpc" not in record["argv"]
    assert record["workers"] == []
    os.kill(record["pid"], signal.SIGKILL)

    async def is_repaired() -> bool:
        now = (await cluster.http.get("/api/deployments/test")).json()
        return bool(now["state"] == "ready" and now["launch_id"] != first["launch_id"])

    await eventually(is_repaired, within_s=40, what="the launch is repeated")
    record = (await cluster.http.get(path)).json()
    assert "SIGKILL" in record["reason"]
    (own,) = record["memory"]
    assert own["process"] == "llama-server"
    assert own["loading"]["file_bytes"] > random_model.stat().st_size / 2
    assert own["ended"] is None, "it was gone before anybody could look"


async def test_secrets_of_the_environment_are_masked_in_the_record(
    cluster: Cluster, demo_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "77")
    await cluster.supervisor()
    await cluster.agent("one")
    await cluster.launch(demo_model)
    deployment = await cluster.settled()
    assert deployment["state"] == "ready"
    text = (await cluster.http.get(f"/api/launches/{deployment['launch_id']}")).text
    assert "hf_very_secret" not in text
    assert json.loads(text)["environment"]["HF_TOKEN"] == "***"
    assert "LLAMA_ARG_CTX_SIZE" not in text, "it would have overridden -c without a word"


@pytest.mark.alone  # its ports are free again, and must stay so
async def test_the_shell_commands_repeat_the_launch_by_hand(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    deployment = await pair.settled()
    path = f"/api/launches/{deployment['launch_id']}/shell"
    commands = (await pair.http.get(path)).json()["commands"]
    await pair.http.post("/api/deployments/test/stop")
    assert [c["host"] for c in commands[:2]] == ["one", "two"]
    running = []
    try:
        for command in commands:
            running.append(
                subprocess.Popen(
                    ["sh", "-c", f"exec {command['command']}"],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    restore_signals=False,
                )
            )
            await asyncio.sleep(0.3)
        words = shlex.split(commands[-1]["command"])
        port = words[words.index("--port") + 1]

        async def answers() -> str | None:
            try:
                url = f"http://127.0.0.1:{port}/completion"
                async with httpx.AsyncClient(
                    headers=engine_headers(words), trust_env=False
                ) as http:
                    answer = await http.post(url, json={"prompt": "Hi", "n_predict": 4})
            except httpx.TransportError:
                return None
            return answer.json()["content"] if answer.status_code == 200 else None

        assert await eventually(answers, within_s=30, what="the launch by hand answers")
    finally:
        for process in running:
            process.kill()
            process.wait()


async def test_stop_ends_everything_and_start_brings_it_back(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    first = await pair.settled()
    stopped = (await pair.http.post("/api/deployments/test/stop")).json()
    assert stopped["state"] == "stopped"
    assert stopped["port"] is None
    for name in ("one", "two"):

        async def is_free(name: str = name) -> bool:
            device = await pair.device(name)
            assert device is not None
            return device["rpc_server"]["state"] == "stopped" and device["used_by"] is None

        await eventually(is_free, within_s=10, what=f"{name} is free again")
    await pair.http.post("/api/deployments/test/start")
    again = await pair.settled()
    assert again["state"] == "ready"
    assert again["launch_id"] > first["launch_id"]


async def test_two_deployments_run_side_by_side_on_their_own_workers(
    pair: Cluster, demo_model: Path
) -> None:
    for name in ("one", "two"):
        answer = await pair.launch(demo_model, name=f"on-{name}", devices=[name])
        assert answer.status_code == 201, answer.text
    for name in ("on-one", "on-two"):
        assert (await pair.settled(name))["state"] == "ready"
    refused = await pair.launch(demo_model, name="third", devices=["one"])
    assert refused.status_code == 409
    assert refused.json()["code"] == "worker_busy"
    assert "on-one" in refused.json()["detail"]


async def test_a_lost_worker_ends_the_launch_with_its_name_and_the_launch_is_repeated(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    before = await pair.settled()
    device = await pair.device("two")
    assert device is not None
    status = (await pair.http.get("/api/devices")).json()
    pid = next(d for d in status if d["name"] == "two")["rpc_server"]["pid"]
    started_s = time.monotonic()
    os.kill(pid, 9)

    async def is_repaired() -> dict[str, Any] | None:
        now = (await pair.http.get("/api/deployments/test")).json()
        is_new = now["launch_id"] != before["launch_id"]
        return now if now["state"] == "ready" and is_new else None

    await eventually(is_repaired, within_s=40, what="the launch is repeated")
    print(f"repaired after {time.monotonic() - started_s:.1f} s")
    record = (await pair.http.get(f"/api/launches/{before['launch_id']}")).json()
    assert record["error_code"] == "worker_killed"
    assert "two" in record["reason"]
    assert "SIGKILL" in record["reason"]


async def test_events_begin_with_a_snapshot_and_follow_the_launch(
    pair: Cluster, demo_model: Path
) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    async def read() -> None:
        async with pair.http.stream("GET", "/api/events", timeout=60) as answer:
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:"):
                    seen.append((name, json.loads(line[5:])))
                    if name == "deployment" and seen[-1][1]["state"] == "ready":
                        return

    reading = asyncio.create_task(read())

    async def has_snapshot() -> bool:
        return bool(seen)

    await eventually(has_snapshot, within_s=10, what="the snapshot arrives")
    await pair.launch(demo_model)
    await asyncio.wait_for(reading, 60)
    assert seen[0][0] == "snapshot"
    assert {d["name"] for d in seen[0][1]["devices"]} == {"one", "two"}
    phases = [body["phase"] for name, body in seen if name == "deployment"]
    order = list(dict.fromkeys(phase for phase in phases if phase))
    assert order == ["workers", "verify", "connect", "load", "first token"]


async def test_logs_of_every_process_can_be_read(pair: Cluster, demo_model: Path) -> None:
    await pair.launch(demo_model)
    await pair.settled()
    log = (await pair.http.get("/api/deployments/test/logs")).json()
    assert "listening" in log["text"]
    rest = await pair.http.get("/api/deployments/test/logs", params={"offset": log["offset"]})
    assert len(rest.json()["text"]) < len(log["text"])
    worker = await pair.http.get("/api/deployments/test/logs", params={"process": "one"})
    assert "Accepted client connection" in worker.json()["text"]


async def test_two_requests_at_once_for_one_name_make_one_deployment(
    pair: Cluster, demo_model: Path
) -> None:
    answers = await asyncio.gather(*(pair.launch(demo_model) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert (await pair.settled())["state"] == "ready"
    assert len((await pair.http.get("/api/launches")).json()) == 1


async def test_two_deployments_never_share_a_worker(pair: Cluster, demo_model: Path) -> None:
    """Both were planned while the worker was free; the later one must not take it away."""
    names = ("a", "b", "c")
    answers = await asyncio.gather(
        *(pair.launch(demo_model, name=name, devices=["one"]) for name in names)
    )
    accepted = [n for n, a in zip(names, answers, strict=True) if a.status_code == 201]
    ended = [await pair.settled(name) for name in accepted]
    ready = [deployment for deployment in ended if deployment["state"] == "ready"]
    assert len(ready) == 1
    for deployment in ended:
        if deployment["state"] != "ready":
            assert deployment["error_code"] == "worker_busy"
    answer = await pair.http.post(
        "/v1/completions", json={"model": ready[0]["id"], "prompt": "Hi", "max_tokens": 4}
    )
    assert answer.status_code == 200
