"""Commands about API keys."""

from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.options import AsJson, Key, Url

keys_app = typer.Typer(invoke_without_command=True, help="API keys.")

KeyName = Annotated[str, typer.Argument(help="name of the key")]


@keys_app.callback()
def list_keys(
    context: typer.Context, url: Url = None, key: Key = None, as_json: AsJson = False
) -> None:
    """List keys: how they begin, what they are good for, and what they were used for."""
    if context.invoked_subcommand is not None:
        return
    found = Client(url, key).get("/api/keys")
    output.print_json(found) if as_json else output.console.print(_keys_table(found))


@keys_app.command("create")
def create_key(
    name: KeyName,
    scope: Annotated[
        str, typer.Option(help="what it is good for: inference, read, admin, or several: a,b")
    ] = "inference",
    per_minute: Annotated[
        int | None, typer.Option("--per-minute", min=1, help="requests in any minute")
    ] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="requests at a time")] = None,
    wait: Annotated[
        float | None, typer.Option(min=0, help="seconds that a request waits at most")
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once."""
    client = Client(url, key)
    wanted = {
        "name": name,
        "scopes": [part.strip() for part in scope.split(",")],
        "requests_per_minute": per_minute,
        "concurrent": concurrent,
        "wait_s": wait,
    }
    made = client.post("/api/keys", wanted)
    if as_json:
        output.print_json(made)
        return
    address = client.get("/api/status")["url"]
    output.console.print(escape(made["text"]))
    output.console.print("it is shown only now; to use it:")
    output.console.print(
        f"export OPENAI_BASE_URL={escape(address)}/v1 OPENAI_API_KEY={escape(made['text'])}"
    )


@keys_app.command("revoke")
def revoke_key(name: KeyName, url: Url = None, key: Key = None) -> None:
    """Refuse a key from now on; requests that it began go on to their end."""
    Client(url, key).delete(f"/api/keys/{name}")


def _keys_table(keys: list[dict[str, Any]]) -> Table:
    """Keys, one row each."""
    made = output.table(
        "Keys", "name", "key", "scopes", "limits", "requests", "tokens in", "out", "last used"
    )
    for key in keys:
        made.add_row(
            escape(key["name"]),
            escape(key["shown"]),
            ", ".join(key["scopes"]),
            _limits(key) or "none",
            str(key["requests"]),
            str(key["prompt_tokens"]),
            str(key["generated_tokens"]),
            key["last_used_at"] or "never",
        )
    return made


def _limits(key: dict[str, Any]) -> str:
    words = (
        ("requests_per_minute", "{} a minute"),
        ("concurrent", "{} at a time"),
        ("wait_s", "waits {:g} s"),
    )
    return ", ".join(text.format(key[name]) for name, text in words if key[name] is not None)
