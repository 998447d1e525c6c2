"""Figures of a Mac without psutil, from what its own commands print."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents import facts, mac_figures, process

VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                              101573.
Pages active:                            326107.
Pages inactive:                          318425.
Pages speculative:                         6914.
Pages throttled:                              0.
Pages wired down:                        171222.
Pages purgeable:                           4811.
"Translation faults":                 412345678.
File-backed pages:                       208421.
"""
TOTAL = 17_179_869_184


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that comes first on PATH; nothing is remembered."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(mac_figures, "_memory", None)
    monkeypatch.setattr(mac_figures, "_processes", {})
    return tmp_path


def test_memory_is_what_psutil_would_say(commands: Path) -> None:
    (commands / "said").write_text(VM_STAT)
    program(commands, "vm_stat", f'cat "{commands}/said"')
    program(commands, "sysctl", f'[ "$*" = "-n hw.memsize" ] && echo {TOTAL}')
    assert mac_figures.memory() == (TOTAL, (101_573 + 318_425) * 16_384)
    program(commands, "vm_stat", "exit 1")
    assert mac_figures.memory() is not None, "remembered for a second"


@pytest.mark.parametrize(
    ("total", "vm_stat"), [("", VM_STAT), (str(TOTAL), ""), ("?", VM_STAT), (str(TOTAL), "Mach")]
)
def test_what_says_nothing_is_unknown_and_not_zero(total: str, vm_stat: str) -> None:
    assert mac_figures.parsed_memory(total, vm_stat) is None


@pytest.mark.parametrize(
    ("line", "figures"),
    [
        (
            "S+ 10240 0:05.27 Sat Nov 21 16:52:54 2026",
            ("S", 10_485_760, 5.27, "Sat Nov 21 16:52:54 2026"),
        ),
        ("I 1 1:02:03 Sat Nov  1 06:52:54 2026", ("S", 1024, 3723, "Sat Nov 1 06:52:54 2026")),
        ("T 0 2-01:02:03 Sat Nov 1 06:52:54 2026", ("T", 0, 176_523, "Sat Nov 1 06:52:54 2026")),
    ],
)
def test_a_line_of_ps(line: str, figures: tuple[str, int, float, str]) -> None:
    assert mac_figures.parsed_process(line) == mac_figures.Figures(*figures)


@pytest.mark.parametrize("line", ["", "S", "S x 0:01 now", "S 1 never now"])
def test_a_process_that_is_gone_has_no_figures(line: str) -> None:
    assert mac_figures.parsed_process(line) is None


@pytest.mark.usefixtures("commands")
def test_ps_of_this_system_agrees_with_its_kernel() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        found = mac_figures.process(child.pid)
        assert found is not None
        assert found.state == process.state_letter(child.pid) == "S"
        assert found.resident_bytes == pytest.approx(facts.resident_bytes(child.pid), rel=0.1)
        assert found.started
    finally:
        child.kill()
        child.communicate()
    mac_figures._processes.clear()
    assert mac_figures.process(child.pid) is None


def test_elsewhere_ps_is_not_asked(commands: Path) -> None:
    program(commands, "ps", f'touch "{commands}/asked"')
    assert process.mac_figures_of(1) is None
    assert not (commands / "asked").exists()


def test_a_killed_agents_rpc_server_is_known_without_psutil(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Mac: no /proc, no psutil, and a ps."""
    program(commands, "ps", 'echo "S 1 0:00.01 Sat Nov 21 16:52:54 2026"')
    monkeypatch.setattr(sys, "platform", "darwin")
    gone = 2**22 + 1  # no process has that number, so /proc and psutil say nothing
    assert process.start_mark(gone) == "Sat Nov 21 16:52:54 2026"
    assert process.state_letter(gone) == "S"
