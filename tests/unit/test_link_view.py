"""What people see of a link: how fast it is, what is left, and whose fault the waiting is."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.entities import LinkView
from supervisor.core.link_view import link_view
from supervisor.link.job import LOST, SERVING, LinkStats

MIB = 1 << 20
BEGUN = LinkStats("one", SERVING, port=8120, phase="load")


def look(stats: LinkStats, before: LinkView | None = None, elapsed_s: float = 1.0) -> LinkView:
    return link_view("phone", 100 * MIB, stats, before, elapsed_s)


def after(
    moved_mib: Sequence[int], pause_s: float = 1.0, before: LinkView | None = None
) -> LinkView:
    """The last of several looks at a load, each ``pause_s`` after the one before."""
    view = before or look(BEGUN)
    for mib in moved_mib:
        weight_bytes = view.weight_bytes + mib * MIB
        view = look(replace(BEGUN, weight_bytes=weight_bytes), view, pause_s)
    return view


def test_the_first_look_shows_what_is_left_and_promises_nothing() -> None:
    view = look(replace(BEGUN, weight_bytes=40 * MIB))
    assert (view.remaining_bytes, view.bytes_per_s, view.eta_s) == (60 * MIB, 0, None)


def test_the_second_look_knows_the_rate_and_when_it_will_be_there() -> None:
    view = after([20], pause_s=2.0)
    assert (view.bytes_per_s, view.eta_s) == (10 * MIB, 8.0)


def test_one_slow_second_does_not_triple_the_time_left() -> None:
    view = after([10, 10, 10, 1])
    assert 5 * MIB < view.bytes_per_s < 10 * MIB
    assert view.eta_s is not None
    assert 69 / 10 < view.eta_s < 69 / 5


@pytest.mark.parametrize("looks", [1, 10, 100])
def test_how_often_somebody_looks_does_not_change_the_rate(looks: int) -> None:
    before = after([10], pause_s=1.0)
    stats = [
        replace(BEGUN, weight_bytes=before.weight_bytes + 4 * MIB * i // looks)
        for i in range(1, looks + 1)
    ]
    view = before
    for each in stats:
        view = look(each, view, 2.0 / looks)
    assert view.bytes_per_s / MIB == pytest.approx(4.95, rel=0.01)


def test_two_looks_at_the_same_moment_agree() -> None:
    before = after([10])
    assert look(replace(BEGUN, weight_bytes=before.weight_bytes), before, 0.0) == before


def test_a_load_that_stands_still_has_no_time_left_to_tell_after_a_while() -> None:
    view = after([10, *[0] * 60])
    assert (view.bytes_per_s, view.eta_s) == (0, None)
    assert after([5], before=view).bytes_per_s == 5 * MIB, "and then it is believed at once"


def test_once_it_computes_nothing_is_left_whatever_was_planned() -> None:
    view = look(replace(BEGUN, weight_bytes=90 * MIB, graphs=1, phase="decode"), after([10]))
    assert (view.remaining_bytes, view.eta_s) == (0, None)


def test_more_than_was_planned_leaves_nothing() -> None:
    view = after([60, 60])
    assert (view.remaining_bytes, view.eta_s) == (0, None)


def test_a_counter_that_began_anew_is_no_negative_rate() -> None:
    assert look(BEGUN, after([50, 10])).bytes_per_s >= 0


def test_waiting_is_shared_out_between_wire_and_worker() -> None:
    view = look(replace(BEGUN, graphs=9, answers=9, answered_s=4.0, computed_s=3.0))
    assert (view.wire_share, view.wire_s, view.compute_s) == (0.25, 1.0, 3.0)


def test_before_the_first_answer_nobody_is_to_blame() -> None:
    assert look(BEGUN).wire_share is None


def test_a_clock_that_runs_faster_there_makes_no_negative_wire() -> None:
    view = look(replace(BEGUN, graphs=9, answered_s=1.0, computed_s=1.01))
    assert (view.wire_share, view.wire_s) == (0.0, 0.0)


def test_what_the_link_says_of_itself_is_passed_on() -> None:
    stats = replace(
        BEGUN,
        state=LOST,
        round_trip_s=0.0123456,
        error_code="link_lost",
        detail="silent for 5 s",
        last_command="SET_TENSOR",
        waiting_s=1.234,
        saved_bytes=3,
        seeded_bytes=4,
        sent_bytes=5,
        received_bytes=6,
    )
    view = look(stats)
    assert (view.device, view.state, view.phase) == ("phone", LOST, "load")
    assert (view.round_trip_ms, view.waiting_s) == (12.35, 1.23)
    assert (view.detail, view.last_command) == ("silent for 5 s", "SET_TENSOR")
    counted = (view.saved_bytes, view.seeded_bytes, view.sent_bytes, view.received_bytes)
    assert counted == (3, 4, 5, 6)


PAUSES_S = st.just(0.0) | st.floats(1e-9, 1e4)  # a nanosecond is as fine as a clock goes


@given(
    readings=st.lists(st.tuples(st.integers(0, 1 << 40), PAUSES_S), max_size=8),
    planned_bytes=st.integers(0, 1 << 40),
)
def test_no_readings_make_impossible_figures(
    readings: list[tuple[int, float]], planned_bytes: int
) -> None:
    view = None
    for weight_bytes, elapsed_s in readings:
        stats = replace(BEGUN, weight_bytes=weight_bytes)
        view = link_view("phone", planned_bytes, stats, view, elapsed_s)
        assert view.bytes_per_s >= 0
        assert 0 <= view.remaining_bytes <= planned_bytes
        assert view.eta_s is None or view.eta_s >= 0
