"""Seats, queues and who is next."""

import asyncio

import pytest
from gateway_world import deployment, plan

from supervisor.core.entities import Deployment, DeploymentId, LaunchId
from supervisor.core.gateway_routes import Work
from supervisor.core.lifecycle import State
from supervisor.service.lanes import Lane, LaneClosed


class Scene:
    """A lane before one deployment that tests change."""

    def __init__(self, slots: int = 1, state: State = State.READY) -> None:
        self.deployment: Deployment | None = deployment(state=state, plan=plan(slots), port=1)
        self.lane = Lane(DeploymentId("gem"), lambda: self.deployment)

    def becomes(self, state: State, launch: int = 1) -> None:
        assert self.deployment is not None
        changes = {"state": state, "launch_id": LaunchId(launch)}
        self.deployment = self.deployment.model_copy(update=changes)
        self.lane.look_again()


async def test_as_many_seats_as_slots_and_the_rest_waits_in_order() -> None:
    lane = Scene(slots=2).lane
    with lane.ticket(Work.GENERATES, "a") as first, lane.ticket(Work.GENERATES, "a") as second:
        with lane.ticket(Work.GENERATES, "a") as third, lane.ticket(Work.GENERATES, "a") as fourth:
            assert [t.done() for t in (first, second, third, fourth)] == [True, True, False, False]
            assert (lane.active, lane.waiting, lane.busyness) == (2, 2, 2.0)
        assert lane.waiting == 0
    assert lane.active == 0


async def test_a_seat_that_is_given_back_goes_to_who_came_first() -> None:
    lane = Scene().lane
    with lane.ticket(Work.GENERATES, "a"):
        waiting = [lane.ticket(Work.GENERATES, "a") for _ in range(3)]
        places = [each.__enter__() for each in waiting]
    assert [place.done() for place in places] == [True, False, False]
    for each in waiting:
        each.__exit__(None, None, None)
    assert (lane.active, lane.waiting) == (0, 0)


async def test_a_caller_with_many_requests_does_not_crowd_another_one_out() -> None:
    lane = Scene(slots=2).lane
    greedy = [lane.ticket(Work.GENERATES, "greedy") for _ in range(10)]
    places = [each.__enter__() for each in greedy]
    with lane.ticket(Work.GENERATES, "modest") as modest:
        assert not modest.done()
        greedy[0].__exit__(None, None, None)
        assert modest.done()
        assert not places[2].done()
    for each in greedy[1:]:
        each.__exit__(None, None, None)


async def test_nobody_sits_before_it_is_ready() -> None:
    scene = Scene(state=State.STARTING)
    with scene.lane.ticket(Work.COMPUTES, "a") as place:
        assert not place.done()
        scene.becomes(State.READY)
        assert place.result().port == 1


@pytest.mark.parametrize("state", [State.STOPPED, State.STOPPING, State.FAILED])
async def test_who_waits_for_what_does_not_want_to_run_is_sent_away(state: State) -> None:
    scene = Scene(state=State.STARTING)
    with scene.lane.ticket(Work.GENERATES, "a") as place:
        scene.becomes(state)
        with pytest.raises(LaneClosed):
            place.result()


async def test_a_deployment_that_is_removed_sends_everybody_away() -> None:
    scene = Scene(state=State.STARTING)
    with scene.lane.ticket(Work.GENERATES, "a") as place:
        scene.deployment = None
        scene.lane.look_again()
        with pytest.raises(LaneClosed):
            place.result()


async def test_nobody_is_sent_to_an_engine_that_is_gone_until_there_is_another() -> None:
    scene = Scene()
    with scene.lane.ticket(Work.GENERATES, "a") as place:
        scene.lane.gone(place.result())
    with scene.lane.ticket(Work.GENERATES, "a") as again:
        assert not again.done()
        scene.becomes(State.DEGRADED)
        scene.becomes(State.READY, launch=2)
        assert again.result().launch_id == 2


async def test_an_engine_that_only_did_not_answer_is_tried_again_a_little_later() -> None:
    scene = Scene()
    with scene.lane.ticket(Work.GENERATES, "a") as place:
        scene.lane.gone(place.result())
    with scene.lane.ticket(Work.GENERATES, "a") as again:
        await asyncio.wait_for(asyncio.wait([again]), 10)
        assert again.result().launch_id == 1


async def test_questions_need_no_slot() -> None:
    lane = Scene().lane
    with lane.ticket(Work.GENERATES, "a"), lane.ticket(Work.ASKS, "a") as asking:
        assert asking.done()


async def test_it_learns_how_long_requests_take() -> None:
    lane = Scene().lane
    before_s = lane.usual_s
    for _ in range(20):
        with lane.ticket(Work.GENERATES, "a"):
            pass
    assert lane.usual_s < before_s / 10
