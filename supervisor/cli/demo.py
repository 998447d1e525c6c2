"""``supervisor demo``: the whole way on one machine, with real programs, and the facts of it."""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from agents import logfile, ports, process
from agents.agent import STOP_SIGNALS
from agents.cli import CODE_VARIABLE
from agents.facts import usable_cores
from agents.process import Child
from supervisor.cli import output
from supervisor.core.commands import shell_command
from supervisor.demo_model import write_demo_model
from supervisor.errors import DeploymentNotReady, SupervisorUnreachable

_START_S = 60.0
_LAUNCH_S = 600.0
_GRACE_S = 15.0
_DASHBOARD_PORT = 8100
_QUESTION = "What happened just now?"
_MAX_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; ``port`` is the dashboard's, ``None`` the usual or any."""

    workers: int
    model: Path | None
    once: bool
    as_json: bool
    port: int | None


async def run(options: Options) -> None:
    """Start everything, ask one question, print the facts, and clean up.

    Raises:
        ProjectError: A part did not start; says which and why.
    """
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    folder = Path(tempfile.mkdtemp(prefix="supervisor-demo-"))
    children = _Children(folder)
    work = asyncio.create_task(_demo(options, children, folder))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        work.cancel()
        stopping.cancel()
        await asyncio.gather(work, stopping, return_exceptions=True)
        # Not a part of that work: whatever ends it must not cut this short.
        await children.stop()
        shutil.rmtree(folder, ignore_errors=True)
    if not work.cancelled():
        work.result()


async def _demo(options: Options, children: "_Children", folder: Path) -> None:
    async with AsyncExitStack() as stack:
        show = _Steps(stack.enter_context(_progress(options.as_json)))
        making = asyncio.create_task(_made_model(folder, options.model))
        url = await show("starting the supervisor", _supervisor(children, folder, options.port))
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, timeout=30, trust_env=False)
        )
        await show(
            f"joining {options.workers} devices",
            _agents(children, http, folder, options.workers),
        )
        path = await show("making a small model", making)
        launching = _launch(http, path, options.workers, show.describe)
        launched = await show("launching", launching)
        answer = await show("asking", _ask(http, launched["id"]))
        facts = await _facts(http, url, launched, answer)
        show.finish()
        output.print_json(facts) if options.as_json else _print(facts, options.once)
        if not options.once:
            await asyncio.Event().wait()


def _progress(quiet: bool) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=output.errors,
        transient=True,
        disable=quiet,
    )


class _Steps:
    """One line of progress that says which step is going on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def describe(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    async def __call__(self, text: str, work: Awaitable[Any]) -> Any:
        self.describe(text)
        return await work

    def finish(self) -> None:
        self._progress.stop()


async def _made_model(folder: Path, model: Path | None) -> Path:
    if model is not None:
        return model.expanduser().resolve()
    path = folder / "demo.gguf"
    await asyncio.to_thread(write_demo_model, path)
    return path


class _Children:
    """Programs of ours: the supervisor, then the agents. None outlives the demo."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[Child] = []

    async def start(self, name: str, argv: list[str], environment: dict[str, str]) -> Child:
        child = await process.spawn(
            name,
            argv,
            log_path=self._folder / f"{name}-1.log",
            environment={**os.environ, **environment},
            # SIGTERM, not SIGKILL: they must still end their own children.
            parent_death_signal=signal.SIGTERM,
        )
        self._started.append(child)
        return child

    async def stop(self) -> None:
        """The supervisor first, since it ends its launch through the agents."""
        for child in self._started[:1]:
            await child.stop(grace_s=_GRACE_S)
        await asyncio.gather(*(child.stop(grace_s=_GRACE_S) for child in self._started[1:]))


async def _supervisor(children: _Children, folder: Path, port: int | None) -> str:
    """Start a supervisor; returns its URL."""
    if port is None:
        port = _DASHBOARD_PORT if ports.is_free("127.0.0.1", _DASHBOARD_PORT) else 0
    data = folder / "supervisor"
    argv = [sys.executable, "-m", "supervisor", "up", "--data", str(data), "--no-agent"]
    argv += ["--port", str(port), "--join-host", "127.0.0.1", "--join-port", "0"]
    # A model this small belongs on one device; the demo is to show several. It has no key.
    chosen = {"SUPERVISOR_HOST_LAYERS": "false", "SUPERVISOR_KEYLESS_LOOPBACK": "all"}
    child = await children.start("supervisor", argv, chosen)
    run_file = data / "run.json"
    deadline_s = time.monotonic() + _START_S
    while not run_file.exists():
        _check_alive(child, deadline_s)
        await asyncio.sleep(0.05)
    return str(json.loads(run_file.read_text())["url"])


def _check_alive(child: Child, deadline_s: float) -> None:
    if child.exit_status is not None or time.monotonic() > deadline_s:
        last = logfile.tail(child.log_path, 1) or ["it printed nothing"]
        raise SupervisorUnreachable(f"the {child.name} did not start: {last[0]}")


async def _agents(children: _Children, http: httpx.AsyncClient, folder: Path, workers: int) -> None:
    """Start the agents and wait until all their devices are ready."""
    code = (await http.post("/api/join-code")).json()["code"]
    threads = max(usable_cores() // workers, 1)
    started = []
    for number in range(1, workers + 1):
        name = f"worker-{number}"
        argv = [sys.executable, "-m", "agents", "join", "-", "--data", str(folder / name)]
        argv += ["--name", name, "--threads", str(threads)]
        started.append(await children.start(name, argv, {CODE_VARIABLE: code}))
    deadline_s = time.monotonic() + _START_S
    while True:
        devices = (await http.get("/api/devices")).json()
        if sum(device["state"] == "ready" for device in devices) >= workers:
            return
        for child in started:
            _check_alive(child, deadline_s)
        broken = [d for d in devices if d["state"] in ("unusable", "incompatible")]
        if broken:
            raise SupervisorUnreachable(f"{broken[0]['name']}: {broken[0]['reason']}")
        await asyncio.sleep(0.05)


async def _launch(
    http: httpx.AsyncClient, path: Path, workers: int, describe: Callable[[str], None]
) -> dict[str, Any]:
    """Launch the model over all workers; returns the deployment once it is ready."""
    names = [f"worker-{number}" for number in range(1, workers + 1)]
    spec = {"model": str(path), "name": "demo", "ctx_tokens": 2048, "devices": names}
    response = await http.post("/api/deployments", json=spec)
    deployment: dict[str, Any] = response.json()
    if response.is_error:
        raise DeploymentNotReady(deployment["detail"])
    deadline_s = time.monotonic() + _LAUNCH_S
    while deployment["state"] != "ready":
        if deployment["state"] == "failed" or time.monotonic() > deadline_s:
            raise DeploymentNotReady(deployment["reason"] or "the launch took too long")
        describe(f"launching: {deployment['phase'] or deployment['state']}")
        await asyncio.sleep(0.1)
        deployment = (await http.get("/api/deployments/demo")).json()
    return deployment


async def _ask(http: httpx.AsyncClient, model: str) -> dict[str, Any]:
    """Stream one chat completion; returns its text and its numbers."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": _QUESTION}],
        "max_tokens": _MAX_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    started_s = time.monotonic()
    first_s = None
    text = ""
    timings: dict[str, Any] = {}
    async with http.stream("POST", "/v1/chat/completions", json=request, timeout=300) as answer:
        if answer.is_error:
            raise DeploymentNotReady((await answer.aread()).decode(errors="replace"))
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            timings = chunk.get("timings", timings)
            for choice in chunk.get("choices", ()):
                piece = choice["delta"].get("content") or ""
                if piece and first_s is None:
                    first_s = time.monotonic() - started_s
                text += piece
    return {
        "question": _QUESTION,
        "answer": text.strip(),
        "time_to_first_token_s": round(first_s or 0.0, 3),
        "tokens": timings.get("predicted_n"),
        "tokens_per_second": round(timings.get("predicted_per_second", 0.0), 1),
    }


async def _facts(
    http: httpx.AsyncClient, url: str, launched: dict[str, Any], answer: dict[str, Any]
) -> dict[str, Any]:
    record = (await http.get(f"/api/launches/{launched['launch_id']}")).json()
    devices = (await http.get("/api/devices")).json()
    return {
        "dashboard": url,
        "openai_endpoint": f"{url}/v1",
        "devices": devices,
        "plan": record["plan"],
        "command": record["argv"],
        "environment": record["environment"],
        "workers": record["workers"],
        "timeline": record["timeline"],
        "completion": answer,
    }


def _print(facts: dict[str, Any], once: bool) -> None:
    say = output.console.print
    say(output.devices_table(facts["devices"]))
    say()
    say(output.plan_table(facts["plan"]))
    say()
    say("[bold]llama-server command[/]")
    say("  " + escape(shell_command(facts["command"])))
    say("[bold]environment[/]")
    for name, value in facts["environment"].items():
        say(f"  {name}={escape(value)}")
    say()
    say("[bold]timeline[/]  " + output.timeline_text(facts["timeline"]))
    total_s = facts["timeline"][-1]["at_s"]
    answer = facts["completion"]
    say(f"           {total_s:.2f} s from the request to the first token")
    say()
    say(f"[bold]{escape(answer['question'])}[/]")
    say(escape(answer["answer"]))
    say(
        f"[dim]{answer['tokens']} tokens, {answer['tokens_per_second']} tokens per second, "
        f"first token after {answer['time_to_first_token_s']} s[/]"
    )
    say()
    say(
        f"[bold]dashboard[/]  {facts['dashboard']}    "
        f"[bold]OpenAI API[/]  {facts['openai_endpoint']}"
    )
    if not once:
        say("[dim]Ctrl-C stops everything[/]")
