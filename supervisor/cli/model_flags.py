"""Options of ``plan``, ``launch`` and ``models settings`` about the engine's own model options."""

from pathlib import Path
from typing import Annotated, Any

import typer

TemplateFile = Annotated[
    str | None, typer.Option("--chat-template-file", help="Jinja file, instead of the model's own")
]
Mmproj = Annotated[
    str | None, typer.Option("--mmproj", help="projector file for images; '' for none")
]
LoraFiles = Annotated[
    list[str] | None, typer.Option("--lora", help="adapter FILE[:SCALE]; repeatable")
]
EngineOption = Annotated[
    list[str] | None,
    typer.Option("--option", help="further option of llama-server, FLAG[=VALUE]; repeatable"),
]


def model_options(
    chat_template_file: str | None,
    mmproj: str | None,
    lora: list[str] | None,
    option: list[str] | None,
) -> dict[str, Any]:
    """The fields of a spec that were given."""
    found: dict[str, Any] = {}
    if chat_template_file is not None:
        found["chat_template_file"] = full_path(chat_template_file)
    if mmproj is not None:
        found["mmproj"] = full_path(mmproj) if mmproj else ""
    if lora:
        found["lora"] = [_adapter(text) for text in lora]
    if option:
        found["engine_options"] = option
    return found


def full_path(text: str) -> str:
    """A path of this host in full; one that is not here is the supervisor's to judge."""
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # such as "~nobody/x"
        return text
    return str(path.absolute()) if path.exists() else text


def _adapter(text: str) -> dict[str, Any]:
    path, colon, scale = text.rpartition(":")
    if not colon:
        return {"path": full_path(text)}
    try:
        return {"path": full_path(path), "scale": float(scale)}
    except ValueError:
        return {"path": full_path(text)}
