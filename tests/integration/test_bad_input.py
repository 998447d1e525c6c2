"""Every kind of bad input gets one sentence, a 4xx or status 1, and leaves nothing running."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Cluster, engine_pids, eventually
from giant import write_giant

from agents.contract import EngineFacts

pytestmark = pytest.mark.alone


def assert_problem(answer: httpx.Response, code: str, *words: str) -> None:
    """A problem document with this code whose one sentence has these words."""
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["code"] == code, body
    assert "\n" not in body["detail"]
    for word in words:
        assert word in body["detail"], body["detail"]


async def assert_failed(cluster: Cluster, code: str, *words: str) -> dict[str, Any]:
    """The deployment failed for this reason, and nothing of it is left."""
    deployment = await cluster.settled()
    assert deployment["state"] == "failed", deployment
    assert deployment["error_code"] == code, deployment["reason"]
    assert "\n" not in deployment["reason"]
    for word in words:
        assert word in deployment["reason"], deployment["reason"]
    assert not engine_pids()
    return deployment


def run_cli(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "supervisor", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        check=False,
    )


async def test_a_missing_model_is_named(pair: Cluster) -> None:
    assert_problem(await pair.launch(Path("/nowhere/x.gguf")), "model_missing", "/nowhere/x.gguf")
    assert (await pair.http.get("/api/deployments")).json() == []


async def test_a_truncated_model_is_named(pair: Cluster, demo_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "cut.gguf"
    broken.write_bytes(demo_model.read_bytes()[:-5000])
    assert_problem(await pair.launch(broken), "model_broken", "cut.gguf", "truncated", "again")


async def test_a_model_that_fits_nowhere_says_by_how_much(pair: Cluster, tmp_path: Path) -> None:
    big = tmp_path / "big.gguf"
    write_giant(big)
    answer = await pair.launch(big)
    assert_problem(answer, "insufficient_memory", "2048.0 GiB", "add a device")
    shortfall = answer.json()["shortfall"]
    assert shortfall["missing_layers"] > 0
    assert {device["name"] for device in shortfall["devices"]} == {"main host", "one", "two"}


async def test_an_engine_without_rpc_is_named(
    cluster: Cluster, engine: EngineFacts, tmp_path: Path
) -> None:
    folder = tmp_path / "norpc"
    folder.mkdir()
    script = folder / "llama-server"
    script.write_text(
        "#!/bin/sh\n"
        'case "$1" in --version) echo "version: 0.5.0 (build 1, commit abc)";;\n'
        '*) echo "error while handling argument \\"--rpc\\": RPC not supported in this build";\n'
        "exit 1;; esac\n"
    )
    script.chmod(0o755)
    await cluster.supervisor()
    await cluster.agent("bare", "--engine", str(folder), wait=False)
    device = await cluster.device_state("bare", "unusable")
    assert "without RPC" in device["reason"]
    assert "-DGGML_RPC=ON" in device["reason"]


async def test_a_worker_with_another_protocol_is_set_aside_by_name(
    cluster: Cluster, demo_model: Path, engine: EngineFacts, tmp_path: Path
) -> None:
    await cluster.supervisor()
    await cluster.agent("good")
    folder = _fake_engine(tmp_path, engine, "--triple", "6.0.0")
    await cluster.agent("old", "--engine", str(folder), wait=False)
    device = await cluster.device_state("old", "incompatible")
    assert "6.0.0" in device["reason"]
    assert "7.0.0" in device["reason"]
    answer = await cluster.launch(demo_model, devices=["old"])
    assert_problem(answer, "worker_incompatible", "old", "6.0.0", "same llama.cpp build")
    assert (await cluster.launch(demo_model)).status_code == 201
    deployment = await cluster.settled()
    assert deployment["state"] == "ready"
    assert {s["device"] for s in deployment["plan"]["shards"]} == {"good"}


@pytest.mark.parametrize("transport", ["direct", "link"])
async def test_a_protocol_that_changes_after_joining_is_caught_before_anything_is_loaded(
    cluster: Cluster, demo_model: Path, engine: EngineFacts, tmp_path: Path, transport: str
) -> None:
    """By the main host's probe, or by the far end of the link."""
    await cluster.supervisor()
    folder = _fake_engine(tmp_path, engine, "--triple", "7.0.0", "--later-triple", "7.0.1")
    await cluster.agent("odd", "--engine", str(folder), wait=False)
    await cluster.device_state("odd", "ready")
    await cluster.launch(demo_model, transport=transport)
    await assert_failed(cluster, "worker_incompatible", "odd", "7.0.1")
    (record,) = (await cluster.http.get("/api/launches")).json()
    assert not record["argv"], "no llama-server was started"


async def test_an_open_port_that_is_not_rpc_server_is_named(
    cluster: Cluster, demo_model: Path, engine: EngineFacts, tmp_path: Path
) -> None:
    await cluster.supervisor()
    folder = _fake_engine(tmp_path, engine, "--triple", "7.0.0", "--later-http")
    await cluster.agent("odd", "--engine", str(folder), wait=False)
    await cluster.device_state("odd", "ready")
    await cluster.launch(demo_model)
    await assert_failed(cluster, "rpc_server_silent", "odd")


def _fake_engine(tmp_path: Path, engine: EngineFacts, *flags: str) -> Path:
    """An engine folder whose rpc-server is the fake one; llama-server is real."""
    folder = tmp_path / "fake-engine"
    folder.mkdir()
    (folder / "llama-server").symlink_to(engine.llama_server)
    fake = Path(__file__).parent.parent / "fakes" / "rpc_server.py"
    script = folder / "ggml-rpc-server"
    words = " ".join(flags)
    script.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" "{fake}" --state "{tmp_path}/state" {words} "$@"\n'
    )
    script.chmod(0o755)
    return folder


async def test_a_taken_port_is_named_when_the_supervisor_starts(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = await asyncio.to_thread(
            run_cli, "up", "--data", str(tmp_path / "d"), "--port", str(port), "--no-agent",
            "--join-host", "127.0.0.1", "--join-port", "0",
        )  # fmt: skip
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "another port" in done.stderr
    assert "Traceback" not in done.stderr


def worker_port() -> int | None:
    """Where the rpc-server of this run will listen: its own, not one of somebody else here."""
    for pid in engine_pids():
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if argv[0].endswith("rpc-server") and "-p" in argv:
            return int(argv[argv.index("-p") + 1])
    return None


@asynccontextmanager
async def squatter() -> AsyncIterator[None]:
    """A second client that connects to a worker's rpc port the moment it is there."""
    holding: list[asyncio.StreamWriter] = []

    async def hold() -> None:
        port = None
        while not holding:
            with contextlib.suppress(OSError):
                port = port or worker_port()
                if port is not None:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    holding.append(writer)
            await asyncio.sleep(0.001)

    task = asyncio.create_task(hold())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for writer in holding:
            writer.close()


async def test_a_second_client_on_an_rpc_port_is_named_and_nothing_hangs(
    cluster: Cluster, demo_model: Path
) -> None:
    await cluster.supervisor(verify_s=4, worker_ready_s=8)
    await cluster.agent("one")
    async with squatter():
        await cluster.launch(demo_model, transport="direct")
        deployment = await cluster.settled()
    assert deployment["state"] == "failed"
    assert deployment["error_code"] in ("worker_busy", "worker_taken")
    assert "one client at a time" in deployment["reason"]
    assert "one" in deployment["reason"]
    await cluster.http.post("/api/deployments/test/start")
    assert (await cluster.settled())["state"] == "ready", "the worker is usable again at once"


async def test_a_second_client_beside_the_far_end_is_named_and_nothing_hangs(
    cluster: Cluster, demo_model: Path
) -> None:
    """A program on the worker itself; nobody else can reach the rpc-server behind a link."""
    await cluster.supervisor(worker_ready_s=8)
    await cluster.agent("one")
    async with squatter():
        await cluster.launch(demo_model)
        deployment = await cluster.settled()
    assert deployment["state"] == "failed"
    if deployment["error_code"] == "worker_taken":  # it came before the agent's own proof
        assert "one client at a time" in deployment["reason"]
    else:
        assert deployment["error_code"] == "link_lost", deployment["reason"]
        (link,) = await links_of(cluster)
        assert link["device"] == "one"
        assert "did not answer HELLO" in link["detail"]
        assert "another client on that device has it" in link["detail"]
    await cluster.http.post("/api/deployments/test/start")
    assert (await cluster.settled())["state"] == "ready", "the worker is usable again at once"


async def links_of(cluster: Cluster) -> list[dict[str, Any]]:
    """What was seen last of the links of the last launch."""
    (launch, *_) = (await cluster.http.get("/api/launches")).json()
    links: list[dict[str, Any]] = launch["links"]
    return links


async def test_a_wrong_join_code_is_refused_in_one_sentence(cluster: Cluster) -> None:
    await cluster.supervisor()
    good = await cluster.code()
    endpoint, token, pin = good.split("/")
    wrong = {
        f"{endpoint}/{token[:-3]}abc/{pin}": "unknown",
        f"{endpoint}/{token}/{pin[:-2]}xy": "fingerprint",
        f"{endpoint}/{token}": "whole line",
    }
    for code, word in wrong.items():
        done = await asyncio.to_thread(
            run_cli, "join", code, "--data", str(cluster.folder / "wrong")
        )
        assert done.returncode == 1, done.stderr
        assert word in done.stderr
        assert "Traceback" not in done.stderr
    used = await cluster.code(once=True)
    await cluster.agent("first")
    expired = await cluster.code(hours=0.0000001)
    done = await asyncio.to_thread(run_cli, "join", expired, "--data", str(cluster.folder / "late"))
    assert done.returncode == 1
    assert "expired" in done.stderr
    assert used


async def test_a_one_time_code_works_once(cluster: Cluster) -> None:
    await cluster.supervisor()
    code = await cluster.code(once=True)
    token_user = cluster.run(
        "a", "agents", "join", code, "--data", str(cluster.folder / "a"), "--name", "a"
    )
    await cluster.device_state("a", "ready")
    second = await asyncio.to_thread(run_cli, "join", code, "--data", str(cluster.folder / "b"))
    assert second.returncode == 1
    assert "used" in second.stderr
    assert token_user.process.poll() is None


def test_an_unknown_flag_is_a_usage_error() -> None:
    done = run_cli("launch", "x.gguf", "--no-such-flag")
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr


def test_no_supervisor_is_a_one_sentence_error(tmp_path: Path) -> None:
    done = run_cli("status", "--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "supervisor up" in done.stderr


def test_a_folder_without_write_permission_is_named(tmp_path: Path) -> None:
    # Root may write anywhere, so the folder is one that cannot exist: below a file.
    (tmp_path / "file").write_text("")
    done = run_cli("up", "--data", str(tmp_path / "file" / "data"), "--no-agent")
    assert done.returncode == 1
    assert "data folder" in done.stderr
    assert "--data" in done.stderr


async def test_a_full_disk_is_named_and_nothing_is_lost(cluster: Cluster, demo_model: Path) -> None:
    disk = cluster.folder / "supervisor"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("not permitted here: mounting a small file system")
    try:
        await cluster.supervisor()
        await cluster.agent("one")
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        answer = await cluster.launch(demo_model)
        if answer.status_code == 201:
            await assert_failed(cluster, "store_unusable")
        else:
            assert answer.status_code == 507
            assert answer.json()["code"] == "store_unusable"
            assert "free space" in answer.json()["detail"]
        assert not engine_pids()
        stopped = await cluster.http.get("/api/status", timeout=10)
        assert stopped.status_code == 200, "the supervisor goes on without its disk"
        filler.unlink()
        again = await cluster.launch(demo_model, name="again")
        assert again.status_code == 201, again.text
        assert (await cluster.settled("again"))["state"] == "ready"
    finally:
        await cluster.close()
        subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_a_wrong_split_says_what_it_must_sum_to(pair: Cluster, demo_model: Path) -> None:
    answer = await pair.launch(demo_model, split=[5, 5], devices=["one", "two"])
    assert_problem(answer, "bad_split", "10", "9 layers")
    answer = await pair.launch(demo_model, split=[9], devices=["one", "two"])
    assert_problem(answer, "bad_split", "1 entries", "2 devices")


async def test_an_unknown_device_lists_those_that_exist(pair: Cluster, demo_model: Path) -> None:
    answer = await pair.launch(demo_model, devices=["three"])
    assert_problem(answer, "device_unknown", "'three'", "one", "two")


async def test_unknown_fields_and_values_are_refused_by_name(
    pair: Cluster, demo_model: Path
) -> None:
    answer = await pair.http.post("/api/deployments", json={"model": str(demo_model), "ctxx": 1})
    assert answer.status_code == 422
    assert "ctxx" in answer.json()["detail"]
    answer = await pair.launch(demo_model, ctx_tokens=-5)
    assert answer.status_code == 422


async def test_a_killed_agent_leaves_no_rpc_server(pair: Cluster, demo_model: Path) -> None:
    await pair.launch(demo_model)
    await pair.settled()
    agent = next(p for p in pair.programs if p.name == "two")
    assert len(engine_pids()) == 3
    os.kill(agent.process.pid, 9)
    agent.process.wait()

    async def is_gone() -> bool:
        return len(engine_pids()) <= 2

    await eventually(is_gone, within_s=5, what="its rpc-server ends with it")


async def test_a_disk_that_fills_up_while_serving_ends_nothing(
    cluster: Cluster, demo_model: Path
) -> None:
    disk = cluster.folder / "supervisor"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("not permitted here: mounting a small file system")
    try:
        await cluster.supervisor()
        await cluster.agent("one")
        await cluster.launch(demo_model)
        assert (await cluster.settled())["state"] == "ready"
        with (disk / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        assert await cluster.complete(tokens=4)
        stopped = await cluster.http.post("/api/deployments/test/stop")
        assert stopped.json()["state"] == "stopped", "it can be stopped, and says so"
        assert not engine_pids()
    finally:
        await cluster.close()
        subprocess.run(["umount", "-l", str(disk)], check=True)
