"""How busy deployments are, told as it changes: seldom enough, and the last change always."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from gateway_world import World, deployment, plan

from supervisor.core.gateway_routes import Work
from supervisor.core.lifecycle import State
from supervisor.service.events import EventBus, Paced

SOON_S = 0.02
LONG_S = 3600.0


class Told:
    """A subject that tests change, and what the bus was told of it."""

    def __init__(self, every_s: float) -> None:
        self.bus = EventBus()
        self.state: int | None = 0
        self.reads = 0
        self.paced = Paced(self.bus, "traffic", self.read, every_s)
        self.bodies: list[dict[str, Any]] = []
        self.listening = asyncio.create_task(self._listen())

    def read(self, subject: str) -> dict[str, Any] | None:
        self.reads += 1
        return None if self.state is None else {"deployment": subject, "active": self.state}

    def becomes(self, state: int | None) -> None:
        self.state = state
        self.paced.changed("gem")

    async def _listen(self) -> None:
        with self.bus.subscribe() as changes:
            async for change in changes:
                assert change.name == "traffic"
                self.bodies.append(change.body)

    async def until(self, state: int) -> None:
        async with asyncio.timeout(10):
            while not self.bodies or self.bodies[-1]["active"] != state:
                await asyncio.sleep(0.001)

    @property
    def states(self) -> list[int]:
        return [body["active"] for body in self.bodies]


@contextlib.asynccontextmanager
async def told(every_s: float) -> AsyncIterator[Told]:
    made = Told(every_s)
    await asyncio.sleep(0)  # it listens
    yield made
    made.bus.close()
    await made.listening


async def test_the_first_change_is_told_at_once() -> None:
    async with told(LONG_S) as made:
        made.becomes(1)
        await made.until(1)
        assert made.states == [1]


async def test_of_many_changes_the_last_is_told() -> None:
    async with told(SOON_S) as made:
        for state in range(1, 500):
            made.becomes(state)
        await made.until(499)
        assert made.states[0] == 1
        assert made.states == sorted(made.states)
        assert made.reads < 50


async def test_changes_that_come_too_soon_wait_and_cost_no_reading() -> None:
    async with told(LONG_S) as made:
        for state in range(1, 500):
            made.becomes(state)
        await asyncio.sleep(0)
        assert made.states == [1]
        assert made.reads == 1


async def test_what_came_back_to_what_it_was_is_not_told_again() -> None:
    async with told(SOON_S) as made:
        made.becomes(1)
        made.becomes(2)
        made.becomes(1)
        made.becomes(1)
        await asyncio.sleep(SOON_S * 5)
        made.becomes(3)
        await made.until(3)
        assert made.states == [1, 3]


async def test_nothing_is_due_while_nothing_changes() -> None:
    async with told(SOON_S) as made:
        for state in (1, 2):
            made.becomes(state)
        await made.until(2)
        await asyncio.sleep(SOON_S * 3)
        assert [each.due for each in made.paced._told.values()] == [None]


async def test_what_is_no_more_is_forgotten() -> None:
    async with told(LONG_S) as made:
        made.becomes(1)
        made.paced._told["gem"].at_s = float("-inf")
        made.becomes(None)
        assert made.paced._told == {}
        made.becomes(5)
        await made.until(5)


async def test_deployments_do_not_wait_for_each_other() -> None:
    async with told(LONG_S) as made:
        made.paced.changed("gem")
        made.paced.changed("other")
        await asyncio.sleep(0)
        assert [body["deployment"] for body in made.bodies] == ["gem", "other"]


# -- of the gateway ----------------------------------------------------------------------------


class Traffic:
    """A gateway, and the traffic that its bus tells."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.bus = EventBus()
        self.rows: list[tuple[int, int, int]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Traffic":
        self.tasks = [asyncio.create_task(self.world.gateway.run(self.bus))]
        self.tasks.append(asyncio.create_task(self._listen()))
        await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _listen(self) -> None:
        with self.bus.subscribe() as changes:
            async for change in changes:
                assert change.name == "traffic"
                body = change.body
                assert body["deployment"] == "gem"
                self.rows.append((body["active"], body["waiting"], body["slots"]))

    async def until(self, *row: int) -> None:
        async with asyncio.timeout(10):
            while not self.rows or self.rows[-1] != row:
                await asyncio.sleep(0.005)


async def test_the_gateway_tells_who_is_answered_and_who_waits(tmp_path: Path) -> None:
    async with Traffic(tmp_path) as traffic:
        traffic.world.put(deployment(plan=plan(2), port=1))
        lane = traffic.world.gateway.lanes.of(deployment().id)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(lane.ticket(Work.GENERATES, "a"))
            assert traffic.world.gateway.lane_counts[0].waiting == 1
            await traffic.until(2, 1, 2)
        await traffic.until(0, 0, 2)


async def test_five_hundred_that_wait_are_a_few_events(tmp_path: Path) -> None:
    async with Traffic(tmp_path) as traffic:
        traffic.world.put(deployment(plan=plan(2), port=1))
        lane = traffic.world.gateway.lanes.of(deployment().id)
        with contextlib.ExitStack() as stack:
            for number in range(502):
                stack.enter_context(lane.ticket(Work.GENERATES, f"caller {number % 7}"))
            await traffic.until(2, 500, 2)
        await traffic.until(0, 0, 2)
        assert len(traffic.rows) < 50, "of more than a thousand changes"


async def test_who_is_sent_away_waits_no_more(tmp_path: Path) -> None:
    async with Traffic(tmp_path) as traffic:
        traffic.world.put(deployment(state=State.STARTING))
        lane = traffic.world.gateway.lanes.of(deployment().id)
        with lane.ticket(Work.GENERATES, "a") as place:
            await traffic.until(0, 1, 1)
            traffic.world.put(deployment(state=State.FAILED))
            assert place.exception() is not None
            await traffic.until(0, 0, 1)


async def test_a_new_plan_has_other_slots(tmp_path: Path) -> None:
    async with Traffic(tmp_path) as traffic:
        traffic.world.put(deployment(plan=plan(1), port=1))
        lane = traffic.world.gateway.lanes.of(deployment().id)
        with lane.ticket(Work.GENERATES, "a"):
            await traffic.until(1, 0, 1)
            traffic.world.put(deployment(plan=plan(4), port=1))
            await traffic.until(1, 0, 4)
