"""Ways to hurt a launch that serves, and to undo it."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from chaos.forbidden import kill_for_memory
from chaos.world import Live, World

DEAD_S, FROZEN_S = 3.0, 12.0
"""Within which a test wants a fault to be noticed; ``docs/faults.md`` has what was measured."""

RESTART_PAUSE_S = 1.0
NAP_S = 2.0

Strike = Callable[[World, Live, str], Awaitable[None]]
"""Hurts a launch that serves, of one device or as a whole."""

Undo = Callable[[World, str], Awaitable[None]]


async def nothing(_: World, device: str) -> None:
    """Nothing has to be undone."""


@dataclass(frozen=True)
class Fault:
    """What may end a launch; the cause has to be one of ``codes``. Empty: the launch goes on."""

    name: str
    title: str
    codes: tuple[str, ...]
    strike: Strike
    undo: Undo = nothing
    detect_s: float = DEAD_S
    needs_relay: bool = False

    @property
    def can_be_second(self) -> bool:
        """Whether it makes sense while no launch is known to serve."""
        return self.name in ("worker-kill", "agent-kill", "engine-kill", "link-kill")


def to_worker(number: signal.Signals) -> Strike:
    async def strike(world: World, live: Live, device: str) -> None:
        world.signal(live.worker_pids[device], number)

    return strike


def to_agent(number: signal.Signals) -> Strike:
    async def strike(world: World, live: Live, device: str) -> None:
        world.signal(world.agents[device].program.process.pid, number)

    return strike


def to_engine(number: signal.Signals) -> Strike:
    async def strike(world: World, live: Live, device: str) -> None:
        world.signal(live.engine_pid, number)

    return strike


def to_link(number: signal.Signals) -> Strike:
    async def strike(world: World, live: Live, device: str) -> None:
        world.signal(live.link_pid, number)

    return strike


async def thaw(world: World, device: str) -> None:
    world.thaw()


async def open_hole(world: World, live: Live, device: str) -> None:
    await world.links[device].black_hole()


async def close_hole(world: World, device: str) -> None:
    await world.links[device].heal()


async def cut(world: World, live: Live, device: str) -> None:
    await world.links[device].cut()


async def restart_supervisor(world: World, live: Live, device: str) -> None:
    await world.kill_supervisor()
    await asyncio.sleep(RESTART_PAUSE_S)
    await world.start_supervisor()


async def freeze_supervisor(world: World, live: Live, device: str) -> None:
    world.signal(world.supervisor.process.pid, signal.SIGSTOP)
    await asyncio.sleep(NAP_S)
    world.thaw()


def out_of_memory(group: Path) -> Strike:
    async def strike(world: World, live: Live, device: str) -> None:
        await asyncio.to_thread(kill_for_memory, group, live.worker_pids[device])

    return strike
