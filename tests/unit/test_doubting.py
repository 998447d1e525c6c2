"""A device that a launch lost gets no new work until heartbeat and link reach it again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from measuring_world import PIXEL, MeasuringWorld

from supervisor.core.entities import Cause, Device
from supervisor.service.doubting import Doubts, doubt


class Lost(MeasuringWorld):
    """A device, and whether its link answers."""

    is_link_up = False
    tries = 0

    async def reaches(self, device: Device) -> bool:
        assert device.id == PIXEL
        self.tries += 1
        return self.is_link_up

    @property
    def state(self) -> str:
        return self.registry.device(PIXEL).state

    async def tried(self) -> None:
        """Wait for two more tries."""
        before = self.tries
        async with asyncio.timeout(5):
            while self.tries < before + 2:
                await asyncio.sleep(0.01)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Lost]:
    made = Lost(tmp_path)
    await made.hear()
    running = asyncio.create_task(Doubts(made.registry, made.reaches).run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def cause(code: str) -> Cause:
    return Cause(code=code, sentence="the link to pixel was lost", agent_id=PIXEL, device="pixel")


@pytest.mark.parametrize("code", ["link_black_hole", "link_lost"])
async def test_a_link_that_broke_is_doubted_until_it_answers(world: Lost, code: str) -> None:
    doubt(world.registry, cause(code))
    assert world.state == "suspect"
    assert "the link to pixel was lost" in world.registry.device(PIXEL).reason
    await world.tried()
    assert world.state == "suspect"
    waiting = asyncio.create_task(world.registry.wait_trusted(10))
    world.is_link_up = True
    async with asyncio.timeout(5):
        await waiting
    assert world.state == "ready"


@pytest.mark.parametrize("code", ["worker_unreachable", "agent_unreachable"])
async def test_a_device_that_fell_silent_has_to_be_heard_first(world: Lost, code: str) -> None:
    world.is_link_up = True
    doubt(world.registry, cause(code))
    await asyncio.sleep(1.2)
    assert (world.state, world.tries) == ("suspect", 0)
    world.now_s += 1
    await world.hear()
    async with asyncio.timeout(5):
        await world.registry.wait_trusted(10)
    assert world.state == "ready"


@pytest.mark.parametrize("code", ["worker_killed", "engine_killed", "worker_frozen"])
async def test_who_answers_is_not_doubted(world: Lost, code: str) -> None:
    doubt(world.registry, cause(code))
    assert world.state == "ready"


async def test_nobody_waits_for_trust_for_ever(world: Lost) -> None:
    doubt(world.registry, cause("link_lost"))
    async with asyncio.timeout(5):
        waiting = asyncio.create_task(world.registry.wait_trusted(3))
        await asyncio.sleep(0.1)
        world.now_s += 3
        await world.hear()
        await waiting
    assert world.state == "suspect"
