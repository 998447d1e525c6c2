"""What has to hold after every fault, whatever it was."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from cluster import engine_pids, eventually, link_pids

from chaos.watching import Watcher
from chaos.world import DEPLOYMENT, SETTLE_S, Live, NotServed, World

ANSWER_S = 30.0
RECORD_S = 5.0
END_S = 10.0

Check = Callable[[list[str]], Awaitable[Any]]
"""True once a rule holds; else it says what is wrong."""


async def is_well(world: World, watcher: Watcher) -> None:
    """The rules for the end of every row: words, processes, records; and then a stop."""
    answer = await answered(world)
    assert answer == world.reference, f"{answer!r} is not {world.reference!r}"
    await has_no_orphans(world)
    await has_every_record(world, watcher)
    await leaves_nothing(world)
    await has_every_record(world, watcher)
    await tells_all(world, watcher)


async def answered(world: World) -> str:
    """The answer to the one prompt; a device that returned may have it moved to a new launch."""

    async def said(wrong: list[str]) -> str:
        try:
            return await world.complete()
        except (NotServed, httpx.TransportError) as exc:
            wrong.append(f"{type(exc).__name__}: {exc}")
            return ""

    return str(await _holds(said, within_s=ANSWER_S, what="a request is answered"))


async def has_no_orphans(world: World) -> Live:
    """Exactly the processes of the live launch run, and at most one spare link process."""

    async def matches(wrong: list[str]) -> Live | None:
        try:
            live = await world.live()
        except (AssertionError, httpx.HTTPError, KeyError) as exc:
            wrong.append(f"{type(exc).__name__}: {exc}")
            return None
        engines, links = set(engine_pids()), set(link_pids())
        wrong.append(f"{live}; engines {sorted(engines)}; links {sorted(links)}")
        is_exact = engines == live.engines and live.link_pid in links and len(links) <= 2
        return live if is_exact else None

    found: Live = await _holds(matches, within_s=SETTLE_S, what="only what serves runs")
    return found


async def has_every_record(world: World, watcher: Watcher) -> None:
    """No launch that was ever shown is missing, and each has an end but the live one."""

    async def is_kept(wrong: list[str]) -> bool:
        records, found = await world.launches(), await world.deployment()
        ended = {number for number, each in records.items() if each["ended_at"]}
        live = set() if found["state"] == "stopped" else {found["launch_id"]}
        if missing := watcher.launch_ids() - set(records):
            wrong.append(f"launches without a record: {sorted(missing)}")
        if unended := set(records) - ended - live:
            wrong.append(f"launches without an end: {sorted(unended)}")
        return not wrong

    await _holds(is_kept, within_s=RECORD_S, what="every launch is on record")


async def tells_all(world: World, watcher: Watcher) -> None:
    """Every launch that was ready is told of as that, and so is the stop."""
    ready = watcher.launch_ids("ready")

    async def is_told(wrong: list[str]) -> bool:
        told = [each for each in await world.history() if each["subject"] == DEPLOYMENT]
        wrong.extend(f"{each['launch_id']}: {each['change']}" for each in told)
        began = {each["launch_id"] for each in told if each["change"].endswith("-> ready")}
        return ready <= began and told[-1]["change"].endswith("-> stopped")

    await _holds(is_told, within_s=RECORD_S, what=f"the history tells of launches {sorted(ready)}")


async def leaves_nothing(world: World) -> None:
    """After a stop nothing runs but the supervisor, its agents and a spare link process."""
    await world.stop()

    async def is_still(wrong: list[str]) -> bool:
        wrong.append(f"engines {engine_pids()}, links {link_pids()}")
        return not engine_pids() and len(link_pids()) <= 1

    await _holds(is_still, within_s=END_S, what="nothing of the launch runs")


async def _holds(check: Check, *, within_s: float, what: str) -> Any:
    """``eventually``, with what was wrong last."""
    wrong: list[str] = []

    async def holds() -> Any:
        wrong.clear()
        return await check(wrong)

    try:
        return await eventually(holds, within_s=within_s, what=what)
    except AssertionError as exc:
        raise AssertionError(f"{exc}: {'; '.join(wrong)}") from exc
