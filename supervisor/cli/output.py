"""Tables and words for people; the same facts as JSON for programs."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from supervisor.core.units import gib

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

_COLOURS = {
    "ready": "green",
    "starting": "blue",
    "fetching": "blue",
    "pending": "blue",
    "backoff": "yellow",
    "degraded": "yellow",
    "suspect": "yellow",
    "failed": "red",
    "lost": "red",
    "unusable": "red",
    "incompatible": "red",
}


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))  # noqa: T201 - rich would wrap it


def state(word: str) -> str:
    """A state in its colour."""
    colour = _COLOURS.get(word)
    return f"[{colour}]{word}[/]" if colour else word


def table(title: str, *columns: str) -> Table:
    """An empty table in the house style."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def devices_table(devices: list[dict[str, Any]]) -> Table:
    """Joined devices, one row each."""
    made = table("Devices", "name", "state", "address", "cores", "memory", "engine", "doing")
    for device in devices:
        facts = device["facts"] or {}
        engine = facts.get("engine") or {}
        available = gib(facts.get("memory_available_bytes", 0))
        total = gib(facts.get("memory_total_bytes", 0))
        doing = f"serves {device['used_by']}" if device["used_by"] else device["reason"] or "idle"
        made.add_row(
            escape(device["name"]),
            state(device["state"]),
            f"{device['address']}:{device['rest_port']}",
            str(facts.get("cores", "?")),
            f"{available} of {total}" if facts else "?",
            f"{engine.get('build') or '?'}, RPC {engine.get('rpc_protocol') or '?'}",
            escape(doing),
        )
    return made


def deployments_table(deployments: list[dict[str, Any]]) -> Table:
    """Deployments, one row each."""
    made = table("Deployments", "name", "state", "launch", "layers", "speed", "reason")
    for deployment in deployments:
        plan = deployment["plan"] or {}
        layers = ", ".join(f"{s['device']} {s['layers']}" for s in plan.get("shards", ()))
        speed = deployment["tokens_per_second"]
        phase = f" ({deployment['phase']})" if deployment["phase"] else ""
        made.add_row(
            escape(deployment["id"]),
            state(deployment["state"]) + phase,
            str(deployment["launch_id"] or "-"),
            escape(layers),
            f"{speed:.1f} tok/s" if speed else "-",
            escape(deployment["reason"]),
        )
    return made


def timeline_text(timeline: list[dict[str, Any]]) -> str:
    """``planned 0.02 s · workers ready 0.15 s · ...``, each with what it took."""
    return " · ".join(f"{m['name']} {m['took_s']:.2f} s" for m in timeline)


def plan_table(plan: dict[str, Any]) -> Table:
    """Layers per device."""
    made = table(
        f"Plan for {plan['model']['name']}", "device", "on", "layers", "weights", "available"
    )
    for shard in plan["shards"]:
        output = " (with the output layer)" if shard["has_output"] else ""
        made.add_row(
            escape(shard["device"]),
            shard["ggml_device"],
            f"{shard['layers']}{output}",
            gib(shard["weight_bytes"]),
            gib(shard["available_bytes"]),
        )
    return made
