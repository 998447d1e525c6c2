"""``supervisor engine use``: the whole cluster moves to another build of llama.cpp."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, TaskID

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.options import AsJson, Key, Url
from supervisor.cli.watching import new_progress

_UP = ("ready", "degraded", "starting")


def use(
    build: Annotated[str, typer.Argument(help="such as b10516, as 'engine list' shows it")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Move main host and devices to a build, and back by itself if it does not work.

    Deployments are launched anew; running requests may end first, waiting ones wait.
    """
    client = Client(url, key)
    if not yes:
        _ask(client, build)
    with new_progress() as progress:
        progress.disable = as_json
        result = _change(client, build, progress, progress.add_task("asking", total=None))
    if as_json:
        output.print_json(result)
        return
    if result["reason"]:
        output.console.print(escape(result["reason"]))
        return
    was = f", it was {result['build_before']}" if result["build_before"] else ""
    output.console.print(escape(f"the cluster uses llama.cpp {result['build']} now{was}"))
    for device in result["devices"]:
        if device["detail"]:
            output.console.print(escape(f"{device['device']}: {device['detail']}"))


def _ask(client: Client, build: str) -> None:
    status = client.get("/api/status")
    up = [d["id"] for d in status["deployments"] if d["state"] in _UP]
    now = status["engine"] or {}
    names = f"; {', '.join(up)} will be launched anew" if up else ""
    was = now.get("release") or now.get("build") or "no llama.cpp"
    output.errors.print(escape(f"{status['main_host']} and its devices use {was}{names}"))
    if not typer.confirm(f"move all of them to {build}?", err=True):
        raise typer.Exit(1)


def _change(client: Client, build: str, progress: Progress, task: TaskID) -> dict[str, Any]:
    changed: dict[str, Any] = client.worked(
        "POST",
        "/api/engine-change",
        lambda body: progress.update(task, description=escape(_words(body)), **_bytes(body)),
        ended="the supervisor ended while the engine was changed; when it starts again it uses the"
        " build of before",
        body={"build": build},
    )
    return changed


def _words(change: dict[str, Any]) -> str:
    what: list[str] = []
    if change["phase"] in ("fetching", "switching"):
        waiting = [d for d in change["devices"] if d["state"] not in ("changed", "ready")]
        what = [f"{d['device']} {d['state']}" for d in waiting]
    if change["phase"] in ("launching", "going back"):
        what = [f"{name} {state}" for name, state in change["deployments"].items()]
    return f"{change['build']}: {change['phase']} {', '.join(what)}".strip()


def _bytes(change: dict[str, Any]) -> dict[str, Any]:
    total = sum(d["total_bytes"] for d in change["devices"])
    if change["phase"] != "fetching" or not total:
        return {"total": None}
    return {"total": total, "completed": sum(d["done_bytes"] for d in change["devices"])}
