"""Join lines for each platform, each with the QR code of the whole line."""

from typing import Final

import segno

from supervisor.api.views import JoinLine, Platform

_QUIET_ZONE: Final = 4
"""Light modules around a code, which scanners need."""


def join_lines(termux: str, elsewhere: str) -> tuple[JoinLine, ...]:
    """The lines for phones under Termux, and for computers. Takes some 60 ms."""
    lines = line_of_each(termux, elsewhere)
    drawn = {line: qr_svg(line) for line in lines.values()}
    return tuple(
        JoinLine(platform=platform, command=line, qr=drawn[line])
        for platform, line in lines.items()
    )


def line_of_each(termux: str, elsewhere: str) -> dict[Platform, str]:
    """Each platform and its line; a Mac and Linux have the same."""
    return {"termux": termux, "macos": elsewhere, "linux": elsewhere}


def qr_svg(text: str) -> str:
    """A QR code of ``text`` as ``data:`` URI, of any size that the page gives it.

    It is black on white wherever it is shown: many scanners cannot read an inverted one.
    """
    code = segno.make(text, error="l", micro=False)
    return code.svg_data_uri(
        border=_QUIET_ZONE,
        dark="#000",
        light="#fff",
        omitsize=True,
        svgclass=None,
        lineclass=None,
        encode_minimal=True,
    )
