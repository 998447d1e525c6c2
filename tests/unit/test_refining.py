"""Runs correct measurements: towards what was seen, never far at once, never from guesses."""

import pytest
from test_launch_plan import planned, request
from test_offers import measured

from supervisor.core.entities import AgentId, Plan
from supervisor.core.measurements import DeviceMeasured
from supervisor.core.refining import ENOUGH_TOKENS, LEAST, MOST, Key, refined


def known(correction: float = 1.0) -> dict[Key, DeviceMeasured]:
    found = measured("id-a", correction).devices[AgentId("id-a"), "CPU"]
    other = found.model_copy(update={"agent_id": AgentId("id-elsewhere")})
    return {(found.agent_id, "CPU"): found, (other.agent_id, "CPU"): other}


def token_s(plan: Plan) -> float:
    assert plan.prediction is not None
    return 1 / plan.prediction.decode_tokens_per_s


def after(plan: Plan, times: float, tokens: int = 1000, correction: float = 1.0) -> float:
    """Correction of the device after a run that took ``times`` as long as predicted."""
    (found,) = refined(plan, tokens, tokens * token_s(plan) * times, known(correction))
    assert found.agent_id == "id-a", "only devices of this launch are corrected"
    return found.correction


def test_a_run_as_predicted_changes_nothing() -> None:
    assert after(planned(request()), 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize(("times", "slower"), [(1.5, True), (0.7, False)])
def test_a_run_moves_the_correction_towards_what_it_took(times: float, slower: bool) -> None:
    found = after(planned(request()), times)
    assert (found > 1) is slower
    assert abs(found - 1) < abs(times - 1) * 1.2, "one run is not believed entirely"


def test_runs_of_the_same_kind_converge_on_what_they_took() -> None:
    """Each run is compared with a prediction that the earlier ones have corrected already."""
    plan = planned(request())
    assert plan.prediction is not None
    true_factor, correction = 1.8, 1.0
    for _ in range(40):
        stages = plan.prediction.stages
        computing = plan.prediction.output_s + sum(s.compute_s for s in stages)
        rest = token_s(plan) - computing
        now_s = rest + computing * correction
        corrected = plan.model_copy(
            update={
                "prediction": plan.prediction.model_copy(
                    update={
                        "decode_tokens_per_s": 1 / now_s,
                        "output_s": plan.prediction.output_s * correction,
                        "stages": tuple(
                            s.model_copy(update={"compute_s": s.compute_s * correction})
                            for s in stages
                        ),
                    }
                )
            }
        )
        took_s = rest + computing * true_factor
        (found,) = refined(corrected, 1000, 1000 * took_s, known(correction))
        correction = found.correction
    assert correction == pytest.approx(true_factor, rel=0.01)


def test_a_correction_has_limits() -> None:
    plan = planned(request())
    assert after(plan, 100.0, correction=MOST) == MOST
    assert after(plan, 0.01, correction=LEAST) == LEAST


def test_too_little_or_a_guess_teaches_nothing() -> None:
    plan = planned(request())
    assert plan.prediction is not None
    assert refined(plan, ENOUGH_TOKENS - 1, 100.0, known()) == []
    guess = plan.prediction.model_copy(update={"is_guess": True})
    assert refined(plan.model_copy(update={"prediction": guess}), 1000, 100.0, known()) == []
    assert refined(plan.model_copy(update={"prediction": None}), 1000, 100.0, known()) == []
