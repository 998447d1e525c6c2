"""Events in the database: in order, found again, and no more than are wanted."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.adapters import store as store_module
from supervisor.adapters.store import Store
from supervisor.core.entities import (
    Deployment,
    DeploymentId,
    DeploymentSpec,
    EventRecord,
    LaunchId,
)
from supervisor.errors import StoreUnusable


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "s.db")
    yield opened
    opened.close()


def event(number: int, subject: str = "d", launch: int | None = None) -> EventRecord:
    return EventRecord(
        id=number,
        at="2026-10-01T00:00:00.000+00:00",
        kind="deployment",
        subject=subject,
        change="ready -> degraded",
        launch_id=None if launch is None else LaunchId(launch),
        code="worker_lost",
        text="phone ü 'quoted' \"twice\"",
    )


def deployment(name: str) -> Deployment:
    return Deployment(id=DeploymentId(name), spec=DeploymentSpec(model="/m.gguf"))


def numbers(events: list[EventRecord]) -> list[int]:
    return [each.id for each in events]


def test_events_come_back_as_they_were_after_reopening(tmp_path: Path) -> None:
    first = Store(tmp_path / "s.db")
    kept = [event(1), event(2, "phone", 7)]
    first.save_together({}, [], kept)
    first.close()
    again = Store(tmp_path / "s.db")
    assert again.events() == kept
    assert again.last_event_id() == 2
    again.close()


def test_the_newest_or_those_after_one_always_the_oldest_first(store: Store) -> None:
    assert store.last_event_id() == 0
    assert store.events() == []
    store.save_together({}, [], [event(number) for number in range(1, 11)])
    assert numbers(store.events(limit=3)) == [8, 9, 10]
    assert numbers(store.events(0, 3)) == [1, 2, 3]
    assert numbers(store.events(8)) == [9, 10]
    assert numbers(store.events(10)) == []
    assert numbers(store.events(limit=0)) == []


def test_only_those_of_a_subject_or_a_launch(store: Store) -> None:
    made = [event(n, "ab"[n % 2], None if n % 3 else n) for n in range(1, 13)]
    store.save_together({}, [], made)
    assert numbers(store.events(subject="a")) == [2, 4, 6, 8, 10, 12]
    assert numbers(store.events(subject="a", limit=2)) == [10, 12]
    assert numbers(store.events(4, 2, subject="a")) == [6, 8]
    assert numbers(store.events(launch_id=LaunchId(6))) == [6]
    assert numbers(store.events(subject="b", launch_id=LaunchId(6))) == []
    assert numbers(store.events(subject="nobody' OR 1=1 --")) == []


def test_only_the_newest_are_kept_and_numbers_are_never_given_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "KEPT_EVENTS", 5)
    for number in range(1, 21):
        store.save_together({}, [], [event(number)])
    assert numbers(store.events()) == [16, 17, 18, 19, 20]
    store._db.execute("DELETE FROM events")
    assert store.last_event_id() == 20


def test_twenty_thousand_events_are_kept() -> None:
    assert store_module.KEPT_EVENTS == 20_000


def test_writing_an_event_twice_keeps_it_once(store: Store) -> None:
    for _ in range(2):
        store.save_together({}, [], [event(1), event(2)])
    assert numbers(store.events()) == [1, 2]


def test_what_is_saved_together_is_there_together_or_not_at_all(store: Store) -> None:
    store.save_deployment(deployment("old"))
    big = event(2).model_copy(update={"text": "x" * 100_000})
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")  # as good as a full disk
    changes = {DeploymentId("old"): None, DeploymentId("new"): deployment("new")}
    with pytest.raises(StoreUnusable, match="disk is full"):
        store.save_together(changes, [], [event(1), big])
    assert [d.id for d in store.deployments()] == ["old"]
    assert store.events() == []
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.save_together(changes, [], [event(1), big])
    assert [d.id for d in store.deployments()] == ["new"]
    assert numbers(store.events()) == [1, 2]
