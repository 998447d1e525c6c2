"""Predicted speed of a model, from measurements over the RPC port, against llama-server's own.

    uv run python bench/planning/measured_speed.py --workers 1 2

Each round measures every worker, then launches the demo model over them and asks for completions.
The prediction uses nothing but the measurements and the sizes of the model.
"""

import argparse
import asyncio
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from agents import engine as engines
from agents.contract import EngineFacts
from agents.measure import DeviceMeasurement, DeviceSpec, measure_device
from supervisor.core.commands import chosen_flags, known_flags
from supervisor.demo_model import write_demo_model

LAYERS, WIDTH, FEED_FORWARD, HEADS, KV_HEADS = 24, 1024, 2816, 16, 8
TYPE = "Q8_0"
BYTES_PER_WEIGHT = 34 / 32
OPERATIONS_PER_LAYER = 20
"""Nodes of a llama block that compute something; views and reshapes do not."""

LAYER_WEIGHTS = WIDTH * (2 * WIDTH + 2 * WIDTH * KV_HEADS // HEADS + 3 * FEED_FORWARD)
KV_BYTES = 256 * 2 * 2 * WIDTH * KV_HEADS // HEADS
"""Of one layer that one token reads: 256 positions of K and V, the least that llama.cpp reads."""

GENERATED, PROMPT_WORDS, UBATCH = 64, 1024, 512


@dataclass(frozen=True)
class Speed:
    """Milliseconds per generated token and tokens per second of the prompt."""

    decode_ms: float
    prefill_per_s: float


def predicted(workers: Sequence[DeviceMeasurement], layers: Sequence[int]) -> Speed:
    """planning.md 3.2 and 3.3, without links: everything is on loopback."""
    decode_s = 0.0
    stages = []
    for device, count in zip(workers, layers, strict=True):
        weights = count * LAYER_WEIGHTS
        decode_s += weights * BYTES_PER_WEIGHT / device.decode_bytes_per_s[TYPE]
        decode_s += count * KV_BYTES / device.decode_bytes_per_s["F16"]
        decode_s += count * OPERATIONS_PER_LAYER * device.op_overhead_s
        decode_s += device.round_trip_s + device.hop_overhead_s
        attention = count * 4 * WIDTH * UBATCH * (PROMPT_WORDS + UBATCH) / 2
        stages.append(
            2 * weights * UBATCH / device.prefill_flop_per_s[TYPE]
            + attention / device.prefill_flop_per_s["F16"]
        )
    ubatches = -(-PROMPT_WORDS // UBATCH)
    others = sum(stages) - stages[-1]
    prefill_s = sum(stages) + (ubatches - 1) * max(stages[-1], others)
    return Speed(decode_s * 1e3, PROMPT_WORDS / prefill_s)


async def measured(engine: EngineFacts, model: Path, ports: list[int], layers: list[int]) -> Speed:
    port = free_port()
    split = [*layers[:-1], layers[-1] + 1]
    argv = [engine.llama_server, "--model", str(model), "--port", str(port)]
    argv += ["--rpc", ",".join(f"127.0.0.1:{p}" for p in ports)]
    argv += ["--device", ",".join(f"RPC{i}" for i in range(len(ports))), "-ngl", str(LAYERS + 1)]
    argv += ["--tensor-split", ",".join(map(str, split)), "-c", "2048", "-np", "1"]
    argv += ["-ub", str(UBATCH), "-t", "1"]
    _, help_text = await engines.run([engine.llama_server, "--help"], engines.inherited())
    child = start([*argv, *chosen_flags(known_flags(help_text))])
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=120
        ) as http:
            await wait_until_ready(http, child)
            await completion(http, 8, 8)
            runs = [await completion(http, 8, GENERATED) for _ in range(5)]
            prompts = [await completion(http, PROMPT_WORDS, 1) for _ in range(3)]
    finally:
        stop(child)
    return Speed(
        statistics.median(run["predicted_per_token_ms"] for run in runs),
        statistics.median(run["prompt_per_second"] for run in prompts),
    )


async def completion(http: httpx.AsyncClient, words: int, tokens: int) -> dict[str, Any]:
    request = {
        "prompt": list(range(300, 300 + 100)) * (words // 100) + [300] * (words % 100),
        "n_predict": tokens,
        "temperature": 0,
        "cache_prompt": False,
        "ignore_eos": True,
    }
    answer = await http.post("/completion", json=request)
    assert answer.status_code == 200, answer.text
    timings: dict[str, Any] = answer.json()["timings"]
    return timings


async def wait_until_ready(http: httpx.AsyncClient, child: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        assert child.poll() is None, f"llama-server ended with status {child.returncode}"
        try:
            if (await http.get("/health")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.05)
    raise TimeoutError("llama-server is not ready after 60 s")


def start(argv: list[str]) -> "subprocess.Popen[bytes]":
    quiet = subprocess.DEVNULL
    return subprocess.Popen(argv, stdout=quiet, stderr=quiet, restore_signals=False)


def stop(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def one_round(engine: EngineFacts, model: Path, count: int) -> tuple[Speed, Speed]:
    ports = [free_port() for _ in range(count)]
    layers = [LAYERS // count] * count
    spec = DeviceSpec(types=(TYPE, "F16"), n_embd=WIDTH, n_ff=FEED_FORWARD)
    children = [
        start([engine.rpc_server, "-H", "127.0.0.1", "-p", str(p), "-t", "1"]) for p in ports
    ]
    try:
        await asyncio.sleep(0.5)
        devices = [await measure_device("127.0.0.1", port, spec) for port in ports]
        return predicted(devices, layers), await measured(engine, model, ports, layers)
    finally:
        for child in children:
            stop(child)


async def run(counts: list[int], rounds: int) -> None:
    found = engines.discover(engines.inherited())[0]
    print("| workers | predicted ms/token | measured | error | predicted prompt t/s | measured |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "demo.gguf"
        write_demo_model(
            model,
            layers=LAYERS,
            embedding=WIDTH,
            feed_forward=FEED_FORWARD,
            heads=HEADS,
            kv_heads=KV_HEADS,
        )
        for count in counts:
            for _ in range(rounds):
                wanted, got = await one_round(found, model, count)
                error = wanted.decode_ms / got.decode_ms - 1
                print(
                    f"| {count} | {wanted.decode_ms:.2f} | {got.decode_ms:.2f} | {error:+.1%} "
                    f"| {wanted.prefill_per_s:.0f} | {got.prefill_per_s:.0f} "
                    f"({wanted.prefill_per_s / got.prefill_per_s - 1:+.1%}) |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    asyncio.run(run(options.workers, options.rounds))


if __name__ == "__main__":
    main()
