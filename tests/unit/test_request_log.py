"""Records of requests: none is lost or told twice, and a full disk is nobody's wait."""

import asyncio
import logging
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from rich.console import Console

from supervisor.adapters.store import Store
from supervisor.api import problems
from supervisor.api.requests_api import create_requests_router
from supervisor.cli.requests import requests_table
from supervisor.core.request_record import RequestRecord
from supervisor.service.request_log import KEPT, RequestLog

BIG = "x" * 20_000
"""Longer than a page: it needs room that a full database does not have."""
NO_LIMIT = 1_000_000_000


def record(number: int, **more: Any) -> RequestRecord:
    """One that is told from others by its status, which may be any number here."""
    given = {"deployment": "d", "caller": "local", "path": "/v1/chat/completions", **more}
    return RequestRecord(at="2026-10-01T00:00:00.000+00:00", status=number, **given)


def big(number: int) -> RequestRecord:
    return record(number, code=BIG)


def numbers(records: list[RequestRecord]) -> list[int]:
    return [each.status for each in records]


class GatedStore(Store):
    """A store whose writes wait for the test, and whose reads wait for a write that goes on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.writing = threading.Event()
        self.wrote = threading.Event()
        self.writes = 0

    def save_requests(self, records: Any) -> None:
        self.writes += 1
        self.writing.set()
        assert self.gate.wait(10)
        super().save_requests(records)
        self.wrote.set()

    def requests(self, *wanted: Any) -> list[RequestRecord]:
        assert not self.writing.is_set() or self.wrote.wait(10)
        return super().requests(*wanted)


class World:
    """A log on a database that can be made full."""

    def __init__(self, store: Store, **options: Any) -> None:
        self.store = store
        self.log = RequestLog(store, **{"every_s": 0.01, **options})

    def fill(self) -> None:
        with self.store._lock:  # it may be written to, in another thread
            (pages,) = self.store._db.execute("PRAGMA page_count").fetchone()
            self.store._db.execute(f"PRAGMA max_page_count = {pages}")

    def empty(self) -> None:
        with self.store._lock:
            self.store._db.execute(f"PRAGMA max_page_count = {NO_LIMIT}")

    def stored(self) -> list[int]:
        return numbers(self.store.requests(100_000))

    async def stores(self, count: int) -> None:
        """Wait until so many are on disk."""
        async with asyncio.timeout(10):
            while len(self.stored()) < count:
                await asyncio.sleep(0.005)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.log.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(Store(tmp_path / "s.db"))
    yield made
    made.store.close()


async def test_what_is_noted_is_told_at_once_and_on_disk_soon(world: World) -> None:
    told: list[RequestRecord] = []
    world.log.on_note.append(told.append)
    async with world.running():
        for number in range(3):
            world.log.note(record(number))
        assert numbers(told) == [0, 1, 2]
        assert world.stored() == []
        assert numbers(await world.log.newest()) == [2, 1, 0]
        await world.stores(3)
    assert world.stored() == [2, 1, 0]
    assert await world.log.newest() == world.store.requests()


async def test_they_are_told_by_deployment_and_caller(world: World) -> None:
    for number in range(12):
        names = {"deployment": "ab"[number % 2], "caller": "xyz"[number % 3]}
        world.log.note(record(number, **names))
        if number == 7:
            await world.log.close()  # some are on disk, some are not
    assert numbers(await world.log.newest(3)) == [11, 10, 9]
    assert numbers(await world.log.newest(deployment="a")) == [10, 8, 6, 4, 2, 0]
    assert numbers(await world.log.newest(caller="z")) == [11, 8, 5, 2]
    assert numbers(await world.log.newest(deployment="a", caller="z")) == [8, 2]
    assert numbers(await world.log.newest(1, deployment="b", caller="x")) == [9]
    assert await world.log.newest(deployment="c") == []
    assert await world.log.newest(0) == []


async def test_those_of_before_a_restart_follow_without_doubles(world: World) -> None:
    for number in range(30):
        world.log.note(record(number))
    await world.log.close()
    again = World(world.store)
    for number in range(30, 50):
        again.log.note(record(number))
    await again.log.close()
    for number in range(50, 60):
        again.log.note(record(number))
    everything = list(range(59, -1, -1))
    assert numbers(await again.log.newest(100)) == everything
    assert numbers(await again.log.newest(45)) == everything[:45]
    assert numbers(await again.log.newest(5)) == everything[:5]


async def test_records_that_are_equal_are_two(world: World) -> None:
    for _ in range(2):
        world.log.note(record(429))
    await world.log.close()
    for _ in range(2):
        world.log.note(record(429))
    assert numbers(await world.log.newest()) == [429] * 4
    assert numbers(await world.log.newest(3)) == [429] * 3


async def test_more_than_memory_keeps_are_found_on_disk(world: World) -> None:
    for number in range(KEPT + 200):
        world.log.note(record(number, caller="rare" if number < 100 else "usual"))
    assert numbers(await world.log.newest(caller="rare")) == list(range(99, -1, -1))
    await world.log.close()
    assert numbers(await world.log.newest(caller="rare")) == list(range(99, -1, -1))
    assert numbers(await world.log.newest(KEPT)) == list(range(KEPT + 199, 199, -1))


async def test_what_is_being_written_is_told_once(tmp_path: Path) -> None:
    store = GatedStore(tmp_path / "s.db")
    world = World(store)
    async with world.running():
        for number in range(5):
            world.log.note(record(number))
        await asyncio.to_thread(store.writing.wait, 10)
        for number in range(5, 8):
            world.log.note(record(number))
        asking = asyncio.create_task(world.log.newest())
        await asyncio.sleep(0.05)
        assert numbers(await world.log.newest(2)) == [7, 6], "memory waits for no disk"
        store.gate.set()
        assert numbers(await asking) == list(range(7, -1, -1))
        await world.stores(8)
    store.close()


async def test_a_stop_in_the_middle_of_a_write_loses_and_doubles_nothing(tmp_path: Path) -> None:
    store = GatedStore(tmp_path / "s.db")
    world = World(store)
    async with world.running():
        for number in range(5):
            world.log.note(record(number))
        await asyncio.to_thread(store.writing.wait, 10)
    world.log.note(record(5))
    closing = asyncio.create_task(world.log.close())
    await asyncio.sleep(0.02)
    store.gate.set()
    await closing
    assert world.stored() == [5, 4, 3, 2, 1, 0]
    store.close()


async def test_those_that_are_dropped_during_a_write_take_no_others_with_them(
    tmp_path: Path,
) -> None:
    store = GatedStore(tmp_path / "s.db")
    world = World(store, most_waiting=5)
    async with world.running():
        for number in range(5):
            world.log.note(record(number))
        await asyncio.to_thread(store.writing.wait, 10)
        for number in range(5, 8):
            world.log.note(record(number))
        store.gate.set()
        await world.stores(8)
    assert world.stored() == list(range(7, -1, -1))
    store.close()


async def test_many_are_written_with_few_writes(tmp_path: Path) -> None:
    store = GatedStore(tmp_path / "s.db")
    store.gate.set()
    world = World(store, every_s=0.1)
    async with world.running():
        began_s = asyncio.get_running_loop().time()
        for number in range(1000):
            world.log.note(record(number))
            await asyncio.sleep(0.0005)
        await world.stores(1000)
        elapsed_s = asyncio.get_running_loop().time() - began_s
    assert world.stored() == list(range(999, -1, -1))
    assert store.writes <= elapsed_s / 0.1 + 1
    store.close()


async def test_a_full_disk_is_said_once_and_costs_only_the_oldest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(Store(tmp_path / "s.db"), most_waiting=50)
    said: list[str] = []
    async with world.running():
        with caplog.at_level(logging.INFO):
            world.fill()
            for number in range(80):
                world.log.note(big(number))
                await asyncio.sleep(0.002)
            assert world.stored() == []
            assert numbers(await world.log.newest(200)) == list(range(79, 29, -1))
            assert numbers(await world.log.newest(60)) == list(range(79, 19, -1)), "of memory"
            said = [each.message for each in caplog.records if "request_log" in each.message]
            assert said == ["request_log.failing"]
            await asyncio.sleep(0.1)
            world.empty()  # and it is tried again although nobody notes anything
            await world.stores(50)
            await asyncio.sleep(0.05)
    assert world.stored() == list(range(79, 29, -1))
    (works,) = [each for each in caplog.records if each.message == "request_log.works_again"]
    assert vars(works)["records_dropped"] == 30
    said = [each.message for each in caplog.records if "request_log" in each.message]
    assert said == ["request_log.failing", "request_log.works_again"]
    world.store.close()


async def test_what_the_disk_does_not_take_at_the_end_is_said(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.fill()
    for number in range(3):
        world.log.note(big(number))
    await world.log.close()
    (lost,) = [each for each in caplog.records if each.message == "request_log.lost"]
    assert vars(lost)["records"] == 3
    assert "full" in vars(lost)["reason"]


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_happens_each_is_there_once_and_in_order(tmp_path: Path, seed: int) -> None:
    world, chance, number = World(Store(tmp_path / "s.db"), every_s=0.001), random.Random(seed), 0
    async with world.running():
        for _ in range(150):
            match chance.randrange(8):
                case 0:
                    world.fill()
                case 1:
                    world.empty()
                case 2:
                    found = numbers(await world.log.newest(chance.choice((3, 50, KEPT))))
                    assert found == list(range(number - 1, -1, -1))[: len(found)]
                case 3:
                    await asyncio.sleep(chance.random() / 100)
                case _:
                    for _ in range(chance.randrange(20)):
                        world.log.note(big(number) if chance.random() < 0.1 else record(number))
                        number += 1
        world.empty()
    await world.log.close()
    assert world.stored() == list(range(number - 1, -1, -1))
    assert numbers(await world.log.newest(100_000)) == world.stored()
    world.store.close()


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    problems.install(app)
    app.include_router(create_requests_router(world.log))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client


async def test_the_api_tells_the_newest(world: World, http: httpx.AsyncClient) -> None:
    for number in range(200, 203):
        world.log.note(record(number, caller="key" if number == 201 else "local"))

    async def asked(**params: Any) -> list[int]:
        answer = await http.get("/api/requests", params=params)
        assert answer.status_code == 200, answer.text
        return [RequestRecord.model_validate(each).status for each in answer.json()]

    assert await asked() == [202, 201, 200]
    assert await asked(limit=2) == [202, 201]
    assert await asked(caller="key") == [201]
    assert await asked(deployment="d", caller="local", limit=1) == [202]
    assert await asked(deployment="e") == []


@pytest.mark.parametrize("limit", [-1, KEPT + 1, "x"])
async def test_a_limit_that_cannot_be_meant_is_refused(
    http: httpx.AsyncClient, limit: object
) -> None:
    assert (await http.get("/api/requests", params={"limit": str(limit)})).status_code == 422


def test_the_table_has_units_and_says_what_is_unknown() -> None:
    whole = record(
        200,
        queue_s=0.012,
        first_token_s=0.3456,
        total_s=12.5,
        tokens_per_s=9.87,
        prompt_tokens=1200,
        cached_tokens=1100,
        generated_tokens=300,
        retries=1,
        resumed=2,
    )
    refused = record(503, deployment="", code="waited_too_long", queue_s=30, caller="[red]key")
    console = Console(width=240)
    with console.capture() as shown:
        console.print(requests_table([each.model_dump(mode="json") for each in (whole, refused)]))
    title, head, first, second = (line.rstrip() for line in shown.get().splitlines())
    assert title == "Requests"
    for word in ("when", "caller", "queue", "first token", "speed", "retries", "resumed"):
        assert word in head
    for word in ("d ", "local", "200 ", "12 ms", "346 ms", "12.50 s", "9.9 tok/s", " 1 ", " 2"):
        assert word in first
    assert "1,200 + 300 tok" in first
    assert requests_table([]).row_count == 0
    for word in ("503 waited_too_long", "30.00 s", "[red]key", "/v1/chat/completions"):
        assert word in second
    assert second.count(" -") == 6
