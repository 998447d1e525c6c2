"""llama-server's own key, and what it keeps of conversations, on the real engine."""

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cluster import Cluster, Program
from lab.capture import llama_server, our_flags, read, recorded_worker

from agents import ports
from agents.cli import CODE_VARIABLE
from agents.contract import EngineFacts
from agents.rpc_commands import Limits
from agents.rpc_protocol import Command
from supervisor.core.memory import MIB

USERS_KEY = "sk-of-the-user-himself"
LAYERS = 8
TOKENS = 400


def key_file(cluster: Cluster) -> Path:
    return cluster.folder / "supervisor" / "engine.key"


def value_of(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


async def record_of(cluster: Cluster, deployment: dict[str, Any]) -> dict[str, Any]:
    path = f"/api/launches/{deployment['launch_id']}"
    return dict((await cluster.http.get(path)).json())


# -- the key ---------------------------------------------------------------------------------------


async def test_llama_server_answers_nobody_without_our_key(pair: Cluster, demo_model: Path) -> None:
    await pair.launch(demo_model)
    deployment = await pair.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    key = key_file(pair).read_text()
    asked = {"prompt": "Hi", "n_predict": 1}
    url = f"http://127.0.0.1:{deployment['port']}"
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
        for headers, expected in (
            ({}, 401),
            ({"authorization": "Bearer sk-wrong"}, 401),
            ({"authorization": f"Bearer {key[:-1]}"}, 401),
            ({"authorization": f"Bearer {key}"}, 200),
        ):
            for path in ("/slots", "/metrics", "/v1/models", "/props"):
                assert (await http.get(path, headers=headers)).status_code == expected, path
            answer = await http.post("/completion", headers=headers, json=asked)
            assert answer.status_code == expected
        assert (await http.get("/health")).status_code == 200
    assert await pair.complete(tokens=4), "the gateway knows it"


async def test_the_key_is_in_its_file_and_nowhere_else(cluster: Cluster, demo_model: Path) -> None:
    environment = {"LLAMA_API_KEY": USERS_KEY}
    await cluster.supervisor(environment=environment)
    await cluster.agent("one")
    await cluster.launch(demo_model)
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    await cluster.complete(tokens=4)
    path = key_file(cluster)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = path.read_text()
    assert len(key) > 40

    record = await record_of(cluster, deployment)
    assert value_of(record["argv"], "--api-key-file") == str(path)
    said = [
        json.dumps(record),
        (await cluster.http.get("/api/status")).text,
        (await cluster.http.get(f"/api/launches/{record['id']}/shell")).text,
        (await cluster.http.get("/api/deployments/test/logs")).text,
    ]
    assert str(path) in said[2], "a launch by hand asks for the same key"
    report = cluster.folder / "report.tar.gz"
    report.write_bytes((await cluster.http.get("/api/report")).content)
    unpacked = cluster.folder / "report"
    shutil.unpack_archive(report, unpacked, filter="data")
    for process in psutil.Process().children(recursive=True):
        said += [" ".join(process.cmdline()), json.dumps(process.environ())]
    assert not any(key in text for text in said)
    files = [each for each in cluster.folder.rglob("*") if each.is_file() and each != path]
    assert {"supervisor.db", f"llama-server-{record['id']}.log", "launch.json"} <= {
        each.name for each in files
    }
    holders = [each for each in files if key.encode() in each.read_bytes()]
    assert holders == []
    # llama-server tells the last characters of its key; those are the same for everybody.
    log = Path(record["log_path"]).read_text()
    assert "api_keys: ****lama" in log or "api_keys" not in log

    # A key of the user's own environment opens nothing.
    url = f"http://127.0.0.1:{deployment['port']}/v1/models"
    headers = {"authorization": f"Bearer {USERS_KEY}"}
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(url, headers=headers)).status_code == 401


async def test_a_launch_that_knows_another_key_is_not_taken_over(
    cluster: Cluster, demo_model: Path
) -> None:
    """Who wants a new key removes the file and starts the supervisor again."""
    reserved = ports.reserve("127.0.0.1", from_top=True)
    try:
        await cluster.supervisor(join_port=reserved.port)
        await cluster.agent("one")
        await cluster.launch(demo_model)
        before = await cluster.settled()
        key = key_file(cluster).read_text()
        supervisor = next(p for p in cluster.programs if p.name == "supervisor")
        supervisor.process.kill()
        await asyncio.to_thread(supervisor.process.wait)
        key_file(cluster).unlink()
        await cluster.supervisor(join_port=reserved.port)
        after = await cluster.settled()
    finally:
        reserved.release()
    assert after["state"] == "ready", after["reason"]
    assert after["launch_id"] > before["launch_id"]
    assert key_file(cluster).read_text() != key
    assert await cluster.complete(tokens=4)


async def test_an_empty_key_file_is_no_key(cluster: Cluster, demo_model: Path) -> None:
    """As a full disk leaves it: llama-server would let everybody in."""
    key_file(cluster).parent.mkdir(parents=True)
    key_file(cluster).touch(0o644)
    await cluster.supervisor()
    assert key_file(cluster).read_text().startswith("sk-")
    assert stat.S_IMODE(key_file(cluster).stat().st_mode) == 0o600


# -- what is kept of conversations -----------------------------------------------------------------


async def launched(cluster: Cluster, model: Path) -> dict[str, Any]:
    await cluster.launch(model)
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    return await record_of(cluster, deployment)


async def test_with_workers_on_the_main_host_prompts_are_kept(
    cluster: Cluster, demo_model: Path
) -> None:
    await cluster.supervisor(prompt_cache_mib=300)
    await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
    record = await launched(cluster, demo_model)
    if record["plan"]["cache_ram_mib"] == 0:  # a small machine, or a busy one
        assert any("main host has only" in reason for reason in record["plan"]["reasons"])
        return
    assert value_of(record["argv"], "--cache-ram") == "300"
    assert any("300.0 MiB of what the main host" in reason for reason in record["plan"]["reasons"])
    assert value_of(record["argv"], "--sse-ping-interval") == "10"
    assert "--ctx-checkpoints" not in record["argv"], "nothing of this model needs them"
    log = Path(record["log_path"]).read_text()
    assert "prompt cache is enabled, size limit: 300 MiB" in log


async def test_with_a_worker_elsewhere_they_are_not(cluster: Cluster, demo_model: Path) -> None:
    await cluster.supervisor(prompt_cache_mib=8192)
    await cluster.agent("one")
    await agent_elsewhere(cluster, "two")
    record = await launched(cluster, demo_model)
    assert {worker["device"] for worker in record["workers"]} == {"one", "two"}
    assert record["plan"]["cache_ram_mib"] == 0
    assert value_of(record["argv"], "--cache-ram") == "0"
    (reason,) = [each for each in record["plan"]["reasons"] if "--cache-ram 0" in each]
    assert reason.endswith("over the network from two.")


async def agent_elsewhere(cluster: Cluster, name: str) -> None:
    """An agent of a system that was booted at another time, as those of other hosts are."""
    boot_id = cluster.folder / "boot-id"
    boot_id.write_text("0f0e0d0c-1111-2222-3333-444455556666\n")
    script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
    prefix = ["unshare", "-m", "sh", "-c", script, str(boot_id)]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("not permitted here: a mount namespace")
    argv = [*prefix, sys.executable, "-m", "agents", "join", "-", "--name", name, "--threads", "1"]
    argv += ["--data", str(cluster.folder / name)]
    log = cluster.folder / f"{name}.log"
    environment = {**os.environ, CODE_VARIABLE: await cluster.code()}
    with log.open("ab") as file:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    cluster.programs.append(Program(name, process, cluster.folder / name, log))
    await cluster.device_state(name, "ready")


@pytest.mark.parametrize("cache_mib", [0, 8192])
async def test_a_kept_prompt_is_fetched_back_from_the_worker(
    engine: EngineFacts, random_model: Path, tmp_path: Path, cache_mib: int
) -> None:
    """What the plan's reason claims: each change of conversation costs its whole cache."""
    flags = our_flags(engine)
    flags[flags.index("--cache-ram") + 1] = str(cache_mib)
    prompts = [[300 + (number * step) % 90 for number in range(TOKENS)] for step in (7, 11)]
    async with recorded_worker(engine, tmp_path / "worker.log") as worker:

        def fetched() -> tuple[int, int]:
            """Tensors, and bytes of all answers."""
            commands, count_bytes = Counter[int](), 0
            for connection in worker.connections:
                commands += read(connection, Limits(), 1 << 20).commands
                count_bytes += len(connection.said(by_client=False))
            return commands[Command.GET_TENSOR], count_bytes

        log = tmp_path / "llama-server.log"
        async with llama_server(engine, random_model, [worker.port], flags, log) as server:
            costs = []
            for prompt in prompts:
                before = fetched()
                body = {"prompt": prompt, "n_predict": 1, "temperature": 0}
                assert (await server.http.post("/completion", json=body)).status_code == 200
                costs.append([now - then for now, then in zip(fetched(), before, strict=True)])
    first, second = costs
    more_gets, more_bytes = (new - old for new, old in zip(second, first, strict=True))
    kept_bytes = TOKENS * LAYERS * 2 * 256 * 2  # keys and values of four heads of 64, in f16
    print(f"--cache-ram {cache_mib}: {more_gets} steps and {more_bytes} bytes more")
    if cache_mib:
        assert more_gets == 2 * LAYERS
        assert kept_bytes <= more_bytes < kept_bytes + MIB // 8
    else:
        assert (more_gets, abs(more_bytes) < MIB // 64) == (0, True)
