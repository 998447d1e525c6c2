"""A supervisor, three devices and a deployment over all of them, each part of which can be hurt."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cluster import Cluster, Program, engine_pids, eventually, link_pids
from lab.links import Link, emulated_link

from agents import ports
from agents.cli import CODE_VARIABLE
from chaos.forbidden import Clock, small_disk

LOOPBACK = "127.0.0.1"
DEVICES = ("one", "two", "three")
DEPLOYMENT = "test"
CTX_TOKENS = 4096
SPLIT_LAYERS = 3
"""Of each device; the models have eight layers and the output."""

QUIET_PORTS = range(20000, 32000)
"""Below those that the kernel gives to outgoing connections, so they can be listened on again."""

AGENT_PAUSE_S = 1.0
"""Until a dead agent is started again, as systemd and Termux do."""

POLL_S = 0.02
SETTLE_S = 30.0
REQUEST_S = 60.0
PROMPT = "The river is wide and"
REFERENCE_TOKENS = 32


@dataclass(frozen=True)
class Setup:
    """What a row needs of its cluster, beyond the usual."""

    relayed: tuple[str, ...] = ()
    """Devices whose links lead through a relay."""
    disks: Mapping[str, int] = field(default_factory=dict)
    """Size of the disk, by data folder: ``supervisor`` or a device."""
    settings: Mapping[str, object] = field(default_factory=dict)
    has_clock: bool = False
    """The supervisor has a clock of its own, which can be set."""


@dataclass
class Agent:
    """One device: how its agent is started, again and again."""

    name: str
    place: list[str]
    program: Program


@dataclass(frozen=True, slots=True)
class Live:
    """The processes of a launch that serves."""

    launch_id: int
    engine_pid: int
    link_pid: int
    worker_pids: Mapping[str, int]
    port: int

    @property
    def engines(self) -> set[int]:
        return {self.engine_pid, *self.worker_pids.values()}


class World:
    """The cluster of one row. Devices are "one" to "three"; all listen on loopback."""

    def __init__(self, cluster: Cluster, model: Path, setup: Setup) -> None:
        self.cluster = cluster
        self.model = model
        self.setup = setup
        self.clock = Clock(cluster.folder / "clock") if setup.has_clock else None
        self.port, self.join_port = quiet_port(), quiet_port()
        self.agents: dict[str, Agent] = {}
        self.links: dict[str, Link] = {}
        self.reference = ""
        self.plain_load_s = 0.0
        self._code = ""
        self._stopped: set[int] = set()

    @property
    def http(self) -> httpx.AsyncClient:
        return self.cluster.http

    @property
    def supervisor(self) -> Program:
        """The newest one."""
        return next(p for p in reversed(self.cluster.programs) if p.name == "supervisor")

    def folder(self, name: str) -> Path:
        """Data folder of ``supervisor`` or of a device."""
        return self.cluster.folder / name

    # -- starting ------------------------------------------------------------------------------

    async def start_supervisor(self) -> float:
        """Start it on the usual folder and ports; returns how long that took."""
        began_s = time.monotonic()
        (self.folder("supervisor") / "run.json").unlink(missing_ok=True)
        await self.cluster.supervisor(
            port=self.port,
            join_port=self.join_port,
            environment=self.clock.environment if self.clock else None,
            **{"heartbeat_s": 1, **self.setup.settings},
        )
        return time.monotonic() - began_s

    async def join(self, stack: AsyncExitStack, name: str) -> None:
        """Start a device for the first time."""
        reservation = ports.reserve(LOOPBACK)
        stack.callback(reservation.release)
        place = ["--link-port", str(reservation.port)]
        if name in self.setup.relayed:
            link = await stack.enter_async_context(emulated_link(reservation.port))
            self.links[name] = link
            place += ["--link-address", f"{LOOPBACK}:{link.port}"]
        if not self._code:
            self._code = await self.cluster.code()
        self.agents[name] = Agent(name, place, self._run_agent(name, place))

    def _run_agent(self, name: str, place: list[str]) -> Program:
        models = self.cluster.folder / "no-models"
        arguments = ["agents", "join", "-", "--data", str(self.folder(name)), "--name", name]
        arguments += ["--threads", "1", "--models", str(models), *place]
        return self.cluster.run(name, *arguments, environment={CODE_VARIABLE: self._code})

    async def keep_agents(self) -> None:
        """Start each agent that ended again, for ever."""
        due_s: dict[str, float] = {}
        while True:
            await asyncio.sleep(POLL_S)
            for name, agent in self.agents.items():
                if agent.program.process.poll() is None:
                    continue
                if time.monotonic() >= due_s.setdefault(name, time.monotonic() + AGENT_PAUSE_S):
                    agent.program = self._run_agent(name, agent.place)
                    del due_s[name]

    async def launch(self, model: Path | None = None) -> float:
        """Launch over all devices; returns the time until it is ready."""
        began_s = time.monotonic()
        spec = {
            "model": str(model or self.model),
            "name": DEPLOYMENT,
            "ctx_tokens": CTX_TOKENS,
            "order": DEVICES,
            "split": [SPLIT_LAYERS] * len(DEVICES),
        }
        answer = await self.http.post("/api/deployments", json=spec)
        assert answer.status_code == 201, answer.text
        await self.is_ready(within_s=SETTLE_S)
        return time.monotonic() - began_s

    async def stop(self) -> None:
        answer = await self.http.post(f"/api/deployments/{DEPLOYMENT}/stop")
        assert answer.status_code == 200, answer.text

    # -- looking -------------------------------------------------------------------------------

    async def deployment(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"/api/deployments/{DEPLOYMENT}")).json()
        return found

    async def launches(self) -> dict[int, dict[str, Any]]:
        """Every record, by number."""
        found = (await self.http.get("/api/launches", params={"limit": 1000})).json()
        return {record["id"]: record for record in found}

    async def record(self, launch_id: int) -> dict[str, Any]:
        answer = await self.http.get(f"/api/launches/{launch_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def history(self) -> list[dict[str, Any]]:
        """Everything that happened, the oldest first."""
        answer = await self.http.get("/api/history", params={"after": 0, "limit": 1000})
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()
        return found

    async def is_ready(self, *, within_s: float) -> dict[str, Any]:
        """The deployment once it is ready; one that failed for good is not waited for."""

        async def ready() -> dict[str, Any] | None:
            found = await self.deployment()
            assert found["state"] != "failed", f"{found['error_code']}: {found['reason']}"
            return found if found["state"] == "ready" else None

        made: dict[str, Any] = await eventually(ready, within_s=within_s, what="READY")
        return made

    async def live(self) -> Live:
        """What serves now, by record and by the word of the devices."""
        found = await self.deployment()
        assert found["state"] == "ready", (found["state"], found["reason"])
        record = await self.record(found["launch_id"])
        used = {worker["agent_id"] for worker in record["workers"]}
        servers = {
            device["name"]: device["rpc_server"]
            for device in (await self.http.get("/api/devices")).json()
            if device["id"] in used
        }
        for name, server in servers.items():
            assert server is not None, f"{name} was not heard of yet"
            assert server["generation"] == record["id"], f"{name} serves {server['generation']}"
            assert server["state"] == "ready", f"{name} is {server['state']}"
        workers = {name: server["pid"] for name, server in servers.items()}
        return Live(record["id"], record["pid"], record["link_pid"], workers, found["port"])

    async def complete(self, tokens: int = REFERENCE_TOKENS) -> str:
        """The greedy answer to the one prompt, computed anew."""
        body = {
            "model": DEPLOYMENT,
            "prompt": PROMPT,
            "max_tokens": tokens,
            "temperature": 0,
            "cache_prompt": False,
        }
        answer = await self.http.post("/v1/completions", json=body, timeout=REQUEST_S)
        if answer.status_code != 200:
            raise NotServed(f"{answer.status_code}: {answer.text}")
        return str(answer.json()["choices"][0]["text"])

    # -- hurting -------------------------------------------------------------------------------

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal; what was stopped goes on at the end of the row at the latest."""
        os.kill(pid, number)
        if number is signal.SIGSTOP:
            self._stopped.add(pid)

    def thaw(self) -> None:
        """Let everything go on that was stopped."""
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped.clear()

    async def kill_supervisor(self) -> None:
        """As the kernel would."""
        self.supervisor.process.kill()
        await asyncio.to_thread(self.supervisor.process.wait)

    async def close(self) -> None:
        self.thaw()
        await self.cluster.close()
        left = {*engine_pids(), *link_pids()}
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"processes were left running: {sorted(left)}"


class NotServed(Exception):
    """A request was not answered with text."""


@asynccontextmanager
async def world(folder: Path, model: Path, setup: Setup | None = None) -> AsyncIterator[World]:
    """A cluster that serves from a warm store and has said what it should say."""
    async with bare_world(folder, model, setup) as made:
        await made.launch()
        made.reference = await made.complete()
        assert len(made.reference.split()) > REFERENCE_TOKENS // 2, made.reference
        await made.stop()
        made.plain_load_s = await made.launch()
        assert await made.complete() == made.reference
        yield made


@asynccontextmanager
async def bare_world(folder: Path, model: Path, setup: Setup | None = None) -> AsyncIterator[World]:
    """A cluster whose devices are ready, with a model of its own."""
    own = folder / "model.gguf"
    shutil.copyfile(model, own)
    (folder / "no-models").mkdir()
    made = World(Cluster(folder), own, setup or Setup())
    async with AsyncExitStack() as stack:
        for name, size_bytes in made.setup.disks.items():
            stack.enter_context(small_disk(made.folder(name), size_bytes))
        stack.push_async_callback(made.close)
        await made.start_supervisor()
        for name in DEVICES:
            await made.join(stack, name)
        await asyncio.gather(*(made.cluster.device_state(name, "ready") for name in DEVICES))
        keeping = asyncio.create_task(made.keep_agents())
        try:
            yield made
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


def quiet_port() -> int:
    """A free port for programs that will be started on it again."""
    rng = random.Random()
    while True:
        port = rng.choice(QUIET_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
