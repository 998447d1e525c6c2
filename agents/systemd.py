"""The systemd user unit of a program of ours, as text. Nothing here touches the system.

A user unit cannot wait for ``network-online.target``, which only the system manager has. It need
not: an agent waits for its main host, and the supervisor for its devices.
"""

import re
from typing import Final

from agents.background import Service
from agents.errors import ServiceRefused

_PLAIN: Final = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
_OPEN_FILES: Final = 65_536


def unit_text(service: Service) -> str:
    """The unit file.

    Raises:
        ServiceRefused: A path or a value has a control character in it, or the program a quote.
    """
    if any(letter in service.argv[0] for letter in "'\"\\"):
        raise ServiceRefused(
            f"systemd runs no program with a quote or a backslash in its path ({service.argv[0]}); "
            "install it elsewhere"
        )
    program, *arguments = (quoted(word) for word in service.argv)
    lines = [
        "[Unit]",
        f"Description={_percents(service.description)}",
        "StartLimitIntervalSec=300",
        "StartLimitBurst=10",
        "",
        "[Service]",
        "Type=exec",
        # The colon: no variable is put in for a dollar sign in a path.
        f"ExecStart=:{' '.join([program, *arguments])}",
        f"WorkingDirectory={_percents(_printable(str(service.folder)))}",
        *(f"Environment={quoted(f'{n}={v}')}" for n, v in sorted(service.environment.items())),
        "Restart=on-failure",
        "RestartSec=5",
        # The program hears SIGTERM first and alone, and ends its children itself.
        f"KillMode={'process' if service.leaves_children else 'mixed'}",
        f"TimeoutStopSec={service.stop_s}",
        # A child that the kernel ends for want of memory is reported, and is no end of the unit.
        "OOMPolicy=continue",
        f"LimitNOFILE={_OPEN_FILES}",
        "UMask=0077",
        f"SyslogIdentifier={service.unit.removesuffix('.service')}",
        *(["StandardOutput=null", "StandardError=journal"] if service.prints_secrets else []),
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def quoted(word: str) -> str:
    """One word of a unit file, by the rules of systemd.syntax(7) and systemd.unit(5).

    Raises:
        ServiceRefused: It has a control character in it.
    """
    if _PLAIN.fullmatch(word):
        return word
    escaped = _printable(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_percents(escaped)}"'


def _percents(text: str) -> str:
    """``%`` begins a specifier, such as ``%h``."""
    return text.replace("%", "%%")


def _printable(text: str) -> str:
    if any(ord(letter) < ord(" ") or letter == "\x7f" for letter in text):
        raise ServiceRefused(f"{text!r} has a control character, which no unit file can hold")
    return text
