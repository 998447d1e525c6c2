"""What several commands take, and the settings that follow from it."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from supervisor import settings
from supervisor.cli.client import default_folder
from supervisor.errors import BadSettings

Url = Annotated[str | None, typer.Option("--url", help="address of the supervisor")]
Key = Annotated[str | None, typer.Option("--key", help="its key, when it is another host")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Data = Annotated[Path | None, typer.Option("--data", help="data folder of the supervisor")]
Config = Annotated[Path | None, typer.Option("--config", help="settings file (TOML)")]
Name = Annotated[str | None, typer.Argument(help="deployment; may be left out if there is one")]


def load_settings(config: Path | None, data: Path | None, **given: Any) -> settings.Settings:
    """Settings from file, environment and command line, the later ones winning."""
    folder = data or default_folder()
    path = config or folder / "supervisor.toml"
    try:
        text = path.read_text() if config or path.exists() else ""
    except (OSError, UnicodeDecodeError) as exc:
        raise BadSettings(f"cannot read the settings file {path}: {exc}") from exc
    options = {n: str(v) for n, v in {"data_folder": data, **given}.items() if v is not None}
    named = {f"{settings.PREFIX}{name.upper()}": value for name, value in options.items()}
    environ = {**os.environ, **named}
    return settings.load(text, environ, default_folder=default_folder(), path=path, options=options)
