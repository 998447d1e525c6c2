"""Tier C: the planner's choice, run for real, against every other placement that is possible.

    uv run python bench/planning/tier_c.py
    uv run python bench/planning/tier_c.py --scenario bad-link --scenario experts --quick
    uv run python bench/planning/tier_c.py --json tier_c.json

The devices are real rpc-servers with one thread, slowed by a brake, behind relays that add a delay
and limit the rate (``worker_lab.py``); the models are filled and larger than the caches. Of each
scenario, devices and links are measured as the product does it, the planner chooses, and
llama-server runs every placement that fits; then the best of them, the planner's and simple
policies' several times in turn. A score is tokens (or requests) per second of the planner's choice,
divided by those of the best of all. Linux only, 2 GiB of memory, about an hour on two cores.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layouts import Field, Layout, chosen
from made_models import Made, write_model
from oracle import QUICK, Effort, Oracle, Progress
from scenarios import HOST_NAME, SCENARIOS, Scenario, request_of, speed_of
from server_runs import Bench
from tier_c_report import Outcome, as_json, markdown
from worker_lab import Lab, Measured, laboratory

from agents import engine as engines
from agents.contract import EngineFacts
from agents.measure import DeviceSpec
from supervisor.adapters.gguf import read_header
from supervisor.core.memory import Run
from supervisor.core.model_shape import ModelShape, shape_of
from supervisor.core.planning import Planned, PlanRequest, Rules
from supervisor.core.search import plan
from supervisor.core.search_sizes import Sizes
from supervisor.core.speed import LinkSpeed, Output, SpeedModel, Stage, predict

DEVICE_DEADLINE_S = 90.0
SAMPLER_TOKENS = 64
PROMISING = 4
"""By prediction: one of them may have had bad luck in the first pass."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and with what everything runs."""

    engine: EngineFacts
    folder: Path
    effort: Effort


async def outcome_of(place: Place, scenario: Scenario, scenarios_left: int) -> Outcome:
    """Measure, plan, and run one scenario."""
    load = os.getloadavg()[0]
    progress = Progress(scenario.name, scenarios_left)
    progress.say("measuring")
    path = place.folder / "model.gguf"
    write_model(path, scenario.made)
    shape = read_shape(path)
    async with laboratory(place.engine, scenario.emulated, place.folder) as lab:
        spec = DeviceSpec(scenario.types, deadline_s=DEVICE_DEADLINE_S)
        measured = await lab.measure(spec, scenario.made.width)
        overhead_s = await token_overhead_s(place, scenario, measured[HOST_NAME])
        request = request_of(scenario, shape, measured, token_overhead_s=overhead_s)
        space = Field(request, Sizes(shape, scenario.run, Rules()), scenario.alike)
        planned = planned_for(request)
        bench = await Bench.of(place.engine, path, shape.output_pattern, scenario.run, place.folder)
        oracle = Oracle(scenario, bench, lab, place.effort, progress)
        await oracle.first_pass(space)
        await oracle.final_rounds(
            [chosen(planned.best), *space.promising(PROMISING), *space.baselines().values()]
        )
        again = await lab.measure(spec, scenario.made.width)
    sys.stderr.write("\n")
    return Outcome(
        scenario=scenario,
        space=space,
        results=oracle.results,
        effort=place.effort,
        planned=planned,
        measured=measured,
        measured_again=again,
        load=load,
    )


def read_shape(path: Path) -> ModelShape:
    header = read_header(path)
    return shape_of(
        header.metadata, [(t.name, t.shape, t.type_id, t.size_bytes) for t in header.tensors]
    )


def planned_for(request: PlanRequest) -> Planned:
    found = plan(request)
    assert isinstance(found, Planned), found
    return found


async def token_overhead_s(place: Place, scenario: Scenario, host: Measured) -> float:
    """What llama-server itself takes for a token: a model of next to nothing, less its weights."""
    made = scenario.made
    nothing = Made(
        layers=1,
        width=256,
        feed_forward=256,
        vocabulary=made.vocabulary,
        heads=4,
        kv_heads=4,
        kind=made.output_kind,
        output_kind=made.output_kind,
    )
    path = place.folder / "nothing.gguf"
    write_model(path, nothing)
    shape, run = read_shape(path), Run(ctx_tokens=1024)
    bench = await Bench.of(place.engine, path, shape.output_pattern, run, place.folder)
    layout = Layout((), Output.HOST, 1)
    times = [
        await bench.timed(layout, Lab({}), 2, SAMPLER_TOKENS, is_prompt_timed=True)
        for _ in range(3)
    ]
    speed = speed_of(host, made.output_kind)
    model = SpeedModel(shape, run, scenario.work)
    computing = predict(model, [Stage(speed, LinkSpeed(), 0, 1)], Output.HOST, speed)
    return max(0.0, sorted(t.token_s for t in times)[1] - computing.token_s)


def chosen_scenarios(names: Sequence[str]) -> list[Scenario]:
    known = {scenario.name: scenario for scenario in SCENARIOS}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"no scenario {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names or known]


async def run(scenarios: Sequence[Scenario], effort: Effort) -> list[Outcome]:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    inherited = engines.inherited()
    engine = await engines.inspect(engines.discover(inherited)[0], inherited)
    outcomes = []
    for number, scenario in enumerate(scenarios):
        with tempfile.TemporaryDirectory(prefix="tier-c-") as folder:
            place = Place(engine, Path(folder), effort)
            outcomes.append(await outcome_of(place, scenario, len(scenarios) - number - 1))
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = ", ".join(scenario.name for scenario in SCENARIOS)
    parser.add_argument("--scenario", action="append", default=[], help=f"one of: {names}")
    parser.add_argument("--quick", action="store_true", help="two rounds of short answers")
    parser.add_argument("--json", type=Path, help="write every timing there")
    options = parser.parse_args()
    effort = QUICK if options.quick else Effort()
    outcomes = asyncio.run(run(chosen_scenarios(options.scenario), effort))
    print("\n".join(markdown(outcomes)))
    if options.json:
        options.json.write_text(json.dumps([as_json(one) for one in outcomes], indent=1))


if __name__ == "__main__":
    main()
