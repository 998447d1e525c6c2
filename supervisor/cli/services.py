"""``supervisor service``: start this main host's supervisor at boot, by systemd or launchd."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markup import escape

from agents import service
from agents.background import Service, carried, own_argv
from supervisor.cli import output
from supervisor.cli.options import AsJson, Config, Data, load_settings

_STOP_S: Final = 60
"""For the end of everything else, when running requests have had their time."""

service_app = typer.Typer(
    no_args_is_help=True, help="Start the supervisor at boot, by systemd or launchd."
)


@service_app.command("install")
def install(
    data: Data = None,
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="address of dashboard and API")] = None,
    port: Annotated[int | None, typer.Option(help="port of dashboard and API")] = None,
    join_host: Annotated[str | None, typer.Option(help="address for agents")] = None,
    join_port: Annotated[int | None, typer.Option(help="port for agents")] = None,
    engine: Annotated[Path | None, typer.Option(help="folder of the llama.cpp programs")] = None,
    agent: Annotated[
        bool | None, typer.Option("--agent/--no-agent", help="serve this host's device too")
    ] = None,
) -> None:
    """Start 'supervisor up' with these options now, at every boot, and after a failure."""
    given = {"host": host, "port": port, "join_host": join_host, "join_port": join_port}
    chosen = load_settings(config, data, **given, engine_folder=engine, local_agent=agent)
    words = [*_words({"data": data, "config": config, "engine": engine, **given})]
    if agent is not None:
        words.append("--agent" if agent else "--no-agent")
    wanted = Service(
        "supervisor",
        (*own_argv("supervisor"), "up", *words),
        chosen.data_folder.expanduser().absolute(),
        carried(os.environ),
        stop_s=int(chosen.drain_s) + _STOP_S,
        leaves_children=True,
        prints_secrets=True,
    )
    outcome = service.manager(service.shown(wanted)).install(wanted)
    raise typer.Exit(service.report(outcome, _say))


@service_app.command("uninstall")
def uninstall() -> None:
    """Stop the supervisor, and start it no more. Its data stay."""
    outcome = service.manager(_by_hand()).uninstall("supervisor")
    raise typer.Exit(service.report(outcome, _say))


@service_app.command("status")
def status(as_json: AsJson = False) -> None:
    """Show whether it runs, since when, how it ended last, and where its log is."""
    found = service.manager(_by_hand()).status("supervisor")
    if as_json:
        output.print_json(asdict(found))
    else:
        for line in found.lines():
            _say(line)
    raise typer.Exit(0 if found.is_running else 1)


def _by_hand() -> str:
    return " ".join([*own_argv("supervisor"), "up"])


def _say(line: str) -> None:
    output.console.print(escape(line))


def _words(given: dict[str, object]) -> Iterator[str]:
    """Options as they are typed, with absolute paths: a service runs in another folder."""
    for name, value in given.items():
        if value is not None:
            shown = value.expanduser().absolute() if isinstance(value, Path) else value
            yield f"--{name.replace('_', '-')}={shown}"
