"""Commands about launch records."""

from typing import Annotated, Any

import typer
from rich.markup import escape

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.events import events_table
from supervisor.cli.options import AsJson, Key, Url

launches_app = typer.Typer(invoke_without_command=True, help="Launch records.")


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
    output.print_cause({"id": f"launch {record['id']}", "cause": record["cause"]})
    say(output.timeline_text(record["timeline"]))
    if record["transitions"]:
        say(events_table(record["transitions"]))
    say(output.plan_table(record["plan"]))
    if record["memory"]:
        say(output.memory_table(record))
    if record["links"]:
        say(output.links_table(record["links"]))
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
