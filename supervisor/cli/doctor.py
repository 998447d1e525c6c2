"""``supervisor doctor``: what blocks, and the one thing to do about each of it."""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.padding import Padding

from agents import cli as agent_cli
from agents import facts, ports
from agents.contract import Finding, Verdict, read
from agents.doctor.command import summary, worst_first
from agents.doctor.examination import examine
from agents.doctor.subject import Subject, known_endpoints
from supervisor import settings
from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.launching import model_path
from supervisor.cli.options import AsJson, Config, Data, Key, Url, load_settings
from supervisor.core.doctor import blocks, ok, warning
from supervisor.errors import SupervisorUnreachable

_MARKS: Final = {
    Verdict.OK: "[green]ok[/]",
    Verdict.WARNING: "[yellow]warning[/]",
    Verdict.BLOCKS: "[red]blocks[/]",
    Verdict.UNKNOWN: "[dim]unknown[/]",
}

Groups = list[tuple[str, list[Finding]]]


def doctor(
    devices: Annotated[
        list[str] | None, typer.Argument(help="names or ids, or 'main host'; default: all")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="does this one fit? a GGUF file, or REPO[:QUANT]")
    ] = None,
    context: Annotated[int, typer.Option(min=256, help="its context, tokens")] = 4096,
    kv_type: Annotated[
        str | None, typer.Option(help="type of its KV cache: f16, q8_0, ...")
    ] = None,
    data: Data = None,
    config: Config = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Say what keeps the cluster, or a model, from running here. Exit status 1: something does."""
    client = Client(url, key)
    wanted: dict[str, Any] = {"device": devices or []}
    if model is not None:
        wanted |= {"model": model_path(model), "ctx_tokens": context}
        wanted |= {"kv_type": kv_type} if kv_type else {}
    try:
        with output.errors.status("examining the cluster ..."):
            groups = _read(client.get("/api/doctor", **wanted))
    except SupervisorUnreachable as exc:
        if url or os.environ.get("SUPERVISOR_URL") or devices or model:
            raise
        output.errors.print(f"[yellow]{escape(str(exc))}[/]; this is the doctor of this host alone")
        with output.errors.status("examining this host ..."):
            groups = asyncio.run(_of_this_host(load_settings(config, data)))
    if as_json:
        output.print_json([{"device": n, "findings": [asdict(f) for f in g]} for n, g in groups])
    else:
        _show(groups)
    if any(_blocks(found) for _, found in groups):
        raise typer.Exit(1)


def _read(answer: Sequence[dict[str, Any]]) -> Groups:
    return [
        (group["device"], [read(Finding, finding) for finding in group["findings"]])
        for group in answer
    ]


def _show(groups: Groups) -> None:
    """By device, what blocks first."""
    for name, findings in sorted(groups, key=lambda group: not _blocks(group[1])):
        output.console.print(f"[bold]{escape(name)}[/]")
        made = output.table("", "", "check", "found")
        made.title, made.show_header = None, False
        for finding in worst_first(findings):
            found = escape(finding.found)
            if finding.remedy and finding.verdict is not Verdict.OK:
                found += f"\n[bold]->[/] {escape(finding.remedy)}"
            made.add_row(_MARKS[finding.verdict], escape(finding.title), found)
        output.console.print(Padding(made, (0, 0, 1, 2)))
    output.console.print(summary([finding for _, found in groups for finding in found]))


def _blocks(findings: Sequence[Finding]) -> bool:
    return any(finding.verdict is Verdict.BLOCKS for finding in findings)


# -- without a supervisor ------------------------------------------------------------------------


async def _of_this_host(chosen: settings.Settings) -> Groups:
    """As the device of a cluster that it has joined, as the main host that it was or may be."""
    groups: Groups = []
    agent = agent_cli.default_folder()
    if (agent / "identity").is_dir():
        groups.append((facts.device_name(), await _as_device(agent)))
    if not groups or (chosen.data_folder / "supervisor.db").exists():
        groups.append((output.MAIN_HOST, await _as_main_host(chosen)))
    return groups


async def _as_device(folder: Path) -> list[Finding]:
    environ = dict(os.environ)
    endpoints = known_endpoints(folder, environ)
    return await examine(Subject.here(folder, environ, endpoints=endpoints))


async def _as_main_host(chosen: settings.Settings) -> list[Finding]:
    subject = Subject.here(
        chosen.data_folder,
        dict(os.environ),
        is_main_host=True,
        engine_folder=chosen.engine_folder,
    )
    return [_supervisor(chosen), *_ports(chosen), *await examine(subject)]


def _supervisor(chosen: settings.Settings) -> Finding:
    """Not running is no fault; running and not answering is."""
    try:
        run = json.loads((chosen.data_folder / "run.json").read_text())
        os.kill(int(run["pid"]), 0)
    except (OSError, ValueError, KeyError, TypeError):
        return warning("supervisor", "does not run on this host", "supervisor up")
    said = f"runs (pid {run['pid']}) but does not answer at {run['url']}"
    return blocks("supervisor", said, "stop it, and start it again with 'supervisor up'")


def _ports(chosen: settings.Settings) -> list[Finding]:
    """Whether it could listen where it is told to."""
    join_host = chosen.join_host or ports.local_address_towards("192.0.2.1")
    return [
        _port("dashboard", chosen.host, chosen.port, "port"),
        _port("join_port", join_host, chosen.join_port, "join_port"),
    ]


def _port(check: str, host: str, port: int, setting: str) -> Finding:
    if port == 0 or ports.is_free(host, port):
        return ok(check, f"{host}:{port} is free")
    remedy = f"stop the program that listens there, or change the setting {setting}"
    return blocks(check, f"{host}:{port} is taken, or {host} is no address of this host", remedy)
