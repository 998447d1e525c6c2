"""The command line as a user meets it, against a real supervisor."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster

from agents.contract import EngineFacts
from supervisor.demo_model import SENTENCE


async def cli(
    cluster: Cluster | None, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command against the cluster's supervisor, in a wide terminal."""
    where = {"SUPERVISOR_URL": cluster.url} if cluster else {}
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "supervisor", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "200", **where, **(environment or {})},
        check=False,
    )


async def as_json(cluster: Cluster, *arguments: str) -> Any:
    done = await cli(cluster, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_a_model_is_launched_watched_and_stopped(pair: Cluster, demo_model: Path) -> None:
    wishes = ("--order", "one,two", "--split", "6,3")
    answer = await as_json(pair, "launch", str(demo_model), "--dry-run", *wishes)
    assert [s["layers"] for s in answer["plan"]["shards"]] == [6, 3]
    assert await as_json(pair, "launches") == []
    done = await cli(pair, "launch", str(demo_model), "--name", "m", "--ctx", "512", "--wait")
    assert done.returncode == 0, done.stderr
    assert "ready" in done.stdout
    status = await as_json(pair, "status")
    assert status["deployments"][0]["state"] == "ready"
    for listing, words in {
        "devices": ("one", "two", "serving m"),
        "status": ("one", "m", "ready"),
        "launches": ("m", "ready"),
    }.items():
        shown = await cli(pair, listing)
        assert shown.returncode == 0
        for word in words:
            assert word in shown.stdout, f"{listing}: {shown.stdout}"
    number = str(status["deployments"][0]["launch_id"])
    record = await cli(pair, "launches", "show", number)
    for word in ("--tensor-split", "GGML_NO_BACKTRACE=1", "first token", "round trip"):
        assert word in record.stdout
    shell = await cli(pair, "launches", "show", number, "--shell")
    assert shell.stdout.count("# on ") == 3
    log = await cli(pair, "logs")
    assert "listening" in log.stdout
    worker = await cli(pair, "logs", "--worker", "two")
    assert "Accepted client connection" in worker.stdout
    stopped = await as_json(pair, "stop")
    assert stopped["state"] == "stopped"
    started = await cli(pair, "start", "m")
    assert started.returncode == 0


async def test_a_refused_launch_is_one_sentence_and_status_one(pair: Cluster) -> None:
    done = await cli(pair, "launch", "/nowhere/x.gguf", "--wait")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "/nowhere/x.gguf" in done.stderr


async def test_without_links_a_warning_says_what_is_exposed(
    pair: Cluster, demo_model: Path
) -> None:
    said = "can run code on the device"
    for command in (["plan"], ["launch", "--name", "m", "--ctx", "512", "--wait"]):
        wishes = [str(demo_model), "--order", "one,two", "--json"]
        quiet = await cli(pair, "plan", *wishes)
        assert said not in quiet.stderr
        done = await cli(pair, *command, *wishes, "--transport", "direct")
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith("warning:")
        assert said in done.stderr
        assert json.loads(done.stdout), "programs read as before"
    assert said in json.loads(done.stdout)["warnings"][0]
    (launch,) = await as_json(pair, "launches")
    assert [worker["link"] for worker in launch["workers"]] == ["", ""]
    wrong = await cli(pair, "plan", str(demo_model), "--transport", "pigeon")
    assert wrong.returncode == 2
    assert "pigeon" in wrong.stderr


async def test_a_launch_says_what_requests_may_do_with_it(pair: Cluster, demo_model: Path) -> None:
    launch = ["launch", str(demo_model), "--name", "m", "--ctx", "512"]
    for wrong in (["--ttl", "0"], ["--alias", " "], ["--alias", "x" * 201]):
        refused = await cli(pair, *launch, *wrong)
        assert refused.returncode == 1, wrong
    wishes = ["--on-demand", "--ttl", "600", "--alias", "gpt-4o", "--alias", "my model"]
    spec = (await as_json(pair, *launch, *wishes, "--wait"))["spec"]
    assert (spec["on_demand"], spec["ttl_s"]) == (True, 600.0)
    assert spec["aliases"] == ["gpt-4o", "my model"]


async def test_another_host_needs_the_key(pair: Cluster) -> None:
    key = await cli(None, "key", "--data", str(pair.folder / "supervisor"))
    assert key.stdout.startswith("sk-")
    done = await cli(pair, "status", "--key", key.stdout.strip())
    assert done.returncode == 0


async def test_removing_a_device_voids_its_certificate(pair: Cluster) -> None:
    done = await cli(pair, "remove", "two")
    assert done.returncode == 0, done.stderr
    agent = next(p for p in pair.programs if p.name == "two")
    assert await asyncio.to_thread(agent.process.wait, 20) == 1
    assert "removed" in agent.said()
    assert [d["name"] for d in await as_json(pair, "devices")] == ["one"]


async def test_the_engines_of_this_host_are_listed(engine: EngineFacts) -> None:
    done = await cli(None, "engine", "list", "--json")
    found = json.loads(done.stdout)["programs"]
    assert found[0]["rpc_protocol"] == engine.rpc_protocol == "7.0.0"
    assert found[0]["has_rpc"] is True
    assert Path(found[0]["rpc_server"]).is_file()


async def test_settings_are_shown_and_unknown_ones_refused(tmp_path: Path) -> None:
    config = tmp_path / "s.toml"
    config.write_text("port = 8200\n")
    done = await cli(None, "config", "show", "--config", str(config), "--json")
    assert json.loads(done.stdout)["port"] == 8200
    config.write_text("prot = 8200\n")
    done = await cli(None, "config", "show", "--config", str(config))
    assert done.returncode == 1
    assert "did you mean 'port'" in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_demo_shows_everything_and_ends(workers: int) -> None:
    done = await cli(None, "demo", "--once", "--json", "--workers", str(workers))
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["completion"]["answer"] == SENTENCE
    assert facts["completion"]["tokens_per_second"] > 0
    assert len(facts["devices"]) == len(facts["workers"]) == workers
    assert sum(s["layers"] for s in facts["plan"]["shards"]) == 9
    assert facts["command"][0].endswith("llama-server")
    assert facts["environment"]["GGML_NO_BACKTRACE"] == "1"
    assert facts["timeline"][-1]["name"] == "first token"
    assert facts["dashboard"].startswith("http://127.0.0.1:")


async def test_the_demo_takes_a_model_of_the_users(random_model: Path) -> None:
    done = await cli(None, "demo", "--once", "--model", str(random_model))
    assert done.returncode == 0, done.stderr
    for word in ("Devices", "--tensor-split", "environment", "timeline", "tokens per second"):
        assert word in done.stdout


async def test_log_lines_carry_host_process_and_launch(cluster: Cluster, demo_model: Path) -> None:
    program = await cluster.supervisor(log_format="json")
    await cluster.agent("one")
    await cluster.launch(demo_model)
    await cluster.settled()
    lines = [json.loads(line) for line in program.said().splitlines() if line.startswith("{")]
    assert lines
    assert all(line["process"] == "supervisor" and line["host"] for line in lines)
    starting = next(line for line in lines if line["message"] == "llama_server.starting")
    assert starting["launch"] == "1"
    assert "--tensor-split" in starting["command"]
    states = [line["to"] for line in lines if line["message"] == "deployment.state_changed"]
    assert states == ["fetching", "starting", "ready"]
