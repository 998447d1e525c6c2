"""Commands about the devices of a cluster."""

from typing import Annotated, Any

import typer

from supervisor.cli import invitation, measuring, output
from supervisor.cli.client import Client
from supervisor.cli.options import AsJson, Key, Url


def invite(
    url: Url = None,
    key: Key = None,
    once: Annotated[bool, typer.Option(help="good for one device only")] = False,
    hours: Annotated[float | None, typer.Option(help="how long it is good for")] = None,
    platform: invitation.OnlyFor = None,
    as_json: AsJson = False,
) -> None:
    """Print a new join code, and the line that uses it on each platform."""
    params: dict[str, Any] = {"once": once} | ({"hours": hours} if hours is not None else {})
    view = Client(url, key).post("/api/join-code", **params)
    if as_json:
        output.print_json(view)
        return
    lines = {line["platform"]: line["command"] for line in view["lines"]}
    if platform:
        print(lines[platform])  # noqa: T201 - to be copied, or run as it is
        return
    output.console.print(view["code"])
    invitation.say_lines(lines)


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
