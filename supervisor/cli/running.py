"""Commands that start, show and stop deployments."""

import contextlib
from typing import Annotated

import typer
from rich.markup import escape

from supervisor.cli import output, watching
from supervisor.cli.client import Client
from supervisor.cli.options import AsJson, Key, Name, Url


def status(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show devices and deployments."""
    snapshot = Client(url, key).get("/api/status")
    if as_json:
        output.print_json(snapshot)
        return
    if snapshot["problem"]:
        output.errors.print(f"[red]problem:[/] {escape(snapshot['problem'])}")
    output.console.print(output.devices_table(snapshot["devices"]))
    output.console.print(output.deployments_table(snapshot["deployments"]))
    for deployment in snapshot["deployments"]:
        output.print_cause(deployment)
    links = [link for deployment in snapshot["deployments"] for link in deployment["links"]]
    if links:
        output.console.print(output.links_table(links))


def stop(
    name: Name = None,
    now: Annotated[bool, typer.Option("--now", help="do not let running requests end")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Stop a deployment; returns when nothing of it runs."""
    _change(Client(url, key), name, "stop", as_json, now=now)


def start(name: Name = None, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Start a stopped or failed deployment again."""
    _change(Client(url, key), name, "start", as_json)


def _change(
    client: Client, name: str | None, verb: str, as_json: bool, *, now: bool = False
) -> None:
    chosen = watching.only_deployment(client, name)
    deployment = client.post(f"/api/deployments/{chosen}/{verb}", **({"now": True} if now else {}))
    if as_json:
        output.print_json(deployment)
    else:
        output.console.print(output.deployments_table([deployment]))


def show_logs(
    name: Name = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on until Ctrl-C")] = False,
    process: Annotated[
        list[str] | None,
        typer.Option(help="llama-server, link, or a device's name; repeatable; with -f: else all"),
    ] = None,
    worker: Annotated[str, typer.Option(help="log of this device's rpc-server")] = "",
    link: Annotated[bool, typer.Option("--link", help="log of the links")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Print the log of llama-server, of a worker, or of the links to all workers; -f: of all."""
    client = Client(url, key)
    chosen = watching.only_deployment(client, name)
    wanted = [*(process or ()), *([worker] if worker else ()), *(["link"] if link else ())]
    if follow:
        with contextlib.suppress(KeyboardInterrupt):  # the usual end
            watching.follow_logs(client, chosen, wanted, as_json=as_json)
        return
    for each in wanted or ["llama-server"]:
        if as_json:
            output.print_json(client.get(f"/api/deployments/{chosen}/logs", process=each))
        else:
            watching.print_log(client, chosen, each)
