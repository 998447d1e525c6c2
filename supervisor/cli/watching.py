"""Following a deployment from the command line: progress while it loads, the end, its logs."""

import time
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from supervisor.cli.client import Client
from supervisor.cli.output import errors
from supervisor.errors import SupervisorRefused, SupervisorUnreachable

SETTLED = ("ready", "failed", "stopped")
_LOG_EVERY_S = 0.5


def new_progress() -> Progress:
    """Progress on standard error, so that standard output stays clean; a spinner and a clock."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        console=errors,
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
            has_bytes = phase == "load" and total > 0
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


def follow_log(client: Client, name: str, process: str, *, follow: bool) -> None:
    """Print a log, and what is appended to it for as long as the user wants."""
    offset, file = -1, ""
    while True:
        path = f"/api/deployments/{name}/logs"
        chunk = client.get(path, process=process, offset=offset)
        if chunk["file"] != file and file:
            offset = 0  # a new launch has a log of its own
            file = chunk["file"]
            continue
        file, offset = chunk["file"], chunk["offset"]
        print(chunk["text"], end="", flush=True)  # noqa: T201 - the log itself
        if not follow:
            return
        if not chunk["text"]:
            time.sleep(_LOG_EVERY_S)


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
