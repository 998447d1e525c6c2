"""Real launches whose workers may use hardly more memory than was predicted for them.

    uv run python bench/planning/memory_limits.py
    uv run python bench/planning/memory_limits.py --only 2 11 --json memory_limits.json

Each worker runs in a memory group of its own whose limit leaves it 3 % above the prediction; the
prompt fills the whole context. The last case has less than the prediction, and must be killed.
Linux with cgroup v1, as root; takes about five minutes.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from limit_cases import CASES, Case
from limit_launch import Bench, Row
from memory_groups import GroupsUnusable, make_group

from agents import engine as engines
from supervisor.core.commands import known_flags
from supervisor.core.memory import MIB


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| model | settings | worker | closed form | engine's buffers | predicted | limit "
        "| measured peak | VmHWM | measured / predicted | survived |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        resident = "-" if row.resident_peak_bytes is None else _mib(row.resident_peak_bytes)
        figures = (
            row.formula_bytes,
            row.buffers_bytes,
            row.predicted_bytes,
            row.limit_bytes,
            row.group_peak_bytes,
        )
        lines.append(
            f"| {row.case} | {row.settings} | {row.worker} | {' | '.join(map(_mib, figures))} "
            f"| {resident} | {row.share:.3f} | {_ending(row)} |"
        )
    return "\n".join(lines)


def _ending(row: Row) -> str:
    if row.is_killed:
        return "no, killed"
    return "yes" if row.is_complete else "yes, another was killed"


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / MIB:.1f}"


def summary(rows: Sequence[Row]) -> str:
    fitting = [row for row in rows if row.predicted_bytes < row.limit_bytes]
    served = len({row.case + row.settings for row in fitting if row.is_complete})
    shares = [row.share for row in fitting if row.is_complete]
    cases = len({row.case + row.settings for row in fitting})
    spread = f", measured / predicted {min(shares):.3f} to {max(shares):.3f}" if shares else ""
    return f"{served} of {cases} launches within their limits served everything{spread}; MiB"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def run(cases: Mapping[int, Case]) -> list[Row]:
    inherited = engines.inherited()
    engine = await engines.inspect(engines.discover(inherited)[0], inherited)
    _, help_text = await engines.run([engine.llama_server, "--help"], inherited)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = Bench(engine, known_flags(help_text), Path(folder))
        for number, case in cases.items():
            started_s = time.monotonic()
            found = await bench.run(case)
            rows += found
            killed = sum(row.is_killed for row in found)
            _say(
                f"{number}: {case.name}, {case.settings}: {killed} of {len(found)} workers killed, "
                f"{time.monotonic() - started_s:.0f} s"
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of cases, from 1")
    parser.add_argument("--json", type=Path, help="write all rows there")
    options = parser.parse_args()
    try:
        make_group("check").remove()
        chosen = {n: c for n, c in enumerate(CASES, 1) if n in (options.only or [n])}
        rows = asyncio.run(run(chosen))
    except GroupsUnusable as exc:
        _say(str(exc))
        return 2
    print(table(rows))
    print(f"\n{summary(rows)}")
    if options.json:
        text = json.dumps([{**asdict(row), "share": row.share} for row in rows], indent=1)
        options.json.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
