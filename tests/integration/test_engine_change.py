"""The cluster moves to another build of llama.cpp, and comes back when that does not work."""

import asyncio
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Cluster, eventually

from agents import ports
from agents.contract import EngineFacts
from supervisor.demo_model import SENTENCE

SLOW_S = 180.0
OTHER = "2222222"
"""The commit that the second build tells."""

_SAYS = 'case "$*" in *--version*) echo "version: 1.0.0 (build 2, commit {other})"; exit 0;; esac\n'
_GOES_ON = 'exec "{folder}/llama-server" "$@"\n'
DIES = 'case "$*" in *--model*) echo "error: cannot work like this"; exit 1;; esac\n'
HANGS = 'case "$*" in *--model*) exec sleep 600;; esac\n'


def other_build(cluster: Cluster, engine: EngineFacts, behaviour: str = "") -> Path:
    """A copy of the built engine that says it is another build, where the main host looks."""
    source = Path(engine.folder)
    target = cluster.folder / "supervisor" / "engines" / "other"
    shutil.copytree(source.parent / "lib", target / "lib", symlinks=True)
    shutil.copytree(source, target / "bin", symlinks=True)
    server = target / "bin" / "llama-server"
    server.unlink()
    script = _SAYS.format(other=OTHER) + behaviour + _GOES_ON.format(folder=source)
    server.write_text(f"#!/bin/sh\n{script}")
    server.chmod(0o755)
    return target


@pytest.fixture
async def serving(cluster: Cluster, demo_model: Path) -> AsyncIterator[Cluster]:
    """Two workers, with a deployment over both."""
    reserved = ports.reserve("127.0.0.1")
    try:
        await cluster.supervisor(join_port=reserved.port)
        await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
        assert (await cluster.launch(demo_model)).status_code == 201
        deployment = await cluster.settled(within_s=SLOW_S)
        assert deployment["state"] == "ready", deployment["reason"]
        yield cluster
    finally:
        reserved.release()


async def builds(cluster: Cluster) -> dict[str, str]:
    """Of the main host and of every device."""
    status = (await cluster.http.get("/api/status")).json()
    found = {d["name"]: d["facts"]["engine"]["build"] for d in status["devices"]}
    return {"main host": status["engine"]["build"], **found}


async def change(cluster: Cluster, build: str) -> list[tuple[str, Any]]:
    """The events of a change, up to its end."""
    events, name = [], ""
    timeout = httpx.Timeout(SLOW_S)
    async with cluster.http.stream(
        "POST", "/api/engine-change", json={"build": build}, timeout=timeout
    ) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return [("refused", answer.json())]
        async for line in answer.aiter_lines():
            field, _, value = line.partition(":")
            if field == "event":
                name = value.strip()
            elif field == "data":
                events.append((name, json.loads(value)))
    return events


async def phase(cluster: Cluster, wanted: str) -> dict[str, Any]:
    async def has_phase() -> dict[str, Any] | None:
        view = (await cluster.http.get("/api/engine-change")).json()
        return view if view and view["phase"] == wanted else None

    found: dict[str, Any] = await eventually(has_phase, within_s=SLOW_S, what=f"phase {wanted}")
    return found


async def test_there_and_back_while_requests_wait(serving: Cluster, engine: EngineFacts) -> None:
    cluster = serving
    other_build(cluster, engine)
    assert (await cluster.http.get("/api/engine-change")).json() is None
    before = (await cluster.http.get("/api/deployments/test")).json()["launch_id"]
    changing = asyncio.create_task(change(cluster, OTHER))
    await phase(cluster, "switching")
    waiting = asyncio.create_task(cluster.complete(tokens=128))
    second = await cluster.http.post("/api/engine-change", json={"build": engine.build})
    assert (second.status_code, second.json()["code"]) == (409, "engine_change_running")

    name, result = (await changing)[-1]
    assert name == "result", result
    assert result["phase"] == "done"
    assert result["build_before"] == engine.build
    assert result["build"] == OTHER
    assert {row["state"] for row in result["devices"]} == {"changed"}
    assert (await waiting).strip() == SENTENCE, "it waited and was not refused"
    assert await builds(cluster) == dict.fromkeys(("main host", "one", "two"), OTHER)
    deployment = await cluster.settled(within_s=SLOW_S)
    assert deployment["state"] == "ready"
    assert deployment["launch_id"] > before
    launch = (await cluster.http.get(f"/api/launches/{deployment['launch_id']}")).json()
    assert launch["engine"]["build"] == OTHER
    assert {worker["engine_build"] for worker in launch["workers"]} == {OTHER}

    supervisor = cluster.programs[0]
    join_port = int((await cluster.code()).split("/")[0].rpartition(":")[2])
    supervisor.stop(within_s=60)
    await cluster.supervisor(join_port=join_port)
    for name in ("one", "two"):
        await cluster.device_state(name, "ready", within_s=SLOW_S)
    assert await builds(cluster) == dict.fromkeys(("main host", "one", "two"), OTHER), "remembered"
    await cluster.settled_as("ready", within_s=SLOW_S)

    fetched = supervisor.said().count("engine.asked_for")
    assert fetched == 2, "once for each device"
    argv = [sys.executable, "-m", "supervisor", "engine", "use", engine.build, "--yes", "--json"]
    done = await asyncio.to_thread(
        subprocess.run,
        argv,
        env={**os.environ, "SUPERVISOR_URL": cluster.url},
        capture_output=True,
        text=True,
        timeout=SLOW_S,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["phase"] == "done"
    print(f"back again, with the launch: from {result['started_at']} to {result['ended_at']}")
    assert supervisor.said().count("engine.asked_for") == fetched, "devices still had it"
    assert await builds(cluster) == dict.fromkeys(("main host", "one", "two"), engine.build)
    assert (await cluster.complete(tokens=128)).strip() == SENTENCE


async def test_nothing_changes_when_a_device_cannot_have_the_build(
    serving: Cluster, engine: EngineFacts
) -> None:
    cluster = serving
    other_build(cluster, engine)
    argv = [sys.executable, "-m", "supervisor", "engine", "use", OTHER, "--url", cluster.url]
    asked = await asyncio.to_thread(
        subprocess.run, argv, input="n\n", capture_output=True, text=True, timeout=SLOW_S
    )
    assert asked.returncode == 1
    assert "test will be launched anew" in " ".join(asked.stderr.split())
    assert (await cluster.http.get("/api/engine-change")).json() is None

    _, refused = (await change(cluster, "b99999"))[-1]
    assert refused["code"] == "release_unknown"
    assert OTHER in refused["detail"]

    await _first_change(cluster)
    await asyncio.to_thread(_spoil, cluster, OTHER, "exec sleep 300")
    before = (await cluster.http.get("/api/deployments/test")).json()
    events = await change(cluster, OTHER)
    name, problem = events[-1]
    assert name == "problem", problem
    assert problem["code"] == "engine_change_failed"
    assert "nothing was changed" in problem["detail"]
    assert "one" in problem["detail"] or "two" in problem["detail"]
    assert "HELLO" in problem["detail"]
    assert await builds(cluster) == dict.fromkeys(("main host", "one", "two"), engine.build)
    after = (await cluster.http.get("/api/deployments/test")).json()
    assert after["launch_id"] == before["launch_id"]
    assert after["state"] == "ready"


async def test_a_worker_that_fails_its_last_proof_brings_all_back(
    serving: Cluster, engine: EngineFacts
) -> None:
    cluster = serving
    other_build(cluster, engine)
    await _first_change(cluster)
    works_once = (
        'here=$(dirname "$0"); case "$here" in */two/*)\n'
        '[ -e "$here/proven" ] && { echo "it broke since"; exit 3; }; touch "$here/proven";; esac\n'
        f'exec "{engine.rpc_server}" "$@"'
    )
    await asyncio.to_thread(_spoil, cluster, OTHER, works_once)
    events = await change(cluster, OTHER)
    name, problem = events[-1]
    assert name == "problem", problem
    assert "it does not work on two" in problem["detail"]
    assert "it broke since" in problem["detail"]
    states = [body["devices"] for event, body in events if event == "progress"][-1]
    assert {row["device"]: row["state"] for row in states} == {"one": "back", "two": "back"}
    assert await builds(cluster) == dict.fromkeys(("main host", "one", "two"), engine.build)
    deployment = await cluster.settled(within_s=SLOW_S)
    assert deployment["state"] == "ready", deployment["reason"]
    assert (await cluster.complete(tokens=128)).strip() == SENTENCE


async def _first_change(cluster: Cluster) -> None:
    """Makes the archive, and leaves the devices without what they got."""
    name, result = (await change(cluster, OTHER))[-1]
    assert name == "result", result
    old = result["build_before"]
    name, result = (await change(cluster, old))[-1]
    assert name == "result", result
    for device in ("one", "two"):
        for folder in (cluster.folder / device / "engines").glob(f"{OTHER}*"):
            shutil.rmtree(folder)


def _spoil(cluster: Cluster, build: str, script: str) -> None:
    """The archive for devices gets another rpc-server, and a digest that fits."""
    shelf = cluster.folder / "supervisor" / "engine-archives"
    archive = next(shelf.glob(f"llama-{build}-*.tar.gz"))
    made = io.BytesIO()
    with tarfile.open(archive) as old, tarfile.open(fileobj=made, mode="w:gz") as new:
        for member in old:
            content = old.extractfile(member)
            if member.name.endswith("ggml-rpc-server"):
                program = f"#!/bin/sh\n{script}\n".encode()
                member.size = len(program)
                content = io.BytesIO(program)
            new.addfile(member, content)
    archive.write_bytes(made.getvalue())
    note = Path(f"{archive}.json")
    stored = json.loads(note.read_text())
    digest = sha256(made.getvalue()).hexdigest()
    note.write_text(json.dumps(stored | {"size_bytes": len(made.getvalue()), "sha256": digest}))


async def test_a_build_that_cannot_load_is_given_up_by_itself(
    serving: Cluster, engine: EngineFacts
) -> None:
    cluster = serving
    other_build(cluster, engine, DIES)
    events = await change(cluster, OTHER)
    name, problem = events[-1]
    assert name == "problem", problem
    assert problem["code"] == "engine_change_failed"
    assert "deployment test does not run with it" in problem["detail"]
    assert f"{engine.build} is used again" in problem["detail"]
    phases = [body["phase"] for event, body in events if event == "progress"]
    assert list(dict.fromkeys(phases)) == [
        "fetching",
        "stopping",
        "switching",
        "launching",
        "going back",
        "failed",
    ]
    assert await builds(cluster) == dict.fromkeys(("main host", "one", "two"), engine.build)
    deployment = await cluster.settled(within_s=SLOW_S)
    assert deployment["state"] == "ready", deployment["reason"]
    assert (await cluster.complete(tokens=128)).strip() == SENTENCE
    view = (await cluster.http.get("/api/engine-change")).json()
    assert (view["phase"], view["error_code"]) == ("failed", "engine_change_failed")


async def test_a_supervisor_that_is_killed_in_the_middle_goes_on_with_the_old_build(
    serving: Cluster, engine: EngineFacts
) -> None:
    cluster = serving
    other_build(cluster, engine, HANGS)
    changing = asyncio.create_task(change(cluster, OTHER))
    await phase(cluster, "launching")

    async def is_starting() -> bool:
        found = (await cluster.http.get("/api/deployments/test")).json()
        return bool(
            found["state"] == "starting" and found["launch_id"] and found["phase"] != "workers"
        )

    await eventually(is_starting, within_s=SLOW_S, what="the launch with the new build")
    join_port = int((await cluster.code()).split("/")[0].rpartition(":")[2])
    supervisor = cluster.programs[0]
    assert supervisor.stop(signal.SIGKILL) == -signal.SIGKILL
    await asyncio.gather(changing, return_exceptions=True)
    await cluster.supervisor(join_port=join_port)
    view = (await cluster.http.get("/api/engine-change")).json()
    assert view["phase"] == "failed"
    assert OTHER in view["reason"]
    for name in ("one", "two"):
        await cluster.device_state(name, "ready", within_s=SLOW_S)
    deployment = await cluster.settled_as("ready", "failed", within_s=SLOW_S)
    assert deployment["state"] == "ready", deployment["reason"]
    assert await builds(cluster) == dict.fromkeys(("main host", "one", "two"), engine.build)
    assert (await cluster.complete(tokens=128)).strip() == SENTENCE
