"""Launches through links and without them, alike in all else, for ``bench/link.py``.

Both are timed from workers that are ready to the first 200 of ``/health``:

* direct: rpc-servers are started by hand and have answered HELLO. The clock starts just before
  llama-server is spawned and stops when a poll every 10 ms hears 200.
* link: "verified", "connected" and "loaded" of the launch's timeline, which begin when all workers
  are ready. So the link is charged with all that it does while llama-server is not there yet:
  handshakes that the start of the workers did not cover, weights that are sent ahead, and the
  record on disk. Planning and starting the workers count for neither.

The first token, which a launch needs as well before it is READY, is timed by itself on both sides.

The command of llama-server is that of the launch record, with other ports. Agents and rpc-servers
have one thread each; what stands for the network is ``tests/lab/relay.py``, in processes of its own
on the same machine.
"""

import asyncio
import contextlib
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from cluster import RUN_MARK, Cluster, Program, engine_headers, engine_pids, eventually, link_pids
from lab.links import Link, emulated_link

from agents import engine as engines
from agents import environment, logfile, ports, process
from agents.command import rpc_server_argv
from agents.contract import EngineFacts
from agents.rpc_protocol import Outcome, probe
from supervisor.adapters.llama_server import LlamaServerClient
from supervisor.demo_model import write_demo_model

LOOPBACK = "127.0.0.1"
NAME = "bench"
STEPS = ("verified", "connected", "loaded")
START_S = 15.0
READY_S = 600.0
REQUEST_S = 600.0
GRACE_S = 3.0
POLL_S = 0.01
LOOK_S = 0.25
REST_S = 4.0
"""Before each timed run: the process for the next links is started 3 s after the last launch."""

LAST_WORD_S = 0.7
"""Until the counters of the links are up to date; they are told twice a second."""

NO_KEEPALIVE = httpx.Limits(max_keepalive_connections=0)
"""llama-server sometimes closes a connection just when it is used again."""

FIRST_TOKEN = 300
TOKENS = 97
"""Prompts go round in this many words; what they are changes nothing."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Size:
    """A model to be made."""

    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int

    def split(self, workers: int) -> list[int]:
        """All layers and the output, on so many workers alike, the first having the odd ones."""
        each, odd = divmod(self.layers + 1, workers)
        return [each + (number < odd) for number in range(workers)]


SIZES = {
    "demo": Size(8, 512, 1024, 8, 4),
    "medium": Size(24, 1024, 1664, 16, 8),
    "large": Size(22, 1536, 4096, 16, 8),
}
"""Of 21, 212 and 609 MB."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that was made."""

    name: str
    path: Path
    size: Size

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def label(self) -> str:
        return f"{self.name}, {self.size_bytes / 1e6:.0f} MB"


@dataclass(frozen=True, slots=True)
class Wire:
    """A link as it shall be, the same in both directions; zeros do nothing."""

    rtt_ms: float = 0.0
    mbyte_per_s: float = 0.0

    def to(self, port: int) -> AbstractAsyncContextManager[Link]:
        """A relay to what listens there."""
        rate = self.mbyte_per_s * 1e6
        return emulated_link(port, one_way_delay_s=self.rtt_ms / 2e3, rate_bytes_per_s=rate)


UNSHAPED = Wire()


@dataclass(frozen=True, slots=True)
class Ready:
    """A llama-server that serves, and how long that took."""

    port: int
    took_s: float
    argv: list[str] = field(default_factory=list)
    launch_id: int = 0
    steps: dict[str, float] = field(default_factory=dict)
    """All of the launch's timeline, from the request to the first token."""
    up_bytes: int = 0
    """Towards the workers, where relays count them."""

    @property
    def headers(self) -> dict[str, str]:
        """For who asks it."""
        return engine_headers(self.argv)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request took, by llama-server's own clock."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    text: str


class Bench:
    """The engine, and a folder for everything; models are made once.

    Nothing is deleted before the end: where thousands of chunks were just deleted, ext4 takes much
    longer to make new ones.
    """

    def __init__(self, engine: EngineFacts, folder: Path) -> None:
        self.engine = engine
        self._folder = folder
        self._models: dict[str, Model] = {}
        self._folders = 0

    def folder(self) -> Path:
        """A new one."""
        self._folders += 1
        made = self._folder / f"run-{self._folders}"
        made.mkdir()
        return made

    async def model(self, name: str) -> Model:
        if name not in self._models:
            say(f"making the {name} model")
            path, size = self._folder / f"{name}.gguf", SIZES[name]
            sizes = {each: getattr(size, each) for each in Size.__slots__}
            await asyncio.to_thread(write_demo_model, path, recite=False, **sizes)
            self._models[name] = Model(name, path, size)
        return self._models[name]

    @asynccontextmanager
    async def cluster(self, workers: int, wire: Wire = UNSHAPED) -> AsyncIterator["Linked"]:
        """A supervisor that knows nothing, and agents without weights."""
        folder = self.folder()
        (folder / "no-models").mkdir()
        async with AsyncExitStack() as stack:
            made = Linked(Cluster(folder), stack)
            stack.push_async_callback(made.cluster.close)
            await made.cluster.supervisor()
            for number in range(workers):
                await made.join(f"worker-{number}", wire)
            yield made

    @asynccontextmanager
    async def direct(
        self, argv: Sequence[str], workers: int, wire: Wire = UNSHAPED
    ) -> AsyncIterator[Ready]:
        """The llama-server of a launch, over rpc-servers that nobody protects."""
        folder = self.folder()
        async with AsyncExitStack() as stack:
            bare = [await self._bare(stack, folder, number, wire) for number in range(workers)]
            reservation = _reserved(stack)
            endpoints = ",".join(f"{LOOPBACK}:{each.port}" for each in bare)
            own = with_options(argv, {"--rpc": endpoints, "--port": str(reservation)})
            started_s = time.monotonic()
            child = await self._started(stack, "llama-server", own, folder)
            await _healthy(child, reservation)
            took_s = time.monotonic() - started_s
            up_bytes = sum([await each.up_bytes() for each in bare])
            yield Ready(reservation, took_s, own, up_bytes=up_bytes)

    async def rpc_server(self, stack: AsyncExitStack, folder: Path, name: str) -> int:
        """Port of one that answers."""
        port = _reserved(stack)
        argv = rpc_server_argv(self.engine.rpc_server, LOOPBACK, port, 1, [])
        await self._started(stack, f"rpc-server {name}", argv, folder)
        async with asyncio.timeout(START_S):
            while (await probe(LOOPBACK, port, deadline_s=2)).outcome is not Outcome.READY:
                await asyncio.sleep(POLL_S)
        return port

    async def _bare(self, stack: AsyncExitStack, folder: Path, number: int, wire: Wire) -> "_Bare":
        port = await self.rpc_server(stack, folder, str(number))
        if wire == UNSHAPED:
            return _Bare(port, None)
        link = await stack.enter_async_context(wire.to(port))
        return _Bare(link.port, link)

    async def _started(
        self, stack: AsyncExitStack, name: str, argv: Sequence[str], folder: Path
    ) -> process.Child:
        ours = {"GGML_NO_BACKTRACE": "1", "XDG_CONFIG_HOME": str(folder / "no-config")}
        child = await process.spawn(
            name,
            argv,
            log_path=folder / f"{name}-0.log",
            environment=environment.for_engine(engines.inherited(), ours),
        )
        stack.push_async_callback(child.stop, grace_s=GRACE_S)
        return child


@dataclass(frozen=True, slots=True)
class _Bare:
    """An rpc-server as llama-server finds it; ``link`` stands for the network."""

    port: int
    link: Link | None

    async def up_bytes(self) -> int:
        return (await self.link.traffic()).up_bytes if self.link else 0


class Linked:
    """A cluster whose links may lead through relays; at most one launch at a time."""

    def __init__(self, cluster: Cluster, stack: AsyncExitStack) -> None:
        self.cluster = cluster
        self.workers: list[str] = []
        self.agents: dict[str, Program] = {}
        self.link_ports: dict[str, int] = {}
        self._stack = stack
        self._relays: list[Link] = []
        self._places: dict[str, list[str]] = {}

    async def join(self, name: str, wire: Wire, *, serves: bool = True) -> None:
        """Add an agent; launches use it if it ``serves``."""
        if serves:
            self.workers.append(name)
        port = self.link_ports[name] = _reserved(self._stack)
        models = str(self.cluster.folder / "no-models")
        self._places[name] = ["--link-port", str(port), "--models", models]
        if wire != UNSHAPED:
            link = await self._stack.enter_async_context(wire.to(port))
            self._relays.append(link)
            self._places[name] += ["--link-address", f"{LOOPBACK}:{link.port}"]
        await self._start(name)

    async def restart_agents(self) -> None:
        """End every agent and start it anew; each keeps its data folder."""
        for name, program in self.agents.items():
            await asyncio.to_thread(program.stop)
            await self._start(name)

    async def _start(self, name: str) -> None:
        self.agents[name] = await self.cluster.agent(name, *self._places[name])

        async def is_heard() -> bool:
            device = await self.cluster.device(name)
            return bool(device and device["rpc_server"]["generation"] == 0)

        await eventually(is_heard, within_s=START_S, what=f"{name}, which has served nothing yet")

    async def launch(self, model: Model, ctx_tokens: int = 512) -> Ready:
        """Launch over all workers, and wait until it is ready."""
        before_bytes = await self._up_bytes()
        spec = {
            "model": str(model.path),
            "name": NAME,
            "ctx_tokens": ctx_tokens,
            "order": self.workers,
            "split": model.size.split(len(self.workers)),
        }
        answer = await self.cluster.http.post("/api/deployments", json=spec)
        if answer.status_code != 201:
            raise RuntimeError(f"the launch was refused: {answer.text}")
        deployment = await self._settled()
        record = await self._record(deployment["launch_id"])
        took_s = {step["name"]: step["took_s"] for step in record["timeline"]}
        return Ready(
            deployment["port"],
            sum(took_s[name] for name in STEPS),
            record["argv"],
            deployment["launch_id"],
            took_s,
            await self._up_bytes() - before_bytes,
        )

    async def stop(self, ready: Ready) -> list[dict[str, Any]]:
        """End it; returns what its links have counted."""
        await asyncio.sleep(LAST_WORD_S)
        answer = await self.cluster.http.post(f"/api/deployments/{NAME}/stop")
        answer.raise_for_status()
        links: list[dict[str, Any]] = (await self._record(ready.launch_id))["links"]
        return links

    async def _settled(self) -> dict[str, Any]:
        """Looked at seldom, so that it takes nothing from what is timed."""
        async with asyncio.timeout(READY_S):
            while True:
                await asyncio.sleep(LOOK_S)
                answer = await self.cluster.http.get(f"/api/deployments/{NAME}")
                deployment: dict[str, Any] = answer.json()
                if deployment["state"] == "ready":
                    return deployment
                if deployment["state"] in ("failed", "backoff", "stopped"):
                    raise RuntimeError(f"the launch {deployment['state']}: {deployment['reason']}")

    async def _record(self, launch_id: int) -> dict[str, Any]:
        found: dict[str, Any] = (await self.cluster.http.get(f"/api/launches/{launch_id}")).json()
        return found

    async def _up_bytes(self) -> int:
        return sum([(await relay.traffic()).up_bytes for relay in self._relays])


async def ask(ready: Ready, prompt: int, tokens: int) -> Answer:
    """One greedy request to a llama-server; nothing of an earlier one is used again."""
    request = {
        "prompt": [FIRST_TOKEN + number % TOKENS for number in range(prompt)],
        "n_predict": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    url = f"http://{LOOPBACK}:{ready.port}"
    async with httpx.AsyncClient(
        base_url=url,
        headers=ready.headers,
        trust_env=False,
        timeout=REQUEST_S,
        limits=NO_KEEPALIVE,
    ) as http:
        answer = await http.post("/completion", json=request)
    answer.raise_for_status()
    said = answer.json()
    timings = said["timings"]
    assert timings["predicted_n"] == tokens, timings
    return Answer(timings["prompt_per_second"], timings["predicted_per_second"], said["content"])


async def first_token_s(ready: Ready) -> float:
    """Of the request by which the supervisor proves that a launch is ready."""
    key = ready.headers.get("authorization", "").removeprefix("Bearer ")
    client = LlamaServerClient(ready.port, key)
    try:
        started_s = time.monotonic()
        await client.first_completion(REQUEST_S)
        return time.monotonic() - started_s
    finally:
        await client.close()


async def rest() -> None:
    """Let disk and spare processes come to rest before something is timed."""
    await asyncio.to_thread(os.sync)
    await asyncio.sleep(REST_S)


async def _healthy(child: process.Child, port: int) -> None:
    url = f"http://{LOOPBACK}:{port}"
    async with (
        asyncio.timeout(READY_S),
        httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as http,
    ):
        while True:
            if child.exit_status is not None:
                tail = " / ".join(logfile.tail(child.log_path, 3))
                raise RuntimeError(f"{process.describe_exit(child.exit_status)}: {tail}")
            with contextlib.suppress(httpx.TransportError):
                if (await http.get("/health")).status_code == 200:
                    return
            await asyncio.sleep(POLL_S)


def with_options(argv: Sequence[str], options: dict[str, str]) -> list[str]:
    """The same command with other values of some of its options."""
    own = list(argv)
    for name, value in options.items():
        own[own.index(name) + 1] = value
    return own


def _reserved(stack: AsyncExitStack) -> int:
    reservation = ports.reserve(LOOPBACK)
    stack.callback(reservation.release)
    return reservation.port


# -- one run of a program --------------------------------------------------------------------------


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


async def with_bench(folder: Path | None, work: Callable[[Bench], Coroutine[Any, Any, T]]) -> T:
    """Find the engine and make a folder; nothing is left however the work ends."""
    os.environ["TMPDIR_MARK_OF_TESTS"] = RUN_MARK
    found = engines.discover(engines.inherited())
    assert found, "no llama.cpp programs: run 'uv sync', which builds them, or set LLAMA_CPP_BIN"
    engine = await engines.inspect(found[0], engines.inherited())
    assert not engine.problem, engine.problem
    made = Path(tempfile.mkdtemp(prefix="bench-link-", dir=folder))
    try:
        return await work(Bench(engine, made))
    finally:
        _sweep()
        shutil.rmtree(made, ignore_errors=True)


def _sweep() -> None:
    """Nothing of ours should run any more; what does is named."""
    for pid in (*engine_pids(), *link_pids()):
        say(f"process {pid} was left behind; it is killed")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``; SIGTERM cleans up as Ctrl-C does, in the background too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    return asyncio.run(work)


def machine(engine: EngineFacts | None = None) -> dict[str, Any]:
    """What figures depend on."""
    facts = {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    return facts | ({"llama_cpp": f"{engine.build} (RPC {engine.rpc_protocol})"} if engine else {})


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def header(facts: dict[str, Any]) -> str:
    """The facts in one line."""
    engine = f", llama.cpp {facts['llama_cpp']}" if "llama_cpp" in facts else ""
    return (
        f"{facts['cores']} cores ({facts['processor']}), {facts['system']}, Python "
        f"{facts['python']}{engine}; load average at the start {facts['load_average']}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """A table in Markdown; the first ``left`` columns are text."""
    rules = ["---" if number < left else "--:" for number in range(len(head))]
    lines = [head, rules, *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def in_turn(kinds: Sequence[T], number: int) -> Iterator[T]:
    """Forward in one pair, backward in the next."""
    return iter(kinds) if number % 2 else reversed(kinds)
