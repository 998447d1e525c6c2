"""Following a deployment from the command line: progress while it loads, the end, its logs."""

import json
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.errors import SupervisorRefused, SupervisorUnreachable

SETTLED = ("ready", "failed", "stopped")


def new_progress() -> Progress:
    """Progress on standard error, so that standard output stays clean; a spinner and a clock."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        console=output.errors,
        transient=True,
    )


def wait_until_settled(client: Client, name: str, *, quiet: bool = False) -> dict[str, Any]:
    """Follow a deployment until it is ready, failed or stopped; shows phases and bytes.

    Raises:
        SupervisorUnreachable: The supervisor went away.
    """
    with new_progress() as progress:
        progress.disable = quiet
        task = progress.add_task(f"launching {name}", total=None)
        for event, body in client.events():
            deployment = _of(event, body, name)
            if deployment is None:
                continue
            if deployment["state"] in SETTLED:
                return deployment
            loads = deployment["loads"]
            total = sum(load["weight_bytes"] for load in loads)
            loaded = sum(load["loaded_bytes"] for load in loads)
            phase = deployment["phase"] or deployment["state"]
            if pull := deployment["pull"]:
                loaded, total = pull["done_bytes"], pull["total_bytes"]
            has_bytes = phase in ("load", "fetching") and total > 0
            progress.update(
                task,
                description=f"{name}: {phase}",
                total=total if has_bytes else None,
                completed=loaded if has_bytes else 0,
            )
    raise SupervisorUnreachable("the supervisor ended while the deployment was launching")


def _of(event: str, body: Any, name: str) -> dict[str, Any] | None:
    if event == "snapshot":
        return next((d for d in body["deployments"] if d["id"] == name), None)
    if event == "deployment" and body["id"] == name:
        found: dict[str, Any] = body
        return found
    return None


def print_log(client: Client, name: str, process: str) -> None:
    """Print the end of a log."""
    chunk = client.get(f"/api/deployments/{name}/logs", process=process)
    print(chunk["text"], end="", flush=True)  # noqa: T201 - the log itself


def follow_logs(client: Client, name: str, processes: Sequence[str], *, as_json: bool) -> None:
    """Print logs as they grow, launch after launch, until the user or the supervisor ends it.

    ``processes``: none is all of them. Their names stand in front, unless there is only one.
    """
    path = f"/api/deployments/{name}/logs/stream"
    for event in client.sent("GET", path, process=list(processes)):
        if as_json:
            print(json.dumps({"event": event.name, **event.body}), flush=True)  # noqa: T201
        elif event.name == "silent":
            output.errors.print(f"[yellow]{escape(event.body['process'])}:[/] ", end="")
            output.errors.print(escape(event.body["detail"]))
        else:
            prefix = "" if len(processes) == 1 else f"{event.body['process']} | "
            lines = event.body["text"].split("\n")[:-1]
            print("\n".join(f"{prefix}{line}" for line in lines), flush=True)  # noqa: T201
    output.errors.print("the logs ended: the deployment was removed, or the supervisor ended")


def only_deployment(client: Client, name: str | None) -> str:
    """``name``, or the one deployment there is.

    Raises:
        SupervisorRefused: There is none, or several.
    """
    if name:
        return name
    names = [d["id"] for d in client.get("/api/deployments")]
    if len(names) != 1:
        known = ", ".join(names) or "none"
        raise SupervisorRefused(f"name a deployment; there are: {known}", "deployment_unknown")
    return str(names[0])
