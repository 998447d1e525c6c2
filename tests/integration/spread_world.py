"""Models that are pushed over slow networks, and what devices have of them then."""

import contextlib
import hashlib
import json
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cluster import Cluster
from lab.links import Link, emulated_link

RATE = 3e6
"""Bytes per second each way, of every device's network."""


def free_port() -> int:
    """Below those that the system gives to outgoing connections, and not where others look."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.asynccontextmanager
async def behind_a_link(cluster: Cluster, name: str) -> AsyncIterator[Link]:
    """A device whose link, from the main host and from other devices, passes through a relay."""
    port = free_port()
    async with emulated_link(port) as link:
        where = ("--link-port", str(port), "--link-address", f"127.0.0.1:{link.port}")
        await cluster.agent(name, *where)
        yield link


async def push(cluster: Cluster, model: Path, *, whole: bool = False, **spec: Any) -> list[Any]:
    """The last word on each device; the push must come to its end."""
    body = {"model": str(model), "ctx_tokens": 512, **spec}
    event, views = "", []
    async with cluster.http.stream(
        "POST", "/api/models/push", json=body, params={"whole": whole}, timeout=120
    ) as lines:
        assert lines.status_code == 200, await lines.aread()
        async for line in lines.aiter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                views = json.loads(line.removeprefix("data: "))
                assert event != "problem", views
    assert event == "result"
    return list(views)


def chunks_in(cluster: Cluster, name: str) -> list[Path]:
    folder = cluster.folder / name / "chunks"
    whole = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".new")
    return sorted(whole)


def assert_sound(cluster: Cluster, *names: str) -> None:
    for name in names:
        for path in chunks_in(cluster, name):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def stored_bytes(cluster: Cluster, name: str) -> int:
    return sum(path.stat().st_size for path in chunks_in(cluster, name))


async def holdings(cluster: Cluster, model: Path) -> dict[str, dict[str, Any]]:
    answer = await cluster.http.get("/api/models/holdings", params={"model": str(model)})
    assert answer.status_code == 200, answer.text
    return {view["device"]: view for view in answer.json()}
