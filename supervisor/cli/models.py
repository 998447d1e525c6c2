"""Commands about models."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, TaskID

from supervisor.cli import library, output, pulls
from supervisor.cli.client import Client
from supervisor.cli.launching import model_path, names
from supervisor.cli.model_settings import model_settings
from supervisor.cli.options import AsJson, Key, Url
from supervisor.cli.suggest import suggest
from supervisor.cli.watching import new_progress

models_app = typer.Typer(invoke_without_command=True, help="Models.")
models_app.callback()(library.models)
models_app.command("show")(library.show)
models_app.command("where")(library.where)
models_app.command("verify")(library.verify)
models_app.command("rm")(library.remove)
models_app.command("settings")(model_settings)
models_app.command("pull")(pulls.pull)
models_app.add_typer(pulls.pulls_app, name="pulls")
models_app.command("suggest")(suggest)


@models_app.command()
def push(
    model: Annotated[str, typer.Argument(help="GGUF file on the main host")],
    devices: Annotated[str, typer.Option(help="to all of these and no others, a,b,c")] = "",
    ctx: Annotated[int, typer.Option(help="context that it will be launched with")] = 4096,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
    *,
    whole: Annotated[bool, typer.Option(help="all of it to each device, for any split")] = False,
) -> None:
    """Send a model's weights to the devices ahead of a launch; what they have is not sent again."""
    spec = {"model": model_path(model), "devices": names(devices), "ctx_tokens": ctx}
    client = Client(url, key)
    with new_progress() as progress:
        progress.disable = as_json
        views = _follow(client, spec, progress, whole=whole)
    if as_json:
        output.print_json(views)
        return
    made = output.table("Pushed", "device", "has of the model", "from here", "from devices")
    for view in views:
        figures = (view["total_bytes"], view["sent_bytes"], view["from_peers_bytes"])
        made.add_row(escape(view["device"]), *map(_mb, figures))
    output.console.print(made)
    for view in views:
        if view["note"]:
            output.console.print(f"{escape(view['device'])}: {escape(view['note'])}")


def _follow(
    client: Client, spec: dict[str, Any], progress: Progress, *, whole: bool
) -> list[dict[str, Any]]:
    tasks: dict[str, TaskID] = {}

    def show(views: list[dict[str, Any]]) -> None:
        for view in views:
            name = view["device"]
            if name not in tasks:
                tasks[name] = progress.add_task(escape(name), total=None)
            progress.update(
                tasks[name],
                total=view["total_bytes"] or None,
                completed=view["done_bytes"],
                description=_line(view),
            )

    pushed: list[dict[str, Any]] = client.worked(
        "POST",
        "/api/models/push",
        show,
        ended="the supervisor ended during the push; run it again to go on",
        body=spec,
        whole=whole,
    )
    return pushed


def _line(view: dict[str, Any]) -> str:
    there = f"{escape(view['device'])}: {_mb(view['done_bytes'])} of {_mb(view['total_bytes'])}"
    if view["state"] == "waiting":
        return f"{escape(view['device'])}: another push of this model goes first"
    if view["state"] == "naming":
        return f"{there} of the model named, once"
    if view["problem"]:
        return f"{there}, then lost: {escape(view['problem'])}"
    left = f", {view['eta_s']:.0f} s left" if view["eta_s"] is not None else ""
    helped = view["from_peers_bytes"]
    peers = f" ({_mb(helped)} from other devices)" if helped else ""
    return f"{there}{peers}, {_mb(view['bytes_per_s'])}/s{left}"


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"
