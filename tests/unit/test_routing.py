"""Which deployment answers for a name."""

import pytest
from gateway_world import deployment, plan

from supervisor.core.entities import Deployment, DeploymentSpec
from supervisor.core.lifecycle import State
from supervisor.core.routing import asked_for, best_of, model_entry, names_of, to_start


def made(name: str, model: str, state: State = State.READY, **spec: object) -> Deployment:
    given = DeploymentSpec.model_validate({"model": model, **spec})
    return deployment(name, state, spec=given, plan=None)


GEM = made("gem", "/models/gemma-3-1b-it-Q4_K_M.gguf", aliases=("gpt-4o",))
BIG = made("big", "/models/Qwen3-32B-Q4_K_M-00001-of-00003.gguf")
HUB = made("hub", "ggml-org/tiny-GGUF:Q8_0")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gem", GEM),
        ("GPT-4o", GEM),
        ("gemma-3-1b-it-Q4_K_M", GEM),
        ("/models/gemma-3-1b-it-Q4_K_M.gguf", GEM),
        ("Qwen3-32B-Q4_K_M", BIG),
        ("Qwen3-32B-Q4_K_M-00001-of-00003", BIG),
        ("ggml-org/tiny-GGUF", HUB),
        ("ggml-org/tiny-GGUF:Q8_0", HUB),
    ],
)
def test_a_deployment_is_found_by_each_of_its_names(name: str, expected: Deployment) -> None:
    found = asked_for(name, [GEM, BIG, HUB])
    assert [each.id for each in found] == [expected.id]


def test_an_unknown_name_is_nobody_s_if_there_are_several() -> None:
    assert asked_for("gpt-9", [GEM, BIG]) == []


def test_with_one_deployment_there_is_no_doubt() -> None:
    stopped = made("old", "/m/old.gguf", State.STOPPED)
    assert asked_for("gpt-9", [GEM, stopped]) == [GEM]


def test_a_name_of_its_own_wins_over_the_only_one_that_runs() -> None:
    stopped = made("old", "/m/old.gguf", State.STOPPED)
    assert asked_for("old", [GEM, stopped]) == [stopped]


def test_no_name_means_any_that_runs() -> None:
    stopped = made("old", "/m/old.gguf", State.STOPPED)
    assert asked_for(None, [GEM, BIG, stopped]) == [GEM, BIG]


def test_the_least_busy_of_those_that_are_ready_answers() -> None:
    loads = {"a": 2.0, "b": 0.5, "c": 0.0}
    several = [
        made("a", "/m/x.gguf"),
        made("b", "/m/x.gguf"),
        made("c", "/m/x.gguf", State.STARTING),
    ]
    chosen = best_of(asked_for("x", several), lambda each: loads[each.id])
    assert chosen is not None
    assert chosen.id == "b"


def test_if_none_is_ready_it_is_one_that_will_be() -> None:
    several = [made("a", "/m/x.gguf", State.FAILED), made("b", "/m/x.gguf", State.BACKOFF)]
    chosen = best_of(several, lambda _: 0.0)
    assert chosen is not None
    assert chosen.id == "b"
    assert best_of(several[:1], lambda _: 0.0) is None


def test_only_a_deployment_that_may_be_is_started_by_a_request() -> None:
    stopped = made("a", "/m/x.gguf", State.STOPPED)
    willing = made("b", "/m/x.gguf", State.STOPPED, on_demand=True)
    assert to_start([stopped]) is None
    assert to_start([stopped, willing]) is willing


def test_an_entry_of_the_list_of_models_suits_both_apis() -> None:
    since = "2026-11-01T00:00:00.000+00:00"
    entry = model_entry(GEM.model_copy(update={"since": since, "plan": plan()}))
    assert entry["id"] == entry["display_name"] == "gem"
    assert (entry["object"], entry["type"]) == ("model", "model")
    assert entry["created"] == 1793491200
    assert entry["meta"]["n_ctx"] == 4096


def test_names_are_compared_without_case() -> None:
    assert names_of(HUB) >= {"hub", "ggml-org/tiny-gguf"}
