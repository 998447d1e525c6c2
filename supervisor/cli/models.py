"""Commands about models."""

import contextlib
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, TaskID

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.launching import model_path, names
from supervisor.cli.options import AsJson, Key, Url
from supervisor.cli.watching import new_progress
from supervisor.errors import SupervisorRefused, SupervisorUnreachable

models_app = typer.Typer(no_args_is_help=True, help="Models.")


@models_app.command()
def push(
    model: Annotated[str, typer.Argument(help="GGUF file on the main host")],
    devices: Annotated[str, typer.Option(help="to all of these and no others, a,b,c")] = "",
    ctx: Annotated[int, typer.Option(help="context that it will be launched with")] = 4096,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Send a model's weights to the devices ahead of a launch; what they have is not sent again."""
    spec = {"model": model_path(model), "devices": names(devices), "ctx_tokens": ctx}
    client = Client(url, key)
    with new_progress() as progress:
        progress.disable = as_json
        views = _follow(client, spec, progress)
    if as_json:
        output.print_json(views)
        return
    made = output.table("Pushed", "device", "has of the model", "of it sent now")
    for view in views:
        made.add_row(escape(view["device"]), _mb(view["total_bytes"]), _mb(view["sent_bytes"]))
    output.console.print(made)


def _follow(client: Client, spec: dict[str, Any], progress: Progress) -> list[dict[str, Any]]:
    tasks: dict[str, TaskID] = {}
    with contextlib.closing(client.stream("POST", "/api/models/push", spec)) as events:
        for event, body in events:
            if event == "problem":
                raise SupervisorRefused(body["detail"], body["code"])
            if event == "result":
                result: list[dict[str, Any]] = body
                return result
            for view in body:
                name = view["device"]
                if name not in tasks:
                    tasks[name] = progress.add_task(escape(name), total=None)
                progress.update(
                    tasks[name],
                    total=view["total_bytes"] or None,
                    completed=view["done_bytes"],
                    description=_line(view),
                )
    raise SupervisorUnreachable("the supervisor ended during the push; run it again to go on")


def _line(view: dict[str, Any]) -> str:
    left = f", {view['eta_s']:.0f} s left" if view["eta_s"] is not None else ""
    return (
        f"{escape(view['device'])}: {_mb(view['done_bytes'])} of {_mb(view['total_bytes'])}, "
        f"{_mb(view['bytes_per_s'])}/s{left}"
    )


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"
