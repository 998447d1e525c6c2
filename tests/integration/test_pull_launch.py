"""Launches of a model that is still on the hub, and the commands that fetch one."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from chaos.forbidden import NotPermitted, small_disk
from cluster import Cluster, eventually
from hub_stand_in import HubStandIn, hub_stand_in

from supervisor.demo_model import SENTENCE, write_demo_model

pytestmark = pytest.mark.timeout(170)

DEMO, OTHER = "owner/Demo-GGUF", "owner/Other-GGUF"
LONG_S = 100.0
MIB = 1 << 20


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can be served, of some megabytes, and bytes that are none."""
    folder = tmp_path_factory.mktemp("hub")
    for repo in (DEMO, OTHER):
        (folder / repo).mkdir(parents=True)
    write_demo_model(folder / DEMO / "Demo-Q8_0.gguf", embedding=256, feed_forward=1024)
    (folder / OTHER / "Other-Q4_K_M.gguf").write_bytes(os.urandom(16 * MIB))
    return folder


@pytest.fixture
def made(repositories: Path, request: Any) -> Iterator[HubStandIn]:
    with hub_stand_in(repositories, *getattr(request, "param", ("--drip-s", "0.04"))) as running:
        yield running


def environment(cluster: Cluster, made: HubStandIn) -> dict[str, str]:
    """Of a supervisor or a command that asks the stand-in, with a cache of its own."""
    return {
        "HF_ENDPOINT": made.endpoint,
        "HF_HOME": str(cluster.folder / "home"),
        "HF_HUB_CACHE": str(cluster.folder / "hub-cache"),
        "NO_PROXY": "127.0.0.1",
        "HF_TOKEN": "",
    }


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def size_of(repositories: Path) -> int:
    return (repositories / DEMO / "Demo-Q8_0.gguf").stat().st_size


async def launched(cluster: Cluster, model: str, name: str, **more: Any) -> dict[str, Any]:
    body = {"model": model, "name": name, "ctx_tokens": 512, **more}
    answer = await cluster.http.post("/api/deployments", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def pulls(cluster: Cluster) -> list[dict[str, Any]]:
    return list((await cluster.http.get("/api/models/pulls")).json())


async def with_state(cluster: Cluster, state: str, done_bytes: int = 0) -> dict[str, Any]:
    """The only pull, in that state."""

    async def is_so() -> dict[str, Any] | None:
        found = await pulls(cluster)
        is_it = found and found[0]["state"] == state and found[0]["done_bytes"] >= done_bytes
        return found[0] if is_it else None

    what = f"the pull is {state} with {done_bytes} bytes"
    view: dict[str, Any] = await eventually(is_so, within_s=LONG_S, what=what)
    return view


async def test_a_repository_is_launched_waited_for_and_answers(
    cluster: Cluster, made: HubStandIn, repositories: Path
) -> None:
    await cluster.supervisor(environment=environment(cluster, made))
    await cluster.agent("one")
    first = await launched(cluster, f"{DEMO}:Q8_0", "test", order=["one"])
    assert first["plan"]["model"]["path"] == f"{DEMO}:Q8_0"
    fetching = await cluster.settled_as("fetching", "ready", "failed")
    assert fetching["state"] == "fetching", fetching["reason"]

    async def progress() -> dict[str, Any] | None:
        deployment = (await cluster.http.get("/api/deployments/test")).json()
        return deployment["pull"] if (deployment["pull"] or {}).get("done_bytes") else None

    pull = await eventually(progress, within_s=LONG_S, what="progress of the pull")
    assert pull["deployments"] == ["test"]
    body = {"model": "test", "prompt": "Hello", "max_tokens": 2}
    refused = await cluster.http.post("/v1/completions", json=body, headers={"prefer": "wait=0"})
    if (await cluster.http.get("/api/deployments/test")).json()["state"] == "fetching":
        assert refused.status_code == 503, refused.text
        assert "% fetched" in refused.text
    ready = await cluster.settled(within_s=LONG_S)
    assert ready["state"] == "ready", ready["reason"]
    assert ready["pull"] is None
    record = (await cluster.http.get(f"/api/launches/{ready['launch_id']}")).json()
    path = Path(record["plan"]["model"]["path"])
    assert path.is_relative_to(cluster.folder / "hub-cache")
    assert path.name == "Demo-Q8_0.gguf"
    assert record["argv"][record["argv"].index("--model") + 1] == str(path)
    assert (await cluster.complete(tokens=64)).split()[:3] == SENTENCE.split()[:3]
    asked = len(made.of("store"))

    # What is here is launched at once, and the hub is not asked for it.
    await cluster.http.post("/api/deployments/test/stop")
    again = await launched(cluster, f"{DEMO}:Q8_0", "again", order=["one"])
    assert again["plan"]["model"]["path"] == str(path)
    assert (await cluster.settled("again", within_s=LONG_S))["state"] == "ready"
    assert len(made.of("store")) == asked


async def test_two_launches_download_once_and_a_killed_supervisor_goes_on(
    cluster: Cluster, made: HubStandIn, repositories: Path
) -> None:
    size_bytes = size_of(repositories)
    join_port = free_port()
    program = await cluster.supervisor(environment=environment(cluster, made), join_port=join_port)
    await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
    await launched(cluster, f"{DEMO}:Q8_0", "a", order=["one"])
    await launched(cluster, DEMO, "b", order=["two"])
    before = made.stored_bytes  # of headers, twice at most
    view = await with_state(cluster, "fetching", size_bytes // 3)
    assert set(view["deployments"]) == {"a", "b"}
    program.stop(signal.SIGKILL)
    await eventually(_no_fetching, within_s=LONG_S, what="what fetches ends with its supervisor")
    await cluster.supervisor(environment=environment(cluster, made), join_port=join_port)
    for name in ("a", "b"):
        ready = await cluster.settled(name, within_s=LONG_S)
        assert ready["state"] == "ready", ready["reason"]
    assert len(await pulls(cluster)) == 1
    assert made.stored_bytes <= before + size_bytes * 1.2 + MIB


async def _no_fetching() -> bool:
    return not any(_is_fetching(each) for each in psutil.process_iter())


def _is_fetching(each: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        is_ours = os.environ["TMPDIR_MARK_OF_TESTS"] in each.environ().values()
        return is_ours and "supervisor.fetching" in each.cmdline() and each.status() != "zombie"
    return False


async def test_stopping_pauses_what_nobody_else_wants_and_starting_goes_on(
    cluster: Cluster, made: HubStandIn, repositories: Path
) -> None:
    await cluster.supervisor(environment=environment(cluster, made))
    await cluster.agent("one")
    await launched(cluster, f"{DEMO}:Q8_0", "test", order=["one"])
    await with_state(cluster, "fetching", MIB)
    await cluster.http.post("/api/deployments/test/stop")
    paused = await with_state(cluster, "paused", MIB)
    await cluster.http.post("/api/deployments/test/start")
    ready = await cluster.settled_as("ready", "failed", within_s=LONG_S)
    assert ready["state"] == "ready", ready["reason"]
    assert [view["id"] for view in await pulls(cluster)] == [paused["id"]]


async def test_a_failed_pull_fails_its_deployment_and_a_start_goes_on(
    cluster: Cluster, made: HubStandIn
) -> None:
    disk = cluster.folder / "disk"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(small_disk(disk, 4 * MIB))
        except NotPermitted as exc:
            pytest.skip(f"not permitted here: {exc}")
        cache = {"HF_HUB_CACHE": str(disk / "hub")}
        program = await cluster.supervisor(environment=environment(cluster, made) | cache)
        await cluster.agent("one")
        await launched(cluster, f"{DEMO}:Q8_0", "test", order=["one"])
        failed = await cluster.settled(within_s=LONG_S)
        assert (failed["state"], failed["error_code"]) == ("failed", "disk_full"), failed["reason"]
        assert "free space there" in failed["reason"]
        assert "4.0 MiB free" in failed["reason"]
        subprocess.run(["mount", "-o", f"remount,size={64 * MIB}", str(disk)], check=True)
        await cluster.http.post("/api/deployments/test/start")
        ready = await cluster.settled_as("ready", "failed", within_s=LONG_S)
        assert ready["state"] == "ready", ready["reason"]
        await cluster.http.post("/api/deployments/test/stop")
        program.stop()


async def test_the_command_line_fetches_follows_pauses_and_goes_on(
    cluster: Cluster, made: HubStandIn, repositories: Path
) -> None:
    await cluster.supervisor(environment=environment(cluster, made))

    def command(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "supervisor", "models", *words, "--url", cluster.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment(cluster, made)},
        )

    async def said(child: subprocess.Popen[str]) -> tuple[str, str]:
        return await asyncio.to_thread(child.communicate, timeout=LONG_S)

    child = command("pull", f"{OTHER}:Q4_K_M")
    view = await with_state(cluster, "fetching", MIB)
    child.send_signal(signal.SIGINT)
    _, complained = await said(child)
    assert "goes on without this command" in complained
    assert (await pulls(cluster))[0]["state"] in ("fetching", "checking", "done")
    child = command("pulls", "pause", view["id"])
    assert "paused" in (await said(child))[0]
    child = command("pulls")
    assert view["id"] in (await said(child))[0]
    child = command("pull", f"{OTHER}:Q4_K_M", "--json")
    words, complained = await said(child)
    assert child.returncode == 0, complained
    done = json.loads(words)
    assert done["state"] == "done"
    assert Path(done["path"]).stat().st_size == 16 * MIB
    child = command("pulls", "remove", view["id"])
    await said(child)
    assert child.returncode == 0
    assert await pulls(cluster) == []
    assert Path(done["path"]).exists()
    assert made.stored_bytes <= 16 * MIB * 1.2


async def test_without_a_supervisor_the_command_fetches_by_itself(
    cluster: Cluster, made: HubStandIn
) -> None:
    home = cluster.folder / "nobody"
    home.mkdir()
    variables = {
        **os.environ,
        **environment(cluster, made),
        "HOME": str(home),
        "XDG_DATA_HOME": str(home),
    }
    argv = [sys.executable, "-m", "supervisor", "models", "pull", f"{OTHER}:Q4_K_M"]
    cache = cluster.folder / "hub-cache"

    async def run(*more: str, interrupt_at: int = 0) -> tuple[int, str, str]:
        child = subprocess.Popen(
            [*argv, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=variables,
            start_new_session=True,
        )

        async def has_come() -> bool:
            return sum(p.stat().st_size for p in cache.rglob("*.incomplete")) >= interrupt_at

        if interrupt_at:
            await eventually(has_come, within_s=LONG_S, what="some megabytes")
            os.killpg(child.pid, signal.SIGINT)
        words, complained = await asyncio.to_thread(child.communicate, timeout=LONG_S)
        return child.returncode, words, complained

    status, _, complained = await run(interrupt_at=4 * MIB)
    assert status == 130, complained
    assert "what came is kept" in complained
    status, words, complained = await run("--json")
    assert status == 0, complained
    assert Path(json.loads(words)["path"]).stat().st_size == 16 * MIB
    assert "no supervisor runs here" in complained
    assert made.stored_bytes <= 16 * MIB * 1.2
