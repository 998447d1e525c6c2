"""Commands about the devices of a cluster."""

import io
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from supervisor.cli import measuring, output
from supervisor.cli.client import Client
from supervisor.cli.options import AsJson, Key, Url

_QUIET_ZONE: Final = 4
"""Light modules around a QR code, which scanners need."""


def invite(
    url: Url = None,
    key: Key = None,
    once: Annotated[bool, typer.Option(help="good for one device only")] = False,
    hours: Annotated[float | None, typer.Option(help="how long it is good for")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a new join code."""
    params: dict[str, Any] = {"once": once} | ({"hours": hours} if hours is not None else {})
    view = Client(url, key).post("/api/join-code", **params)
    if as_json:
        output.print_json(view)
        return
    output.console.print(view["code"])
    output.console.print(f"on a device with Python alone: {escape(view['command'])}")
    output.console.print(f"on a phone under Termux: {escape(view['termux_command'])}")
    if code := qr_code(view["termux_command"], output.console):
        output.console.print("the same, to scan with the phone and paste into Termux:")
        output.console.print(code, no_wrap=True)


def qr_code(text: str, console: Console) -> Text | None:
    """A QR code of half blocks; None where this is no terminal that could show it all."""
    import segno

    code = segno.make(text, error="l", micro=False)
    columns, _ = code.symbol_size(border=_QUIET_ZONE)
    is_able = console.is_terminal and console.encoding.lower().replace("-", "") == "utf8"
    if not is_able or columns > console.width:
        return None
    drawn = io.StringIO()
    code.terminal(drawn, border=_QUIET_ZONE, compact=True)
    # Blocks are its light modules, so these colours: many scanners cannot read an inverted one.
    return Text(drawn.getvalue().rstrip("\n"), style="#ffffff on #000000")


def remove(
    device: Annotated[str, typer.Argument(help="name or id")], url: Url = None, key: Key = None
) -> None:
    """Forget a device and refuse its certificate."""
    Client(url, key).delete(f"/api/devices/{device}")


def measure(
    device: Annotated[str | None, typer.Argument(help="name or id; default: all idle ones")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast devices and the network to them are, for better plans."""
    measuring.measure(Client(url, key), device, as_json)
