"""Searches that are made once give what searches of their own would."""

import random

import pytest
from planning_world import random_request

from supervisor.core.plan_overrides import choice_of
from supervisor.core.planning import HOST, Overrides, Planned, PlanRequest
from supervisor.core.search import best_placement, ladder, plan
from supervisor.core.search_made import Label, Made
from supervisor.core.search_values import Best


def cases(count: int) -> list[PlanRequest]:
    rng = random.Random(21)
    return [random_request(rng, rng.choice((2, 3, 4)), rng.choice((5, 16))) for _ in range(count)]


def overridden(request: PlanRequest, **given: tuple[str, ...]) -> PlanRequest:
    return request.model_copy(update={"overrides": Overrides.model_validate(given)})


@pytest.mark.parametrize("what", ["devices", "order"])
@pytest.mark.parametrize("host", [(), (HOST,)])
def test_the_price_of_overrides_is_that_of_a_search_without_them(
    what: str, host: tuple[str, ...]
) -> None:
    compared = 0
    for request in cases(40):
        names = tuple(device.name for device in request.devices)
        for chosen in (names, names[:-1], names[::-1]):
            result = plan(overridden(request, **{what: (*chosen, *host)}))
            if isinstance(result, Planned):
                compared += 1
                assert result.unrestricted == best_placement(request)
    assert compared > 60


def test_only_a_choice_of_the_same_devices_shares_a_search() -> None:
    request = cases(1)[0]
    first, *_, last = names = tuple(device.name for device in request.devices)
    made, best = Made(request), Best[Label](steps_left=100)
    run = next(ladder(request))[0]

    def searches(**given: tuple[str, ...]) -> list[int]:
        choice = choice_of(overridden(request, **given))
        return [id(one) for one in made.searches(run, choice, best)]

    assert searches(), "something can fit"
    named = searches(devices=names)
    assert named == searches(order=names)
    assert not {*named} & {*searches(devices=(last, first))}
    assert not {*named} & {*searches(devices=(first,))}
