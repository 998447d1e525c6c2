"""Commands. Exit status: 0 success, 1 an expected error, 2 wrong usage."""

import sys
from typing import Annotated

import typer
from rich.markup import escape

from agents.errors import ProjectError
from supervisor import __version__
from supervisor.cli import (
    cluster,
    devices,
    doctor,
    engines,
    events,
    keys,
    launching,
    models,
    output,
    programs,
    records,
    report,
    requests,
    running,
    services,
)

app = typer.Typer(
    help="Run one language model over the devices you already have, with llama.cpp RPC.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    programs.up,
    programs.join,
    cluster.invite,
    cluster.measure,
    cluster.remove,
    launching.plan,
    launching.launch,
    launching.restart,
    doctor.doctor,
    running.status,
    running.stop,
    running.start,
    programs.demo,
):
    app.command()(command)
app.command("logs")(running.show_logs)
app.command("events")(events.show_events)
app.command("requests")(requests.show_requests)
app.command("report")(report.make_report)
app.command("key")(programs.show_key)
app.add_typer(devices.devices_app, name="devices")
app.add_typer(records.launches_app, name="launches")
app.add_typer(keys.keys_app, name="keys")
app.add_typer(models.models_app, name="models")
app.add_typer(engines.engine_app, name="engine")
app.add_typer(programs.config_app, name="config")
app.add_typer(services.service_app, name="service")


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


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        output.console.print(__version__)
        raise typer.Exit


if __name__ == "__main__":
    sys.exit(main())
