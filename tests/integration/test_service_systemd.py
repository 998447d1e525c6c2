"""The units, run by a real systemd of a user."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cluster import Cluster, engine_pids, eventually
from lab.user_systemd import UserSystemd, user_systemd

from agents.contract import EngineFacts

UNIT, SUPERVISOR = "llama-rpc-agent.service", "llama-rpc-supervisor.service"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[UserSystemd]:
    with user_systemd(tmp_path / "höme") as made:
        yield made


def _pid(data: Path) -> int:
    """Of the supervisor in that folder, once it answers; 0 before."""
    run_file = data / "run.json"
    return int(json.loads(run_file.read_text())["pid"]) if run_file.exists() else 0


async def _connect(cluster: Cluster, data: Path, besides: int) -> None:
    """Talk to the supervisor in that folder, once there is another than ``besides``."""

    async def is_there() -> bool:
        return _pid(data) not in (0, besides)

    await eventually(is_there, within_s=60, what="the supervisor starts")
    cluster.url = json.loads((data / "run.json").read_text())["url"]
    await cluster.http.aclose()
    cluster.http = httpx.AsyncClient(base_url=cluster.url, timeout=60, trust_env=False)


async def test_an_agent_is_started_revived_and_stopped_with_its_rpc_server(
    cluster: Cluster, systemd: UserSystemd, engine: EngineFacts, demo_model: Path
) -> None:
    await cluster.supervisor()
    data = str(systemd.home / "data %h")
    options = ["--data", data, "--name", "pc", "--threads", "1", "--engine", engine.folder]
    command = ["-m", "agents", "service"]
    done = systemd.python(*command, "install", await cluster.code(), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "enable-linger" in done.stdout, "there is nobody to ask here"
    before = await cluster.device_state("pc", "ready")
    again = systemd.python(*command, "install", "-", *options)
    assert "nothing to change" in again.stdout, again.stdout + again.stderr

    first = systemd.main_pid(UNIT)
    systemd.systemctl("kill", "--kill-whom=main", "--signal=KILL", UNIT)

    async def is_back() -> bool:
        return systemd.main_pid(UNIT) not in (0, first)

    await eventually(is_back, within_s=60, what="systemd starts the agent again")
    status = json.loads(systemd.python(*command, "status", "--json").stdout)
    assert status["is_running"] is True
    assert status["is_enabled"] is True
    assert status["restarts"] == 1
    assert status["since"].endswith("Z")

    async def is_heard() -> bool:
        device = await cluster.device_state("pc", "ready")
        return bool(device["facts"]["agent_start"] != before["facts"]["agent_start"])

    await eventually(is_heard, within_s=60, what="the main host hears the new one")
    launched = await cluster.launch(demo_model)
    assert launched.is_success, launched.text
    assert (await cluster.settled())["state"] == "ready"
    assert await cluster.complete(tokens=4)
    assert "ggml-rpc-server" in systemd.run("ps", "-e", "-o", "args").stdout
    gone = systemd.python(*command, "uninstall", "--data", data)
    assert gone.returncode == 0, gone.stdout + gone.stderr
    assert "rpc-server" not in systemd.run("ps", "-e", "-o", "args").stdout


async def test_llama_server_goes_on_while_a_supervisor_that_crashed_is_started_again(
    cluster: Cluster, systemd: UserSystemd, demo_model: Path
) -> None:
    data = systemd.home / "data"
    words = ["--data", str(data), "--port", "0", "--no-agent"]
    words += ["--join-host", "127.0.0.1", "--join-port", "0"]
    command = ["-m", "supervisor", "service"]
    done = systemd.python(*command, "install", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    await _connect(cluster, data, besides=0)
    launched = await cluster.launch(demo_model, order=["main host"])
    assert launched.is_success, launched.text
    before = await cluster.settled()
    assert before["state"] == "ready", before["reason"]
    pids, old = engine_pids(), _pid(data)
    assert pids

    systemd.systemctl("kill", "--kill-whom=main", "--signal=KILL", SUPERVISOR)
    await _connect(cluster, data, besides=old)
    after = await cluster.settled()
    assert (after["state"], after["launch_id"]) == ("ready", before["launch_id"])
    assert engine_pids() == pids, "it was taken over"
    gone = systemd.python(*command, "uninstall")
    assert gone.returncode == 0, gone.stdout + gone.stderr
    assert engine_pids() == []


async def test_what_fails_at_its_start_says_how_it_ended(
    systemd: UserSystemd,
) -> None:
    data = str(systemd.home / "data")
    code = f"127.0.0.1:9/token/{'F' * 43}"
    command = ["-m", "agents", "service"]
    options = ["--data", data, "--engine", str(systemd.home / "nothing-here")]
    done = systemd.python(*command, "install", code, *options)
    assert done.returncode == 0, done.stdout + done.stderr

    async def has_ended() -> str:
        return str(json.loads(systemd.python(*command, "status", "--json").stdout)["last_exit"])

    last = await eventually(has_ended, within_s=60, what="it ends")
    assert last == "status 1", last
