"""Makes a world move, so that a person sees it: heartbeats, loading, tokens, requests."""

import asyncio
from datetime import datetime
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, Final

from lab.page_records import request, timeline

if TYPE_CHECKING:
    from lab.page_world import World

TICK_S: Final = 1.0
RETRY_S: Final = 3
Json = dict[str, Any]


async def live(world: "World") -> None:
    """One tick after the other, for ever."""
    rng = Random(3)
    for number in count():
        await asyncio.sleep(TICK_S)
        for each in list(world.scene.devices):
            if each["state"] == "ready":
                _heartbeat(world, each, rng)
        for each in list(world.scene.deployments):
            _advance(world, each, rng, number)


def _heartbeat(world: "World", device: Json, rng: Random) -> None:
    facts = device["facts"]
    free = facts["memory_available_bytes"]
    moved = int(free * (0.99 + rng.random() * 0.02))
    warmth = facts["temperature_c"]
    world.change_device(
        device["id"],
        silent_s=0.0,
        round_trip_ms=round(device["round_trip_ms"] * (0.9 + rng.random() * 0.2), 2),
        facts={
            **facts,
            "memory_available_bytes": min(moved, facts["memory_total_bytes"]),
            "temperature_c": None if warmth is None else round(warmth + rng.uniform(-0.3, 0.3), 1),
        },
    )


def _advance(world: "World", deployment: Json, rng: Random, number: int) -> None:
    state, name = deployment["state"], deployment["id"]
    if state == "starting":
        _load(world, deployment)
    elif state in ("ready", "degraded"):
        _serve(world, deployment, rng, number)
    elif state == "backoff" and datetime.fromisoformat(deployment["retry_at"]) <= world.clock():
        world.change_deployment(name, state="starting", phase="load", retry_at="",
                                loads=_emptied(deployment))  # fmt: skip


def _emptied(deployment: Json) -> list[Json]:
    shards = deployment["plan"]["shards"]
    return [
        {**{name: shard[name] for name in ("device", "layers", "weight_bytes")}, "loaded_bytes": 0}
        for shard in shards
    ]


def _load(world: "World", deployment: Json) -> None:
    """Each worker gets what its link carries in a second."""
    rates = {each.name: int(each.up_mb_per_s * 1e6 * 0.83) for each in world.scene.home.kinds}
    loads, links = [], []
    before = {link["device"]: link for link in deployment["links"]}
    for load in deployment["loads"]:
        name, total = load["device"], load["weight_bytes"]
        done = min(load["loaded_bytes"] + rates[name] * 4, total)
        loads.append({**load, "loaded_bytes": done})
        if name in before:
            left = total - done
            links.append({
                **before[name], "weight_bytes": done, "remaining_bytes": left,
                "bytes_per_s": rates[name], "eta_s": round(left / rates[name], 1) or None,
            })  # fmt: skip
    is_done = all(load["loaded_bytes"] == load["weight_bytes"] for load in loads)
    changes: Json = {"loads": loads, "links": links, "phase": "load"}
    if is_done:
        steps = timeline(0.09, 1.4, 0.6, 2.2, 90.5, 3.1)
        changes |= {
            "state": "ready", "phase": "", "cause": None, "failures": 0, "port": 8110,
            "timeline": [step.model_dump(mode="json") for step in steps],
            "tokens_per_second": 6.7,
        }  # fmt: skip
    world.change_deployment(deployment["id"], **changes)


def _serve(world: "World", deployment: Json, rng: Random, number: int) -> None:
    rate = (deployment["tokens_per_second"] or 6.7) * rng.uniform(0.97, 1.03)
    times = deployment["token_time"]
    if times is not None:
        workers = [
            {**each, "wire_ms": round(each["wire_ms"] * rng.uniform(0.9, 1.1), 2)}
            for each in times["workers"]
        ]
        times = {**times, "workers": workers, "at": world.stamp()}
    world.change_deployment(
        deployment["id"],
        tokens_per_second=round(rate, 2),
        generated_tokens=(deployment["generated_tokens"] or 0) + int(rate),
        token_time=times,
    )
    world.change_traffic(deployment["id"], active=number % 2, waiting=number % 5 // 3)
    world.log("llama-server", [f"{number:9.3f} I slot update_slots: id 0 | task {number} | go on"])
    if number % 6 == 5:
        world.add_request(request(world.clock(), rng, 0.0, deployment["id"]))
