"""The matrix: what is done to a cluster that serves, and what has to come of it."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import httpx

from chaos import faults
from chaos.faults import DEAD_S, Fault, Strike, Undo
from chaos.forbidden import memory_limit
from chaos.rules import is_well
from chaos.watching import Seen, Watcher, load, watching
from chaos.world import Live, NotServed, Setup, World
from supervisor.demo_model import write_demo_model

VICTIM = "two"
FEW_TOKENS = 4
HOLE_S = 0.5
SERVING_S = 30.0
"""Within which a test wants a row to serve again; ``docs/faults.md`` has what was measured."""

DEAD_GOAL_S, FROZEN_GOAL_S, LOAD_GOAL_S = 1.0, 8.0, 3.0
"""What it should be: detected so fast, serving again so long after a plain load."""

PATIENCE_S = 60.0
"""Beyond every bound, so that a row that is late is measured before it fails."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one row; times are from the fault on. ``None``: there was nothing to time."""

    plain_load_s: float
    code: str = ""
    detected_s: float | None = None
    serving_s: float | None = None


@dataclass(frozen=True)
class Row:
    """One fault. ``codes``: the cause has to be like one of them; empty: the launch goes on."""

    name: str
    title: str
    run: Callable[[World], Awaitable[Outcome]]
    codes: tuple[str, ...] = ()
    setup: Setup = field(default_factory=Setup)
    detect_s: float = DEAD_S
    serve_s: float = SERVING_S
    serve_goal_s: float | None = None
    """``None``: a plain load and LOAD_GOAL_S, after it was detected."""
    is_fast: bool = False

    def judge(self, outcome: Outcome) -> list[str]:
        """What of it is wrong."""
        wrong = []
        if not any(fnmatchcase(outcome.code, code) for code in self.codes or ("",)):
            wrong.append(f"the cause is {outcome.code!r}, not {' or '.join(self.codes) or 'none'}")
        if outcome.detected_s is not None and outcome.detected_s > self.detect_s:
            wrong.append(f"detected after {outcome.detected_s:.2f} s, not {self.detect_s} s")
        if outcome.serving_s is not None and outcome.serving_s > self.serve_s:
            wrong.append(f"serving after {outcome.serving_s:.2f} s, not {self.serve_s} s")
        return wrong


# -- a launch that is lost and comes back ----------------------------------------------------------


async def repaired(world: World, strike: Strike, undo: Undo = faults.nothing) -> Outcome:
    """Strike while a request is answered; another launch has to take over.

    What was done is undone once that serves, so it has to do without what was hurt until then.
    """
    async with watching(world) as watcher:
        before = await world.live()
        async with load(f"http://127.0.0.1:{world.port}"):
            began_s = time.monotonic()
            await strike(world, before, VICTIM)
            lost = await watcher.first(
                lambda seen: seen.state != "ready" or seen.launch_id != before.launch_id,
                after_s=began_s,
                within_s=PATIENCE_S,
                what="the fault is noticed",
            )
        await serves_again(world, watcher, before.launch_id, began_s)
        serving_s = time.monotonic() - began_s
        cause = await cause_of(world, before.launch_id)
        await undo(world, VICTIM)
        await is_well(world, watcher)
    return Outcome(world.plain_load_s, cause, lost.at_s - began_s, serving_s)


async def serves_again(world: World, watcher: Watcher, before: int, since_s: float) -> str:
    """Wait until a later launch than ``before`` has answered; returns the answer."""

    def has_taken_over(seen: Seen) -> bool:
        assert seen.state != "failed", f"FAILED, {seen.code}: {seen.reason}"
        return seen.state == "ready" and (seen.launch_id or 0) > before

    while True:
        await watcher.first(
            has_taken_over, after_s=since_s, within_s=PATIENCE_S, what="another launch is ready"
        )
        since_s = time.monotonic()
        with contextlib.suppress(NotServed, httpx.TransportError):
            return await world.complete(FEW_TOKENS)


async def cause_of(world: World, launch_id: int) -> str:
    """Why that launch ended, by its record."""
    record = await world.record(launch_id)
    assert record["ended_at"], f"the record of launch {launch_id} has no end: {record['outcome']}"
    return str((record.get("cause") or {}).get("code") or record["error_code"])


def struck(fault: Fault, *, is_fast: bool = False) -> Row:
    """The row of a fault."""

    async def run(world: World) -> Outcome:
        return await repaired(world, fault.strike, fault.undo)

    setup = Setup(relayed=(VICTIM,) if fault.needs_relay else ())
    return Row(
        fault.name,
        fault.title,
        run,
        fault.codes,
        setup,
        detect_s=fault.detect_s,
        is_fast=is_fast,
    )


async def out_of_memory(world: World) -> Outcome:
    """The kernel kills the worker's rpc-server, whose memory another program wants."""
    with memory_limit("chaos-worker") as group:
        return await repaired(world, faults.out_of_memory(group))


async def flapping(world: World) -> Outcome:
    """The link breaks whenever it is used again, until the device is set aside."""
    first = await world.live()
    began_s, lost_s = time.monotonic(), 0.0
    async with watching(world) as watcher:
        while not await is_aside(world):
            assert time.monotonic() - began_s < 2 * PATIENCE_S, "it is never set aside"
            if await is_in_use(world):
                lost_s = max(lost_s, await broken_once(world, watcher))
            await asyncio.sleep(0.05)
        await serves_again(world, watcher, first.launch_id, began_s)
        code = await cause_of(world, first.launch_id)
        assert not await is_in_use(world)
        await is_well(world, watcher)
    return Outcome(world.plain_load_s, code, lost_s)


async def is_in_use(world: World) -> bool:
    """Whether the device is part of a launch that is ready."""
    with contextlib.suppress(AssertionError, httpx.HTTPError, KeyError):
        return VICTIM in (await world.live()).worker_pids
    return False


async def broken_once(world: World, watcher: Watcher) -> float:
    """Cut the link, and let nothing pass for a moment; returns the time until it was noticed."""
    link, cut_s = world.links[VICTIM], time.monotonic()
    await link.cut()
    await link.black_hole()
    await asyncio.sleep(HOLE_S)
    await link.heal()
    lost = await watcher.first(
        lambda seen: seen.state != "ready",
        after_s=cut_s,
        within_s=DEAD_S,
        what="the cut is noticed",
    )
    return lost.at_s - cut_s


async def is_aside(world: World) -> bool:
    """Whether the device is said to be set aside for its losses."""
    device = await world.cluster.device(VICTIM)
    told = [event["code"] for event in await world.history() if event["subject"] == VICTIM]
    is_shown = device is not None and "set aside" in f"{device['state']} {device['reason']}"
    return is_shown or "device_set_aside" in told


# -- another model in the same file ----------------------------------------------------------------


def rename_over(new: Path, old: Path) -> None:
    beside = old.with_suffix(".new")
    shutil.copyfile(new, beside)
    beside.replace(old)


def write_over(new: Path, old: Path) -> None:
    with old.open("r+b") as file:
        file.write(new.read_bytes())


def replaced(put: Callable[[Path, Path], None]) -> Callable[[World], Awaitable[Outcome]]:
    """The file becomes another model of the same size, whose words are the right ones then."""

    async def run(world: World) -> Outcome:
        other = world.cluster.folder / "other.gguf"
        await asyncio.to_thread(write_demo_model, other, recite=False, seed=2)
        reference = await words_of(world, other)
        assert reference != world.reference

        async def strike(world: World, live: Live, device: str) -> None:
            await asyncio.to_thread(put, other, world.model)
            world.reference = reference

        return await repaired(world, strike)

    return run


async def words_of(world: World, model: Path) -> str:
    """What another model says; the usual one is launched again afterwards."""
    await world.stop()
    await world.launch(model)
    said = await world.complete()
    await world.stop()
    await world.launch()
    return said
