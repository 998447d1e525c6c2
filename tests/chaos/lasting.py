"""Faults that the launch has to survive, and what may go wrong around it."""

import asyncio
import signal
import subprocess
import sys
import time

from cluster import eventually

from chaos.faults import RESTART_PAUSE_S, to_worker
from chaos.forbidden import fill
from chaos.rows import VICTIM, Outcome, cause_of, repaired, serves_again
from chaos.rules import has_no_orphans, is_well
from chaos.watching import Load, Watcher, load, watching
from chaos.world import DEPLOYMENT, LOOPBACK, Live, World

ADOPTION_S, ADOPTION_GOAL_S = 6.0, 3.0
"""Within which a supervisor that is started again serves what ran: in a test, where all engines
compute on the same few cores as it starts on, and as it should be."""

CALM_S = 4.0
"""How long nothing may happen."""

FREEZE_S = 6.0
HOUR_S = 3600.0


async def goes_on(
    world: World, watcher: Watcher, before: Live, client: Load, seconds: float
) -> None:
    """For so long the same launch is ready and its client is answered."""
    began_s, refused = time.monotonic(), len(client.errors)
    await asyncio.sleep(seconds)
    await client.moves()
    assert watcher.states_since(began_s) <= {"ready"}, watcher.seen[-3:]
    assert client.errors[refused:] == []
    assert await has_no_orphans(world) == before


# -- the supervisor --------------------------------------------------------------------------------


async def supervisor_killed(world: World) -> Outcome:
    """It comes back on the same folder; a client of llama-server itself notices nothing."""
    async with watching(world) as watcher:
        before = await world.live()
        headers = world.cluster.engine_headers
        async with load(f"http://{LOOPBACK}:{before.port}", headers=headers) as client:
            await world.kill_supervisor()
            await asyncio.sleep(RESTART_PAUSE_S)
            began_s = time.monotonic()
            await world.start_supervisor()
            await world.is_ready(within_s=20)
            serving_s = time.monotonic() - began_s
            await goes_on(world, watcher, before, client, CALM_S)
            assert client.errors == []
        await is_well(world, watcher)
    return Outcome(world.plain_load_s, serving_s=serving_s)


async def supervisor_killed_while_starting(world: World) -> Outcome:
    """It knows what it had begun, ends or adopts that, and gets there."""
    async with watching(world) as watcher:
        await world.stop()
        before = max(await world.launches())
        began_s = time.monotonic()
        answer = await world.http.post(f"/api/deployments/{DEPLOYMENT}/start")
        assert answer.status_code == 200, answer.text
        await watcher.first(
            lambda seen: seen.state == "starting",
            after_s=began_s,
            within_s=10,
            what="the launch begins",
        )
        await asyncio.sleep(0.15)  # in the middle of it
        await world.kill_supervisor()
        await asyncio.sleep(RESTART_PAUSE_S)
        began_s = time.monotonic()
        await world.start_supervisor()
        await serves_again(world, watcher, before, began_s)
        serving_s = time.monotonic() - began_s
        await is_well(world, watcher)
    return Outcome(world.plain_load_s, serving_s=serving_s)


async def supervisor_frozen(world: World) -> Outcome:
    """As a laptop that sleeps: for longer than a silent device is believed."""
    async with watching(world) as watcher:
        before = await world.live()
        headers = world.cluster.engine_headers
        async with load(f"http://{LOOPBACK}:{before.port}", headers=headers) as client:
            began_s = time.monotonic()
            world.signal(world.supervisor.process.pid, signal.SIGSTOP)
            await asyncio.sleep(FREEZE_S)
            world.thaw()
            thawed_s = time.monotonic()
            await world.is_ready(within_s=20)
            serving_s = time.monotonic() - thawed_s
            await goes_on(world, watcher, before, client, CALM_S)
            assert watcher.states_since(began_s) <= {"ready"}, watcher.seen[-3:]
            assert client.errors == []
        await is_well(world, watcher)
    return Outcome(world.plain_load_s, serving_s=serving_s)


async def two_supervisors(world: World) -> Outcome:
    """The second one of a data folder says so and ends; the first does not notice."""
    async with watching(world) as watcher:
        before = await world.live()
        async with load(f"http://{LOOPBACK}:{world.port}") as client:
            folder = str(world.folder("supervisor"))
            argv = [sys.executable, "-m", "supervisor", "up", "--data", folder, "--no-agent"]
            argv += ["--port", "0", "--join-host", LOOPBACK, "--join-port", "0"]
            second = await asyncio.to_thread(
                subprocess.run, argv, capture_output=True, text=True, timeout=30, check=False
            )
            assert second.returncode == 1
            assert "another supervisor" in second.stderr
            await goes_on(world, watcher, before, client, 1.0)
            assert client.errors == []
        await is_well(world, watcher)
    return Outcome(world.plain_load_s)


# -- disks -----------------------------------------------------------------------------------------


async def main_disk_full(world: World) -> Outcome:
    """What serves goes on; later launches work when there is space, and no record is torn."""
    async with watching(world) as watcher:
        before = await world.live()
        async with load(f"http://{LOOPBACK}:{world.port}") as client:
            ballast = await asyncio.to_thread(fill, world.folder("supervisor"))
            await goes_on(world, watcher, before, client, CALM_S)
            assert client.errors == []
        assert await world.complete() == world.reference
        await asyncio.to_thread(ballast.unlink)
        await world.stop()
        serving_s = await world.launch()
        await is_well(world, watcher)
    return Outcome(world.plain_load_s, serving_s=serving_s)


async def main_disk_full_and_a_worker_killed(world: World) -> Outcome:
    """It cannot be repaired while nothing can be stored, but as soon as there is space."""
    async with watching(world) as watcher:
        before = await world.live()
        async with load(f"http://{LOOPBACK}:{world.port}"):
            ballast = await asyncio.to_thread(fill, world.folder("supervisor"))
            began_s = time.monotonic()
            await to_worker(signal.SIGKILL)(world, before, VICTIM)
            lost = await watcher.first(
                lambda seen: seen.state != "ready",
                after_s=began_s,
                within_s=20,
                what="the fault is noticed",
            )
            await asyncio.sleep(CALM_S)
        await asyncio.to_thread(ballast.unlink)
        freed_s = time.monotonic()
        found = await world.deployment()
        if found["state"] == "failed":  # it says why, and its user does what it says
            assert found["error_code"] == "disk_full", (found["error_code"], found["reason"])
            assert (await world.http.post(f"/api/deployments/{DEPLOYMENT}/start")).is_success
        await world.is_ready(within_s=30)
        assert await world.complete() == world.reference
        serving_s = time.monotonic() - freed_s
        cause = await cause_of(world, before.launch_id)
        await is_well(world, watcher)
    return Outcome(world.plain_load_s, cause, lost.at_s - began_s, serving_s)


async def worker_disk_full(world: World) -> Outcome:
    """It goes on, and launches again; weights that cannot be stored are sent each time."""
    async with watching(world) as watcher:
        before = await world.live()
        async with load(f"http://{LOOPBACK}:{world.port}") as client:
            await asyncio.to_thread(fill, world.folder(VICTIM))
            await goes_on(world, watcher, before, client, CALM_S)
            assert client.errors == []
        await world.stop()
        serving_s = await world.launch()
        assert VICTIM in (await world.live()).worker_pids
        await is_well(world, watcher)
    return Outcome(world.plain_load_s, serving_s=serving_s)


# -- the clock -------------------------------------------------------------------------------------


async def clock_set_back(world: World) -> Outcome:
    """Nothing happens; and a pause before a repair stays as long as it was."""
    clock = world.clock
    assert clock is not None
    async with watching(world) as watcher:
        before = await world.live()
        async with load(f"http://{LOOPBACK}:{world.port}") as client:
            clock.set_back(HOUR_S)
            await goes_on(world, watcher, before, client, CALM_S)
            assert client.errors == []

    async def strike(world: World, live: Live, device: str) -> None:
        await to_worker(signal.SIGKILL)(world, live, device)
        tasks.append(asyncio.create_task(set_back_again()))

    async def set_back_again() -> None:
        async def pauses() -> bool:
            return (await world.deployment())["state"] in ("backoff", "pending")

        await eventually(pauses, within_s=10, what="the repair waits")
        clock.set_back(2 * HOUR_S)

    tasks: list[asyncio.Task[None]] = []
    try:
        return await repaired(world, strike)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
