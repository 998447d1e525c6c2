"""A main host and a worker in network namespaces of their own, with as many cables as wanted."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cluster import START_S, Cluster, Program, eventually

from agents.cli import CODE_VARIABLE

CALL_S = 60


def run(*argv: str) -> str:
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=CALL_S)
    return done.stdout


@dataclass(frozen=True)
class Host:
    """One network namespace."""

    namespace: str
    last_byte: int

    def inside(self, *argv: str) -> str:
        return run("ip", "netns", "exec", self.namespace, *argv)

    def address(self, cable: int) -> str:
        return f"10.{77 + cable}.{os.getpid() % 250 + 1}.{self.last_byte}"

    def listening(self) -> set[str]:
        """``address:port`` of every listening TCP socket."""
        return {line.split()[3] for line in self.inside("ss", "-ltnH").splitlines()}

    def received_bytes(self, cable: int) -> int:
        text = self.inside("cat", f"/sys/class/net/eth{cable}/statistics/rx_bytes")
        return int(text)


@dataclass
class Cabled:
    """Both hosts; supervisor and agent are started on them."""

    main: Host
    worker: Host
    cluster: Cluster
    url: str = ""
    data: list[str] = field(default_factory=list)

    def plug(self, cable: int, *, mbit_per_s: int | None = None) -> None:
        """One more cable; ``mbit_per_s`` is its rate in each direction."""
        name = f"eth{cable}"
        peer = ["type", "veth", "peer", "name", name, "netns", self.worker.namespace]
        run("ip", "link", "add", name, "netns", self.main.namespace, *peer)
        for host in (self.main, self.worker):
            run("ip", "-n", host.namespace, "addr", "add", f"{host.address(cable)}/24", "dev", name)
            run("ip", "-n", host.namespace, "link", "set", name, "up")
            if mbit_per_s is not None:
                shape = ["tbf", "rate", f"{mbit_per_s}mbit", "burst", "64kb", "latency", "200ms"]
                host.inside("tc", "qdisc", "add", "dev", name, "root", *shape)

    def pull(self, cable: int) -> None:
        """The cable is out, at both ends."""
        run("ip", "-n", self.worker.namespace, "link", "set", f"eth{cable}", "down")

    def push_in(self, cable: int) -> None:
        run("ip", "-n", self.worker.namespace, "link", "set", f"eth{cable}", "up")

    def start(self, host: Host, name: str, *arguments: str, **environment: str) -> Program:
        log = self.cluster.folder / f"{name}.log"
        prefix = ["ip", "netns", "exec", host.namespace]
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        program = Program(name, process, self.cluster.folder / name, log)
        self.cluster.programs.append(program)
        return program

    async def up(self, *more: str, **environment: str) -> Program:
        """Start the supervisor, which listens for agents wherever it wants."""
        data = self.cluster.folder / "supervisor"
        arguments = ["--data", str(data), "--no-agent", "--port", "0", *more]
        chosen = {"SUPERVISOR_HOST_LAYERS": "false", "SUPERVISOR_MEASURE_IDLE": "false"}
        chosen["SUPERVISOR_JOIN_PORT"] = "0"
        program = self.start(
            self.main, "supervisor", "supervisor", "up", *arguments, **(chosen | environment)
        )
        run_file = data / "run.json"

        async def is_up() -> bool:
            assert program.process.poll() is None, program.said()
            return run_file.exists()

        await eventually(is_up, within_s=START_S, what="the supervisor starts")
        self.url = json.loads(run_file.read_text())["url"]
        return program

    async def call(self, path: str, body: object = None, method: str = "") -> Any:
        """A request to the supervisor from its own host."""
        data = [] if body is None else ["--json", json.dumps(body)]
        data += ["-X", method] if method else []
        argv = ["curl", "-sS", "--fail-with-body", "--noproxy", "*", "--max-time", "55", *data]
        done = await asyncio.to_thread(
            subprocess.run,
            ["ip", "netns", "exec", self.main.namespace, *argv, f"{self.url}{path}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CALL_S,
        )
        assert done.returncode == 0, (path, done.stderr, done.stdout)
        return json.loads(done.stdout)

    async def join(self, *more: str) -> Program:
        """Join the worker and wait until it is ready."""
        code = (await self.call("/api/join-code", {}))["code"]
        data = str(self.cluster.folder / "worker")
        arguments = ["agents", "join", "-", "--data", data, "--name", "worker", "--threads", "1"]
        program = self.start(self.worker, "worker", *arguments, *more, **{CODE_VARIABLE: code})

        async def is_ready() -> bool:
            assert program.process.poll() is None, program.said()
            return bool((await self.device())["state"] == "ready")

        await eventually(is_ready, within_s=START_S, what="the worker is ready")
        return program

    async def device(self) -> dict[str, Any]:
        devices = await self.call("/api/devices")
        return devices[0] if devices else {"state": "", "wires": []}

    async def wire_in_use(self, far: str, *, within_s: float = 60.0) -> dict[str, Any]:
        """The device, once its tensors go to that address."""

        async def is_used() -> dict[str, Any] | None:
            device = await self.device()
            used = [wire["far"] for wire in device["wires"] if wire["in_use"]]
            return device if used == [far] else None

        what = f"tensors go to {far}"
        found: dict[str, Any] = await eventually(is_used, within_s=within_s, what=what)
        return found

    async def launch(self, model: Path, name: str, **spec: Any) -> dict[str, Any]:
        """Launch a model, wait until it is ready, and return the record of its launch."""
        found = await self.settled(model, name, **spec)
        assert found["state"] == "ready", found["reason"]
        record: dict[str, Any] = await self.call(f"/api/launches/{found['launch_id']}")
        return record

    async def settled(self, model: Path, name: str, **spec: Any) -> dict[str, Any]:
        """Launch a model, and wait until it is ready or has failed."""
        body = {"model": str(model), "name": name, "ctx_tokens": 512, "devices": ["worker"]}
        await self.call("/api/deployments", body | spec)

        async def is_settled() -> dict[str, Any] | None:
            deployment: dict[str, Any] = await self.call(f"/api/deployments/{name}")
            return deployment if deployment["state"] in ("ready", "failed") else None

        found: dict[str, Any] = await eventually(
            is_settled, within_s=90, what="the deployment settles"
        )
        return found

    async def command(self, *arguments: str) -> Any:
        """What our command line prints on the main host, as JSON."""
        program = [sys.executable, "-m", "supervisor", *arguments, "--url", self.url]
        return json.loads(await asyncio.to_thread(self.main.inside, *program))

    async def stop(self, name: str) -> None:
        await self.call(f"/api/deployments/{name}/stop", {})

        async def is_stopped() -> bool:
            is_idle = (await self.device())["used_by"] is None
            return is_idle and (await self.call(f"/api/deployments/{name}"))["state"] == "stopped"

        await eventually(is_stopped, within_s=60, what="the deployment is stopped")


@contextlib.contextmanager
def cabled(cluster: Cluster) -> Iterator[Cabled]:
    """Two hosts without any cable yet."""
    if any(shutil.which(program) is None for program in ("ip", "ss", "tc")):
        pytest.skip("iproute2 is not installed")
    hosts = [Host(f"lrs-{name}-w{os.getpid()}", n) for n, name in ((1, "main"), (2, "worker"))]
    made = []
    try:
        for host in hosts:
            try:
                run("ip", "netns", "add", host.namespace)
            except subprocess.CalledProcessError as exc:
                pytest.skip(f"not permitted here: network namespaces ({exc.stderr.strip()})")
            made.append(host)
            run("ip", "-n", host.namespace, "link", "set", "lo", "up")
        yield Cabled(hosts[0], hosts[1], cluster)
    finally:
        for host in made:
            run("ip", "netns", "del", host.namespace)
