"""Links that go silent, break, or lose one of their ends, on the real engine; and harmed stores."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Cluster, Program, engine_pids, eventually
from lab.links import Link, emulated_link

from agents import ports
from supervisor.demo_model import write_demo_model

pytestmark = pytest.mark.alone

MIB = 1 << 20
QUICK_S, USUAL_S = 1.5, 5.0
"""``link_silence_s``: for quick tests, and the default."""
LATE_S = 2.0
"""The issue's: a lost link is known so long after the silence that is allowed."""
SETTINGS: dict[str, Any] = {"heartbeat_s": 0.5, "retry_limit": 0}
"""After READY a launch repairs itself; here its end is looked at."""
PROMPT = "The river is wide and"
LOADING = ("SET_TENSOR", "GET_ALLOC_SIZE", "ALLOC_BUFFER", "BUFFER_GET_BASE", "INIT_TENSOR")
DECODING = ("GET_TENSOR", "GRAPH_COMPUTE", "GRAPH_RECOMPUTE", "SET_TENSOR")


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 MB, enough for seconds of load over a slow link."""
    path = tmp_path_factory.mktemp("models") / "slow.gguf"
    write_demo_model(path, layers=6, embedding=768, feed_forward=2048, heads=12, recite=False)
    return path


class World:
    """A supervisor and one agent, whose link leads through an emulated one."""

    def __init__(self, cluster: Cluster, link: Link, place: list[str]) -> None:
        self.cluster = cluster
        self.link = link
        self.place = place

    async def agent(self, *extra: str) -> Program:
        """Started, and heard of since: what is known of the one before does not count."""
        program = await self.cluster.agent("far", *self.place, *extra, wait=False)
        starts = program.said().count("agent.started")

        async def has_started() -> bool:
            assert program.process.poll() is None, program.said()
            return program.said().count("agent.started") > starts

        await eventually(has_started, within_s=20, what="the agent starts")
        started_s = time.monotonic()

        async def is_heard() -> bool:
            device = await self.cluster.device("far")
            since_s = time.monotonic() - started_s
            return bool(
                device and device["state"] == "ready" and device["silent_s"] < since_s - 0.1
            )

        await eventually(is_heard, within_s=20, what="the device is ready")
        return program

    @property
    def chunks(self) -> Path:
        return self.cluster.folder / "far" / "chunks"

    def pids(self) -> list[int]:
        """Of supervisor and agent."""
        return [each.process.pid for each in self.cluster.programs if each.process.poll() is None]

    async def deployment(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.cluster.http.get("/api/deployments/test")).json()
        return found

    async def record(self) -> dict[str, Any]:
        launch = (await self.deployment())["launch_id"]
        found: dict[str, Any] = (await self.cluster.http.get(f"/api/launches/{launch}")).json()
        return found

    async def engine_pid(self) -> int:
        """Of llama-server, once it runs."""

        async def pid() -> int | None:
            programs = {Path(f"/proc/{pid}/exe").resolve().name: pid for pid in engine_pids()}
            return programs.get("llama-server")

        return int(await eventually(pid, within_s=10, what="llama-server runs"))

    async def rpc_server_pid(self) -> int:
        return int((await self.cluster.device_state("far", "ready"))["rpc_server"]["pid"])

    async def link_process_pid(self) -> int:
        return int((await self.record())["link_pid"])

    async def launched(self, model: Path, **spec: Any) -> dict[str, Any]:
        answer = await self.cluster.launch(model, devices=["far"], **spec)
        assert answer.status_code == 201, answer.text
        deployment = await self.cluster.settled()
        assert deployment["state"] == "ready", deployment["reason"]
        return deployment

    async def stop(self) -> dict[str, Any]:
        """Stop the launch; returns its link as of then."""
        assert (await self.cluster.http.post("/api/deployments/test/stop")).status_code == 200
        links = (await self.record())["links"]
        found: dict[str, Any] = links[0] if links else {}
        return found

    async def text_of(self, model: Path) -> tuple[str, dict[str, Any]]:
        """What a launch of ``model`` says, and its link."""
        await self.launched(model)
        text = await self.cluster.complete(PROMPT, tokens=24)
        return text, await self.stop()

    async def lost(self, engine_pid: int, since_s: float, within_s: float) -> str:
        """Wait until llama-server is gone and the reason known; return the reason."""
        gone_s = known_s = 0.0
        reason = ""

        async def is_known() -> bool:
            nonlocal gone_s, known_s, reason
            if not gone_s and not Path(f"/proc/{engine_pid}").exists():
                gone_s = time.monotonic() - since_s
            if not known_s and (reason := (await self.deployment())["reason"]):
                known_s = time.monotonic() - since_s
            return bool(gone_s and known_s)

        await eventually(is_known, within_s=within_s + 20, what="the launch is lost")
        print(f"llama-server gone after {gone_s:.2f} s, known after {known_s:.2f} s: {reason}")
        assert max(gone_s, known_s) <= within_s, "too late"
        return reason

    async def cause(self) -> str:
        """What it was, as soon as everybody was asked; the first reason is told before that."""

        async def is_examined() -> Any:
            return (await self.deployment())["cause"]

        return str((await eventually(is_examined, within_s=10, what="the cause"))["sentence"])

    async def works_again(self, model: Path, before: list[int]) -> None:
        """The same device in a new launch; nobody was restarted."""
        await self.link.heal()
        await self.link.set(rate_bytes_per_s=0.0)
        await self.stop()
        await self.cluster.device_state("far", "ready")
        await self.launched(model)
        assert (await self.cluster.complete(PROMPT, tokens=4)).strip()
        assert self.pids() == before


@contextlib.asynccontextmanager
async def world(
    cluster: Cluster, silence_s: float = QUICK_S, *extra: str, **shape: Any
) -> AsyncIterator[World]:
    """``extra`` is for the agent, ``shape`` for its link."""
    await cluster.supervisor(**SETTINGS, link_silence_s=silence_s)
    reservation = ports.reserve("127.0.0.1")
    try:
        async with emulated_link(reservation.port, **shape) as link:
            way = f"127.0.0.1:{link.port}"
            place = ["--link-port", str(reservation.port), "--link-address", way]
            made = World(cluster, link, place)
            await made.agent(*extra)
            yield made
    finally:
        reservation.release()


@contextlib.asynccontextmanager
async def generating(world: World, prompt: str = PROMPT, tokens: int = 480) -> AsyncIterator[None]:
    """A completion under way; nobody hears how it ends."""

    async def complete() -> None:
        with contextlib.suppress(AssertionError, httpx.HTTPError):
            await world.cluster.complete(prompt, tokens=tokens, ignore_eos=True, cache_prompt=False)

    task = asyncio.create_task(complete())
    await asyncio.sleep(0.7)
    assert not task.done(), "it was over before anything could happen to it"
    try:
        yield
    finally:
        await task


def check(reason: str, phases: str, *commands: str) -> None:
    """It names worker, phase and last command."""
    found = re.search(r"the link to far was .* in phase (\w+).*\(last command: (\w+)\)", reason)
    assert found, reason
    phase, last = found.groups()
    assert phase in phases.split(), reason
    assert last in commands, reason


# -- black holes --------------------------------------------------------------------------------


async def test_a_link_that_goes_silent_during_load(cluster: Cluster, slow_model: Path) -> None:
    async with world(cluster, rate_bytes_per_s=6e6) as found:
        before = found.pids()
        answer = await cluster.launch(slow_model, devices=["far"])
        assert answer.status_code == 201, answer.text

        async def is_loading() -> bool:
            return bool((await found.deployment())["phase"] == "load")

        await eventually(is_loading, within_s=20, what="the load begins")
        pid = await found.engine_pid()
        await asyncio.sleep(1.5)  # all buffers on the way are full now
        assert await is_loading()
        since_s = time.monotonic()
        await found.link.black_hole()
        reason = await found.lost(pid, since_s, QUICK_S + LATE_S)
        check(reason, "load", *LOADING)
        assert "silent for" in reason
        await found.works_again(slow_model, before)


async def test_a_link_that_goes_silent_during_prefill(cluster: Cluster, slow_model: Path) -> None:
    async with world(cluster) as found:
        before = found.pids()
        await found.launched(slow_model, ctx_tokens=2048)
        pid, rpc_server = await found.engine_pid(), await found.rpc_server_pid()
        prompt = "The river is wide and the " * 150
        # Once before, so that nothing of the second time has to be asked ahead of its graph.
        await cluster.complete(prompt, tokens=1, cache_prompt=False)
        os.kill(rpc_server, signal.SIGSTOP)  # so that it is in prefill for as long as we like
        try:
            async with generating(found, prompt, 1):
                since_s = time.monotonic()
                await found.link.black_hole()
                await found.lost(pid, since_s, QUICK_S + LATE_S)
                cause = await found.cause()
        finally:
            with contextlib.suppress(ProcessLookupError):  # ended with the launch
                os.kill(rpc_server, signal.SIGCONT)
        assert "far is stopped" in cause, "the agent still answers, and knows better"
        await found.works_again(slow_model, before)


async def test_a_link_that_goes_silent_during_decode(cluster: Cluster, slow_model: Path) -> None:
    async with world(cluster, USUAL_S) as found:
        before = found.pids()
        await found.launched(slow_model)
        pid = await found.engine_pid()
        async with generating(found):
            since_s = time.monotonic()
            await found.link.black_hole()
            reason = await found.lost(pid, since_s, USUAL_S + LATE_S)
        check(reason, "decode", *DECODING)
        await found.works_again(slow_model, before)


async def test_a_device_that_froze_altogether_serves_again_when_it_thaws(
    cluster: Cluster, slow_model: Path
) -> None:
    """As Android does it: link, REST and heartbeats stop at once, and no connection is closed."""
    async with world(cluster) as found:
        before = found.pids()
        await found.launched(slow_model)
        pid = await found.engine_pid()
        agent = cluster.programs[-1].process
        async with generating(found):
            since_s = time.monotonic()
            agent.send_signal(signal.SIGSTOP)
            try:
                reason = await found.lost(pid, since_s, QUICK_S + LATE_S)
            finally:
                agent.send_signal(signal.SIGCONT)
        check(reason, "decode", *DECODING)
        await found.works_again(slow_model, before)


# -- ends ---------------------------------------------------------------------------------------


async def test_a_link_that_is_cut_during_decode_is_known_at_once(
    cluster: Cluster, slow_model: Path
) -> None:
    async with world(cluster, USUAL_S) as found:
        before = found.pids()
        await found.launched(slow_model)
        pid = await found.engine_pid()
        async with generating(found):
            since_s = time.monotonic()
            await found.link.cut()
            reason = await found.lost(pid, since_s, 2.0)
        check(reason, "decode idle", *DECODING)  # idle: between two tokens
        assert "connection" in reason
        await found.works_again(slow_model, before)


async def test_a_link_process_that_is_killed_during_decode_ends_the_launch_and_is_named(
    cluster: Cluster, slow_model: Path
) -> None:
    async with world(cluster, USUAL_S) as found:
        before = found.pids()
        await found.launched(slow_model)
        pid, link = await found.engine_pid(), await found.link_process_pid()
        async with generating(found):
            since_s = time.monotonic()
            os.kill(link, signal.SIGKILL)
            reason = await found.lost(pid, since_s, 2.0)
        assert reason.startswith("the link process was killed by SIGKILL"), reason
        await found.works_again(slow_model, before)


# -- the store ----------------------------------------------------------------------------------


def chunk_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


async def test_a_store_that_disappears_under_its_agent_is_filled_again(
    cluster: Cluster, slow_model: Path
) -> None:
    async with world(cluster) as found:
        text, first = await found.text_of(slow_model)
        assert text.strip()
        for path in chunk_files(found.chunks)[::3]:
            os.truncate(path, 0)
        again, link = await found.text_of(slow_model)
        assert again == text
        assert first["sent_bytes"] / 5 < link["sent_bytes"] < first["sent_bytes"] / 2
        shutil.rmtree(found.chunks)
        for _ in range(2):
            again, link = await found.text_of(slow_model)
            assert again == text
        assert link["sent_bytes"] < first["sent_bytes"] / 20, "it is whole again"


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """A file system of its own, where mounting is allowed."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_and_one_that_cannot_be_written_still_load(
    cluster: Cluster, slow_model: Path
) -> None:
    chunks = cluster.folder / "far" / "chunks"
    with small_disk(chunks, 8 * MIB):
        # A cap far beyond the disk, so that it is the disk that says no.
        async with world(cluster, QUICK_S, "--store-gib", "4") as found:
            text, _ = await found.text_of(slow_model)
            held_bytes = sum(path.stat().st_size for path in chunk_files(chunks))
            print(f"{held_bytes} bytes held on a disk of {8 * MIB}")
            again, _ = await found.text_of(slow_model)
            assert again == text
            assert text.strip()
            remount = ["mount", "-o", "remount,ro", str(chunks)]
            subprocess.run(remount, check=True)
            again, _ = await found.text_of(slow_model)
            assert again == text
            assert "chunk_store.stopped_storing" in cluster.programs[-1].said()


async def test_what_an_agent_stored_before_it_was_killed_is_not_sent_again(
    cluster: Cluster, slow_model: Path
) -> None:
    async with world(cluster) as found:
        text, first = await found.text_of(slow_model)
        shutil.rmtree(found.chunks)
        await asyncio.to_thread(cluster.programs[-1].stop)
        agent = await found.agent()
        await found.link.set(rate_bytes_per_s=12e6)
        assert (await cluster.launch(slow_model, devices=["far"])).status_code == 201

        async def is_storing() -> bool:
            held_bytes = 0
            for path in chunk_files(found.chunks):
                with contextlib.suppress(OSError):
                    held_bytes += path.stat().st_size
            return held_bytes >= 12 * MIB

        await eventually(is_storing, within_s=20, what="chunks are stored")
        await asyncio.to_thread(agent.stop, signal.SIGKILL)
        assert (await cluster.settled())["state"] == "failed"
        await found.stop()
        await found.link.set(rate_bytes_per_s=0.0)
        await found.agent()
        again, link = await found.text_of(slow_model)
        print(f"{link['sent_bytes']} of {first['sent_bytes']} bytes were sent again")
        assert again == text
        assert link["sent_bytes"] <= first["sent_bytes"] - 11 * MIB
        assert not list(found.chunks.rglob("*.new"))
