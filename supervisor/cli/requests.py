"""The requests that were answered, from the command line."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.events import local_time
from supervisor.cli.options import AsJson, Key, Url

_COLUMNS = (
    "when",
    "deployment",
    "path",
    "caller",
    "status",
    "queue",
    "first token",
    "took",
    "speed",
    "prompt + answer",
    "retries",
    "resumed",
)


def show_requests(
    limit: Annotated[int, typer.Option("-n", "--limit", min=0, max=1000, help="at most")] = 50,
    deployment: Annotated[str | None, typer.Option(help="only of this deployment")] = None,
    caller: Annotated[str | None, typer.Option(help="only of this key, or 'local'")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show the newest requests: who asked, how long it took, and how fast it was."""
    wanted = {"limit": limit, "deployment": deployment, "caller": caller}
    params = {name: value for name, value in wanted.items() if value is not None}
    found = Client(url, key).get("/api/requests", **params)
    if as_json:
        output.print_json(found)
        return
    output.console.print(requests_table(found))


def requests_table(requests: list[dict[str, Any]]) -> Table:
    """Requests, one row each, the newest first; ``-`` is what does not apply."""
    made = output.table("Requests", *_COLUMNS)
    for request in requests:
        made.add_row(
            local_time(request["at"]),
            escape(request["deployment"]) or "-",
            escape(request["path"]),
            escape(request["caller"]),
            _status(request),
            _seconds(request["queue_s"]),
            _seconds(request["first_token_s"]),
            _seconds(request["total_s"]),
            _speed(request["tokens_per_s"]),
            _tokens(request),
            str(request["retries"] or "-"),
            str(request["resumed"] or "-"),
        )
    return made


def _status(request: dict[str, Any]) -> str:
    """``200``, or ``503 waited_too_long``."""
    text = escape(f"{request['status']} {request['code']}".strip())
    return text if request["status"] < 400 else f"[red]{text}[/]"


def _seconds(seconds: float | None) -> str:
    """``12 ms``, ``3.41 s``."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _speed(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:.1f} tok/s"


def _tokens(request: dict[str, Any]) -> str:
    """``1,200 + 300 tok``; ``?`` is a count that nobody told."""
    prompt, generated = request["prompt_tokens"], request["generated_tokens"]
    if prompt is None and generated is None:
        return "-"
    return f"{_count(prompt)} + {_count(generated)} tok"


def _count(tokens: int | None) -> str:
    return "?" if tokens is None else f"{tokens:,}"
