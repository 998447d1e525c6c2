"""Join lines and their QR codes: whoever scans one has the line, whole."""

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest
from qr_reading import drawn_in_blocks, drawn_in_svg, text_of, version_of
from rich.console import Console

from agents.join import JoinCode
from supervisor.api.join_lines import join_lines, qr_svg
from supervisor.api.rest import Services
from supervisor.cli.invitation import Platform, qr_code, say_lines

PIN = "sha256//" + "4" * 43 + "="
LARGEST = 25
"""Version of a code that a phone still reads from a screen: 117 modules."""


def lines_of(endpoint: str) -> dict[str, Any]:
    """The lines of a supervisor whose agents find it there."""
    named: Any = SimpleNamespace(join_endpoints=(endpoint,), server_pin=PIN)
    named._fetch = lambda name: Services._fetch(named, name)
    services = cast(Services, named)
    code = JoinCode((endpoint,), "t" * 22, "f" * 43)
    command = Services.join_command(services, code)
    lines = join_lines(Services.termux_command(services, code), command)
    return {line.platform: line for line in lines}


@pytest.mark.parametrize(
    "endpoint", ["10.0.0.7:8101", "[2001:db8:1111:2222:3333:4444:5555:6666]:8101", "h" * 253 + ":1"]
)
def test_each_code_is_the_line_beside_it(endpoint: str) -> None:
    lines = lines_of(endpoint)
    assert list(lines) == ["termux", "macos", "linux"]
    for line in lines.values():
        modules = drawn_in_svg(line.qr)
        assert text_of(modules) == line.command
        assert version_of(modules) <= LARGEST
        assert endpoint in line.command
    assert "install.sh" in lines["termux"].command
    assert "join.sh" in lines["macos"].command
    assert lines["macos"].command == lines["linux"].command


def test_the_usual_line_needs_a_code_that_a_phone_reads_at_once() -> None:
    lines = lines_of("192.168.100.100:8101")
    assert max(version_of(drawn_in_svg(line.qr)) for line in lines.values()) <= 13
    assert max(len(line.qr) for line in lines.values()) < 8000


@pytest.mark.parametrize("text", ["a", "x" * 100, "a'\"<>&;%#+ " * 20, "\n"])
def test_any_text_is_read_back(text: str) -> None:
    uri = qr_svg(text)
    assert text_of(drawn_in_svg(uri)) == text
    assert not set(uri) & set('"<>#\n'), "it can stand in an attribute"


def terminal(width: int, encoding: str = "utf-8", *, is_terminal: bool = True) -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=file, force_terminal=is_terminal, width=width, highlight=False, _environ={})


def test_a_terminal_shows_the_code() -> None:
    text = lines_of("192.168.100.100:8101")["termux"].command
    code = qr_code(text, terminal(80))
    assert code is not None
    assert text_of(drawn_in_blocks(code.plain.splitlines())) == text
    assert code.style == "#ffffff on #000000", "whatever the colours of the terminal"


@pytest.mark.parametrize(
    "console",
    [terminal(72), terminal(200, "ascii"), terminal(200, is_terminal=False)],
    ids=["narrow", "ascii", "file"],
)
def test_where_a_code_would_be_cut_or_garbled_there_is_none(console: Console) -> None:
    text = lines_of("192.168.100.100:8101")["termux"].command
    assert qr_code(text, console) is None


def test_a_terminal_shows_each_line_once_and_whole() -> None:
    found = lines_of("192.168.100.100:8101")
    lines: dict[Platform, str] = {
        "termux": found["termux"].command,
        "macos": found["macos"].command,
        "linux": found["linux"].command,
    }
    console = terminal(80)
    console.soft_wrap = True
    say_lines(lines, console)
    console.file.seek(0)
    shown = console.file.read()
    assert shown.count(lines["linux"]) == shown.count(lines["termux"]) == 1
    assert "on a Mac, or on Linux, or in WSL2" in shown
    assert "█" in shown
