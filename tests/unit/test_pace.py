"""When a deployment is called slow, and whom that is put on."""

from dataclasses import replace
from typing import Final

import pytest

from supervisor.core import pace
from supervisor.core.entities import AgentId
from supervisor.core.pace import Pace, Slow
from supervisor.core.slots import SlotState
from supervisor.link.job import LinkStats

NEAR, FAR = AgentId("near"), AgentId("far")
ONE: Final = (SlotState(0, 1, True, 1, 50, 50),)
TWO: Final = (*ONE, SlotState(1, 2, True, 1, 50, 50))


class Decoding:
    """Slots that get tokens, and links that take their part of each."""

    def __init__(self) -> None:
        self.pace = Pace()
        self.links = {a: LinkStats(a) for a in (NEAR, FAR)}
        self.task = 0

    def run(
        self,
        slots: tuple[SlotState, ...],
        seconds: int,
        tokens_per_s: int,
        *,
        waited_s: dict[AgentId, float] | None = None,
        computed_s: dict[AgentId, float] | None = None,
    ) -> Slow | None:
        """New requests, looked at every second; the links take so long of each token."""
        self.task += 1
        slots = tuple(replace(slot, task=self.task) for slot in slots)
        for second in range(seconds + 1):
            tokens = tokens_per_s if second else 0
            slots = tuple(replace(s, decoded_tokens=s.decoded_tokens + tokens) for s in slots)
            for agent_id, link in self.links.items():
                self.links[agent_id] = replace(
                    link,
                    answered_s=link.answered_s + tokens * (waited_s or {}).get(agent_id, 0.0),
                    computed_s=link.computed_s + tokens * (computed_s or {}).get(agent_id, 0.0),
                )
            self.pace = pace.observe(self.pace, slots, self.links, 1.0)
        return pace.verdict(self.pace)


def test_a_third_of_the_normal_speed_for_half_a_minute_is_slow() -> None:
    run = Decoding()
    assert run.run(ONE, 120, 20) is None
    assert run.run(ONE, 30, 4) is None, "not at once"
    found = run.run(ONE, 20, 4)
    assert found is not None
    assert found.factor == pytest.approx(5, rel=0.1)
    assert found.tokens_per_s == pytest.approx(4, rel=0.1)
    assert found.normal_tokens_per_s == pytest.approx(20, rel=0.1)
    assert found.agent_id is None
    assert run.run(ONE, 20, 19) is None, "it recovered"


def test_half_the_speed_is_not_slow() -> None:
    run = Decoding()
    run.run(ONE, 120, 20)
    assert run.run(ONE, 300, 10) is None


def test_what_is_slow_does_not_become_normal() -> None:
    run = Decoding()
    run.run(ONE, 120, 20)
    found = run.run(ONE, 3600, 2)
    assert found is not None
    assert found.normal_tokens_per_s == pytest.approx(20, rel=0.1)


def test_more_requests_at_once_have_a_normal_speed_of_their_own() -> None:
    run = Decoding()
    run.run(ONE, 120, 20)
    assert run.run(TWO, 120, 4) is None
    assert run.run(ONE, 120, 20) is None
    assert run.run(TWO, 120, 1) is not None


def test_nothing_is_known_of_a_deployment_that_is_new() -> None:
    run = Decoding()
    run.run(ONE, 10, 20)
    assert run.run(ONE, 40, 2) is None


def test_what_was_always_slow_is_normal() -> None:
    assert Decoding().run(ONE, 600, 1) is None


def test_a_token_every_minute_is_not_slow_in_between() -> None:
    run = Decoding()
    slots: tuple[SlotState, ...] = ONE
    found = set()
    for second in range(3600):
        more = int(second % 60 == 0)
        slots = tuple(replace(slot, decoded_tokens=slot.decoded_tokens + more) for slot in slots)
        run.pace = pace.observe(run.pace, slots, run.links, 1.0)
        found.add(pace.verdict(run.pace))
    assert found == {None}


def test_decode_that_stands_for_a_prompt_is_not_slow() -> None:
    run = Decoding()
    run.run(TWO, 120, 20)
    reading = (*ONE, SlotState(1, 2, True, 0, 2048, 0))
    for _ in range(120):
        run.pace = pace.observe(run.pace, reading, run.links, 1.0)
    assert pace.verdict(run.pace) is None


def test_other_requests_are_not_compared() -> None:
    """Between two looks one request ended and the next began."""
    run = Decoding()
    run.run(ONE, 120, 20)
    for task in range(2, 120):
        run.pace = pace.observe(run.pace, (replace(ONE[0], task=task),), run.links, 1.0)
    assert pace.verdict(run.pace) is None


@pytest.mark.parametrize(("computes_s", "is_wire"), [(0.004, True), (0.9, False)])
def test_the_link_whose_answers_take_longer_is_named(computes_s: float, is_wire: bool) -> None:
    run = Decoding()
    run.run(ONE, 120, 20, waited_s={NEAR: 0.03, FAR: 0.01}, computed_s={NEAR: 0.02, FAR: 0.004})
    found = run.run(
        ONE, 60, 1, waited_s={NEAR: 0.03, FAR: 0.95}, computed_s={NEAR: 0.02, FAR: computes_s}
    )
    assert found is not None
    assert found.agent_id == FAR
    assert found.is_wire is is_wire


def test_a_pause_of_our_own_is_not_slowness() -> None:
    run = Decoding()
    run.run(ONE, 120, 20)
    run.run(ONE, 29, 1)
    run.pace = pace.interrupted(run.pace)
    assert run.run(ONE, 29, 20) is None
