"""``agent.pyz doctor``: this device alone, for people or as JSON, with or without an agent."""

import argparse
import asyncio
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from agents.contract import Finding, Verdict
from agents.doctor.examination import examine
from agents.doctor.subject import Subject, known_endpoints

MARKS: Final = {
    Verdict.OK: "ok",
    Verdict.WARNING: "warning",
    Verdict.BLOCKS: "BLOCKS",
    Verdict.UNKNOWN: "unknown",
}
_MARK_WIDTH: Final = 9
_TITLE_WIDTH: Final = 23
_NARROWEST: Final = 60
_WORST_FIRST: Final = (Verdict.BLOCKS, Verdict.WARNING, Verdict.UNKNOWN, Verdict.OK)


def add_arguments(parser: argparse.ArgumentParser, default_folder: Path) -> None:
    parser.add_argument("--data", type=Path, default=default_folder, help="data folder")
    parser.add_argument("--engine", type=Path, help="folder of the llama.cpp programs")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(parsed: argparse.Namespace) -> int:
    """Exit status: 1 if something blocks."""
    environ = dict(os.environ)
    folder: Path = parsed.data
    subject = Subject.here(
        folder,
        environ,
        engine_folder=parsed.engine,
        endpoints=known_endpoints(folder, environ),
    )
    findings = asyncio.run(examine(subject))
    if parsed.json:
        text = json.dumps([asdict(finding) for finding in findings], indent=2)
    else:
        width = max(shutil.get_terminal_size((100, 24)).columns, _NARROWEST)
        text = table(findings, width)
    sys.stdout.write(text + "\n")
    return 1 if any(finding.verdict is Verdict.BLOCKS for finding in findings) else 0


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """What blocks first, otherwise in the order given."""
    return sorted(findings, key=lambda finding: _WORST_FIRST.index(finding.verdict))


def table(findings: Sequence[Finding], width: int) -> str:
    """Mark, title, what was found and what to do; one line in short at the end."""
    lines = [line for finding in worst_first(findings) for line in _rows(finding, width)]
    return "\n".join([*lines, "", summary(findings)])


def _rows(finding: Finding, width: int) -> list[str]:
    begin = f"{MARKS[finding.verdict]:<{_MARK_WIDTH}}{finding.title:<{_TITLE_WIDTH}}"
    indent = " " * (_MARK_WIDTH + _TITLE_WIDTH)
    rows = textwrap.wrap(finding.found, width, initial_indent=begin, subsequent_indent=indent) or [
        begin.rstrip()
    ]
    if finding.remedy and finding.verdict is not Verdict.OK:
        rows += textwrap.wrap(
            finding.remedy, width, initial_indent=f"{indent}-> ", subsequent_indent=f"{indent}   "
        )
    return rows


def summary(findings: Sequence[Finding]) -> str:
    """``2 things block, 1 warning``, or that all is well."""
    count = {verdict: sum(f.verdict is verdict for f in findings) for verdict in Verdict}
    block, warn, unsure = (count[v] for v in (Verdict.BLOCKS, Verdict.WARNING, Verdict.UNKNOWN))
    parts = []
    if block:
        parts.append("1 thing blocks" if block == 1 else f"{block} things block")
    if warn:
        parts.append("1 warning" if warn == 1 else f"{warn} warnings")
    if not parts:
        parts.append("nothing blocks")
    if unsure:
        parts.append(f"{unsure} unknown")
    return ", ".join(parts)
