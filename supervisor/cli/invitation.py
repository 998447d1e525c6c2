"""The lines that make devices of other hosts, for people to copy or to scan."""

import io
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from supervisor.cli import output

_QUIET_ZONE: Final = 4
"""Light modules around a QR code, which scanners need."""

Platform = Literal["termux", "macos", "linux"]
OnlyFor = Annotated[
    Platform | None,
    typer.Option("--platform", help="print the line for this platform, and nothing else"),
]

_NAMES: Final[dict[Platform, str]] = {
    "termux": "on a phone, in Termux",
    "macos": "on a Mac",
    "linux": "on Linux, or in WSL2",
}


def say_lines(lines: Mapping[Platform, str], console: Console = output.console) -> None:
    """The line of each platform, equal ones together, and what phones can scan."""
    for line in dict.fromkeys(lines.values()):
        names = ", or ".join(_NAMES[each] for each in lines if lines[each] == line)
        console.print(f"[bold]{names}[/]  {escape(line)}")
    if code := qr_code(lines["termux"], console):
        console.print("the line for phones, to scan and paste into Termux:")
        console.print(code, no_wrap=True)


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
