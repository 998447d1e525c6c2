"""The deployment's state machine: every pair of state and event, and its picture in the docs."""

from pathlib import Path

import pytest

from supervisor.core.lifecycle import (
    LIVE_STATES,
    TABLE,
    Event,
    State,
    advance,
    failures_after,
)
from supervisor.errors import IllegalTransition

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"

EVERY_PAIR = [(state, event) for state in State for event in Event]
REST_STATES = frozenset({State.STOPPED, State.STOPPING, State.FAILED})


def drawing() -> list[str]:
    """``TABLE`` as a mermaid state diagram, line by line."""
    arrows = [f"    {before} --> {after}: {event}" for (before, event), after in TABLE.items()]
    return ["```mermaid", "stateDiagram-v2", "    [*] --> pending", *arrows, "```"]


@pytest.mark.parametrize(("state", "event"), EVERY_PAIR)
def test_a_pair_leads_where_the_table_says_and_any_other_is_refused(
    state: State, event: Event
) -> None:
    if (state, event) in TABLE:
        assert advance(state, event) is TABLE[state, event]
    else:
        with pytest.raises(IllegalTransition, match=f"{event} cannot happen in state {state}"):
            advance(state, event)


@pytest.mark.parametrize("state", [*sorted(LIVE_STATES), State.FAILED])
def test_a_stop_is_always_obeyed(state: State) -> None:
    assert advance(state, Event.STOP_REQUESTED) in (State.STOPPING, State.STOPPED)


def test_a_stop_waits_for_the_end_exactly_where_processes_run() -> None:
    runs = {State.STARTING, State.READY, State.DEGRADED}
    assert {s for s in State if TABLE.get((s, Event.STOP_REQUESTED)) is State.STOPPING} == runs


def test_live_states_are_all_but_the_ones_at_rest() -> None:
    assert frozenset(State) - REST_STATES == LIVE_STATES


def test_every_state_is_reachable_from_pending() -> None:
    reached = {State.PENDING}
    while more := {TABLE[s, e] for s, e in TABLE if s in reached} - reached:
        reached |= more
    assert reached == set(State)


def test_every_state_has_a_way_to_stopped_and_back_to_ready() -> None:
    for goal in (State.STOPPED, State.READY):
        able = {goal}
        while more := {s for (s, _), after in TABLE.items() if after in able} - able:
            able |= more
        assert able == set(State), goal


def test_a_failed_attempt_never_leads_back_to_running_without_a_new_plan() -> None:
    after_failure = {TABLE[s, e] for s, e in TABLE if e is Event.ATTEMPT_FAILED}
    assert after_failure == {State.BACKOFF}
    assert TABLE[State.BACKOFF, Event.RETRY_DUE] is State.PENDING


@pytest.mark.parametrize(
    ("failures", "ready_for_s", "expected"),
    [
        (0, 0.0, 1),
        (3, 0.0, 4),
        (3, 299.9, 4),  # dies at the first large request, again and again
        (3, 300.0, 1),
        (0, 300.0, 1),
    ],
)
def test_only_an_earned_ready_forgives_failures(
    failures: int, ready_for_s: float, expected: int
) -> None:
    assert failures_after(failures, ready_for_s=ready_for_s, earned_s=300.0) == expected


def test_the_picture_in_the_docs_is_the_table() -> None:
    text = ARCHITECTURE.read_text()
    assert "\n".join(drawing()) in text, "paste this:\n" + "\n".join(drawing())


@pytest.mark.parametrize("state", list(State))
def test_the_docs_say_what_holds_in_each_state(state: State) -> None:
    section = ARCHITECTURE.read_text().split("\n## ")[2]
    rows = [line for line in section.splitlines() if line.startswith(f"| `{state}` |")]
    assert len(rows) == 1
    assert all(cell.strip() for cell in rows[0].strip("|").split("|"))
