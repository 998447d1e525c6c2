"""Keys and requests in the database: only hashes of keys, only numbers of requests."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.adapters import store as store_module
from supervisor.adapters.store import MIGRATIONS, Store
from supervisor.core.callers import Scope
from supervisor.core.entities import LaunchId
from supervisor.core.keys import ApiKey
from supervisor.core.request_record import RequestRecord
from supervisor.errors import StoreUnusable


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "s.db")
    yield opened
    opened.close()


def key(name: str, **values: object) -> ApiKey:
    known = {"shown": "sk-ab12…", "scopes": (Scope.READ,), "created_at": "2026-10-01"}
    return ApiKey.model_validate({"name": name, **known, **values})


def request(number: int, deployment: str = "d", caller: str = "local") -> RequestRecord:
    return RequestRecord(
        at=f"2026-10-01T00:00:{number % 60:02}.000+00:00",
        deployment=deployment,
        launch_id=LaunchId(7),
        path="/v1/completions",
        caller=caller,
        status=200,
        first_token_s=0.25,
        prompt_tokens=number,
        tokens_per_s=12.5,
    )


def numbers(records: list[RequestRecord]) -> list[int | None]:
    return [record.prompt_tokens for record in records]


def test_keys_come_back_as_they_were_after_reopening(tmp_path: Path) -> None:
    first = Store(tmp_path / "s.db")
    made = [key("a", wait_s=1.5, concurrent=2), key("b", requests_per_minute=60)]
    for number, each in enumerate(reversed(made)):
        first.save_key(f"hash{number}", each)
    first.close()
    again = Store(tmp_path / "s.db")
    assert again.api_keys() == [("hash1", made[0]), ("hash0", made[1])]
    again.close()


def test_a_key_replaces_the_one_of_its_name_and_the_one_of_its_text(store: Store) -> None:
    store.save_key("1", key("a"))
    store.save_key("2", key("a"))
    assert [key_hash for key_hash, _ in store.api_keys()] == ["2"]
    store.save_key("2", key("b"))
    assert [(key_hash, kept.name) for key_hash, kept in store.api_keys()] == [("2", "b")]
    store.delete_key("2")
    store.delete_key("never was")
    assert store.api_keys() == []


def test_usage_changes_nothing_else_and_brings_no_key_back(store: Store) -> None:
    store.save_key("1", key("a", concurrent=1))
    used = key("other", scopes=(Scope.ADMIN,), requests=3, prompt_tokens=4, generated_tokens=5)
    used = used.model_copy(update={"last_used_at": "2026-10-02"})
    store.save_key_usage({"1": used, "gone": used})
    expected = key("a", concurrent=1, requests=3, prompt_tokens=4, generated_tokens=5)
    assert store.api_keys() == [("1", expected.model_copy(update={"last_used_at": "2026-10-02"}))]


def test_requests_come_back_newest_first_of_all_or_of_some(store: Store) -> None:
    store.save_requests([])
    made = [request(n, "ab"[n % 2], "xyz"[n % 3]) for n in range(1, 13)]
    store.save_requests(made[:5])
    store.save_requests(made[5:])
    assert store.requests() == made[::-1]
    assert numbers(store.requests(limit=3)) == [12, 11, 10]
    assert numbers(store.requests(deployment="a")) == [12, 10, 8, 6, 4, 2]
    assert numbers(store.requests(2, deployment="a")) == [12, 10]
    assert numbers(store.requests(caller="x")) == [12, 9, 6, 3]
    assert numbers(store.requests(deployment="a", caller="x")) == [12, 6]
    assert store.requests(deployment="nobody' OR 1=1 --") == []
    assert store.requests(deployment="") == []


def test_only_the_newest_requests_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_module.KEPT_REQUESTS == 20_000
    monkeypatch.setattr(store_module, "KEPT_REQUESTS", 5)
    for number in range(0, 20, 2):
        store.save_requests([request(number), request(number + 1)])
    assert numbers(store.requests()) == [19, 18, 17, 16, 15]
    store.save_requests([request(number) for number in range(20, 40)])
    assert numbers(store.requests()) == [39, 38, 37, 36, 35]


def test_requests_are_all_there_or_none_of_them(store: Store) -> None:
    store.save_requests([request(0)])
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")  # as good as a full disk
    many = [request(number) for number in range(1, 500)]
    with pytest.raises(StoreUnusable, match="disk is full"):
        store.save_requests(many)
    assert numbers(store.requests()) == [0]
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.save_requests(many)
    assert len(store.requests(1000)) == 500


def test_a_database_from_before_keys_gets_their_tables(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "s.db") as raw:
        raw.executescript("".join(MIGRATIONS[:3]) + "PRAGMA user_version = 3;")
    raw.close()
    store = Store(tmp_path / "s.db")
    store.save_key("1", key("a"))
    store.save_requests([request(1)])
    assert [kept.name for _, kept in store.api_keys()] == ["a"]
    assert numbers(store.requests()) == [1]
    store.close()
