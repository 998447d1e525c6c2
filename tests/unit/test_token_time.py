"""Where the time of a token goes: prompts are never booked on tokens, whatever the looks meet."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.core.entities import TokenTime
from supervisor.core.slots import SlotState
from supervisor.core.token_time import (
    EVERY_S,
    Reading,
    Span,
    Spent,
    observe,
    spent,
    token_time,
)
from supervisor.link.job import LinkStats

COMPUTE_S = {"phone": 0.040, "mac": 0.010}
WIRE_S = {"phone": 0.020, "mac": 0.002}
HOST_S = 0.005
STEP_S = sum(COMPUTE_S.values()) + sum(WIRE_S.values()) + HOST_S
PROMPT_FACTOR = 50
"""A batch of a prompt takes so much longer, so that the least of it shows."""


@dataclass
class Cluster:
    """A llama-server that does one step after the other; looks come between steps."""

    slots: list[SlotState]
    now_s: float = 0.0
    compute_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COMPUTE_S, 0.0))
    wire_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WIRE_S, 0.0))
    tasks: int = 0
    prompts: int = 0
    tokens: int = 0
    open: Span | None = None
    told: list[tuple[Span, TokenTime]] = field(default_factory=list)

    @classmethod
    def with_slots(cls, count: int) -> "Cluster":
        return cls([SlotState(n, -1, is_busy=False) for n in range(count)])

    def begin(self, number: int) -> None:
        """A request, whose prompt is read; that gives its first token."""
        self._pass(PROMPT_FACTOR)
        self.tasks += 1
        self.prompts += 1
        self.tokens += 1
        self.slots[number] = SlotState(number, self.tasks, is_busy=True, decoded_tokens=1)

    def step(self) -> None:
        """A token for each busy slot."""
        busy = [slot for slot in self.slots if slot.is_busy]
        if not busy:
            self.now_s += STEP_S
            return
        self._pass(1)
        for slot in busy:
            more = slot.decoded_tokens + 1
            self.slots[slot.id] = replace(slot, decoded_tokens=more)
            self.tokens += 1

    def end(self, number: int) -> None:
        slot = self.slots[number]
        self.slots[number] = SlotState(slot.id, slot.task, is_busy=False)

    def _pass(self, factor: float) -> None:
        self.now_s += STEP_S * factor
        for device, compute_s in COMPUTE_S.items():
            self.compute_s[device] += compute_s * factor
            self.wire_s[device] += WIRE_S[device] * factor

    def reading(self) -> Reading:
        links = {d: Spent(self.compute_s[d], self.wire_s[d]) for d in COMPUTE_S}
        return Reading(self.now_s, f"{self.now_s:.3f}", list(self.slots), links)

    def look(self) -> None:
        self.open, over = observe(self.open, self.reading())
        if over is not None:
            self.told.append((over, token_time(over)))

    def generate(self, number: int, steps: int, look_every: int = 10) -> None:
        """A whole request, with looks at it."""
        self.begin(number)
        for count in range(steps):
            if count % look_every == 0:
                self.look()
            self.step()
        self.look()
        self.end(number)
        self.look()


def expected(busy: int) -> dict[str, tuple[float, float]]:
    """ms of compute and wire by device, when so many slots share a step."""
    return {d: (COMPUTE_S[d] * 1e3 / busy, WIRE_S[d] * 1e3 / busy) for d in COMPUTE_S}


def seen(told: TokenTime) -> dict[str, tuple[float, float]]:
    return {each.device: (each.compute_ms, each.wire_ms) for each in told.workers}


def total_ms(told: TokenTime) -> float:
    return told.host_ms + sum(each.compute_ms + each.wire_ms for each in told.workers)


def test_an_answer_is_told_as_it_was() -> None:
    cluster = Cluster.with_slots(1)
    cluster.generate(0, 30)
    ((span, told),) = cluster.told
    assert told.tokens == 30
    assert [each.device for each in told.workers] == list(COMPUTE_S)
    for device, (compute_ms, wire_ms) in seen(told).items():
        assert compute_ms == pytest.approx(COMPUTE_S[device] * 1e3)
        assert wire_ms == pytest.approx(WIRE_S[device] * 1e3)
    assert told.host_ms == pytest.approx(HOST_S * 1e3, abs=0.01)
    assert told.at == span.last.at


def test_a_long_answer_is_told_again_and_again_and_its_rest_is_not() -> None:
    cluster = Cluster.with_slots(1)
    per_span = int(EVERY_S / STEP_S) + 10
    cluster.generate(0, 3 * per_span + 12, look_every=5)
    assert len(cluster.told) == 3
    assert all(span.took_s >= EVERY_S for span, _ in cluster.told)
    ends = [
        (before.last, after.first)
        for (before, _), (after, _) in zip(cluster.told, cluster.told[1:], strict=False)
    ]
    assert all(end is begin for end, begin in ends), "nothing between them is left out"


def test_a_slow_cluster_is_told_when_there_are_enough_tokens() -> None:
    """One token in ten seconds: three seconds of it would be nothing at all."""
    cluster = Cluster.with_slots(1)
    cluster.begin(0)
    for _ in range(8):
        cluster.look()
        cluster.now_s += 10.0
        cluster.step()
        assert not cluster.told
    cluster.look()
    ((_, told),) = cluster.told
    assert told.tokens == 8
    assert told.host_ms == pytest.approx(10_000 + HOST_S * 1e3, abs=0.1)


def test_slots_that_work_at_once_share_the_time_of_a_step() -> None:
    cluster = Cluster.with_slots(3)
    cluster.begin(0)
    cluster.begin(2)
    for _ in range(2):
        cluster.look()
        for _ in range(10):
            cluster.step()
    cluster.look()
    cluster.end(0)
    cluster.look()
    ((_, told),) = cluster.told
    assert told.tokens == 40
    assert seen(told)["phone"] == pytest.approx(expected(2)["phone"])
    assert total_ms(told) == pytest.approx(STEP_S * 1e3 / 2, abs=0.01)


def test_a_request_between_two_looks_is_seen_by_its_task() -> None:
    """The other slot is idle at both looks, and yet a prompt was read."""
    cluster = Cluster.with_slots(2)
    cluster.begin(0)
    cluster.look()
    for _ in range(10):
        cluster.step()
    cluster.begin(1)
    cluster.end(1)
    cluster.look()
    assert cluster.told == []
    assert cluster.open is not None
    assert cluster.open.tokens == 0, "what comes now is counted from here"


def test_nothing_counts_while_a_prompt_is_being_read() -> None:
    """Of its own request, or of another one, which makes the steps of this one longer."""

    def goes_on_with(*slots: SlotState) -> bool:
        cluster.slots = list(slots)
        cluster.look()
        return cluster.open is not None

    cluster = Cluster.with_slots(2)
    idle, reads = SlotState(1, -1, is_busy=False), SlotState(1, 2, is_busy=True)
    assert not goes_on_with(SlotState(0, 1, is_busy=True, prompt_tokens=512), idle)
    assert goes_on_with(SlotState(0, 1, is_busy=True, decoded_tokens=3), idle)
    assert not goes_on_with(SlotState(0, 1, is_busy=True, decoded_tokens=4), reads)


def test_idle_tells_nothing_and_keeps_nothing_open() -> None:
    cluster = Cluster.with_slots(1)
    for _ in range(5):
        cluster.look()
        cluster.step()
    assert cluster.told == []
    assert cluster.open is None


def test_two_tokens_are_not_enough() -> None:
    cluster = Cluster.with_slots(1)
    cluster.generate(0, 2)
    assert cluster.told == []


def test_a_link_that_is_new_begins_another_span() -> None:
    slot = SlotState(0, 1, is_busy=True, decoded_tokens=5)
    open_, _ = observe(None, Reading(0.0, "", [slot], {"phone": Spent(1.0, 1.0)}))
    more = replace(slot, decoded_tokens=50)
    open_, over = observe(open_, Reading(1.0, "", [more], {"mac": Spent(9.0, 9.0)}))
    assert over is None
    assert open_ is not None
    assert open_.tokens == 0


def test_without_workers_all_of_it_is_the_main_hosts() -> None:
    def at(second: float, tokens: int) -> Reading:
        return Reading(second, "", [SlotState(0, 1, True, tokens)], {})

    open_, _ = observe(None, at(0.0, 1))
    _, over = observe(open_, at(4.0, 41))
    assert over is not None
    assert token_time(over).workers == ()
    assert token_time(over).host_ms == pytest.approx(100.0)


finite = st.floats(0, 1e6, allow_nan=False)


@given(
    before=st.lists(st.tuples(finite, finite), min_size=1, max_size=4),
    more=st.lists(st.tuples(finite, finite), min_size=4, max_size=4),
    took_s=finite,
    tokens=st.integers(1, 10**6),
)
def test_no_part_is_ever_negative(
    before: list[tuple[float, float]],
    more: list[tuple[float, float]],
    took_s: float,
    tokens: int,
) -> None:
    """Links may say more than the time that passed, or a hair less than before."""

    def links(pairs: list[tuple[float, float]]) -> Mapping[str, Spent]:
        return {f"d{n}": Spent(*pair) for n, pair in enumerate(pairs)}

    after = more[: len(before)]
    span = Span(Reading(0.0, "", [], links(before)), Reading(took_s, "", [], links(after)), tokens)
    told = token_time(span)  # its fields refuse what is negative
    assert len(told.workers) == len(before)


def test_the_wire_is_what_is_left_of_the_wait() -> None:
    assert spent(LinkStats("a", answered_s=3.0, computed_s=2.5)) == Spent(2.5, 0.5)
    assert spent(LinkStats("a", answered_s=2.5, computed_s=2.6)).wire_s == 0.0


@settings(deadline=None)
@given(st.data(), st.integers(1, 4))
def test_whatever_happens_between_looks_only_tokens_are_told(
    data: st.DataObject, slots: int
) -> None:
    cluster = Cluster.with_slots(slots)
    actions = data.draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("steps"), st.integers(1, 60)),
                st.tuples(st.sampled_from(["begin", "end"]), st.integers(0, slots - 1)),
                st.tuples(st.just("look"), st.just(0)),
            ),
            max_size=60,
        )
    )
    for what, number in actions:
        match what:
            case "steps":
                for _ in range(number):
                    cluster.step()
            case "begin" if not cluster.slots[number].is_busy:
                cluster.begin(number)
            case "end":
                cluster.end(number)
            case "look":
                cluster.look()
    assert sum(told.tokens for _, told in cluster.told) <= cluster.tokens
    for span, told in cluster.told:
        busy = sum(slot.is_busy for slot in span.first.slots)
        assert told.tokens % busy == 0
        for device, figures in expected(busy).items():
            assert seen(told)[device] == pytest.approx(figures, abs=0.01)
        assert total_ms(told) == pytest.approx(STEP_S * 1e3 / busy, abs=0.02)
