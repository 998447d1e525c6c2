"""History over HTTP: what is asked for, and following it without a gap and without repeats."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.sse import ServerSentEvent

from supervisor.adapters.store import Store
from supervisor.api import problems
from supervisor.api.events_api import create_events_router, followed
from supervisor.core.entities import LaunchId
from supervisor.service.events import EventBus
from supervisor.service.journal import Journal

BIG = "x" * 20_000


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open()

    def open(self) -> None:
        """As a supervisor does when it starts."""
        self.store = Store(self.folder / "s.db")
        self.bus = EventBus()
        self.journal = Journal(self.store, self.bus, retry_s=0.01)

    async def happen(self, *texts: str, subject: str = "d", launch: int | None = None) -> None:
        launch_id = None if launch is None else LaunchId(launch)
        for text in texts:
            await self.journal.record_event(
                "deployment", subject, "x", launch_id=launch_id, text=text
            )

    def fill(self) -> None:
        (pages,) = self.store._db.execute("PRAGMA page_count").fetchone()
        self.store._db.execute(f"PRAGMA max_page_count = {pages}")

    def follow(self, after: int | None = None, **wanted: Any) -> "Follower":
        limit = wanted.pop("limit", 100)
        events = followed(
            self.journal, self.bus, after, limit, wanted.get("subject"), wanted.get("launch")
        )
        return Follower(events)


class Follower:
    """Reads a stream as a client does: texts, and the last id."""

    def __init__(self, events: Any) -> None:
        self._events = events
        self.last_id = -1

    async def next(self) -> ServerSentEvent:
        async with asyncio.timeout(5):
            event: ServerSentEvent = await anext(self._events)
        self.last_id = int(event.id or "-1")
        return event

    async def texts(self, number: int) -> list[str]:
        said: list[str] = []
        while len(said) < number:
            event = await self.next()
            if event.event == "event":
                said.append(json.loads(event.raw_data or "")["text"].split()[0])
        return said

    async def close(self) -> None:
        await self._events.aclose()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    problems.install(app)
    app.include_router(create_events_router(world.journal, world.bus))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        yield client


async def test_history_is_a_list_of_records(world: World, http: httpx.AsyncClient) -> None:
    await world.happen("1", "2", "3", launch=7)
    await world.happen("4", subject="phone")

    async def asked(**params: Any) -> list[str]:
        answer = await http.get("/api/history", params=params)
        assert answer.status_code == 200, answer.text
        return [event["text"] for event in answer.json()]

    assert await asked() == ["1", "2", "3", "4"]
    assert await asked(limit=2) == ["3", "4"]
    assert await asked(after=1, limit=2) == ["2", "3"]
    assert await asked(after=4) == []
    assert await asked(subject="phone") == ["4"]
    assert await asked(launch=7, limit=1) == ["3"]
    event = (await http.get("/api/history", params={"limit": 1})).json()[0]
    assert event["id"] == 4
    assert (event["kind"], event["subject"], event["change"]) == ("deployment", "phone", "x")


@pytest.mark.parametrize(
    "params", [{"limit": 1001}, {"limit": -1}, {"after": -1}, {"launch": "x"}, {"after": "now"}]
)
async def test_what_cannot_be_meant_is_refused(
    http: httpx.AsyncClient, params: dict[str, Any]
) -> None:
    answer = await http.get("/api/history", params=params)
    assert answer.status_code == 422
    assert answer.json()["code"] == "bad_request"


async def test_the_past_is_followed_by_what_comes(world: World) -> None:
    await world.happen("1", "2", "3")
    follower = world.follow(limit=2)
    first = await follower.next()
    assert (first.event, first.id) == ("following", "3")
    assert await follower.texts(2) == ["2", "3"]
    await world.happen("4", "5")
    world.bus.publish("device", {"id": 99})
    await world.happen("6")
    assert await follower.texts(3) == ["4", "5", "6"]
    assert follower.last_id == 6
    await follower.close()


async def test_who_comes_back_misses_nothing_and_hears_nothing_twice(world: World) -> None:
    await world.happen("1", "2")
    follower = world.follow()
    assert await follower.texts(2) == ["1", "2"]
    await follower.close()
    await world.happen("3")
    world.store.close()
    world.open()  # restarted
    await world.happen("4")
    again = world.follow(follower.last_id)
    await world.happen("5")
    assert await again.texts(3) == ["3", "4", "5"]
    await again.close()


async def test_an_event_between_past_and_present_is_told_once(world: World) -> None:
    for number in range(5):
        await world.happen(f"past-{number}")
        follower = world.follow()
        assert (await follower.next()).event == "following"
        happening = asyncio.create_task(world.happen(f"new-{number}"))
        expected = len(await world.journal.events(limit=1000)) + 1
        said = await follower.texts(expected)
        await happening
        assert said == [e.text for e in await world.journal.events(limit=1000)]
        await follower.close()


async def test_only_what_was_asked_for_is_followed(world: World) -> None:
    await world.happen("1", subject="a")
    await world.happen("2", subject="b", launch=3)
    of_a, of_launch = world.follow(subject="a"), world.follow(launch=LaunchId(3))
    assert await of_a.texts(1) == ["1"]
    assert await of_launch.texts(1) == ["2"]
    await world.happen("3", subject="b", launch=3)
    await world.happen("4", subject="a", launch=4)
    assert await of_a.texts(1) == ["4"]
    assert await of_launch.texts(1) == ["3"]
    await of_a.close()
    await of_launch.close()


async def test_a_long_past_comes_in_pages(world: World) -> None:
    for number in range(2500):
        world.journal.note("device", "p", "x", text=str(number))
    await world.journal.close()
    follower = world.follow(0)
    assert await follower.texts(2500) == [str(number) for number in range(2500)]
    await follower.close()


async def test_a_number_of_another_database_begins_anew(world: World) -> None:
    await world.happen("1", "2")
    follower = world.follow(77)
    assert await follower.texts(2) == ["1", "2"]
    await world.happen("3")
    assert await follower.texts(1) == ["3"]
    await follower.close()


async def test_events_that_were_never_stored_do_not_hide_later_ones(world: World) -> None:
    await world.happen("1")
    world.fill()
    await world.happen(f"lost-2 {BIG}", f"lost-3 {BIG}")
    follower = world.follow()
    assert (await follower.texts(4))[:3] == ["1", "lost-2", "the"]
    assert follower.last_id == 1, "only what is on disk is never told again"
    await follower.close()
    world.store.close()
    world.open()  # after kill -9
    await world.happen("new-2", "new-3", "new-4", "new-5")
    again = world.follow(follower.last_id)
    assert await again.texts(4) == ["new-2", "new-3", "new-4", "new-5"]
    await again.close()


async def test_a_reader_that_lags_is_cut_off_and_goes_on_from_where_it_was(world: World) -> None:
    follower = world.follow(limit=0)
    assert (await follower.next()).event == "following"
    await world.happen("1")
    said = await follower.texts(1)
    for number in range(2, 2501):
        world.journal.note("device", "p", "x", text=str(number))
    await world.journal.close()
    with contextlib.suppress(StopAsyncIteration):
        while True:
            said += await follower.texts(1)
    assert len(said) < 2500
    again = world.follow(follower.last_id)
    said += await again.texts(2500 - len(said))
    assert said == [str(number) for number in range(1, 2501)]
    await again.close()
