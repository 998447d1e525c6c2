"""The doctor of one device alone: without an agent, an engine, or a supervisor."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from cluster import Cluster
from doctor_runs import (
    OF_AGENTS,
    PATIENT_S,
    Findings,
    blocking,
    by_check,
    hanging,
    on_device,
    ours,
    run,
    stranger,
)

from supervisor.adapters import agent_archive

# -- one device alone --------------------------------------------------------------------------


async def test_a_device_that_never_joined_is_examined(tmp_path: Path) -> None:
    status, found = await on_device(tmp_path / "nothing")
    assert status == 0
    assert ours() - {"wires"} <= set(found)
    assert "invite" in found["agent"]["remedy"]
    assert found["main_host"]["verdict"] == "unknown"
    assert found["engine"]["verdict"] == "ok"
    assert not (tmp_path / "nothing").exists()


async def test_no_engine_and_one_that_is_none_block(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    status, found = await on_device(tmp_path / "data", "--engine", str(empty))
    assert (status, blocking(found)) == (1, {"engine"})
    for name in ("llama-server", "ggml-rpc-server"):
        (empty / name).write_bytes(b"\x7fELF\x01 of another world")
        (empty / name).chmod(0o700)
    status, found = await on_device(tmp_path / "data", "--engine", str(empty))
    assert (status, blocking(found)) == (1, {"engine"})
    assert "another kind of processor" in found["engine"]["found"]


async def test_an_engine_that_hangs_is_unknown_after_the_deadline(tmp_path: Path) -> None:
    hanging(tmp_path / "engine", "llama-server", "ggml-rpc-server")
    began_s = time.monotonic()
    status, found = await on_device(tmp_path / "data", "--engine", str(tmp_path / "engine"))
    assert time.monotonic() - began_s < 60
    assert found["engine"]["verdict"] in ("unknown", "blocks")
    assert status == int(found["engine"]["verdict"] == "blocks")
    assert found["disk"]["verdict"] == "ok"


async def test_commands_that_hang_are_unknown_and_end(tmp_path: Path) -> None:
    environment = hanging(tmp_path / "programs", "systemctl", "nft", "ufw", "gsettings")
    status, found = await on_device(tmp_path / "data", environment=environment)
    assert status == 0
    assert (found["sleep"]["verdict"], found["firewall"]["verdict"]) == ("unknown", "unknown")
    assert "within 5 s" in found["sleep"]["found"]


async def test_a_port_of_a_stranger_is_told_with_the_strangers_name(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.supervisor()
    agent = await cluster.agent("one")
    agent.stop()
    try:
        with stranger(8102):
            _, found = await on_device(cluster.folder / "one")
    except OSError:
        _, found = await on_device(cluster.folder / "one")  # another program's already
    else:
        assert f"(pid {os.getpid()})" in found["agent_ports"]["found"]
    assert found["agent_ports"]["verdict"] == "warning"
    assert "8102" in found["agent_ports"]["found"]


async def test_a_running_agent_is_known_as_ours_and_goes_on(cluster: Cluster) -> None:
    await cluster.supervisor()
    await cluster.agent("one")
    device = await cluster.device("one")
    assert device is not None
    status, found = await on_device(cluster.folder / "one")
    assert status == 0
    assert "runs" in found["agent"]["found"]
    if device["rest_port"] == 8102:
        assert "8102 is our own" in found["agent_ports"]["found"]
    assert "pinned" in found["main_host"]["found"]
    assert found["round_trip"]["verdict"] in ("ok", "warning")
    again = await cluster.device_state("one", "ready")
    assert again["facts"]["agent_start"] == device["facts"]["agent_start"]


async def test_a_main_host_that_is_gone_or_another_blocks(cluster: Cluster) -> None:
    await cluster.supervisor()
    agent = await cluster.agent("one")
    agent.stop()
    endpoint = json.loads((cluster.folder / "one" / "main-host.json").read_text())["endpoints"][0]
    cluster.programs[0].stop()
    status, found = await on_device(cluster.folder / "one")
    assert (status, blocking(found)) == (1, {"main_host"})
    assert endpoint in found["main_host"]["found"]
    with stranger(int(endpoint.rpartition(":")[2])):  # takes connections and says nothing
        status, found = await on_device(cluster.folder / "one")
    assert (status, blocking(found)) == (1, {"main_host"})
    assert "no answer within" in found["main_host"]["found"]


async def test_the_archive_examines_with_a_bare_interpreter(tmp_path: Path) -> None:
    archive = agent_archive.build(tmp_path)
    venv = tmp_path / "bare"
    await run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    home = tmp_path / "home"
    home.mkdir()
    argv = [str(venv / "bin" / "python3"), str(archive), "doctor", "--json"]
    done = await asyncio.to_thread(
        subprocess.run,
        argv,
        capture_output=True,
        text=True,
        timeout=PATIENT_S,
        cwd=home,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    found = by_check(json.loads(done.stdout))
    assert done.returncode == int(bool(blocking(found))), done.stderr
    assert blocking(found) <= {"engine"}  # there may be one on the PATH of this machine
    assert "without psutil" in found["python"]["found"]
    assert ours() - {"wires"} <= set(found)
    assert list(home.iterdir()) == []


# -- without a supervisor ----------------------------------------------------------------------


async def alone(tmp_path: Path, **ports: int) -> tuple[int, Findings, str]:
    """``supervisor doctor`` of a user who has no supervisor running."""
    folder = tmp_path / "share" / "llama-rpc-supervisor" / "supervisor"
    folder.mkdir(parents=True, exist_ok=True)
    with stranger() as closed:
        pass  # nobody listens there any more
    run_file = {"url": f"http://127.0.0.1:{closed}", "pid": 2**22 + 1, "host": "x"}
    (folder / "run.json").write_text(json.dumps(run_file))
    lines = [f"{name} = {port}" for name, port in ports.items()]
    (folder / "supervisor.toml").write_text("\n".join(['join_host = "127.0.0.1"', *lines]))
    status, said, errors = await run(
        *(sys.executable, "-m", "supervisor", "doctor", "--json"),
        environment={"XDG_DATA_HOME": str(tmp_path / "share")},
    )
    (group,) = json.loads(said)
    assert group["device"] == "main host"
    return status, by_check(group["findings"]), errors


async def test_without_a_supervisor_this_host_alone_is_examined(tmp_path: Path) -> None:
    status, found, errors = await alone(tmp_path, port=0, join_port=0)
    assert status == 0
    assert "no supervisor answers" in errors
    assert "this host alone" in errors
    assert found["supervisor"]["verdict"] == "warning"
    assert found["engine"]["verdict"] == "ok"
    assert ours() - OF_AGENTS - {"wires"} <= set(found)


async def test_a_host_that_has_joined_is_examined_as_the_device_that_it_is(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.supervisor()
    agent = await cluster.agent("one")
    agent.stop()
    ours = tmp_path / "share" / "llama-rpc-supervisor"
    ours.mkdir(parents=True)
    (ours / "agent").symlink_to(cluster.folder / "one")
    argv = (sys.executable, "-m", "supervisor", "doctor", "--json")
    environment = {"XDG_DATA_HOME": str(tmp_path / "share"), "SUPERVISOR_PORT": "0"}
    (ours / "supervisor").mkdir()
    with stranger() as closed:
        pass
    run_file = {"url": f"http://127.0.0.1:{closed}", "pid": 2**22 + 1, "host": "x"}
    (ours / "supervisor" / "run.json").write_text(json.dumps(run_file))
    status, said, _ = await run(*argv, environment=environment)
    (group,) = json.loads(said)
    assert (status, group["device"]) == (0, socket.gethostname().removesuffix(".local"))
    found = by_check(group["findings"])
    assert "does not run" in found["agent"]["found"]
    assert found["main_host"]["verdict"] == "ok"


async def test_a_taken_port_of_the_supervisor_blocks(tmp_path: Path) -> None:
    with stranger() as dashboard, stranger() as join:
        status, found, _ = await alone(tmp_path, port=dashboard, join_port=join)
    assert (status, blocking(found)) == (1, {"dashboard", "join_port"})
    assert f"127.0.0.1:{join}" in found["join_port"]["found"]


async def test_a_supervisor_that_was_named_and_is_gone_is_an_error() -> None:
    with stranger() as closed:
        pass
    argv = (sys.executable, "-m", "supervisor", "doctor", "--url", f"http://127.0.0.1:{closed}")
    status, said, errors = await run(*argv)
    assert (status, said) == (1, "")
    assert "no supervisor answers" in errors
