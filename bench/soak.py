"""Random faults in a row on one long-lived cluster: does it always come back, and stay small?

    uv run python bench/soak.py --faults 100 --seed 1 --minutes 40 --json /tmp/soak.json

After each fault the deployment has to be READY, or FAILED with a true cause and then started again;
it has to say what it said before; and only what serves may run. Memory and descriptors of the
supervisor and the agents are sampled after each. Exit status 1: a rule was broken.

Devices that fail often are set aside for seconds here, not minutes, and READY forgives soon, so
that faults may follow each other at once. The supervisor is killed in the first third only, and
device "three" never, so that both live long enough to show whether they grow.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from chaos.faults import Fault, out_of_memory
from chaos.forbidden import NotPermitted, memory_limit
from chaos.matrix import FAULTS, MORE_FAULTS
from chaos.rules import answered, has_every_record, has_no_orphans, leaves_nothing
from chaos.watching import Watcher, load, watching
from chaos.world import DEPLOYMENT, DEVICES, Live, Setup, World, world
from cluster import RUN_MARK, engine_pids, link_pids
from link_runs import header, machine, run_to_end, say, table

from agents import engine as engines
from supervisor.demo_model import write_demo_model

MIB = 1 << 20
SETTINGS = {
    "retry_first_s": 0.5,
    "retry_longest_s": 4,
    "ready_earned_s": 1,
    "aside_first_s": 2,
    "aside_longest_s": 8,
}
SPARED = "three"
NOTICE_S = 30.0
READY_S = 90.0
LONGEST_REST_S = 2.0
SECOND_SHARE = 0.15
"""Of the faults that strike while the one before is being repaired."""

WARM_SHARE = 0.25
"""Of a process's life, in which it may grow: caches fill."""

WANTS_MORE = {"no_devices", "insufficient_memory"}
"""Why a deployment may be FAILED, whatever fault it was that took its devices."""

NOBODY = (1 << 22) - 1
"""No process has this number."""

GROWTH_MIB = 8.0
GROWTH_FILES = 3
"""From the first to the last quarter of what is left, by medians; beyond that it is not flat."""


@dataclass
class Turn:
    """One fault and what came of it."""

    number: int
    fault: str
    device: str
    codes: list[str] = field(default_factory=list)
    detected_s: float | None = None
    serving_s: float | None = None
    was_revived: bool = False
    broken: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        times = [f"{word} {value:.2f} s" for word, value in (
            ("detected", self.detected_s), ("serving", self.serving_s)
        ) if value is not None]  # fmt: skip
        words = [", ".join(self.codes) or "none", *times]
        words += ["revived"] * self.was_revived + [f"BROKEN: {rule}" for rule in self.broken]
        return f"{self.fault} {self.device}: {'; '.join(words)}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One process after one fault."""

    number: int
    pid: int
    resident_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Growth:
    """How one process grew in its longest life; its warm-up does not count."""

    name: str
    samples: int
    first_mib: float
    last_mib: float
    kib_per_fault: float
    first_files: float
    last_files: float

    @property
    def is_flat(self) -> bool:
        return (
            self.last_mib - self.first_mib <= GROWTH_MIB
            and self.last_files - self.first_files <= GROWTH_FILES
        )

    @classmethod
    def of(cls, name: str, samples: Sequence[Sample]) -> "Growth | None":
        lives = Counter(sample.pid for sample in samples)
        pid = lives.most_common(1)[0][0] if lives else 0
        life = [sample for sample in samples if sample.pid == pid]
        life = life[int(len(life) * WARM_SHARE) :]
        if len(life) < 4:
            return None
        memory = [sample.resident_bytes / MIB for sample in life]
        files = [float(sample.files) for sample in life]
        quarter = max(1, len(life) // 4)
        slope = statistics.linear_regression([each.number for each in life], memory).slope
        return cls(
            name,
            len(life),
            statistics.median(memory[:quarter]),
            statistics.median(memory[-quarter:]),
            slope * 1024,
            statistics.median(files[:quarter]),
            statistics.median(files[-quarter:]),
        )


class Soak:
    """The cluster and what has happened to it."""

    def __init__(self, world: World, watcher: Watcher, options: argparse.Namespace) -> None:
        self._world = world
        self._watcher = watcher
        self._options = options
        self._rng = random.Random(options.seed)
        self._adopted: set[int] = set()
        self.turns: list[Turn] = []
        self.samples: dict[str, list[Sample]] = {}

    async def run(self, faults: Sequence[Fault]) -> None:
        """Fault after fault, until there were enough of them or the time is over."""
        deadline_s = time.monotonic() + self._options.minutes * 60
        while len(self.turns) < self._options.faults and time.monotonic() < deadline_s:
            number = len(self.turns) + 1
            fault, device = self._chosen(faults, number)
            turn = Turn(number, fault.name, device)
            self.turns.append(turn)
            try:
                await self._take(turn, fault, faults)
            except (AssertionError, httpx.HTTPError, TimeoutError) as exc:
                turn.broken.append(f"{type(exc).__name__}: {exc}")
                if not await self._can_go_on(turn):
                    say(f"{number:4}/{self._options.faults} {turn.text}")
                    return
            self._sample(number)
            supervisor = self.samples["supervisor"][-1]
            facts = (
                f"supervisor {supervisor.resident_bytes / MIB:.0f} MiB, {supervisor.files} files"
            )
            say(f"{number:4}/{self._options.faults} {turn.text} [{facts}]")

    def _chosen(self, faults: Sequence[Fault], number: int) -> tuple[Fault, str]:
        """Any fault on any device, but for what keeps a process too young to be watched."""
        while True:
            fault, device = self._rng.choice(faults), self._rng.choice(DEVICES)
            is_late = number > self._options.faults / 3
            if fault.name == "supervisor-kill" and is_late:
                continue
            if fault.name == "agent-kill" and device == SPARED:
                continue
            return fault, device

    async def _take(self, turn: Turn, fault: Fault, faults: Sequence[Fault]) -> None:
        """One fault, perhaps a second one on top, and everything that has to hold afterwards."""
        world, rng = self._world, self._rng
        before = await world.live()
        if turn.device not in before.worker_pids:
            turn.device = rng.choice(sorted(before.worker_pids))
            if fault.name == "agent-kill" and turn.device == SPARED:
                turn.device = next((d for d in before.worker_pids if d != SPARED), SPARED)
        struck = [fault]
        async with load(f"http://127.0.0.1:{world.port}", seed=rng.randrange(1 << 30)):
            await asyncio.sleep(rng.uniform(0, LONGEST_REST_S))
            began_s = time.monotonic()
            await fault.strike(world, before, turn.device)
            if fault.codes:
                lost = await self._watcher.first(
                    lambda seen: seen.state != "ready" or seen.launch_id != before.launch_id,
                    after_s=began_s,
                    within_s=NOTICE_S,
                    what="the fault is noticed",
                )
                turn.detected_s = round(lost.at_s - began_s, 3)
        if fault.codes and rng.random() < SECOND_SHARE:
            struck.append(await self._strike_again(turn, faults))
        await self._is_back(turn, before, began_s, struck)
        await fault.undo(world, turn.device)
        world.thaw()
        answer = await answered(world)
        assert answer == world.reference, f"it says {answer!r}"
        await has_no_orphans(world)
        await has_every_record(world, self._watcher)

    async def _strike_again(self, turn: Turn, faults: Sequence[Fault]) -> Fault:
        """A second fault, whatever there is of its victim just now."""
        second = self._rng.choice([each for each in faults if each.can_be_second])
        await asyncio.sleep(self._rng.uniform(0, LONGEST_REST_S))
        devices = (await self._world.http.get("/api/devices")).json()
        workers = {d["name"]: (d["rpc_server"] or {}).get("pid") or NOBODY for d in devices}
        engines_now, links_now = engine_pids(), link_pids()
        live = Live(0, _any(self._rng, engines_now), _any(self._rng, links_now), workers, 0)
        device = self._rng.choice([each for each in DEVICES if each != SPARED])
        turn.fault += f" + {second.name}"
        with contextlib.suppress(ProcessLookupError):
            await second.strike(self._world, live, device)
        return second

    async def _is_back(
        self, turn: Turn, before: Live, began_s: float, struck: Sequence[Fault]
    ) -> None:
        """Wait for READY and an answer; a FAILED is believed if its cause is true."""
        world = self._world
        allowed = {code for fault in struck for code in fault.codes}
        deadline_s = began_s + READY_S
        while True:
            found = await world.deployment()
            is_new = not allowed or (found["launch_id"] or 0) > before.launch_id
            if found["state"] == "ready" and is_new:
                break
            if found["state"] == "failed" and is_new:
                turn.was_revived = True
                turn.codes.append(found["error_code"])
                assert found["error_code"] in allowed | WANTS_MORE, found["reason"]
                world.thaw()
                answer = await world.http.post(f"/api/deployments/{DEPLOYMENT}/start")
                assert answer.is_success, answer.text
            assert time.monotonic() < deadline_s, f"not READY: {found['state']}, {found['reason']}"
            await asyncio.sleep(0.02)
        await answered(world)
        turn.serving_s = round(time.monotonic() - began_s, 3)
        if not allowed:
            self._adopted |= {before.launch_id} if "kill" in turn.fault else set()
            is_same = await has_no_orphans(world) == before
            assert is_same, "another launch serves, and nothing was lost"
            return
        record = await world.record(before.launch_id)
        code = (record["cause"] or {}).get("code") or record["error_code"]
        turn.codes.append(code)
        if before.launch_id in self._adopted:  # nobody is told how a stranger's child ended
            allowed |= {"engine_exited"} if "engine_killed" in allowed else set()
        assert code in allowed, f"the cause is {code}: {record['reason']}"

    async def _can_go_on(self, turn: Turn) -> bool:
        """After a broken rule: the same cluster, launched anew, so that the rest can be seen."""
        world = self._world
        try:
            world.thaw()
            for link in world.links.values():
                await link.heal()
            await world.stop()
            await world.launch()
            await has_no_orphans(world)
        except (AssertionError, httpx.HTTPError) as exc:
            turn.broken.append(f"it cannot be launched anew: {type(exc).__name__}: {exc}")
            return False
        return True

    def _sample(self, number: int) -> None:
        pids = {"supervisor": self._world.supervisor.process.pid}
        pids |= {name: agent.program.process.pid for name, agent in self._world.agents.items()}
        for name, pid in pids.items():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                resident_bytes, files = process.memory_info().rss, process.num_fds()
                sample = Sample(number, pid, resident_bytes, files)
                self.samples.setdefault(name, []).append(sample)


def _any(rng: random.Random, pids: Sequence[int]) -> int:
    """One of them, or nobody."""
    return rng.choice(pids) if pids else NOBODY


# -- the report ------------------------------------------------------------------------------------


def summary(soak: Soak, growths: Sequence[Growth]) -> str:
    head = ["process", "samples", "RSS, MiB", "at the end", "KiB per fault", "files", "at the end"]
    rows = [
        [g.name, g.samples, f"{g.first_mib:.1f}", f"{g.last_mib:.1f}", f"{g.kib_per_fault:+.1f}",
         f"{g.first_files:g}", f"{g.last_files:g}"]
        for g in growths
    ]  # fmt: skip
    by_kind = Counter(turn.fault.split(" + ")[0] for turn in soak.turns)
    codes = Counter(code or "none" for turn in soak.turns for code in turn.codes)
    serving = [turn.serving_s for turn in soak.turns if turn.serving_s is not None]
    broken = [f"* fault {t.number}, {t.fault} {t.device}: {rule}"
              for t in soak.turns for rule in t.broken]  # fmt: skip
    broken += [f"* {growth.name} grew" for growth in growths if not growth.is_flat]
    lines = [
        f"{len(soak.turns)} faults, {sum(turn.was_revived for turn in soak.turns)} times FAILED "
        f"and revived, {len(broken)} rules broken",
        "faults: " + ", ".join(f"{name} {count}" for name, count in sorted(by_kind.items())),
        "causes: " + ", ".join(f"{name} {count}" for name, count in sorted(codes.items())),
    ]
    if serving:
        middle, worst = statistics.median(serving), max(serving)
        lines.append(f"serving again: median {middle:.2f} s, worst {worst:.2f} s")
    return "\n".join([*lines, "", table(head, rows), "", *(broken or ["every rule held"])])


def all_faults(stack: AsyncExitStack) -> list[Fault]:
    """Those of the matrix, and others that leave the cluster as it was."""
    found = [*FAULTS, *MORE_FAULTS]
    try:
        group = stack.enter_context(memory_limit("soak"))
        codes = ("worker_out_of_memory",)
        found.append(Fault("worker-out-of-memory", "", codes, out_of_memory(group)))
    except NotPermitted as exc:
        say(f"no faults of memory: {exc}")
    return found


async def measured(options: argparse.Namespace) -> int:
    os.environ["TMPDIR_MARK_OF_TESTS"] = RUN_MARK
    found = engines.discover(engines.inherited())
    assert found, "no llama.cpp programs: run 'uv sync', which builds them, or set LLAMA_CPP_BIN"
    facts: dict[str, Any] = machine(await engines.inspect(found[0], engines.inherited()))
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-soak-")))
        faults = all_faults(stack)
        model = folder / "random.gguf"
        await asyncio.to_thread(write_demo_model, model, recite=False)
        place = folder / "cluster"
        place.mkdir()
        setup = Setup(relayed=DEVICES, settings=SETTINGS)
        made = await stack.enter_async_context(world(place, model, setup))
        watcher = await stack.enter_async_context(watching(made))
        soak = Soak(made, watcher, options)
        await soak.run([each for each in faults if each.name not in options.without])
        await leaves_nothing(made)
    growths = [g for n, s in soak.samples.items() if (g := Growth.of(n, s)) is not None]
    if options.json is not None:
        figures = {
            "machine": facts,
            "options": {k: str(v) for k, v in vars(options).items()},
            "turns": [asdict(turn) for turn in soak.turns],
            "growth": [asdict(growth) for growth in growths],
            "samples": {name: [asdict(s) for s in each] for name, each in soak.samples.items()},
        }
        options.json.write_text(json.dumps(figures, indent=1))
    print(f"{header(facts)}; seed {options.seed}.\n\n{summary(soak, growths)}")
    is_sound = not any(turn.broken for turn in soak.turns) and all(g.is_flat for g in growths)
    return 0 if is_sound else 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0, help="no new fault after that")
    parser.add_argument("--without", nargs="+", default=[], metavar="FAULT", help="leave out")
    parser.add_argument("--json", type=Path, help="where every figure goes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run_to_end(measured(parsed())))
