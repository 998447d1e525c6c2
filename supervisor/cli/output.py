"""Tables and words for people; the same facts as JSON for programs."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from supervisor.core.units import gib

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

MAIN_HOST = "main host"

_COLOURS = {
    "ready": "green",
    "starting": "blue",
    "fetching": "blue",
    "pending": "blue",
    "backoff": "yellow",
    "degraded": "yellow",
    "suspect": "yellow",
    "parked": "yellow",
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
        mark = ", excluded" if device["excluded"] else ""
        made.add_row(
            escape(device["name"]),
            state(device["state"]) + mark,
            f"{device['address']}:{device['rest_port']}",
            str(facts.get("cores", "?")),
            f"{available} of {total}" if facts else "?",
            f"{engine.get('build') or '?'}, RPC {engine.get('rpc_protocol') or '?'}",
            escape(device["doing"] or device["reason"] or "idle"),
        )
    return made


def deployments_table(deployments: list[dict[str, Any]]) -> Table:
    """Deployments, one row each."""
    made = table("Deployments", "name", "state", "launch", "layers", "speed", "reason")
    for deployment in deployments:
        plan = deployment["plan"] or {}
        layers = ", ".join(_placed(plan)) if plan else ""
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


def print_cause(deployment: dict[str, Any]) -> None:
    """Why it does not serve, what shows that, and what is being done or to do."""
    cause = deployment["cause"]
    if not cause:
        return
    console.print(f"[bold]{escape(deployment['id'])}[/]: {escape(cause['sentence'])}")
    for line in cause["evidence"]:
        console.print(f"  [dim]{escape(line)}[/]")
    if cause["remedy"]:
        console.print(f"  {escape(cause['remedy'])}")


def links_table(links: list[dict[str, Any]]) -> Table:
    """Links of launches, one row each."""
    made = table("Links", "device", "round trip", "weights", "was there", "rate", "left", "wire")
    for link in links:
        round_trip, share, eta = link["round_trip_ms"], link["wire_share"], link["eta_s"]
        made.add_row(
            escape(link["device"]),
            "?" if round_trip is None else f"{round_trip:.1f} ms",
            _bytes(link["weight_bytes"]),
            _bytes(link["saved_bytes"]),
            f"{_bytes(link['bytes_per_s'])}/s" if link["remaining_bytes"] else "-",
            f"{eta:.0f} s" if eta is not None else "-",
            "?" if share is None else f"{share:.0%} of its time",
        )
    return made


def _placed(plan: dict[str, Any]) -> list[str]:
    host = [f"{MAIN_HOST} {plan['host']['layers']}"] if plan["host"]["layers"] else []
    return host + [f"{shard['device']} {shard['layers']}" for shard in plan["shards"]]


def timeline_text(timeline: list[dict[str, Any]]) -> str:
    """``planned 0.02 s · workers ready 0.15 s · ...``, each with what it took."""
    return " · ".join(f"{m['name']} {m['took_s']:.2f} s" for m in timeline)


def plan_table(plan: dict[str, Any]) -> Table:
    """What is where, and the memory that it needs with the whole context in use."""
    title = f"Plan for {plan['model']['name']}: context {plan['ctx_tokens']:,} tokens"
    title += f", {plan['kv_type']} cache, ubatch {plan['ubatch']}"
    made = table(title, "device", "on", "layers", "needs", "may use", "available", "per token")
    host = plan["host"]
    made.add_row(MAIN_HOST, "CPU", _layers_of_host(host), *_memory(host), _time(plan, MAIN_HOST))
    for shard in plan["shards"]:
        output = " (with the output layer)" if shard["has_output"] else ""
        repeating = shard["layers"] - (1 if shard is plan["shards"][-1] else 0)
        made.add_row(
            escape(shard["device"]),
            shard["ggml_device"],
            f"{repeating}{output}",
            *_memory(shard),
            _time(plan, shard["device"], shard["ggml_device"]),
        )
    return made


def _layers_of_host(host: dict[str, Any]) -> str:
    parts = [str(host["layers"])] if host["layers"] else []
    parts += ["the embeddings"] + (["the output layer"] if host["has_output"] else [])
    return ", ".join(parts)


def _memory(use: dict[str, Any]) -> tuple[str, str, str]:
    return gib(use["peak_bytes"]), gib(use["budget_bytes"]), gib(use["available_bytes"])


def _time(plan: dict[str, Any], device: str, ggml_device: str = "") -> str:
    """``12 ms + 5 ms network``."""
    stages = (plan["prediction"] or {}).get("stages", ())
    names = (device, f"{device}/{ggml_device}")
    for stage in stages:
        if stage["device"] in names:
            network = f" + {_ms(stage['network_s'])} network" if stage["network_s"] else ""
            return f"{_ms(stage['compute_s'])}{network}"
    return "-"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def print_plan(answer: dict[str, Any]) -> None:
    """A plan in full: the reasons first, since they are what people read."""
    plan = answer["plan"]
    for reason in plan["reasons"]:
        console.print(f"• {escape(reason)}")
    console.print()
    console.print(plan_table(plan))
    console.print()
    for command in answer["commands"]:
        console.print(f"[bold]{escape(command['host'])}[/]  {escape(command['command'])}")
    console.print("[dim]ports are chosen at the launch[/]")


def memory_table(record: dict[str, Any]) -> Table:
    """Predicted and measured memory of each process of a launch; ``-`` is what nobody saw."""
    title = "Memory: resident / most so far (+ pages of files, which can be taken back)"
    made = table(
        title, "process", "predicted", "may use", "loading", "ready", "at the end", "of prediction"
    )
    for process in record["memory"]:
        made.add_row(
            escape(process["process"]),
            _bytes(process["predicted_bytes"] or None),
            _bytes(process["budget_bytes"] or None),
            *(_sample(process[moment]) for moment in ("loading", "ready", "ended")),
            _share(process),
        )
    return made


def _sample(sample: dict[str, Any] | None) -> str:
    """``25.1 MiB / 27.0 MiB + 30.2 MiB``."""
    if sample is None:
        return "-"
    files = f" + {gib(sample['file_bytes'])}" if sample["file_bytes"] else ""
    return f"{_bytes(sample['resident_bytes'])} / {_bytes(sample['peak_bytes'])}{files}"


def _share(process: dict[str, Any]) -> str:
    """How much of the prediction was used; a GPU's memory is not seen from outside."""
    if process["has_gpu"] or not process["predicted_bytes"] or process["measured_bytes"] is None:
        return "-"
    return f"{process['measured_bytes'] / process['predicted_bytes']:.0%}"


def _bytes(count_bytes: int | None) -> str:
    return "-" if count_bytes is None else gib(count_bytes)
