"""Keys over a real database: made, known by hash, limited, counted, revoked."""

import asyncio
import contextlib
import copy
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from supervisor.adapters.store import Store
from supervisor.core.callers import LOCAL, Caller, Scope
from supervisor.core.keys import WINDOW_S, ApiKey, KeyWanted, Limiter
from supervisor.errors import ApiKeyExists, ApiKeyUnknown, BadRequest, RateLimited, StoreUnusable
from supervisor.service.keyring import MAIN, KeyRing, new_text

MAIN_KEY = "sk-main0000000000000000000000000000"


class Ring:
    """A key ring over a database on disk, with clocks that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "s.db"
        self.store = Store(self.path)
        self.now_s = 1000.0
        self.keys = self.opened()

    def opened(self, main_key: str = MAIN_KEY) -> KeyRing:
        """As after a restart of the supervisor."""
        return KeyRing(
            self.store,
            main_key,
            lambda: f"at {self.now_s:g}",
            lambda: self.now_s,
            save_every_s=0.01,
        )

    def create(self, name: str, **values: object) -> tuple[ApiKey, str, Caller]:
        key, text = self.keys.create(KeyWanted.model_validate({"name": name, **values}))
        caller = self.keys.caller(text)
        assert caller
        return key, text, caller

    def fill_disk(self) -> None:
        # As good as one: whatever would write fails, and what is there can be read.
        self.store._db.execute("PRAGMA query_only = ON")

    def free_disk(self) -> None:
        self.store._db.execute("PRAGMA query_only = OFF")


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    made = Ring(tmp_path)
    yield made
    made.store.close()


def usage(ring: KeyRing, name: str) -> tuple[int, int, int, str]:
    key = next(key for key in ring.all() if key.name == name)
    return key.requests, key.prompt_tokens, key.generated_tokens, key.last_used_at


# -- making and knowing ------------------------------------------------------------------------


def test_a_key_is_known_by_its_text_and_by_nothing_else(ring: Ring) -> None:
    key, text, caller = ring.create(
        "alice", scopes=("read", "inference", "read"), requests_per_minute=60, wait_s=5
    )
    assert text.startswith("sk-")
    assert len(text) == 3 + 32
    assert key.shown == text[:7] + "…"
    assert key.scopes == (Scope.INFERENCE, Scope.READ)
    assert key.created_at == "at 1000"
    assert caller == Caller("alice", frozenset({Scope.INFERENCE, Scope.READ}), 60, None, 5.0)
    for wrong in ("", text[:-1], text + "x", text.upper(), key.shown, "alice", "\ud800", "ü"):
        assert ring.keys.caller(wrong) is None


def test_texts_are_never_the_same() -> None:
    assert len({new_text() for _ in range(1000)}) == 1000


def test_no_text_is_kept_on_disk_or_said(ring: Ring, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key, text, _ = ring.create("alice")
    ring.keys.revoke(ring.create("bob")[0].name)
    ring.store.close()
    kept = b"".join(path.read_bytes() for path in ring.path.parent.iterdir())
    assert b"alice" in kept
    for secret in (text, MAIN_KEY):
        assert secret[7:].encode() not in kept
        assert secret[7:] not in repr([vars(record) for record in caplog.records])
    assert text not in repr(key)


def test_the_main_key_may_do_everything_and_is_listed(ring: Ring) -> None:
    caller = ring.keys.caller(MAIN_KEY)
    assert caller == Caller(MAIN, frozenset({Scope.ADMIN}))
    assert all(caller.may(scope) for scope in Scope)
    ring.create("zoe")
    ring.create("alice")
    assert [key.name for key in ring.keys.all()] == ["alice", "main", "zoe"]


def test_no_key_is_never_the_right_one(ring: Ring) -> None:
    assert ring.opened(main_key="").caller("") is None


def test_a_name_is_given_once(ring: Ring) -> None:
    ring.create("alice")
    for name in ("alice", MAIN):
        with pytest.raises(ApiKeyExists, match=f"there is a key '{name}' already"):
            ring.create(name)
    with pytest.raises(BadRequest, match="'local' stands for whoever needs no key"):
        ring.create(LOCAL.name)
    ring.create("Alice")


@pytest.mark.parametrize(
    "values",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "-a"},
        {"name": "a/b"},
        {"name": "a\n"},
        {"name": "a" * 64},
        {"scopes": ()},
        {"scopes": ("everything",)},
        {"requests_per_minute": 0},
        {"requests_per_minute": 100_001},
        {"concurrent": 0},
        {"concurrent": -1},
        {"wait_s": -1},
        {"wait_s": float("nan")},
        {"text": "sk-mine"},
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        KeyWanted.model_validate({"name": "a", **values})


def test_keys_outlive_a_restart_and_revoked_ones_do_not(ring: Ring) -> None:
    key, text, caller = ring.create("alice", concurrent=2)
    _, gone, _ = ring.create("bob")
    ring.keys.revoke("bob")
    assert ring.keys.caller(gone) is None
    again = ring.opened()
    assert again.caller(text) == caller
    assert again.caller(gone) is None
    assert [each.name for each in again.all()] == ["alice", "main"]
    assert again.all()[0] == key.model_copy(update={"last_used_at": "at 1000"})
    assert again.all()[1].created_at == "at 1000"


async def test_a_main_key_that_was_replaced_is_good_no_longer(ring: Ring) -> None:
    ring.keys.caller(MAIN_KEY)
    await ring.keys.close()
    assert [key.name for _, key in ring.store.api_keys()] == [MAIN]
    again = ring.opened(main_key="sk-another")
    assert again.caller(MAIN_KEY) is None
    assert again.caller("sk-another") == Caller(MAIN, frozenset({Scope.ADMIN}))
    await again.close()
    assert [key.shown for _, key in ring.store.api_keys()] == ["sk-anot…"]
    assert ring.opened().caller("sk-another") is None


def test_an_unknown_key_cannot_be_revoked_and_the_main_one_not_this_way(ring: Ring) -> None:
    with pytest.raises(ApiKeyUnknown, match="there is no key 'nobody'; see 'supervisor keys'"):
        ring.keys.revoke("nobody")
    with pytest.raises(BadRequest, match=r"the file api\.key of the data folder"):
        ring.keys.revoke(MAIN)
    assert ring.keys.caller(MAIN_KEY)


def test_a_key_that_cannot_be_kept_is_none(ring: Ring) -> None:
    ring.fill_disk()
    with pytest.raises(StoreUnusable):
        ring.create("alice")
    assert [key.name for key in ring.keys.all()] == [MAIN]
    ring.free_disk()
    ring.create("alice")


async def test_a_key_is_refused_even_if_the_disk_does_not_take_it(ring: Ring) -> None:
    _, text, _ = ring.create("alice")
    ring.fill_disk()
    with pytest.raises(StoreUnusable, match="refused from now on, but would be good again after"):
        ring.keys.revoke("alice")
    assert ring.keys.caller(text) is None
    await ring.keys.close()
    ring.free_disk()
    assert ring.opened().caller(text), "so it was said"
    _, other, _ = ring.create("alice")
    await ring.keys.close()
    again = ring.opened()
    assert again.caller(text) is None
    assert again.caller(other)


# -- limits ------------------------------------------------------------------------------------


def test_no_more_than_its_requests_in_any_minute(ring: Ring) -> None:
    caller = ring.create("alice", requests_per_minute=3)[2]

    def ask() -> float:
        try:
            with ring.keys.entered(caller):
                return 0.0
        except RateLimited as exc:
            assert "key alice has made 3 requests in the last minute, and may make 3" in str(exc)
            return exc.retry_after_s

    assert [ask(), ask()] == [0, 0]
    ring.now_s += 20
    assert [ask(), ask(), ask()] == [0, 40, 40]
    ring.now_s += 39
    assert ask() == 1
    ring.now_s += 1
    assert [ask(), ask(), ask()] == [0, 0, 20]


def test_the_seconds_in_the_sentence_are_never_too_few(ring: Ring) -> None:
    caller = ring.create("alice", requests_per_minute=1)[2]
    with ring.keys.entered(caller):
        pass
    ring.now_s += 59.7
    with pytest.raises(RateLimited, match="try again in 1 s"), ring.keys.entered(caller):
        pass


def test_no_more_at_a_time_than_it_may_and_again_when_one_has_ended(ring: Ring) -> None:
    caller = ring.create("alice", concurrent=2, requests_per_minute=4)[2]
    says = "key alice has 2 requests open, and may have 2; wait until one ends"
    with ring.keys.entered(caller):
        with pytest.raises(KeyError), ring.keys.entered(caller):
            with pytest.raises(RateLimited, match=says) as refused, ring.keys.entered(caller):
                pytest.fail("a third one")
            assert refused.value.retry_after_s > 0
            raise KeyError
        with ring.keys.entered(caller):
            pass
    with ring.keys.entered(caller):  # the refused one did not count
        pass
    with pytest.raises(RateLimited, match="in the last minute"), ring.keys.entered(caller):
        pass


async def test_a_cancelled_request_is_open_no_longer(ring: Ring) -> None:
    caller = ring.create("alice", concurrent=1)[2]

    async def request() -> None:
        with ring.keys.entered(caller):
            await asyncio.sleep(60)

    task = asyncio.create_task(request())
    await asyncio.sleep(0)
    with pytest.raises(RateLimited), ring.keys.entered(caller):
        pass
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    with ring.keys.entered(caller):
        pass


def test_limits_are_of_one_key_and_others_have_none(ring: Ring) -> None:
    alice = ring.create("alice", concurrent=1)[2]
    bob = ring.create("bob", concurrent=1)[2]
    with ring.keys.entered(alice), ring.keys.entered(bob), contextlib.ExitStack() as many:
        for _ in range(100):
            many.enter_context(ring.keys.entered(LOCAL))


def test_a_new_key_of_an_old_name_starts_anew(ring: Ring) -> None:
    old = ring.create("alice", concurrent=1)[2]
    with ring.keys.entered(old):
        ring.keys.revoke("alice")
        new = ring.create("alice", concurrent=1)[2]
        with ring.keys.entered(new):
            pass
    with ring.keys.entered(new):
        pass


@given(st.integers(1, 5), st.lists(st.integers(0, 200), max_size=60))
def test_whatever_comes_no_minute_has_more_and_waiting_helps(
    per_minute: int, quarters: list[int]
) -> None:
    limiter, now_s = Limiter(per_minute), 0.0
    entered: list[float] = []
    for pause in quarters:
        now_s += pause / 4
        wait_s = limiter.wait_s(now_s)
        assert 0 <= wait_s <= WINDOW_S
        if wait_s == 0:
            limiter.enter(now_s)
            entered.append(now_s)
        else:
            assert copy.deepcopy(limiter).wait_s(now_s + wait_s) == 0
    for begin_s in entered:
        assert sum(begin_s <= at_s < begin_s + WINDOW_S for at_s in entered) <= per_minute


# -- usage -------------------------------------------------------------------------------------


async def test_usage_is_counted_written_and_there_again(ring: Ring) -> None:
    ring.create("alice")
    ring.create("bob")
    ring.keys.note_usage("alice", 10, 5)
    ring.now_s += 7
    ring.keys.note_usage("alice", 1, 2)
    ring.keys.note_usage(MAIN, 3, 4)
    ring.keys.note_usage(LOCAL.name, 100, 100)
    ring.keys.note_usage("never was", 100, 100)
    assert usage(ring.keys, "alice") == (2, 11, 7, "at 1007")
    await ring.keys.close()
    again = ring.opened()
    assert usage(again, "alice") == (2, 11, 7, "at 1007")
    assert usage(again, "bob") == (0, 0, 0, "at 1000")
    assert usage(again, MAIN) == (1, 3, 4, "at 1007")
    again.note_usage("alice", 1, 1)
    assert usage(again, "alice")[:3] == (3, 12, 8)


async def test_looking_counts_as_use_but_not_as_a_request(ring: Ring) -> None:
    _, text, _ = ring.create("alice")
    ring.now_s += 3
    ring.keys.caller(text)
    assert usage(ring.keys, "alice") == (0, 0, 0, "at 1003")


async def until(check: Callable[[], object], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not check():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(keys: KeyRing) -> AsyncIterator[None]:
    task = asyncio.create_task(keys.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await keys.close()


async def test_it_is_written_by_itself_a_little_later_and_not_when_nothing_is_new(
    ring: Ring,
) -> None:
    ring.create("alice")
    async with running(ring.keys):
        await until(lambda: ring.opened().all()[0].last_used_at)
        ring.keys.note_usage("alice", 1, 1)
        await until(lambda: usage(ring.opened(), "alice")[0] == 1)
        before = ring.store._db.total_changes
        await asyncio.sleep(0.1)
        assert ring.store._db.total_changes == before


async def test_what_a_full_disk_does_not_take_waits(
    ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _, text, _ = ring.create("alice")
    async with running(ring.keys):
        ring.fill_disk()
        with pytest.raises(StoreUnusable):
            ring.keys.revoke("alice")
        for _ in range(5):
            ring.keys.note_usage(MAIN, 1, 1)
            await asyncio.sleep(0.02)
        assert usage(ring.keys, MAIN)[0] == 5
        ring.free_disk()
        await until(lambda: len(ring.store.api_keys()) == 1)
        await until(lambda: usage(ring.opened(), MAIN)[0] == 5)
        assert ring.opened().caller(text) is None
    said = [r.message for r in caplog.records if r.message.startswith("keys.")]
    assert said == ["keys.failing", "keys.works_again"], "once each"


async def test_what_is_lost_at_the_end_is_said(
    ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    ring.keys.note_usage(MAIN, 1, 1)
    ring.fill_disk()
    await ring.keys.close()
    assert "keys.lost" in [record.message for record in caplog.records]
    ring.free_disk()


async def test_a_key_revoked_while_its_usage_is_written_stays_gone(ring: Ring) -> None:
    _, text, _ = ring.create("alice")
    ring.keys.note_usage("alice", 1, 1)
    with ring.store._lock:  # the write waits for it
        closing = asyncio.create_task(ring.keys.close())
        await asyncio.sleep(0.05)
    ring.keys.revoke("alice")
    await closing
    assert ring.opened().caller(text) is None
