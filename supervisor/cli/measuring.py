"""Measuring devices from the command line: a bar while it goes on, a table at the end."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.watching import new_progress
from supervisor.errors import SupervisorRefused

_NO_DEVICES = "no_devices"


def measure(client: Client, device: str | None, as_json: bool) -> None:
    """Measure ``device``, or every idle one in turn, and print the figures.

    Raises:
        SupervisorRefused: A device could not be measured. Of several, the others still are, and
            are printed.
        SupervisorUnreachable: The supervisor went away.
    """
    names = [device] if device else _idle(client)
    results: list[dict[str, Any]] = []
    failures: list[SupervisorRefused] = []
    with new_progress() as progress:
        progress.disable = as_json
        for name in names:
            task = progress.add_task(f"{escape(name)}: asking", total=1.0)
            try:
                results.append(_measure(client, name, progress, task))
            except SupervisorRefused as exc:
                failures.append(exc)
                progress.update(task, description=f"{escape(name)}: failed")
    if as_json:
        output.print_json(results)
    elif results:
        output.console.print(table_of(results))
    for failure in failures[:-1]:
        output.errors.print(f"[red]error:[/] {escape(str(failure))}")
    if failures:
        raise failures[-1]


def _idle(client: Client) -> list[str]:
    devices = client.get("/api/devices")
    idle = [d["name"] for d in devices if d["state"] == "ready" and d["used_by"] is None]
    if not idle:
        known = ", ".join(f"{d['name']}: {_doing(d)}" for d in devices) or "none has joined"
        raise SupervisorRefused(f"no device is ready and idle ({known})", _NO_DEVICES)
    return sorted(idle)


def _doing(device: dict[str, Any]) -> str:
    return f"serves {device['used_by']}" if device["used_by"] else str(device["state"])


def _measure(client: Client, name: str, progress: Progress, task: TaskID) -> dict[str, Any]:
    def show(body: dict[str, Any]) -> None:
        step = f"{body['device']} {body['step']}".strip()
        description = f"{escape(name)}: {escape(step)}"
        progress.update(task, description=description, completed=body["part"])

    measured: dict[str, Any] = client.worked(
        "POST",
        f"/api/devices/{quote(name)}/measure",
        show,
        ended=f"the supervisor ended while {name} was measured",
    )
    progress.update(task, description=f"{escape(name)}: measured", completed=1.0)
    return measured


def table_of(results: Iterable[dict[str, Any]]) -> Table:
    """One row per ggml device: decode by type of weights, prefill, and the link to it."""
    results = list(results)
    types = list(
        dict.fromkeys(t for r in results for d in r["devices"] for t in d["decode_bytes_per_s"])
    )
    made = output.table(
        "Measurements (decode in GB/s, prefill in GFLOP/s, round trip in ms, link in MB/s)",
        "device",
        "on",
        *types,
        "prefill",
        "p50",
        "p90",
        "up",
        "down",
    )
    for result in results:
        for found in result["devices"]:
            made.add_row(*_row(result, found, types))
    return made


def _row(result: dict[str, Any], found: dict[str, Any], types: list[str]) -> list[str]:
    decode, link = found["decode_bytes_per_s"], result["link"]
    return [
        escape(result["device"]),
        escape(found["ggml_device"]),
        *(f"{decode[t] / 1e9:.1f}" if t in decode else "-" for t in types),
        _range([flop / 1e9 for flop in found["prefill_flop_per_s"].values()]),
        f"{link['rtt_p50_s'] * 1e3:.2f}",
        f"{link['rtt_p90_s'] * 1e3:.2f}",
        f"{link['up_bytes_per_s'] / 1e6:.0f}",
        f"{link['down_bytes_per_s'] / 1e6:.0f}",
    ]


def _range(values: list[float]) -> str:
    """Slowest and fastest type."""
    if not values:
        return "-"
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low}-{high}"
