"""Commands. Exit status: 0 success, 1 an expected error, 2 wrong usage."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from agents import cli as agent_cli
from agents import engine as engines
from agents import log as logs
from agents.errors import ProjectError
from supervisor import __version__, settings
from supervisor.cli import output, watching
from supervisor.cli.client import Client, default_folder
from supervisor.errors import BadSettings, EngineExited

app = typer.Typer(
    help="Run one language model over the devices you already have, with llama.cpp RPC.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
launches_app = typer.Typer(invoke_without_command=True, help="Launch records.")
engine_app = typer.Typer(no_args_is_help=True, help="The llama.cpp programs on this host.")
config_app = typer.Typer(no_args_is_help=True, help="Settings.")
app.add_typer(launches_app, name="launches")
app.add_typer(engine_app, name="engine")
app.add_typer(config_app, name="config")

Url = Annotated[str | None, typer.Option("--url", help="address of the supervisor")]
Key = Annotated[str | None, typer.Option("--key", help="its key, when it is another host")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Data = Annotated[Path | None, typer.Option("--data", help="data folder of the supervisor")]
Config = Annotated[Path | None, typer.Option("--config", help="settings file (TOML)")]
Name = Annotated[str | None, typer.Argument(help="deployment; may be left out if there is one")]


def main() -> int:
    """Run a command; expected errors become one sentence and status 1."""
    try:
        app()
    except ProjectError as exc:
        output.errors.print(f"[red]error:[/] {escape(str(exc))}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def load_settings(config: Path | None, data: Path | None, **given: Any) -> settings.Settings:
    """Settings from file, environment and command line, the later ones winning."""
    folder = data or default_folder()
    path = config or folder / "supervisor.toml"
    try:
        text = path.read_text() if config or path.exists() else ""
    except (OSError, UnicodeDecodeError) as exc:
        raise BadSettings(f"cannot read the settings file {path}: {exc}") from exc
    environ = dict(os.environ)
    for name, value in {"data_folder": data, **given}.items():
        if value is not None:
            environ[f"{settings.PREFIX}{name.upper()}"] = str(value)
    return settings.load(text, environ, default_folder=folder)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        output.console.print(__version__)
        raise typer.Exit


@app.command()
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


@app.command()
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


@app.command()
def invite(
    url: Url = None,
    key: Key = None,
    once: Annotated[bool, typer.Option(help="good for one device only")] = False,
    hours: Annotated[float | None, typer.Option(help="how long it is good for")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a new join code."""
    params: dict[str, Any] = {"once": once} | ({"hours": hours} if hours is not None else {})
    view = Client(url, key).post("/api/join-code", **params)
    if as_json:
        output.print_json(view)
        return
    output.console.print(view["code"])
    output.console.print(f"on a device with Python alone: {escape(view['command'])}")
    output.console.print(f"on a phone under Termux: {escape(view['termux_command'])}")


@app.command()
def devices(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List the joined devices."""
    found = Client(url, key).get("/api/devices")
    output.print_json(found) if as_json else output.console.print(output.devices_table(found))


@app.command()
def remove(
    device: Annotated[str, typer.Argument(help="name or id")], url: Url = None, key: Key = None
) -> None:
    """Forget a device and refuse its certificate."""
    Client(url, key).delete(f"/api/devices/{device}")


@app.command()
def launch(
    model: Annotated[str, typer.Argument(help="GGUF file on the main host")],
    name: Annotated[str | None, typer.Option(help="name of the deployment")] = None,
    ctx: Annotated[int, typer.Option(help="context, tokens")] = 4096,
    devices: Annotated[str, typer.Option(help="devices to use, a,b,c; default: all")] = "",
    split: Annotated[str, typer.Option(help="layers per device, 20,13")] = "",
    slots: Annotated[int, typer.Option(help="parallel sequences")] = 1,
    wait: Annotated[bool, typer.Option(help="wait until it is ready, or has failed")] = False,
    dry_run: Annotated[bool, typer.Option(help="print the plan, start nothing")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Launch a model over the devices."""
    spec: dict[str, Any] = {
        "model": _model_path(model),
        "ctx_tokens": ctx,
        "devices": [part for part in devices.split(",") if part],
        "split": _numbers(split),
        "slots": slots,
    }
    if name:
        spec["name"] = name
    client = Client(url, key)
    if dry_run:
        plan = client.post("/api/plan", spec)
        output.print_json(plan) if as_json else output.console.print(output.plan_table(plan))
        return
    deployment = client.post("/api/deployments", spec)
    if wait:
        deployment = watching.wait_until_settled(client, deployment["id"], quiet=as_json)
    if as_json:
        output.print_json(deployment)
    else:
        output.console.print(output.deployments_table([deployment]))
    if wait and deployment["state"] != "ready":
        raise EngineExited(deployment["reason"] or f"the deployment is {deployment['state']}")


def _model_path(model: str) -> str:
    """A path of this host in full; anything else is the supervisor's to judge."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is not a list of whole numbers", param_hint="--split"
        ) from None


@app.command()
def status(url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show devices and deployments."""
    snapshot = Client(url, key).get("/api/status")
    if as_json:
        output.print_json(snapshot)
        return
    output.console.print(output.devices_table(snapshot["devices"]))
    output.console.print(output.deployments_table(snapshot["deployments"]))


@app.command()
def stop(name: Name = None, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Stop a deployment; returns when nothing of it runs."""
    _change(Client(url, key), name, "stop", as_json)


@app.command()
def start(name: Name = None, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Start a stopped or failed deployment again."""
    _change(Client(url, key), name, "start", as_json)


def _change(client: Client, name: str | None, verb: str, as_json: bool) -> None:
    chosen = watching.only_deployment(client, name)
    deployment = client.post(f"/api/deployments/{chosen}/{verb}")
    if as_json:
        output.print_json(deployment)
    else:
        output.console.print(output.deployments_table([deployment]))


@app.command("logs")
def show_logs(
    name: Name = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on until Ctrl-C")] = False,
    worker: Annotated[str, typer.Option(help="log of this device's rpc-server instead")] = "",
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Print the log of llama-server, or of a worker."""
    client = Client(url, key)
    chosen = watching.only_deployment(client, name)
    process = worker or "llama-server"
    if as_json:
        output.print_json(client.get(f"/api/deployments/{chosen}/logs", process=process))
        return
    watching.follow_log(client, chosen, process, follow=follow)


@launches_app.callback()
def list_launches(
    context: typer.Context, url: Url = None, key: Key = None, as_json: AsJson = False
) -> None:
    """List launches, newest first."""
    if context.invoked_subcommand is not None:
        return
    records = Client(url, key).get("/api/launches")
    if as_json:
        output.print_json(records)
        return
    made = output.table("Launches", "id", "deployment", "started", "outcome", "took", "reason")
    for record in records:
        took = f"{record['timeline'][-1]['at_s']:.2f} s" if record["timeline"] else "-"
        made.add_row(
            str(record["id"]),
            record["deployment"],
            record["started_at"],
            record["outcome"],
            took,
            escape(record["reason"]),
        )
    output.console.print(made)


@launches_app.command("show")
def show_launch(
    launch: Annotated[int, typer.Argument(help="number of the launch")],
    shell: Annotated[bool, typer.Option("--shell", help="commands that repeat it by hand")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show the record of one launch: commands, environment, workers, timeline."""
    client = Client(url, key)
    if shell:
        commands = client.get(f"/api/launches/{launch}/shell")["commands"]
        if as_json:
            output.print_json(commands)
            return
        for command in commands:
            print(f"# on {command['host']}\n{command['command']}")  # noqa: T201 - to be copied
        return
    record = client.get(f"/api/launches/{launch}")
    if as_json:
        output.print_json(record)
        return
    _print_record(record)


def _print_record(record: dict[str, Any]) -> None:
    say = output.console.print
    outcome = f"{record['outcome']} {record['reason']}".strip()
    say(f"[bold]launch {record['id']}[/] of {record['deployment']}: {escape(outcome)}")
    say(output.timeline_text(record["timeline"]))
    say(output.plan_table(record["plan"]))
    for worker in record["workers"]:
        say(
            f"[bold]{escape(worker['device'])}[/] {worker['host']}:{worker['port']}  "
            f"RPC {worker['rpc_protocol']}, round trip {worker['round_trip_ms']} ms"
        )
        say("  " + escape(" ".join(worker["argv"])))
    say(f"[bold]llama-server[/] {record['engine']['version']} {record['engine']['build']}")
    say("  " + escape(" ".join(record["argv"])))
    for name, value in record["environment"].items():
        say(f"  {name}={escape(value)}")


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


@app.command("key")
def show_key(data: Data = None, config: Config = None) -> None:
    """Print the key that other hosts need for dashboard and API."""
    from supervisor.api.auth import load_or_make_key

    folder = load_settings(config, data).data_folder
    print(load_or_make_key(folder))  # noqa: T201 - to be copied


@app.command()
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


if __name__ == "__main__":
    sys.exit(main())
