"""Commands that list devices and decide about them."""

from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Table

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.options import AsJson, Key, Url
from supervisor.core.wires import AUTOMATIC
from supervisor.errors import DeviceUnknown

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


@devices_app.command()
def wires(
    device: Annotated[str | None, typer.Argument(help="name or id; all without one")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List the ways to devices, and which of them carries tensors."""
    found = Client(url, key).get("/api/devices")
    if device is not None:
        found = [each for each in found if device in (each["name"], each["id"])]
        if not found:
            raise DeviceUnknown(f"no device {device!r}; see 'supervisor devices'")
    if as_json:
        output.print_json({each["name"]: each["wires"] for each in found})
    else:
        _show_wires(found)


@devices_app.command()
def wire(
    device: DeviceName,
    address: Annotated[
        str, typer.Argument(help="of the device, as 'devices wires' lists them; auto: the fastest")
    ] = AUTOMATIC,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Choose the address of a device that tensors go to; what runs stays as it is."""
    changed = Client(url, key).patch(_path(device), {"wire": address})
    if as_json:
        output.print_json(changed)
    else:
        _show_wires([changed])


def _show_wires(devices: list[dict[str, Any]]) -> None:
    """Ways to devices, and below why some cannot be used."""
    if not any(device["wires"] for device in devices):
        output.console.print("no ways were measured: that is for devices on other hosts")
        return
    output.console.print(wires_table(devices))
    for device in devices:
        for each in device["wires"]:
            if each["problem"]:
                ends = f"{each['near']} to {each['far']} of {device['name']}"
                output.console.print(escape(f"{ends}: {each['problem']}"))


def wires_table(devices: list[dict[str, Any]]) -> Table:
    """One row for each way; the one that carries tensors is marked."""
    made = output.table("Wires", "device", "address", "over", "round trip", "rate", "use")
    for device in devices:
        for each in device["wires"]:
            trip_ms, rate = each["round_trip_ms"], each["up_bytes_per_s"]
            chosen = ", your choice" if device["wire"] == each["far"] else ""
            use = "does not work" if each["problem"] else ""
            made.add_row(
                escape(device["name"]),
                each["far"],
                escape(" ".join(part for part in (each["kind"], each["interface"]) if part)),
                "?" if trip_ms is None else f"{trip_ms:.2f} ms",
                "?" if rate is None else f"{rate / 1e6:.0f} MB/s",
                f"tensors{chosen}" if each["in_use"] else use,
            )
    return made


def _change(client: Client, device: str, as_json: bool, **wanted: Any) -> None:
    _show(client.patch(_path(device), wanted), as_json)


def _path(device: str) -> str:
    return f"/api/devices/{quote(device, safe='')}"


def _show(device: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.print_json(device)
    else:
        output.console.print(output.devices_table([device]))
