"""Commands about the models of this host: list, show, locate, check and delete them."""

import threading
import time
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich.markup import escape

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.launching import model_path
from supervisor.cli.model_list import count, print_models
from supervisor.cli.options import AsJson, Key, Url
from supervisor.cli.watching import new_progress
from supervisor.core.units import gib
from supervisor.errors import (
    ModelBroken,
    SupervisorRefused,
    SupervisorUnreachable,
)

ModelName = Annotated[
    str, typer.Argument(help="path, file name, OWNER/REPO:QUANT, or NAME:TAG of Ollama")
]

_FITTED: Final = 20
_FIT_WITHIN_S: Final = 4.0
"""Without ``--fit``, what is not known by then is left out."""

_FIT_PATIENCE_S: Final = 600.0
_SHOWN_SKIPPED: Final = 5
_COLOURS: Final = {"good": "green", "wrong": "red", "unproven": "yellow"}


def models(
    context: typer.Context,
    fit: Annotated[
        bool | None,
        typer.Option("--fit/--no-fit", help="whether each fits this cluster, and how fast it runs"),
    ] = None,
    companions: Annotated[
        bool, typer.Option("--all", help="projectors, adapters and the like as well")
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Models on the main host; without a command: list them."""
    if context.invoked_subcommand is not None:
        return
    client = Client(url, key)
    found = client.get("/api/models", companions=companions, max_age_s=0)
    if as_json:
        fits = _fits(client, found, _FIT_PATIENCE_S) if fit else {}
        output.print_json([m | ({"fit": fits.get(m["path"])} if fit else {}) for m in found])
        return
    wanted = fit or (fit is None and len(found) <= _FITTED)
    fits = _fits(client, found, _FIT_PATIENCE_S if fit else _FIT_WITHIN_S) if wanted else {}
    if found:
        print_models(found, fits)
    _print_places(client.get("/api/models/places"), is_empty=not found)


def show(model: ModelName, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show all that is known of one model."""
    client = Client(url, key)
    where = client.get("/api/models/where", model=model_path(model))
    listed = client.get("/api/models", companions=True)
    found = next((each for each in listed if each["path"] == where["path"]), None)
    view = (found or {}) | where
    if as_json:
        output.print_json(view)
        return
    if found is None:
        _print_where(where, [])
        return
    for name, value in _facts(found):
        output.console.print(f"{name:>14}  {escape(value)}")
    for word, colour in (("problem", "red"), ("warning", "yellow")):
        if found[word]:
            output.console.print(f"{word:>14}  [{colour}]{escape(found[word])}[/]")


def where(model: ModelName, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Say where a model is: its files on this host, and what devices hold of it."""
    client = Client(url, key)
    found = client.get("/api/models/where", model=model_path(model))
    try:
        held = _held(client, found["path"], is_quiet=as_json)
    except SupervisorRefused as exc:  # it is broken, say: no device needs it
        held = []
        output.errors.print(f"what devices hold of it is not known: {escape(str(exc))}")
    if as_json:
        output.print_json(found | {"devices": held})
        return
    _print_where(found, held)


def verify(
    model: Annotated[str | None, typer.Argument(help="one model; else all of them")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Compare files with their checksums, as far as anything tells them: it reads all of them."""
    client = Client(url, key)
    found = _verified(client, model, is_quiet=as_json)
    if as_json:
        output.print_json(found)
    else:
        _print_verified(found)
    wrong = [each["name"] for each in found if each["verdict"] == "wrong"]
    if wrong:
        raise ModelBroken(
            f"{len(wrong)} of {len(found)} models failed the check: {', '.join(wrong)};"
            " delete and fetch again what is wrong"
        )


def remove(
    model: ModelName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    dry_run: Annotated[bool, typer.Option(help="only say what would go")] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Delete a model from this host; says first what goes, and who else uses it."""
    client = Client(url, key)
    path = f"/api/models?path={quote(model_path(model), safe='')}"
    view = client.delete(f"{path}&dry_run=true")
    if not as_json:
        _print_removal(view)
    if not dry_run:
        if not yes and not typer.confirm("delete it?", err=True):
            raise typer.Exit(1)
        view = client.delete(path)
        if not as_json:
            output.console.print(f"deleted; {gib(view['freed_bytes'])} are free again")
    if as_json:
        output.print_json(view)


# -- asking --------------------------------------------------------------------------------------


def _fits(client: Client, found: list[dict[str, Any]], within_s: float) -> dict[str, Any]:
    """By path, of those whose plan came in time."""
    paths = [m["path"] for m in found if not (m["problem"] or m["is_companion"])]
    answers: dict[str, Any] = {}

    def ask() -> None:
        for path in paths:
            try:
                answers[path] = client.get("/api/models/fit", model=path)
            except SupervisorRefused as exc:
                answers[path] = {"fits": None, "detail": str(exc)}
            except SupervisorUnreachable:
                return

    until_s = time.monotonic() + within_s
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(max(until_s - time.monotonic(), 0))
    return dict(answers)


def _held(client: Client, path: str, *, is_quiet: bool) -> list[dict[str, Any]]:
    """What each device holds; the first time the whole model is read for it."""
    with new_progress() as progress:
        progress.disable = is_quiet
        task = progress.add_task("naming its parts, once", total=None)
        held: list[dict[str, Any]] = client.worked(
            "GET",
            "/api/models/holdings/stream",
            lambda body: progress.update(task, **_bytes(body)),
            ended="the supervisor ended meanwhile; run it again",
            model=path,
        )
        return held


def _verified(client: Client, model: str | None, *, is_quiet: bool) -> list[dict[str, Any]]:
    with new_progress() as progress:
        progress.disable = is_quiet
        task = progress.add_task("looking", total=None)

        def show(body: dict[str, Any]) -> None:
            name = body["path"].rpartition("/")[2]
            progress.update(task, description=escape(name), **_bytes(body))

        found: list[dict[str, Any]] = client.worked(
            "POST",
            "/api/models/verify",
            show,
            ended="the supervisor ended during the check; run it again",
            **({"model": model_path(model)} if model else {}),
        )
        return found


def _bytes(body: dict[str, Any]) -> dict[str, Any]:
    return {"total": body["total_bytes"] or None, "completed": body["done_bytes"]}


# -- showing -------------------------------------------------------------------------------------


def _facts(model: dict[str, Any]) -> list[tuple[str, str]]:
    context = model["ctx_train_tokens"]
    named = [
        ("name", model["name"]),
        ("title", model["title"]),
        ("kind", model["kind"] if model["is_companion"] else ""),
        ("source", model["source"]),
        ("reference", model["reference"]),
        ("architecture", model["architecture"]),
        ("parameters", count(model["parameters"])),
        ("quantisation", model["quantisation"]),
        ("size", gib(model["size_bytes"])),
        ("context", f"{context:,} tokens" if context else ""),
        *(("file", path) for path in model["parts"]),
        *(("also", name) for name in model["also"]),
        ("projector", model["projector"]),
        ("deployments", ", ".join(model.get("deployments", ()))),
    ]
    return [(name, value) for name, value in named if value]


def _print_places(view: dict[str, Any], *, is_empty: bool) -> None:
    if is_empty:
        looked = ", ".join(place["path"] for place in view["places"])
        output.console.print(f"no models in {escape(looked)}")
    if view["unread"]:
        are = "model is" if view["unread"] == 1 else "models are"
        output.console.print(f"{view['unread']} {are} still to be read")
    for skipped in view["skipped"][:_SHOWN_SKIPPED]:
        output.console.print(f"[yellow]not read:[/] {escape(skipped)}")
    if (more := len(view["skipped"]) - _SHOWN_SKIPPED) > 0:
        output.console.print(f"[yellow]not read:[/] {more} more")


def _print_where(found: dict[str, Any], held: list[dict[str, Any]]) -> None:
    made = output.table(
        f"{found['name']} ({found['source']})", "file", "size", "on disk", "content"
    )
    for part in found["parts"]:
        sizes = gib(part["size_bytes"]), gib(part["disk_bytes"])
        made.add_row(escape(part["path"]), *sizes, escape(part["content"]))
    output.console.print(made)
    for name in found["also"]:
        output.console.print(f"also: {escape(name)}")
    if found["deployments"]:
        output.console.print(f"deployments: {escape(', '.join(found['deployments']))}")
    if held:
        devices = output.table("Devices", "device", "holds", "needs of it")
        for each in held:
            held_bytes = gib(each["held_bytes"]) if each["is_known"] else "did not answer"
            devices.add_row(escape(each["device"]), held_bytes, gib(each["needed_bytes"]))
        output.console.print(devices)


def _print_verified(found: list[dict[str, Any]]) -> None:
    made = output.table("Verified", "model", "verdict", "how")
    for model in found:
        for at, file in enumerate(model["files"]):
            colour = _COLOURS[file["verdict"]]
            name = escape(model["name"]) if at == 0 else ""
            made.add_row(name, f"[{colour}]{file['verdict']}[/]", escape(file["detail"]))
    output.console.print(made)


def _print_removal(view: dict[str, Any]) -> None:
    output.console.print(f"{escape(view['name'])}: {gib(view['freed_bytes'])} would be free again")
    for path in view["deletes"]:
        output.console.print(f"  deletes {escape(path)}")
    for kept in view["keeps"]:
        output.console.print(f"  keeps {escape(kept)}")
    if view["deployments"]:
        names = escape(", ".join(view["deployments"]))
        output.console.print(f"  [yellow]needed by[/] {names}, which could not start any more")
