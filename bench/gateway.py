"""What the gateway adds to llama-server, and what waiting clients cost: interleaved pairs.

    uv run python bench/gateway.py
    uv run python bench/gateway.py --only first-token --pairs 1000
    uv run python bench/gateway.py --quick

first-token  time to the first token of a short chat, one client
speed        tokens per second at 1, 4 and 16 streams of a model of 222 MB
crowd        500 streams that wait or do not read: memory of the supervisor, speed of the others
cost         processor time of the supervisor per streamed token

Two deployments of one worker each, as a user has them, linked over loopback; workers have one
thread. The client of both ways is the same small program (``bench/gateway_client.py``), which opens
a new connection for each request. Directly means llama-server's own port, with its key.
"""

import argparse
import asyncio
import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from cluster import Cluster
from gateway_client import Arm

from agents.facts import cpu_seconds, resident_bytes
from supervisor.demo_model import write_demo_model

PARTS: Final = ("first-token", "speed", "crowd", "cost")
LARGE: Final[dict[str, Any]] = {
    "layers": 24,
    "embedding": 1024,
    "feed_forward": 1792,
    "heads": 16,
    "kv_heads": 8,
}
SLOTS: Final = 16
SLOT_TOKENS: Final = 2048
STREAMS: Final = (1, 4, 16)
ACTIVE: Final = 4
"""Streams that go on while others wait; the large deployment of that part has no more slots."""

WARM_UP: Final = 10
SETTLE_S: Final = 1.0
WORDS: Final = ("water", "river", "family", "song", "world", "music", "hand", "story")


@dataclass(frozen=True)
class Size:
    """How much of everything is run."""

    pairs: int
    speed_pairs: int
    tokens: int
    """Per stream of a run."""
    crowd: int
    crowd_turns: int
    window_s: float
    cost_tokens: int


WHOLE: Final = Size(500, 8, 96, 500, 4, 10.0, 400)
QUICK: Final = Size(20, 2, 24, 40, 1, 2.0, 60)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def chat(number: int, tokens: int) -> dict[str, Any]:
    """A request whose prompt no other number shares."""
    content = f"Tell me of the {WORDS[number % len(WORDS)]}, {number}."
    messages = [{"role": "user", "content": content}]
    return {"messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True}


def chats(count: int, tokens: int, model: str) -> list[dict[str, Any]]:
    return [{**chat(number, tokens), "model": model} for number in range(count)]


class Client:
    """``bench/gateway_client.py``, running."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Have something done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"the client ended while it should {do}")
        return json.loads(line)


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[Client]:
    program = str(Path(__file__).parent / "gateway_client.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        program,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 24,
    )
    try:
        yield Client(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass(frozen=True)
class Arms:
    """The two ways to one deployment."""

    gateway: Arm
    direct: Arm

    def of(self, name: str) -> dict[str, Any]:
        return asdict(getattr(self, name))


@dataclass
class Bench:
    """What all parts need."""

    cluster: Cluster
    models: dict[str, Path]
    pid: int
    """Of the supervisor."""
    size: Size

    @contextlib.asynccontextmanager
    async def deployed(self, model: str, slots: int) -> AsyncIterator[Arms]:
        """A deployment of a model on the worker of the same name."""
        spec = {"name": model, "slots": slots, "ctx_tokens": slots * SLOT_TOKENS}
        answer = await self.cluster.launch(self.models[model], devices=[model], **spec)
        assert answer.status_code == 201, answer.text
        found = await self.cluster.settled(model)
        assert found["state"] == "ready", found["reason"]
        port = self.cluster.http.base_url.port
        assert port is not None
        headers = dict(self.cluster.engine_headers)
        yield Arms(Arm(port, {}), Arm(found["port"], headers))
        await self.cluster.http.post(f"/api/deployments/{model}/stop")
        await self.cluster.settled_as("stopped", name=model)
        await self.cluster.http.delete(f"/api/deployments/{model}")

    async def is_quiet(self, model: str) -> None:
        """Wait until no slot of a deployment is busy."""
        quiet = 0
        while quiet < 3:
            slots = (await self.cluster.http.get("/slots", params={"model": model})).json()
            quiet = 0 if any(slot["is_processing"] for slot in slots) else quiet + 1
            await asyncio.sleep(0.1)

    def resident_kib(self) -> float:
        return (resident_bytes(self.pid) or 0) / 1024

    def cpu_s(self) -> float:
        return cpu_seconds(self.pid) or 0.0


def order(number: int) -> tuple[str, str]:
    """Who is first in a pair changes from one to the next."""
    return ("gateway", "direct") if number % 2 else ("direct", "gateway")


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


# -- the parts -------------------------------------------------------------------------------------


async def first_token(bench: Bench) -> dict[str, Any]:
    async with bench.deployed("small", SLOTS) as arms, client() as reader:
        ways = {"gateway": "gateway", "direct": "direct", "again": "direct"}
        asked = {name: arms.of(way) for name, way in ways.items()}
        body = {**chat(0, 4), "model": "small"}
        await reader.ask("turns", arms=asked, body=body, count=WARM_UP)
        found = await reader.ask("turns", arms=asked, body=body, count=bench.size.pairs)
    added = [g - d for g, d in zip(found["gateway"], found["direct"], strict=True)]
    noise = [a - d for a, d in zip(found["again"], found["direct"], strict=True)]
    tails = {name: percentile(values, 0.99) for name, values in found.items()}
    return {
        "pairs": bench.size.pairs,
        "direct_median_ms": ms(statistics.median(found["direct"])),
        "direct_p99_ms": ms(tails["direct"]),
        "gateway_median_ms": ms(statistics.median(found["gateway"])),
        "gateway_p99_ms": ms(tails["gateway"]),
        "added_median_ms": ms(statistics.median(added)),
        "added_p99_ms": ms(percentile(added, 0.99)),
        "p99_minus_p99_ms": ms(tails["gateway"] - tails["direct"]),
        # The same difference between one direct request and another.
        "noise_median_ms": ms(statistics.median(noise)),
        "noise_p99_ms": ms(percentile(noise, 0.99)),
        "goal": "added: median 3 ms, p99 10 ms",
        "all": found,
    }


async def speed(bench: Bench) -> dict[str, Any]:
    told: dict[str, Any] = {"goal": "ratio 0.97", "all": {}}
    async with bench.deployed("large", SLOTS) as arms, client() as reader:
        for streams in STREAMS:
            bodies = chats(streams, bench.size.tokens, "large")
            for name in ("direct", "gateway"):
                await reader.ask("run", arm=arms.of(name), bodies=bodies)
            rates: dict[str, list[float]] = {"gateway": [], "direct": []}
            for number in range(bench.size.speed_pairs):
                for name in order(number):
                    ran = await reader.ask("run", arm=arms.of(name), bodies=bodies)
                    assert ran["tokens"] == streams * bench.size.tokens, ran
                    rates[name].append(ran["tokens"] / ran["took_s"])
            ratios = [g / d for g, d in zip(rates["gateway"], rates["direct"], strict=True)]
            told["all"][streams] = rates
            told[f"{streams}_streams"] = {
                "pairs": len(ratios),
                "direct_tokens_per_s": round(statistics.median(rates["direct"]), 2),
                "gateway_tokens_per_s": round(statistics.median(rates["gateway"]), 2),
                "median_ratio": round(statistics.median(ratios), 4),
                "least_ratio": round(min(ratios), 4),
            }
            say(f"speed, {streams} streams: {told[f'{streams}_streams']}")
    return told


async def crowd(bench: Bench) -> dict[str, Any]:
    """Active streams of one deployment, and a crowd that waits for it, or for nothing.

    Streams that wait are in the queue of the same deployment; they hear a comment every ten
    seconds, so all of them do in each window. Those that do not read have had their answers from
    another deployment, which wait in the kernel.
    """
    async with (
        bench.deployed("large", ACTIVE) as arms,
        bench.deployed("small", SLOTS),
        client() as reader,
        client() as holder,
    ):
        told: dict[str, Any] = {"goal": "100 KiB per stream, active ones 5 % slower at most"}
        for kind, model in (("queued", "large"), ("unread", "small")):
            turns = [
                await _turn(bench, arms, reader, holder, model)
                for _ in range(bench.size.crowd_turns)
            ]
            ratios = [turn["ratio"] for turn in turns]
            told[kind] = {
                "streams": bench.size.crowd,
                "turns": len(turns),
                # What is left free after the first time is used again.
                "kib_per_stream": turns[0]["kib_per_stream"],
                "active_median_ratio": round(statistics.median(ratios), 4),
                "active_least_ratio": round(min(ratios), 4),
                "all": turns,
            }
            say(f"crowd, {kind}: {turns}")
        return told


async def _turn(
    bench: Bench, arms: Arms, reader: Client, holder: Client, model: str
) -> dict[str, Any]:
    """Speed of the active streams without a crowd, with it, and without it again."""
    size, arm = bench.size, arms.of("gateway")
    bodies = chats(ACTIVE, SLOT_TOKENS - 100, "large")
    await reader.ask("start", arm=arm, bodies=bodies)
    await asyncio.sleep(SETTLE_S)
    before = await reader.ask("window", seconds=size.window_s)
    empty_kib = bench.resident_kib()
    waiting = {**chat(1, 4), "model": model}
    open_s = time.monotonic()
    await holder.ask("hold", arm=arm, body=waiting, count=size.crowd, reads=model == "large")
    if model == "small":
        await bench.is_quiet(model)
    await asyncio.sleep(SETTLE_S)
    open_s = time.monotonic() - open_s
    during = await reader.ask("window", seconds=size.window_s)
    full_kib = bench.resident_kib()
    await holder.ask("leave")
    await asyncio.sleep(SETTLE_S)
    after = await reader.ask("window", seconds=size.window_s)
    await reader.ask("leave")
    await bench.is_quiet("large")
    rates = [each["tokens"] / each["took_s"] for each in (before, during, after)]
    return {
        "kib_per_stream": round((full_kib - empty_kib) / size.crowd, 1),
        "ratio": round(2 * rates[1] / (rates[0] + rates[2]), 4),
        "tokens_per_s": [round(rate, 1) for rate in rates],
        "opened_in_s": round(open_s, 1),
    }


async def cost(bench: Bench) -> dict[str, Any]:
    told: dict[str, Any] = {}
    async with bench.deployed("small", SLOTS) as arms, client() as reader:
        await asyncio.sleep(SETTLE_S)
        idle_s, began_s = bench.cpu_s(), time.monotonic()
        await asyncio.sleep(3 * SETTLE_S)
        idle = (bench.cpu_s() - idle_s) / (time.monotonic() - began_s)
        told["idle_core_percent"] = round(100 * idle, 2)
        for streams in STREAMS:
            bodies = chats(streams, bench.size.cost_tokens, "small")
            runs = max(1, SLOTS // streams)
            before_s = bench.cpu_s()
            ran = [
                await reader.ask("run", arm=arms.of("gateway"), bodies=bodies) for _ in range(runs)
            ]
            tokens = sum(each["tokens"] for each in ran)
            used_s = bench.cpu_s() - before_s - idle * sum(each["took_s"] for each in ran)
            told[f"{streams}_streams"] = {
                "tokens": tokens,
                "us_per_token": round(1e6 * used_s / tokens, 1),
                "tokens_per_s": round(tokens / sum(each["took_s"] for each in ran), 1),
            }
            say(f"cost, {streams} streams: {told[f'{streams}_streams']}")
    return told


async def run(size: Size, parts: Sequence[str]) -> dict[str, Any]:
    work = {"first-token": first_token, "speed": speed, "crowd": crowd, "cost": cost}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        models = {name: Path(folder) / f"{name}.gguf" for name in ("small", "large")}
        write_demo_model(models["small"], recite=False)
        write_demo_model(models["large"], recite=False, **LARGE)
        cluster = Cluster(Path(folder))
        try:
            supervisor = await cluster.supervisor()
            await asyncio.gather(*(cluster.agent(name) for name in models))
            bench = Bench(cluster, models, supervisor.process.pid, size)
            return {part: await work[part](bench) for part in parts}
        finally:
            await cluster.close()


def without_all(told: Any) -> Any:
    """The figures without those that they were made from."""
    if not isinstance(told, dict):
        return told
    return {key: without_all(value) for key, value in told.items() if key != "all"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--quick", action="store_true", help="whether it works, not what it is")
    parser.add_argument("--pairs", type=int, help="of first-token")
    parser.add_argument("--json", type=Path, help="where every figure goes")
    options = parser.parse_args()
    size = QUICK if options.quick else WHOLE
    if options.pairs:
        size = Size(**{**asdict(size), "pairs": options.pairs})
    told = asyncio.run(run(size, options.only))
    if options.json is not None:
        options.json.write_text(json.dumps(told, indent=1))
    print(json.dumps(without_all(told), indent=2))


if __name__ == "__main__":
    main()
