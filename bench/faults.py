"""What a cluster does about every fault: rows of tests/chaos, several times, for docs/faults.md.

    uv run python bench/faults.py --runs 3 --json /tmp/faults.json
    uv run python bench/faults.py --rows worker-kill worker-stop --runs 5

Each run has a cluster of its own on loopback: a supervisor and three devices of one thread, a model
of 21 MB over all three, a warm store, and a request that is being answered. With ``--json`` figures
are kept as they come, so a run that was ended goes on where it was. ``docs/faults.md`` is written
when every row has been run.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from chaos.faults import DEAD_S
from chaos.forbidden import NotPermitted
from chaos.lasting import ADOPTION_GOAL_S
from chaos.matrix import ROWS
from chaos.rows import DEAD_GOAL_S, FROZEN_GOAL_S, LOAD_GOAL_S, Outcome, Row
from chaos.world import world
from cluster import RUN_MARK
from link_runs import header, machine, run_to_end, say, table

from agents import engine as engines
from supervisor.demo_model import write_demo_model

DOCUMENT = Path(__file__).parent.parent / "docs" / "faults.md"
ROW_S = 170.0

ABOUT = f"""\
# Faults

What is done to a cluster that serves, what the supervisor says of it, and how long it takes.
`bench/faults.py` makes this file; `tests/chaos/` is the same matrix as tests (`uv run pytest -m
chaos`), which also look for orphans, lost records and wrong words after each row.

Each run has a cluster of its own on loopback: a supervisor, three devices of one thread each, a
model of 21 MB with three layers on each device, a warm store, and a streaming request that is
being answered when the fault strikes. An agent that was killed is started again after a second, as
systemd and Termux do; what was stopped or cut off stays so until another launch serves.

* **cause**: code in the record of the launch that ended; `docs/errors.md` explains each.
* **detected**: from the fault until the deployment is no longer READY.
* **serving again**: from the fault until a new request was answered. Where nothing ends, it is what
  the title says: for the supervisor from its restart, for disks the next launch.
* **plain load**: from asking for the same launch to READY, without any fault.

Goals: a dead worker is detected in under {DEAD_GOAL_S:g} s, a frozen or unreachable one in under
{FROZEN_GOAL_S:g} s; it serves again within the plain load time plus {LOAD_GOAL_S:g} s after that. A
supervisor that is started again serves what ran within {ADOPTION_GOAL_S:g} s; here it starts while
all engines compute on the same cores. Times are medians, with the worst in brackets; **bold** ones
miss their goal.
"""


@dataclass
class Figures:
    """Every run of every row, by its name."""

    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    forbidden: dict[str, str] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path | None) -> "Figures":
        if path is None or not path.exists():
            return cls()
        return cls(**json.loads(path.read_text()))

    def keep(self, path: Path | None) -> None:
        if path is not None:
            path.write_text(json.dumps(asdict(self), indent=1))


async def run_all(options: argparse.Namespace, figures: Figures) -> None:
    """Run what is missing, every row once before any is run again."""
    with tempfile.TemporaryDirectory(prefix="bench-faults-", dir=options.folder) as folder:
        model = Path(folder) / "random.gguf"
        await asyncio.to_thread(write_demo_model, model, recite=False)
        for number in range(options.runs):
            for row in ROWS:
                is_done = len(figures.runs.get(row.name, [])) > number
                if row.name not in options.rows or row.name in figures.forbidden or is_done:
                    continue
                place = Path(folder) / f"{row.name}-{number}"
                place.mkdir()
                await run_one(row, model, place, figures)
                figures.keep(options.json)


async def run_one(row: Row, model: Path, folder: Path, figures: Figures) -> None:
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(ROW_S), world(folder, model, row.setup) as made:
            outcome = await row.run(made)
    except NotPermitted as exc:
        figures.forbidden[row.name] = str(exc)
        say(f"{row.name}: not permitted here: {exc}")
    except Exception as exc:  # noqa: BLE001 - a row that fails must not end the others
        text = f"{type(exc).__name__}: {exc}"
        figures.failed.setdefault(row.name, []).append(text)
        say(f"{row.name}: FAILED: {text}")
    else:
        figures.runs.setdefault(row.name, []).append(asdict(outcome))
        wrong = "; ".join(row.judge(outcome)) or "right"
        say(f"{row.name}: {outcome}: {wrong}; {time.monotonic() - began_s:.0f} s in all")


def document(figures: Figures) -> str:
    """The whole file."""
    head = ["fault", "cause", "detected, s", "serving again, s", "plain load, s", "n"]
    rows = [line(row, figures.runs[row.name]) for row in ROWS if row.name in figures.runs]
    parts = [ABOUT, table(head, rows, left=2), f"Measured on {header(figures.facts)}."]
    named = {row.name: row.title for row in ROWS}
    missing = {name: f"not permitted here: {why}" for name, why in figures.forbidden.items()}
    missing |= {name: texts[-1] for name, texts in figures.failed.items()}
    if missing:
        parts.append("Runs without figures:")
        parts.append("\n".join(f"* {named[name]}: {why}" for name, why in missing.items()))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def line(row: Row, runs: Sequence[dict[str, Any]]) -> list[str]:
    outcomes = [Outcome(**run) for run in runs]
    codes = sorted({f"`{outcome.code}`" if outcome.code else "none" for outcome in outcomes})
    plain = [outcome.plain_load_s for outcome in outcomes]
    detected = [o.detected_s for o in outcomes if o.detected_s is not None]
    serving = [o.serving_s for o in outcomes if o.serving_s is not None]
    detect_goal_s = DEAD_GOAL_S if row.detect_s == DEAD_S else FROZEN_GOAL_S
    serve_goal_s = statistics.median(plain) + LOAD_GOAL_S
    if detected:
        serve_goal_s += statistics.median(detected)
    if row.serve_goal_s is not None:
        serve_goal_s = row.serve_goal_s
    return [
        row.title,
        ", ".join(codes),
        spread(detected, detect_goal_s),
        spread(serving, serve_goal_s),
        f"{statistics.median(plain):.2f}",
        str(len(runs)),
    ]


def spread(samples: Sequence[float], goal_s: float) -> str:
    """Median and worst."""
    if not samples:
        return "-"
    middle = statistics.median(samples)
    text = f"{middle:.2f} ({max(samples):.2f})"
    return f"**{text}**" if middle > goal_s else text


async def facts_of_machine() -> dict[str, Any]:
    found = engines.discover(engines.inherited())
    assert found, "no llama.cpp programs: run 'uv sync', which builds them, or set LLAMA_CPP_BIN"
    return machine(await engines.inspect(found[0], engines.inherited()))


async def measured(options: argparse.Namespace) -> int:
    os.environ["TMPDIR_MARK_OF_TESTS"] = RUN_MARK
    figures = Figures.of(options.json)
    figures.facts = figures.facts or await facts_of_machine()
    await run_all(options, figures)
    text = document(figures)
    tried = {*figures.runs, *figures.forbidden, *figures.failed}
    if tried >= {row.name for row in ROWS}:
        DOCUMENT.write_text(text)
        say(f"wrote {DOCUMENT}")
    else:
        print(text)
    return 1 if figures.failed else 0


def parsed() -> argparse.Namespace:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="of each row")
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument("--json", type=Path, help="where every figure is kept, and found again")
    parser.add_argument("--folder", type=Path, help="where clusters are made")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run_to_end(measured(parsed())))
