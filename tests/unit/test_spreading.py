"""Who sends which chunk to whom: each once, nobody more than he can, and all of them in the end."""

import time
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.chunks import CHUNK_BYTES, ChunkName
from supervisor.core.spreading import (
    AHEAD_S,
    LEARNT_BYTES,
    MOST_BATCH_BYTES,
    MOST_FAILURES,
    Spreading,
)

MIB = CHUNK_BYTES
DEVICES = ("a", "b", "c", "d")


def name(number: int) -> ChunkName:
    return ChunkName(number.to_bytes(32, "big"))


def chunks(*numbers: int) -> list[tuple[ChunkName, int]]:
    return [(name(number), MIB) for number in numbers]


def names(*numbers: int) -> set[ChunkName]:
    return {name(number) for number in numbers}


def test_what_the_main_host_would_send_last_comes_from_another_device() -> None:
    spreading = Spreading({"a": chunks(*range(20))}, {"b": names(*range(20))}, {})
    batch = spreading.next_batch("b", "a")
    assert batch == tuple(name(n) for n in (19, 18, 17, 16, 15))[: len(batch)]
    assert 2 <= len(batch) <= 5
    assert spreading.next_batch("a", "a") == (), "it lacks them itself"


def test_nothing_that_is_there_is_brought() -> None:
    spreading = Spreading({"a": chunks(1, 2, 3)}, {"a": names(1, 2, 3), "b": names(1, 2, 3)}, {})
    assert not spreading.is_worth_it()
    assert spreading.is_done("a")
    assert spreading.next_batch("b", "a") == ()


def test_devices_without_anything_in_common_cannot_help_each_other() -> None:
    needs = {"a": chunks(1, 2), "b": chunks(3, 4)}
    assert not Spreading(needs, {"a": set(), "b": set()}, {}).is_worth_it()
    same = {"a": chunks(1, 2, 3, 4), "b": chunks(3, 4, 1, 2)}
    spreading = Spreading(same, {"a": set(), "b": set()}, {})
    assert spreading.is_worth_it(), "what one gets it can pass on"
    assert spreading.next_batch("b", "a") == ()
    spreading.arrived("b", names(3))
    spreading.main_sends("a", 1e6)
    assert spreading.next_batch("b", "a") == (name(3),)


def test_a_slow_device_brings_only_what_the_main_host_would_send_later() -> None:
    rates = {"a": 100e6, "b": 1e6}
    few = Spreading({"a": chunks(*range(5))}, {"b": names(*range(5))}, rates)
    assert few.next_batch("b", "a") == (), "the main host is there in 50 ms"
    many = Spreading({"a": chunks(*range(500))}, {"b": names(*range(500))}, rates)
    assert many.next_batch("b", "a") == (name(499), name(498))


def test_a_batch_that_fails_is_the_main_host_s_again_and_a_pair_that_fails_often_is_left() -> None:
    spreading = Spreading({"a": chunks(*range(40))}, {"b": names(*range(40))}, {})
    for _ in range(MOST_FAILURES):
        batch = spreading.next_batch("b", "a")
        assert batch
        assert set(spreading.given_back("b", "a")) == set(batch)
        spreading.failed("b", "a")
    assert spreading.next_batch("b", "a") == ()
    assert not spreading.is_done("a")
    assert not spreading.is_worth_it()


def test_what_a_source_lacks_after_all_is_not_asked_of_it_again() -> None:
    spreading = Spreading({"a": chunks(*range(30))}, {"b": names(29)}, {})
    batch = spreading.next_batch("b", "a")
    assert batch == (name(29),)
    spreading.lacks("b", "a", batch)
    assert spreading.next_batch("b", "a") == ()


def test_what_the_main_host_has_begun_is_left_to_it() -> None:
    spreading = Spreading({"a": chunks(*range(30))}, {"b": names(*range(30))}, {})
    batch = spreading.next_batch("b", "a")
    spreading.refused("a", batch[:1])
    assert spreading.queued_bytes("b", "a") == (len(batch) - 1) * MIB
    assert name(29) not in spreading.next_batch("b", "a")


def test_a_straggler_is_named_when_the_main_host_has_nothing_else_to_do() -> None:
    rates = {"a": 10e6, "b": 10e6}
    spreading = Spreading({"a": chunks(*range(30))}, {"b": names(*range(30))}, rates)
    batch = spreading.next_batch("b", "a")
    spreading.carried("b", "a", LEARNT_BYTES, 40.0)  # a tenth of a MB/s
    assert spreading.stragglers() == ()
    spreading.arrived("a", names(*range(30)) - set(batch))
    assert spreading.stragglers() == (("b", "a"),)


def test_rates_are_believed_until_they_are_seen() -> None:
    spreading = Spreading({"a": chunks(1)}, {"b": names(1)}, {"a": 20e6, "b": 5e6})
    assert spreading.rate("b", "a") == 5e6
    spreading.carried("b", "a", LEARNT_BYTES // 2, 0.1)
    assert spreading.rate("b", "a") == 5e6
    spreading.carried("b", "a", LEARNT_BYTES // 2, 0.1)
    assert spreading.rate("b", "a") == pytest.approx(LEARNT_BYTES / 0.2)
    assert spreading.main_rate("a") == 20e6
    spreading.main_sends("a", 3e6)
    assert spreading.main_rate("a") == 3e6


def test_a_source_helps_first_who_will_be_ready_last() -> None:
    needs = {"a": chunks(*range(10)), "c": chunks(*range(400))}
    spreading = Spreading(needs, {"b": names(*range(400))}, {"a": 20e6, "b": 20e6, "c": 5e6})
    assert spreading.next_batch("b", "a") == ()
    assert spreading.next_batch("b", "c")


def test_a_device_that_brings_nothing_at_all_is_a_straggler() -> None:
    """As one that cannot be reached from there: nobody waits for it to give up by itself."""
    spreading = Spreading({"a": chunks(*range(30))}, {"b": names(*range(30))}, {})
    batch = spreading.next_batch("b", "a")
    spreading.arrived("a", names(*range(30)) - set(batch))
    spreading.carried("b", "a", 0, 1.0)
    assert spreading.stragglers() == ()
    spreading.carried("b", "a", 0, 5.0)
    assert spreading.stragglers() == (("b", "a"),)


def test_a_receiver_that_was_lost_keeps_nobody_from_helping_others() -> None:
    needs = {"a": chunks(*range(10)), "c": chunks(*range(400))}
    spreading = Spreading(needs, {"b": names(*range(400))}, {"a": 20e6, "b": 20e6, "c": 5e6})
    assert spreading.next_batch("b", "a") == ()
    spreading.leave("c")
    assert spreading.next_batch("b", "a")
    assert spreading.next_batch("b", "c") == ()


def test_ten_devices_and_forty_gigabytes_are_decided_about_in_passing() -> None:
    """Decisions are made in the supervisor's event loop, where requests wait for them."""
    devices, every = [f"d{n}" for n in range(10)], chunks(*range(40_000))
    starts = {device: number * 4000 for number, device in enumerate(devices)}
    needs = {d: every[start:] + every[:start] for d, start in starts.items()}
    spreading = Spreading(needs, {d: names(40_000) for d in devices}, {})
    started_s = time.process_time()
    for _ in range(20):
        for source, receiver in spreading.pairs():
            assert spreading.next_batch(source, receiver) == ()
    assert time.process_time() - started_s < 5.0, "a quarter of a second each is too much"


WORLDS = st.fixed_dictionaries(
    {
        "needs": st.dictionaries(
            st.sampled_from(DEVICES),
            st.lists(st.integers(0, 60), unique=True, max_size=60),
            min_size=1,
        ),
        "holds": st.dictionaries(st.sampled_from(DEVICES), st.sets(st.integers(0, 60)), min_size=1),
        "rates": st.dictionaries(st.sampled_from(DEVICES), st.floats(1e5, 2e8)),
    }
)


class Run:
    """A push in steps of a tenth of a second, in which every source sends what it can."""

    def __init__(self, world: Mapping[str, Mapping[str, object]], dying: str | None) -> None:
        self.needs = {d: chunks(*map(int, n)) for d, n in world["needs"].items()}  # type: ignore[call-overload]
        self.holds = {d: names(*n) for d, n in world["holds"].items()}  # type: ignore[misc]
        self.up: dict[str, float] = dict(world["rates"])  # type: ignore[arg-type]
        self.spreading = Spreading(self.needs, self.holds, self.up)
        self.there = {d: set(self.holds.get(d, ())) for d in {*self.needs, *self.holds}}
        self.brought: list[tuple[str, ChunkName]] = []
        self.queues: dict[tuple[str, str], list[ChunkName]] = {}
        self.debt: dict[tuple[str, str], float] = {}
        self.main = {d: [n for n, _ in c if n not in self.there[d]] for d, c in self.needs.items()}
        self.dying = dying

    def step(self, number: int) -> None:
        for pair in self.spreading.pairs():
            self.ask(*pair)
        for pair in list(self.queues):
            if pair[0] == self.dying and number > 5:
                self.die(*pair)
            else:
                self.bring(*pair)
        for device in self.main:
            self.send(device)

    def ask(self, source: str, receiver: str) -> None:
        batch = self.spreading.next_batch(source, receiver)
        if not batch:
            return
        assert set(batch) <= self.there[source], "nobody gives what it does not have"
        assert not set(batch) & self.there[receiver], "nothing comes that is there"
        queue = self.queues.setdefault((source, receiver), [])
        under_way = {n for (_, r), q in self.queues.items() if r == receiver for n in q}
        assert not set(batch) & under_way, "from one source at a time"
        queue += batch
        total_bytes = self.spreading.queued_bytes(source)
        most = max(AHEAD_S * self.spreading.rate(source, receiver), LEARNT_BYTES)
        assert total_bytes <= most + MOST_BATCH_BYTES
        self.main[receiver] = [n for n in self.main[receiver] if n not in batch]

    def bring(self, source: str, receiver: str) -> None:
        key = (source, receiver)
        rate = min(self.up.get(source, 1e7), self.up.get(receiver, 1e7))
        self.debt[key] = self.debt.get(key, 0.0) + rate * 0.1
        while self.queues[key] and self.debt[key] >= MIB:
            self.debt[key] -= MIB
            self.arrive(receiver, self.queues[key].pop(0))
            self.spreading.carried(source, receiver, MIB, MIB / rate)
        if not self.queues[key]:
            del self.queues[key]
            self.debt[key] = 0.0

    def die(self, source: str, receiver: str) -> None:
        back = self.spreading.given_back(source, receiver)
        assert set(back) == set(self.queues.pop((source, receiver)))
        self.spreading.drop(source, receiver)
        self.main[receiver] += back

    def send(self, device: str) -> None:
        key = ("", device)
        self.debt[key] = self.debt.get(key, 0.0) + self.up.get(device, 1e7) * 0.1
        while self.main[device] and self.debt[key] >= MIB:
            self.debt[key] -= MIB
            self.arrive(device, self.main[device].pop(0))

    def arrive(self, device: str, chunk: ChunkName) -> None:
        assert chunk not in self.there[device], "nothing is sent twice"
        self.there[device].add(chunk)
        self.brought.append((device, chunk))
        self.spreading.arrived(device, [chunk])

    @property
    def is_done(self) -> bool:
        return all(self.spreading.is_done(device) for device in self.needs)


@given(WORLDS, st.sampled_from((None, *DEVICES)))
@settings(max_examples=150, deadline=None)
def test_every_chunk_that_is_needed_comes_once(
    world: Mapping[str, Mapping[str, object]], dying: str | None
) -> None:
    run = Run(world, dying)
    number = 0
    while not run.is_done:
        run.step(number)
        number += 1
        assert number < 20_000, "it comes to an end"
    for device, wanted in run.needs.items():
        assert {n for n, _ in wanted} <= run.there[device]
    assert len(set(run.brought)) == len(run.brought)


def test_two_that_each_lack_the_other_s_half_need_half_of_the_time() -> None:
    every = list(range(100))
    halves: dict[str, dict[str, object]] = {
        "needs": {"a": every, "b": every},
        "holds": {"a": set(every[:50]), "b": set(every[50:])},
        "rates": {"a": 10e6, "b": 10e6},
    }
    run, steps = Run(halves, None), 0
    while not run.is_done:
        run.step(steps)
        steps += 1
    assert steps * 0.1 < 0.6 * 50 * MIB / 10e6
