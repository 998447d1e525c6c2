"""Commands that list devices and decide about them."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.options import AsJson, Key, Url

devices_app = typer.Typer(invoke_without_command=True, help="List devices, or decide about one.")

DeviceName = Annotated[str, typer.Argument(help="name or id")]


@devices_app.callback()
def list_devices(
    context: typer.Context, url: Url = None, key: Key = None, as_json: AsJson = False
) -> None:
    """List the joined devices."""
    if context.invoked_subcommand is not None:
        return
    found = Client(url, key).get("/api/devices")
    output.print_json(found) if as_json else output.console.print(output.devices_table(found))


@devices_app.command()
def exclude(device: DeviceName, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Make no plan with a device any more; what runs there goes on."""
    _change(Client(url, key), device, as_json, excluded=True)


@devices_app.command()
def include(device: DeviceName, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Let plans use an excluded device again."""
    _change(Client(url, key), device, as_json, excluded=False)


@devices_app.command()
def drain(device: DeviceName, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Exclude a device, and launch what uses it without it; running requests may end first."""
    _show(Client(url, key).relaunch("POST", f"{_path(device)}/drain"), as_json)


@devices_app.command()
def rename(
    device: DeviceName,
    name: Annotated[str, typer.Argument(help="letters, digits, and any of - _ .")],
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Give a device another name, which it keeps."""
    _change(Client(url, key), device, as_json, name=name)


def _change(client: Client, device: str, as_json: bool, **wanted: Any) -> None:
    _show(client.patch(_path(device), wanted), as_json)


def _path(device: str) -> str:
    return f"/api/devices/{quote(device, safe='')}"


def _show(device: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.print_json(device)
    else:
        output.console.print(output.devices_table([device]))
