"""What to run: the table, the recommendation, and the command that follows from it."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.options import AsJson, Key, Url
from supervisor.cli.watching import new_progress
from supervisor.core.explain_words import rate
from supervisor.core.suggesting import USUAL_MIN_SPEED
from supervisor.core.units import gib


def suggest(
    what: Annotated[
        str,
        typer.Argument(help="OWNER/REPO, or chat, code, reasoning, vision, small, multilingual"),
    ] = "",
    ctx: Annotated[
        int | None, typer.Option(help="context, tokens; 8192 unless it was trained for less")
    ] = None,
    min_speed: Annotated[
        float, typer.Option(help="tokens per second that are wanted")
    ] = USUAL_MIN_SPEED,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Say which model, in which quantisation, to run on these devices. Downloads nothing."""
    asked = {"q": what, "ctx_tokens": ctx, "min_tokens_per_s": min_speed}
    with new_progress() as progress:
        progress.disable = as_json
        found = _asked(Client(url, key), asked, progress)
    if as_json:
        output.print_json(found)
        return
    if found["suggestions"]:
        output.console.print(table_of(found))
    for note in found["notes"]:
        output.console.print(f"[yellow]note:[/] {escape(note)}")
    output.console.print(escape(found["words"]))
    if found["command"]:
        output.console.print(f"Next: [bold]{escape(found['command'])}[/]")


def _asked(client: Client, asked: dict[str, Any], progress: Progress) -> dict[str, Any]:
    given = {name: value for name, value in asked.items() if value is not None}
    task = progress.add_task("asking", total=None)

    def show(body: dict[str, Any]) -> None:
        step, done, total = escape(body["step"]), body["done"], body["total"]
        progress.update(task, description=step, completed=done, total=total)

    found: dict[str, Any] = client.worked(
        "GET",
        "/api/models/suggest",
        show,
        ended="the supervisor ended while it looked for models; run it again",
        **given,
    )
    return found


def table_of(found: dict[str, Any]) -> Table:
    """One row per suggestion; the recommended one has an arrow."""
    rows = found["suggestions"]
    is_of_task = any(row["id"] for row in rows)
    first = ("model", "quantisation") if is_of_task else ("quantisation",)
    made = output.table(
        "What to run", "", *first, "size", "fits", "context", "tokens per second", "where"
    )
    made.columns[1].no_wrap = is_of_task  # ids are short; names of files may not be
    for row in rows:
        fit = row["fit"]
        about = "\u2248 " if fit["is_estimate"] else ""
        names = (escape(row["id"]),) if is_of_task else ()
        made.add_row(
            "[green]\u2192[/]" if row["is_recommended"] else "",
            *names,
            escape(row["label"]),
            about + gib(row["size_bytes"]),
            _fits(fit),
            f"{fit['ctx_tokens']:,}" + (f", {fit['kv_type']}" if fit["kv_type"] else ""),
            about + rate(fit["tokens_per_s"]) if fit["tokens_per_s"] else "-",
            escape(", ".join(fit["devices"])) or "-",
        )
    return made


def _fits(fit: dict[str, Any]) -> str:
    if fit["fits"]:
        return "[green]yes[/]" if fit["is_checked"] else "[green]yes[/], not checked"
    if fit["missing_bytes"]:
        return f"[red]no[/], {gib(fit['missing_bytes'])} short"
    return f"[red]no[/], {escape(fit['error_code'])}"
