"""How long two devices that each lack the other's half of a model take to have all of it.

uv run python bench/spread.py --rounds 3 --mb-per-s 4

Real supervisor and agents on loopback; each device's network is a relay (``tests/lab/relay.py``)
with that rate each way. Rounds alternate between devices that help each other and the main host
alone (setting ``spread_peers``), each in a cluster of its own. Timed is the push, from its request
to its result; the halves were there before, without a limit.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import socket
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from cluster import Cluster
from lab.links import Link, emulated_link

from supervisor.demo_model import write_demo_model

DEVICES = ["one", "two"]
PUSH_S = 600.0


async def push(cluster: Cluster, model: Path, *, whole: bool) -> list[dict[str, Any]]:
    """The last word on each device."""
    body = {"model": str(model), "ctx_tokens": 512, "order": DEVICES}
    last = ""
    async with cluster.http.stream(
        "POST", "/api/models/push", json=body, params={"whole": whole}, timeout=PUSH_S
    ) as lines:
        async for line in lines.aiter_lines():
            if line.startswith("data: "):
                last = line.removeprefix("data: ")
    views = json.loads(last)
    assert isinstance(views, list), views
    return views


def free_port() -> int:
    """Below those that the system gives to outgoing connections, and not where others look."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


async def device(cluster: Cluster, name: str, stack: AsyncExitStack) -> Link:
    port = free_port()
    link = await stack.enter_async_context(emulated_link(port))
    await cluster.agent(name, "--link-port", str(port), "--link-address", f"127.0.0.1:{link.port}")
    return link


async def run(model: Path, rate_bytes_per_s: float, *, helps: bool) -> dict[str, float]:
    """Seconds of one push, and how much of it came from where."""
    folder = Path(tempfile.mkdtemp(prefix="bench-spread-"))
    cluster = Cluster(folder)
    try:
        async with AsyncExitStack() as stack:
            await cluster.supervisor(spread_peers=str(helps).lower())
            links = [await device(cluster, name, stack) for name in DEVICES]
            await push(cluster, model, whole=False)
            for link in links:
                await link.set(rate_bytes_per_s=rate_bytes_per_s)
            started_s = time.perf_counter()
            views = await push(cluster, model, whole=True)
            took_s = time.perf_counter() - started_s
            return {
                "took_s": round(took_s, 2),
                "main_bytes": sum(view["sent_bytes"] for view in views),
                "peer_bytes": sum(view["from_peers_bytes"] for view in views),
            }
    finally:
        await cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


async def main(rounds: int, rate_bytes_per_s: float, feed_forward: int) -> None:
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(prefix="bench-spread-") as folder:
        model = Path(folder) / "spread.gguf"
        write_demo_model(model, feed_forward=feed_forward, recite=False)
        for number in range(rounds):
            for helps in (True, False) if number % 2 == 0 else (False, True):
                made = await run(model, rate_bytes_per_s, helps=helps)
                print("with devices" if helps else "main host alone", made, flush=True)
                found[helps].append(made)
    together_s, alone_s = (
        statistics.median(each["took_s"] for each in found[helps]) for helps in (True, False)
    )
    print(f"medians: {together_s:.2f} s and {alone_s:.2f} s, ratio {together_s / alone_s:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mb-per-s", type=float, default=4.0)
    parser.add_argument("--feed-forward", type=int, default=3072, help="3072: 60 MB")
    given = parser.parse_args()
    asyncio.run(main(given.rounds, given.mb_per_s * 1e6, given.feed_forward))
