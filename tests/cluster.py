"""A real supervisor with real agents, as separate processes on loopback, for tests and benches."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from agents.cli import CODE_VARIABLE

START_S = 30.0
RUN_MARK = f"SUPERVISOR_TEST_RUN_{os.getpid()}"
"""Carried in the environment of every process of this run: orphans can be told from strangers."""


async def eventually(check: Callable[[], Awaitable[Any]], *, within_s: float, what: str) -> Any:
    """Wait for a condition with a deadline; the failure says what was waited for."""
    deadline_s = time.monotonic() + within_s
    while True:
        if result := await check():
            return result
        assert time.monotonic() < deadline_s, f"{what}: not within {within_s} s"
        await asyncio.sleep(0.05)


@dataclass
class Program:
    """One of our programs, running."""

    name: str
    process: subprocess.Popen[bytes]
    folder: Path
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, number: signal.Signals = signal.SIGTERM, *, within_s: float = 15.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(within_s)


@dataclass
class Cluster:
    """A supervisor and its agents on loopback, each in a folder of its own."""

    folder: Path
    programs: list[Program] = field(default_factory=list)
    url: str = ""
    http: httpx.AsyncClient = field(default_factory=httpx.AsyncClient)

    def run(self, name: str, *arguments: str, environment: dict[str, str] | None = None) -> Program:
        """Start one of our programs; ``arguments`` begin with the module."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        program = Program(name, process, self.folder / name, log)
        self.programs.append(program)
        return program

    async def supervisor(
        self,
        *,
        port: int = 0,
        join_port: int = 0,
        environment: dict[str, str] | None = None,
        **settings: object,
    ) -> Program:
        """Start the supervisor and wait until it answers.

        The main host's processor is left to the agents, which all run on it here, and nothing is
        measured unless it is asked for. Nor does llama-server keep prompts, as if they were remote.
        """
        chosen = {"host_layers": "false", "measure_idle": "false", "prompt_cache_mib": 0} | settings
        named = {f"SUPERVISOR_{k.upper()}": str(v) for k, v in chosen.items()}
        data = self.folder / "supervisor"
        arguments = ["supervisor", "up", "--data", str(data), "--no-agent", "--port", str(port)]
        arguments += ["--join-host", "127.0.0.1", "--join-port", str(join_port)]
        program = self.run("supervisor", *arguments, environment={**named, **(environment or {})})
        run_file = data / "run.json"

        async def is_up() -> bool:
            assert program.process.poll() is None, program.said()
            return run_file.exists() and json.loads(run_file.read_text())["pid"] == (
                program.process.pid
            )

        await eventually(is_up, within_s=START_S, what="the supervisor starts")
        self.url = json.loads(run_file.read_text())["url"]
        await self.http.aclose()
        self.http = httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False)
        return program

    @property
    def engine_headers(self) -> dict[str, str]:
        """For who asks a llama-server of this cluster itself."""
        return _authorization(self.folder / "supervisor" / "engine.key")

    async def code(self, **params: Any) -> str:
        answer = await self.http.post("/api/join-code", params=params)
        return str(answer.json()["code"])

    async def agent(self, name: str, *extra: str, wait: bool = True) -> Program:
        """Join a device and wait until it is ready."""
        data = str(self.folder / name)
        arguments = ["agents", "join", "-", "--data", data, "--name", name, "--threads", "1"]
        environment = {CODE_VARIABLE: await self.code()}
        program = self.run(name, *arguments, *extra, environment=environment)
        if wait:
            await self.device_state(name, "ready")
        return program

    async def device(self, name: str) -> dict[str, Any] | None:
        devices = (await self.http.get("/api/devices")).json()
        return next((d for d in devices if d["name"] == name), None)

    async def device_state(
        self, name: str, state: str, within_s: float = START_S
    ) -> dict[str, Any]:
        async def has_state() -> dict[str, Any] | None:
            device = await self.device(name)
            return device if device and device["state"] == state else None

        found: dict[str, Any] = await eventually(
            has_state, within_s=within_s, what=f"{name} becomes {state}"
        )
        return found

    async def launch(self, model: Path, **spec: Any) -> httpx.Response:
        """Launch over all ready devices, by name, unless ``spec`` names some.

        The planner itself would put such small models on one device.
        """
        body = {"model": str(model), "name": "test", "ctx_tokens": 512, **spec}
        if "devices" not in spec:
            devices = (await self.http.get("/api/devices")).json()
            ready = (d for d in devices if d["state"] == "ready" and not d["used_by"])
            body["order"] = sorted(d["name"] for d in ready)
        return await self.http.post("/api/deployments", json=body)

    async def settled(self, name: str = "test", within_s: float = 60.0) -> dict[str, Any]:
        """The deployment once it is ready, failed or stopped."""
        return await self.settled_as("ready", "failed", "stopped", name=name, within_s=within_s)

    async def settled_as(
        self, *states: str, name: str = "test", within_s: float = 60.0
    ) -> dict[str, Any]:
        """The deployment once it has one of these states."""

        async def is_settled() -> dict[str, Any] | None:
            deployment: dict[str, Any] = (await self.http.get(f"/api/deployments/{name}")).json()
            return deployment if deployment["state"] in states else None

        what = f"{name} becomes {' or '.join(states)}"
        found: dict[str, Any] = await eventually(is_settled, within_s=within_s, what=what)
        return found

    async def complete(self, prompt: str = "Hello", tokens: int = 16, **more: Any) -> str:
        """Greedy completion through the OpenAI endpoint."""
        body = {"model": "test", "prompt": prompt, "max_tokens": tokens, "temperature": 0, **more}
        answer = await self.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    async def close(self) -> None:
        await self.http.aclose()
        for program in self.programs:
            if program.process.poll() is None:
                program.process.terminate()
        for program in self.programs:
            try:
                program.process.wait(15)
            except subprocess.TimeoutExpired:
                program.process.kill()
                program.process.wait()


def engine_headers(argv: Sequence[str]) -> dict[str, str]:
    """For who asks the llama-server of that command."""
    if "--api-key-file" not in argv:
        return {}
    return _authorization(Path(argv[argv.index("--api-key-file") + 1]))


def _authorization(key_file: Path) -> dict[str, str]:
    return {"authorization": f"Bearer {key_file.read_text().strip()}"}


def engine_pids() -> list[int]:
    """Live llama.cpp processes started by this test run (their environment names the run)."""
    names = ("llama-server", "ggml-rpc-server", "rpc-server")
    return [pid for pid, program, _ in _of_this_run() if program in names]


def link_pids() -> list[int]:
    """Live link processes started by this test run."""
    return [pid for pid, _, argv in _of_this_run() if "supervisor.link" in argv]


def _of_this_run() -> Iterator[tuple[int, str, list[str]]]:
    """(pid, program, command line) of what lives."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            program = (entry / "exe").resolve().name
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            environ = (entry / "environ").read_bytes()
            argv = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if state != "Z" and RUN_MARK.encode() in environ:
            yield int(entry.name), program, argv
