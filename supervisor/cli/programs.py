"""Commands that work on this host alone: run a program of ours, or show what is installed."""

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from agents import cli as agent_cli
from agents import engine as engines
from agents import log as logs
from supervisor import settings
from supervisor.cli import output
from supervisor.cli.client import default_folder
from supervisor.cli.options import AsJson, Config, Data, load_settings

engine_app = typer.Typer(no_args_is_help=True, help="The llama.cpp programs on this host.")
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
                {"url": running.url, "join_code": running.join_code, "pid": os.getpid()}
            )
            return
        say = output.console.print
        say(f"[bold]dashboard[/]  {running.url}")
        say(f"[bold]join code[/]  {running.join_code}")
        say(f"[bold]on a device with this program[/]   supervisor join {running.join_code}")
        say("[bold]on a device with Python alone[/]  ", end="")
        say(escape(running.join_command))
        say("[bold]on a phone under Termux[/]  ", end="")
        say(escape(running.termux_command))
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
) -> None:
    """Make this device a worker of the main host that printed CODE, until Ctrl-C."""
    logs.configure("agent")
    options = agent_cli.Options(
        code=agent_cli.join_code(code),
        folder=data or agent_cli.default_folder(),
        engine=engine,
        host=host,
        port=port,
        name=name,
        threads=threads,
    )
    asyncio.run(agent_cli.run(options))


@engine_app.command("list")
def list_engines(
    folder: Annotated[Path | None, typer.Option("--engine", help="look here only")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the llama.cpp programs of this host: path, version, RPC protocol."""
    found = asyncio.run(_inspected(folder))
    if as_json:
        from dataclasses import asdict

        output.print_json([asdict(engine) for engine in found])
        return
    made = output.table("Engines", "folder", "found by", "version", "build", "RPC", "problem")
    for engine in found:
        rpc = engine.rpc_protocol if engine.has_rpc else "no"
        made.add_row(
            escape(engine.folder),
            engine.source,
            engine.version,
            engine.build,
            rpc,
            escape(engine.problem),
        )
    output.console.print(made)
    if not found:
        output.console.print("none found; install llama.cpp with RPC, or set LLAMA_CPP_BIN")


async def _inspected(folder: Path | None) -> list[Any]:
    inherited = engines.inherited()
    own = default_folder() / "engines"
    found = engines.discover(inherited, explicit=folder, own_engines=own)
    return [await engines.inspect(engine, inherited) for engine in found]


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
