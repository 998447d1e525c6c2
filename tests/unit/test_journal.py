"""The journal on a real database: nothing is lost while we live, and the order is kept."""

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisor.adapters.store import Store
from supervisor.core.entities import (
    Deployment,
    DeploymentId,
    DeploymentSpec,
    EngineRecord,
    EventRecord,
    LaunchId,
    LaunchRecord,
    ModelFacts,
    Plan,
)
from supervisor.errors import StoreUnusable
from supervisor.service.events import EventBus
from supervisor.service.journal import Journal

BIG = "x" * 20_000
"""Longer than a page: it needs room that a full database does not have."""
NO_LIMIT = 1_000_000_000

PLAN = Plan(
    model=ModelFacts(path="/m", name="m", architecture="llama", block_count=8, size_bytes=9),
    ctx_tokens=4096,
    slots=1,
    shards=(),
)


def deployment(name: str, reason: str) -> Deployment:
    spec = DeploymentSpec(model="/m.gguf")
    return Deployment(id=DeploymentId(name), spec=spec, reason=f"{reason} {BIG}")


def launch(number: int, outcome: str = "starting") -> LaunchRecord:
    return LaunchRecord(
        id=LaunchId(number),
        deployment=DeploymentId("d"),
        started_at="2026-10-01T00:00:00.000+00:00",
        plan=PLAN,
        main_host="desk",
        engine=EngineRecord(path="/e", version="1", build="b", rpc_protocol="7.0.0"),
        outcome=outcome,
        reason=BIG,
    )


class GatedStore(Store):
    """A store whose writes wait for the test."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.writes = 0

    def save_together(self, *args: Any) -> None:
        self.writes += 1
        assert self.gate.wait(10)
        super().save_together(*args)


class World:
    """A journal on a database that can be made full."""

    def __init__(self, path: Path, store: Store | None = None, **options: Any) -> None:
        self.store = store or Store(path)
        self.bus = EventBus()
        self.published: list[dict[str, Any]] = []
        self._ticks = 0
        self.journal = Journal(self.store, self.bus, self._now, retry_s=0.01, **options)

    def _now(self) -> str:
        self._ticks += 1
        return f"2026-10-01T00:00:{self._ticks:06.3f}+00:00"

    def fill(self) -> None:
        with self.store._lock:  # the journal may be writing, in another thread
            (pages,) = self.store._db.execute("PRAGMA page_count").fetchone()
            self.store._db.execute(f"PRAGMA max_page_count = {pages}")

    def empty(self) -> None:
        with self.store._lock:
            self.store._db.execute(f"PRAGMA max_page_count = {NO_LIMIT}")

    async def works(self) -> None:
        """Wait until all is on disk, the news that it can be written again among it."""
        journal = self.journal
        async with asyncio.timeout(10):
            while journal.is_failing or journal.stored_id < journal.newest_id:
                await asyncio.sleep(0.005)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With its owned task, and with somebody who listens."""
        with self.bus.subscribe() as changes:

            async def listen() -> None:
                async for change in changes:
                    assert change.name == "event"
                    self.published.append(change.body)

            tasks = [asyncio.create_task(listen()), asyncio.create_task(self.journal.run())]
            try:
                yield
                await self.journal.close()
                await asyncio.sleep(0)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "s.db")
    async with made.running():
        yield made
    made.store.close()


def texts(events: list[EventRecord]) -> list[str]:
    return [event.text.split()[0] for event in events if event.kind != "supervisor"]


async def test_an_event_is_on_disk_and_published_with_its_number(world: World) -> None:
    first = await world.journal.record_event(
        "deployment", "d", "ready -> degraded", launch_id=LaunchId(3), code="x", text="a\n  b"
    )
    second = await world.journal.record_event("device", "phone", "ready -> lost")
    assert (first.id, second.id) == (1, 2)
    assert first.text == "a b", "one line"
    assert world.store.events() == [first, second]
    await asyncio.sleep(0)
    assert world.published == [e.model_dump(mode="json") for e in (first, second)]


async def test_what_is_only_noted_is_written_soon_and_in_order(world: World) -> None:
    for number in range(5):
        world.journal.note("device", "phone", "ready -> lost", text=str(number))
    async with asyncio.timeout(10):
        while world.journal.stored_id < 5:
            await asyncio.sleep(0.001)
    assert texts(world.store.events()) == list("01234")


async def test_an_event_and_the_state_that_it_tells_of_are_one_transaction(tmp_path: Path) -> None:
    store = GatedStore(tmp_path / "s.db")
    store.gate.set()
    world = World(tmp_path / "s.db", store)
    world.journal.note("deployment", "d", "starting -> ready")
    await world.journal.save_deployment(deployment("d", "new"))
    assert store.writes == 1
    assert len(store.events()) == len(store.deployments()) == 1
    store.close()


async def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        world = World(tmp_path / "s.db")
        assert (await world.journal.record_event("device", "p", "joined")).id == expected
        world.store.close()


async def test_a_full_disk_loses_nothing(world: World) -> None:
    journal = world.journal
    await journal.record_event("deployment", "d", "x", text=f"before {BIG}")
    await journal.save_deployment(deployment("d", "before"))
    world.fill()
    for number in range(20):
        await journal.record_event("deployment", "d", "x", text=f"{number} {BIG}")
        await journal.save_deployment(deployment("d", f"version {number}"))
        await journal.save_deployment(deployment(f"other-{number % 3}", f"version {number}"))
        await journal.save_launch(launch(number % 4, f"outcome {number}"))
    assert journal.is_failing
    assert "disk is full" in journal.problem
    assert "wait in memory" in journal.problem
    assert texts(world.store.events()) == ["before"], "or the disk was not full"
    await asyncio.sleep(0.01)
    assert len(world.published) == 22, "who watches hears of it at once"
    world.empty()
    await world.works()
    assert journal.problem == ""
    stored = world.store.events(limit=1000)
    assert texts(stored) == ["before", *map(str, range(20))]
    assert [event.id for event in stored] == list(range(1, 24))
    kept = {d.id: d.reason.split(" x")[0] for d in world.store.deployments()}
    assert kept == {
        "d": "version 19",
        "other-0": "version 18",
        "other-1": "version 19",
        "other-2": "version 17",
    }
    outcomes = {record.id: record.outcome for record in world.store.launches()}
    assert outcomes == {0: "outcome 16", 1: "outcome 17", 2: "outcome 18", 3: "outcome 19"}


async def test_a_full_disk_is_an_event_itself(world: World) -> None:
    world.fill()
    await world.journal.record_event("device", "p", "joined", text=f"first {BIG}")
    world.empty()
    await world.works()
    await world.journal.record_event("device", "p", "removed", text="last")
    told = [(e.change, e.code) for e in world.store.events()]
    assert told == [
        ("joined", ""),
        ("storing -> failing", "disk_full"),
        ("failing -> storing", "disk_full"),
        ("removed", ""),
    ]
    assert "nothing was lost" in world.store.events()[2].text


async def test_each_event_is_published_once_and_in_order(world: World) -> None:
    for number in range(30):
        if number % 10 == 3:
            world.fill()
        if number % 10 == 7:
            world.empty()
            await world.works()
        await world.journal.record_event("device", "p", "x", text=f"{number} {BIG}")
    await world.works()
    stored = world.store.events(limit=1000)
    await asyncio.sleep(0)
    assert len(stored) == 36
    assert world.published == [event.model_dump(mode="json") for event in stored]


async def test_a_failure_is_logged_once_and_its_end_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.fill()
    for number in range(5):
        await world.journal.record_event("device", "p", "x", text=f"{number} {BIG}")
    await asyncio.sleep(0.1)  # several tries more
    world.empty()
    await world.works()
    said = [record.message for record in caplog.records if record.name.startswith("supervisor")]
    assert said == ["journal.failing", "journal.works_again"]


async def test_another_problem_than_a_full_disk_has_another_code(
    tmp_path: Path, world: World
) -> None:
    real = world.store._db
    with pytest.MonkeyPatch.context() as patch:
        broken = Store(tmp_path / "other.db")
        broken.close()
        patch.setattr(world.store, "_db", broken._db)
        await world.journal.record_event("device", "p", "joined")
        assert "closed database" in world.journal.problem
        patch.setattr(world.store, "_db", real)
        await world.works()
    assert [e.code for e in world.store.events()] == ["", "store_unusable", "store_unusable"]


async def test_a_launch_that_must_be_on_disk_first_is_refused_and_not_written_later(
    world: World,
) -> None:
    await world.journal.save_launch_now(launch(1))
    assert world.store.launch(LaunchId(1)).outcome == "starting"
    world.fill()
    with pytest.raises(StoreUnusable, match="disk is full"):
        await world.journal.save_launch_now(launch(2))
    with pytest.raises(StoreUnusable, match="disk is full"):
        await world.journal.save_deployment_now(deployment("d", "new"))
    world.empty()
    await world.works()
    assert [record.id for record in world.store.launches()] == [1]
    assert world.store.deployments() == []


async def test_a_launch_that_must_be_on_disk_is_tried_although_others_wait(world: World) -> None:
    world.fill()
    await world.journal.save_launch(launch(1, "lost"))
    assert world.journal.is_failing
    world.empty()
    await world.journal.save_launch_now(launch(1, "found"))
    assert world.store.launch(LaunchId(1)).outcome == "found"


async def test_a_deleted_deployment_stays_deleted(world: World) -> None:
    await world.journal.save_deployment(deployment("d", "old"))
    world.fill()
    await world.journal.save_deployment(deployment("d", "new"))
    await world.journal.save_deployment(deployment("e", "new"))
    await world.journal.delete_deployment(DeploymentId("d"))
    world.empty()
    await world.works()
    assert [d.id for d in world.store.deployments()] == ["e"]


async def test_what_waits_is_read_as_if_it_were_stored(world: World) -> None:
    journal = world.journal
    await journal.save_launch(launch(1, "ready"))
    await journal.record_event("device", "p", "x", text="0")
    world.fill()
    await journal.save_launch(launch(1, "lost"))
    await journal.save_launch(launch(2, "failed"))
    for number in range(1, 6):
        subject = "p" if number % 2 else "q"
        await journal.record_event(
            "device", subject, "x", launch_id=LaunchId(number), text=f"{number} {BIG}"
        )
    assert [(r.id, r.outcome) for r in journal.launches()] == [(2, "failed"), (1, "lost")]
    assert [r.id for r in journal.launches(1)] == [2]
    assert journal.launch(LaunchId(2)).outcome == "failed"
    assert texts(await journal.events()) == list("012345")
    assert texts(await journal.events(limit=2)) == list("45")
    assert texts(await journal.events(0, 3)) == list("01"), "and one of our own"
    assert texts(await journal.events(subject="p")) == list("0135")
    assert texts(await journal.events(launch_id=LaunchId(4))) == ["4"]
    after = (await journal.events(subject="q"))[0].id
    assert texts(await journal.events(after)) == list("345")
    assert await journal.events(limit=0) == []
    assert world.store.last_event_id() == journal.stored_id == 1, "or the disk was not full"
    world.empty()
    await world.works()


async def test_more_than_can_wait_drops_the_oldest_and_says_how_many(tmp_path: Path) -> None:
    world = World(tmp_path / "s.db", most_events=10)
    world.fill()
    async with world.running():
        for number in range(25):
            await world.journal.record_event("device", "p", "x", text=f"{number} {BIG}")
        assert "16 older events were dropped" in world.journal.problem
        world.empty()
        await world.works()
    stored = world.store.events()
    assert texts(stored) == [str(number) for number in range(15, 25)]
    assert stored[-1].text.endswith("16 events were dropped")
    world.store.close()


async def test_a_caller_that_is_cancelled_leaves_its_write_in_order(tmp_path: Path) -> None:
    store = GatedStore(tmp_path / "s.db")
    world = World(tmp_path / "s.db", store)
    saving = asyncio.create_task(world.journal.save_deployment(deployment("d", "old")))
    async with asyncio.timeout(10):
        while not store.writes:
            await asyncio.sleep(0.001)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    newer = asyncio.create_task(world.journal.save_deployment(deployment("d", "new")))
    await asyncio.sleep(0.01)
    assert not newer.done(), "the old one is not written yet"
    store.gate.set()
    await newer
    assert [d.reason.split()[0] for d in store.deployments()] == ["new"]
    store.close()


async def test_many_callers_share_a_transaction(tmp_path: Path) -> None:
    store = GatedStore(tmp_path / "s.db")
    world = World(tmp_path / "s.db", store)
    saves = [asyncio.create_task(world.journal.save_launch(launch(number))) for number in range(50)]
    await asyncio.sleep(0.01)
    store.gate.set()
    await asyncio.gather(*saves)
    assert store.writes <= 2
    assert len(store.launches()) == 50
    store.close()


async def test_closing_writes_what_was_noted(tmp_path: Path) -> None:
    world = World(tmp_path / "s.db")
    world.journal.note("device", "p", "joined")
    await world.journal.close()
    assert len(world.store.events()) == 1
    world.store.close()


async def test_closing_on_a_full_disk_says_what_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path / "s.db")
    world.fill()
    await world.journal.save_deployment(deployment("d", "new"))
    await world.journal.close()
    (lost,) = [record for record in caplog.records if record.message == "journal.lost"]
    assert lost.__dict__["records"] == 2, "the deployment, and the event of the failure"
    world.store.close()


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_happens_when_the_newest_state_of_everything_is_kept(
    world: World, seed: int
) -> None:
    chance = random.Random(seed)
    journal, said = world.journal, []
    deployments: dict[str, str] = {}
    launches: dict[int, str] = {}
    for number in range(120):
        match chance.randrange(7):
            case 0:
                world.fill()
            case 1:
                world.empty()
            case 2:
                name = f"d{chance.randrange(3)}"
                deployments[name] = str(number)
                await journal.save_deployment(deployment(name, str(number)))
            case 3 if deployments:
                name, _ = deployments.popitem()
                await journal.delete_deployment(DeploymentId(name))
            case 4:
                of = chance.randrange(4)
                launches[of] = str(number)
                await journal.save_launch(launch(of, str(number)))
            case _:
                said.append(str(number))
                text = f"{number} {BIG if chance.random() < 0.5 else ''}"
                journal.note("device", "p", "x", text=text)
                if chance.random() < 0.5:
                    await asyncio.sleep(0)
    world.empty()
    await journal.save_deployment(deployment("last", "one"))
    await world.works()
    stored = world.store.events(limit=1000)
    assert texts(stored) == said
    assert [event.id for event in stored] == list(range(1, len(stored) + 1))
    kept = {d.id: d.reason.split()[0] for d in world.store.deployments()}
    assert kept == {**deployments, "last": "one"}
    assert {r.id: r.outcome for r in world.store.launches()} == launches
