"""Commands that work on this host alone: run a program of ours, or show what is installed."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from agents import agent as agents
from agents import cli as agent_cli
from agents import log as logs
from agents.power import FLOOR_PERCENT, HOT_C, Limits
from agents.power_options import FLOOR_HELP, HOT_HELP
from supervisor import settings
from supervisor.cli import invitation, output
from supervisor.cli.options import AsJson, Config, Data, load_settings

config_app = typer.Typer(no_args_is_help=True, help="Settings.")


def up(
    data: Data = None,
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="address of dashboard and API")] = None,
    port: Annotated[int | None, typer.Option(help="port of dashboard and API; 0: any")] = None,
    join_host: Annotated[str | None, typer.Option(help="address for agents")] = None,
    join_port: Annotated[int | None, typer.Option(help="port for agents; 0: any")] = None,
    engine: Annotated[Path | None, typer.Option(help="folder of the llama.cpp programs")] = None,
    agent: Annotated[
        bool | None, typer.Option("--agent/--no-agent", help="serve this host's device too")
    ] = None,
    platform: invitation.OnlyFor = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the start as JSON")] = False,
) -> None:
    """Start the supervisor on this host, the main host, until Ctrl-C."""
    from supervisor.app import Running, serve

    chosen = load_settings(
        config,
        data,
        host=host,
        port=port,
        join_host=join_host,
        join_port=join_port,
        engine_folder=engine,
        local_agent=agent,
    )
    _configure_logs(chosen, "supervisor")

    def announce(running: Running) -> None:
        if as_json:
            output.print_json(
                {
                    "url": running.url,
                    "join_code": running.join_code,
                    "pid": os.getpid(),
                    "lines": running.join_lines,
                }
            )
            return
        if platform:
            print(running.join_lines[platform], flush=True)  # noqa: T201 - to be copied
            return
        say = output.console.print
        say(f"[bold]dashboard[/]  {running.url}")
        say(f"[bold]join code[/]  {running.join_code}")
        say(f"[bold]on a device with this program[/]   supervisor join {running.join_code}")
        invitation.say_lines(running.join_lines)
        say(f"the code is good until {running.join_expires_at}; Ctrl-C stops everything")

    asyncio.run(serve(chosen, announce))


def _configure_logs(chosen: settings.Settings, process: str) -> None:
    is_json = chosen.log_format == "json"
    logs.configure(process, json_lines=is_json, level=chosen.log_level)


def join(
    code: Annotated[str, typer.Argument(help="join code; - reads SUPERVISOR_JOIN_CODE")],
    data: Annotated[Path | None, typer.Option(help="data folder of the agent")] = None,
    engine: Annotated[Path | None, typer.Option(help="folder of the llama.cpp programs")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="REST port")] = None,
    name: Annotated[str | None, typer.Option(help="name of this device")] = None,
    threads: Annotated[int | None, typer.Option(help="threads of the rpc-server")] = None,
    battery_floor: Annotated[
        float, typer.Option(help=FLOOR_HELP, min=0, max=100, metavar="PERCENT")
    ] = FLOOR_PERCENT,
    hot_c: Annotated[float, typer.Option(help=HOT_HELP, min=30, max=60)] = HOT_C,
) -> None:
    """Make this device a worker of the main host that printed CODE, until Ctrl-C."""
    logs.configure("agent")
    options = agents.Options(
        code=agent_cli.join_code(code, data),
        folder=data or agent_cli.default_folder(),
        engine=engine,
        host=host,
        port=port,
        name=name,
        threads=threads,
        power=Limits(battery_floor, hot_c),
    )
    asyncio.run(agents.run(options))


@config_app.command("show")
def show_config(data: Data = None, config: Config = None, as_json: AsJson = False) -> None:
    """Print the settings in force, from defaults, file and environment."""
    chosen = load_settings(config, data)
    values = chosen.model_dump(mode="json")
    if as_json:
        output.print_json(values)
        return
    made = output.table("Settings", "setting", "value", "meaning")
    for name, value in values.items():
        meaning = settings.Settings.model_fields[name].description or ""
        made.add_row(name, escape(str(value)), escape(meaning))
    output.console.print(made)


def show_key(data: Data = None, config: Config = None) -> None:
    """Print the key that other hosts need for dashboard and API."""
    from supervisor.api.auth import load_or_make_key

    folder = load_settings(config, data).data_folder
    print(load_or_make_key(folder))  # noqa: T201 - to be copied


def demo(
    workers: Annotated[int, typer.Option(min=1, max=8, help="number of workers")] = 2,
    model: Annotated[Path | None, typer.Option(help="GGUF file instead of a made one")] = None,
    once: Annotated[bool, typer.Option("--once", help="end after the answer")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the facts as JSON")] = False,
    port: Annotated[int | None, typer.Option(help="port of the dashboard")] = None,
) -> None:
    """Show everything on this machine: workers, a launch, and one answer of a small model."""
    from supervisor.cli.demo import Options, run

    asyncio.run(run(Options(workers, model, once, as_json, port)))
