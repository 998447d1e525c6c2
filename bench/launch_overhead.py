"""What the supervisor adds to a launch: paired, interleaved runs against a plain script.

Both go from "start the workers" to the first token, on loopback, with the same programs, flags
and model. The supervised time is that of the REST client: from sending the request to hearing
that the deployment is ready.

    uv run python bench/launch_overhead.py --pairs 10 --model demo
    uv run python bench/launch_overhead.py --pairs 10 --model large
"""

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from cluster import Cluster

from agents import engine as engines
from agents.contract import EngineFacts
from supervisor.core.commands import chosen_flags, known_flags
from supervisor.demo_model import write_demo_model

CTX_TOKENS = 512
LARGE: dict[str, Any] = {
    "layers": 24,
    "embedding": 1024,
    "feed_forward": 1792,
    "heads": 16,
    "kv_heads": 8,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def by_hand(engine: EngineFacts, model: Path, layers: int, flags: list[str]) -> float:
    """Seconds of a plain script: start, wait for the ports, launch, poll health, one token."""
    ports = [free_port(), free_port(), free_port()]
    started_s = time.monotonic()
    children = [start([engine.rpc_server, "-p", str(port), "-t", "1"]) for port in ports[:2]]
    try:
        for port in ports[:2]:
            wait_for_port(port)
        first = -(-(layers + 1) // 2)
        argv = [engine.llama_server, "--model", str(model), "--port", str(ports[2])]
        argv += ["--rpc", ",".join(f"127.0.0.1:{port}" for port in ports[:2])]
        argv += ["--device", "RPC0,RPC1", "-ngl", str(layers + 1)]
        argv += ["--tensor-split", f"{first},{layers + 1 - first}"]
        argv += ["-c", str(CTX_TOKENS), "-np", "1", *flags]
        children.append(start(argv))
        url = f"http://127.0.0.1:{ports[2]}"
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            while not is_healthy(http):
                time.sleep(0.05)
            answer = http.post("/completion", json={"prompt": "Hello", "n_predict": 1})
            assert answer.status_code == 200, answer.text
        return time.monotonic() - started_s
    finally:
        for child in reversed(children):
            child.kill()
            child.wait()


def start(argv: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, restore_signals=False
    )


def wait_for_port(port: int) -> None:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.01)
    raise TimeoutError(port)


def is_healthy(http: httpx.Client) -> bool:
    try:
        return http.get("/health").status_code == 200
    except httpx.TransportError:
        return False


async def supervised(cluster: Cluster, model: Path) -> tuple[float, list[dict[str, Any]]]:
    """Seconds from the REST call to READY, and the launch's own timeline."""
    heard = asyncio.Event()
    final: dict[str, Any] = {}
    begun = asyncio.Event()

    async def listen() -> None:
        async with cluster.http.stream("GET", "/api/events", timeout=120) as events:
            async for line in events.aiter_lines():
                begun.set()
                if not line.startswith("data:"):
                    continue
                body = json.loads(line[5:])
                if begun.is_set() and body.get("id") == "bench" and "spec" in body:
                    final.update(body)
                    if body["state"] in ("ready", "failed"):
                        heard.set()
                        return

    listening = asyncio.create_task(listen())
    await begun.wait()
    devices = sorted(d["name"] for d in (await cluster.http.get("/api/devices")).json())
    spec = {"model": str(model), "name": "bench", "ctx_tokens": CTX_TOKENS, "order": devices}
    started_s = time.monotonic()
    answer = await cluster.http.post("/api/deployments", json=spec)
    assert answer.status_code == 201, answer.text
    await asyncio.wait_for(heard.wait(), 120)
    took_s = time.monotonic() - started_s
    await listening
    assert final["state"] == "ready", final["reason"]
    await cluster.http.post("/api/deployments/bench/stop")
    await cluster.http.delete("/api/deployments/bench")
    return took_s, final["timeline"]


async def run(options: argparse.Namespace) -> dict[str, Any]:
    engine = engines.discover(engines.inherited())[0]
    _, help_text = await engines.run([engine.llama_server, "--help"], engines.inherited())
    flags = chosen_flags(known_flags(help_text))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        shape: dict[str, Any] = LARGE if options.model == "large" else {"layers": 8}
        model = Path(folder) / "model.gguf"
        write_demo_model(model, **shape)
        cluster = Cluster(Path(folder))
        try:
            await cluster.supervisor()
            await cluster.agent("one")
            await cluster.agent("two")
            pairs, timelines = [], []
            for number in range(options.pairs + 1):
                hand = ours = 0.0
                for kind in ("hand", "ours") if number % 2 else ("ours", "hand"):
                    if kind == "hand":
                        hand = await asyncio.to_thread(
                            by_hand, engine, model, shape["layers"], flags
                        )
                    else:
                        ours, timeline = await supervised(cluster, model)
                        timelines.append(timeline)
                if number:  # the first pair warms the page cache
                    pairs.append((hand, ours))
                    print(f"{hand:.3f} s by hand, {ours:.3f} s supervised", file=sys.stderr)
        finally:
            await cluster.close()
        size_bytes = model.stat().st_size
    names = [m["name"] for m in timelines[0]]
    steps = {
        name: round(statistics.median(t[i]["took_s"] for t in timelines), 3)
        for i, name in enumerate(names)
    }
    return {
        "model_bytes": size_bytes,
        "pairs": len(pairs),
        "by_hand_median_s": round(statistics.median(h for h, _ in pairs), 3),
        "supervised_median_s": round(statistics.median(o for _, o in pairs), 3),
        "median_ratio": round(statistics.median(o / h for h, o in pairs), 3),
        "supervised_steps_median_s": steps,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--model", choices=("demo", "large"), default="demo")
    print(json.dumps(asyncio.run(run(parser.parse_args())), indent=2))
