"""``supervisor models settings``: what is kept for a model."""

import json
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.markup import escape

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.launching import model_path
from supervisor.cli.model_flags import (
    EngineOption,
    LoraFiles,
    Mmproj,
    TemplateFile,
    model_options,
)
from supervisor.cli.options import AsJson, Key, Url

_PATH = "/api/models/settings"


def model_settings(
    model: Annotated[
        str | None, typer.Argument(help="GGUF file or reference; without one: all models")
    ] = None,
    ctx: Annotated[int | None, typer.Option(help="context, tokens")] = None,
    min_ctx: Annotated[int | None, typer.Option(help="shrink the context down to this")] = None,
    kv: Annotated[str | None, typer.Option(help="type of the KV cache: f16, q8_0, ...")] = None,
    slots: Annotated[int | None, typer.Option(help="parallel sequences")] = None,
    ubatch: Annotated[int | None, typer.Option(help="prompt tokens computed at once")] = None,
    chat_template_file: TemplateFile = None,
    mmproj: Mmproj = None,
    lora: LoraFiles = None,
    option: EngineOption = None,
    alias: Annotated[
        list[str] | None, typer.Option("--alias", help="another name for requests; repeatable")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="any other field of a launch, NAME=VALUE in JSON; repeatable"),
    ] = None,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", help="keep this no more; 'all' for everything")
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show or change what launches of a model take unless they say otherwise."""
    client = Client(url, key)
    given: dict[str, Any] = {"ctx_tokens": ctx, "min_ctx_tokens": min_ctx, "kv_type": kv}
    given |= {"slots": slots, "ubatch": ubatch, "aliases": alias}
    changed = {name: value for name, value in given.items() if value is not None}
    changed |= model_options(chat_template_file, mmproj, lora, option)
    changed |= dict(_field(text) for text in set_ or [])
    if model is None:
        if changed or unset:
            raise typer.BadParameter("name the model whose settings change", param_hint="MODEL")
        _show(client.get(_PATH), as_json=as_json)
        return
    named = model_path(model)
    (found,) = client.get(_PATH, model=named)
    if changed or unset:
        values = _without(found["values"], unset or []) | changed
        found = client.put(f"{_PATH}?{urlencode({'model': named})}", values)
    _show([found], as_json=as_json)


def _without(values: dict[str, Any], unset: list[str]) -> dict[str, Any]:
    """Raises ``BadParameter`` for a name that is not kept."""
    if "all" in unset:
        return {}
    called = {"ctx": "ctx_tokens", "min_ctx": "min_ctx_tokens", "kv": "kv_type"}
    called |= {"option": "engine_options", "alias": "aliases"}
    names = [name.lstrip("-").replace("-", "_") for name in unset]
    names = [called.get(name, name) for name in names]
    for name in names:
        if name not in values:
            kept = ", ".join(values) or "nothing"
            raise typer.BadParameter(f"{name} is not kept; kept: {kept}", param_hint="--unset")
    return {name: value for name, value in values.items() if name not in names}


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--set")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value


def _show(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        output.print_json(found)
        return
    made = output.table("Settings of models", "model", "setting", "value")
    for settings in found:
        for name, value in settings["values"].items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            made.add_row(escape(settings["model"]), name, escape(text))
    if made.row_count:
        output.console.print(made)
    else:
        output.console.print("Nothing is kept; launches take what they are given.")
