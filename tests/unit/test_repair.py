"""What to try next after a failure, and when something better is worth a relaunch."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.entities import (
    Action,
    AgentId,
    Cause,
    DeploymentSpec,
    HostShare,
    ModelFacts,
    Plan,
    Prediction,
    Shard,
)
from supervisor.core.lifecycle import State
from supervisor.core.planning import HOST
from supervisor.core.repair import (
    dropped_sentence,
    had_their_chance,
    may_revive,
    rejoin_allowed,
    relaunch_reason,
    retry_pause_s,
    spec_for_repair,
    worth_planning,
)

A, B, C = AgentId("id-a"), AgentId("id-b"), AgentId("id-c")
MODEL = ModelFacts(path="/m", name="m", architecture="llama", block_count=8, size_bytes=9)


# -- the pause -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "longest_s"),
    [(1, 5.0), (2, 10.0), (3, 20.0), (6, 160.0), (7, 300.0), (8, 300.0), (10_000, 300.0)],
)
def test_the_longest_pause_doubles_up_to_its_limit(failures: int, longest_s: float) -> None:
    for chance in (0.0, 0.25, 0.5):
        found_s = retry_pause_s(failures, first_s=5.0, longest_s=300.0, chance=chance)
        assert found_s == chance * longest_s


@given(
    failures=st.integers(0, 10**6),
    first_s=st.floats(0, 1e4),
    longest_s=st.floats(0, 1e6),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_a_pause_is_never_longer_than_its_limit_and_limits_never_fall(
    failures: int, first_s: float, longest_s: float, chance: float
) -> None:
    def pause_s(after: int, luck: float) -> float:
        return retry_pause_s(after, first_s=first_s, longest_s=longest_s, chance=luck)

    assert 0 <= pause_s(failures, chance) <= pause_s(failures, 1.0) <= longest_s
    assert pause_s(failures, 1.0) <= pause_s(failures + 1, 1.0)


def test_deployments_that_fail_together_do_not_start_together() -> None:
    seeded = random.Random(5)
    pauses = [
        retry_pause_s(4, first_s=1.0, longest_s=300.0, chance=seeded.random()) for _ in range(200)
    ]
    tenths = {int(pause_s / 0.8) for pause_s in pauses}
    assert tenths == set(range(10)), "all of 0 to 8 seconds is used"


# -- what was asked for, with those that are left --------------------------------------------------


def spec(**more: object) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"model": "/m.gguf"} | more)


@pytest.mark.parametrize(
    ("asked", "usable", "expected"),
    [
        # Nobody is named: nothing changes.
        ({}, "", {}),
        ({"exclude": ["x"]}, "a", {"exclude": ["x"]}),
        # Everybody is there.
        ({"devices": ["a", "b"]}, "a b", {"devices": ["a", "b"]}),
        (
            {"order": ["b", "a"], "split": [3, 6], "pin_output": "a"},
            "a b",
            {"order": ["b", "a"], "split": [3, 6], "pin_output": "a"},
        ),
        # Somebody is gone, and the split with it.
        ({"devices": ["a", "b"], "split": [3, 6]}, "a", {"devices": ["a"]}),
        ({"order": ["a", "b", "c"]}, "a c", {"order": ["a", "c"]}),
        (
            {"devices": ["a", "b"], "order": ["b", "a"]},
            "a",
            {"devices": ["a"], "order": ["a"]},
        ),
        ({"devices": ["a/CUDA0", "b/CPU"]}, "a", {"devices": ["a/CUDA0"]}),
        ({"devices": [HOST, "b"]}, "", {"devices": [HOST]}),
        # The output was there.
        ({"devices": ["a", "b"], "pin_output": "b"}, "a", {"devices": ["a"]}),
        ({"pin_output": "b"}, "a", {}),
        ({"pin_output": HOST}, "", {"pin_output": HOST}),
        # Nobody is left: what was asked for stays, so that planning says what is missing.
        (
            {"devices": ["a", "b"], "split": [3, 6], "pin_output": "b"},
            "c",
            {"devices": ["a", "b"], "split": [3, 6], "pin_output": "b"},
        ),
    ],
)
def test_a_repair_does_without_the_named_devices_that_are_gone(
    asked: dict[str, object], usable: str, expected: dict[str, object]
) -> None:
    assert spec_for_repair(spec(**asked), usable.split()) == spec(**expected)


def test_a_device_that_was_removed_needs_no_excluding() -> None:
    asked = spec(exclude=["a", "gone"])
    assert spec_for_repair(asked, [], ["a", "b"]).exclude == ("a",)
    assert spec_for_repair(asked, ["b"]).exclude == ("a", "gone"), "who is known is not told"


def test_what_a_repair_does_without_is_said() -> None:
    asked = spec(devices=["a", "b", "c"], split=[3, 3, 3], pin_output="c")
    text = dropped_sentence(asked, spec_for_repair(asked, ["a"]))
    assert text.startswith("This is a repair without b and c, and without your split of the layers")
    pinned = spec(pin_output="c")
    assert "the output on c" in dropped_sentence(pinned, spec_for_repair(pinned, ["a"]))
    assert dropped_sentence(asked, asked) == ""


# -- something better ------------------------------------------------------------------------------


def shard(agent: AgentId, layers: int) -> Shard:
    name = agent.removeprefix("id-")
    return Shard(agent_id=agent, device=name, ggml_device="CPU", host="h", layers=layers)


def plan(*shards: Shard, tokens_per_s: float | None = 10.0, **more: object) -> Plan:
    values = {"model": MODEL, "ctx_tokens": 4096, "slots": 1, "shards": shards} | more
    if tokens_per_s is not None:
        values["prediction"] = Prediction(
            decode_tokens_per_s=tokens_per_s,
            prefill_tokens_per_s=100,
            load_s=5,
            prompt_tokens=1000,
            output_s=0,
            stages=(),
            is_guess=False,
        )
    return Plan.model_validate(values)


ONE, BOTH = (shard(A, 9),), (shard(A, 4), shard(B, 5))


@pytest.mark.parametrize(
    ("current", "candidate", "says"),
    [
        # Faster enough.
        (plan(*ONE), plan(*BOTH, tokens_per_s=12.0), "with b, there would be 12.0 instead of 10.0"),
        (plan(*ONE), plan(shard(B, 9), tokens_per_s=12.0), "with b, there would be 12.0 instead"),
        (plan(*ONE), plan(*BOTH, tokens_per_s=11.9), None),
        (plan(*ONE), plan(*BOTH, tokens_per_s=10.0), None),
        (plan(*ONE), plan(*BOTH, tokens_per_s=5.0), None),
        # Nobody is new: that is never worth it, whatever is predicted now.
        (plan(*ONE), plan(*ONE, tokens_per_s=99.0), None),
        (plan(*BOTH), plan(*ONE, tokens_per_s=99.0), None),
        (plan(*BOTH), plan(shard(A, 5), shard(B, 4), tokens_per_s=99.0), None),
        (plan(*ONE, ctx_tokens=2048), plan(*ONE), None),
        (plan(*BOTH, host=HostShare(layers=2)), plan(*BOTH, tokens_per_s=99.0), None),
        # Nothing is known.
        (plan(*ONE, tokens_per_s=None), plan(*BOTH, tokens_per_s=99.0), None),
        # The context grew back to what was asked for, even at a price.
        (
            plan(*ONE, ctx_tokens=2048),
            plan(*BOTH, tokens_per_s=9.0),
            "the whole context of 4096 instead of 2048 tokens and 9.0 instead of 10.0 tokens per",
        ),
        (plan(*ONE, ctx_tokens=2048), plan(*BOTH, ctx_tokens=3072, tokens_per_s=9.0), None),
        (
            plan(*ONE, ctx_tokens=2048, tokens_per_s=None),
            plan(*BOTH, tokens_per_s=None),
            "the whole context of 4096 instead of 2048 tokens; loading",
        ),
        # And so did the cache.
        (plan(*ONE, kv_type="q8_0"), plan(*BOTH, tokens_per_s=9.0), "a f16 instead of a q8_0"),
        (
            plan(*ONE, kv_type="q8_0"),
            plan(*BOTH, ctx_tokens=2048, tokens_per_s=9.0),
            None,
        ),
        # Speed never costs what was asked for.
        (plan(*ONE), plan(*BOTH, ctx_tokens=2048, tokens_per_s=99.0), None),
        (plan(*ONE), plan(*BOTH, kv_type="q8_0", tokens_per_s=99.0), None),
        (
            plan(*ONE, ctx_tokens=2048),
            plan(*BOTH, ctx_tokens=2048, tokens_per_s=99.0),
            "99 instead of 10.0",
        ),
    ],
)
def test_a_relaunch_must_be_worth_it(current: Plan, candidate: Plan, says: str | None) -> None:
    found = relaunch_reason(current, candidate, spec(), min_gain=1.2, load_s=20.0)
    if says is None:
        assert found is None
    else:
        assert found is not None
        assert says in found
        assert "loading takes about 20 seconds" in found


def test_a_long_load_needs_a_larger_gain() -> None:
    def found(tokens_per_s: float, load_s: float) -> str | None:
        better = plan(*BOTH, tokens_per_s=tokens_per_s)
        return relaunch_reason(plan(*ONE), better, spec(), min_gain=1.0, load_s=load_s)

    assert found(12.0, 599.0)
    assert not found(12.0, 601.0), "an hour at 1.2 times the speed saves ten minutes"
    assert found(20.0, 601.0)
    assert not found(10.2, 0.1), "a prediction is not as good as that, whatever is set"


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({A}, {A}, set()),
        ({A}, {A, B}, {B}),  # joined, or came back
        ({A, B}, {A, B}, set()),  # was not chosen when the plan was made
        ({B}, {A, B}, set()),  # part of the plan
        ({A, C}, {A}, set()),  # left
    ],
)
def test_only_a_device_that_was_not_there_is_worth_planning(
    before: set[AgentId], now: set[AgentId], expected: set[AgentId]
) -> None:
    assert worth_planning(before, now, plan(*ONE)) == expected


@pytest.mark.parametrize(
    ("mode", "is_idle", "expected"),
    [
        ("idle", True, True),
        ("idle", False, False),
        ("now", True, True),
        ("now", False, True),
        ("never", True, False),
        ("never", False, False),
    ],
)
def test_requests_are_not_interrupted_for_more_speed_unless_that_is_wanted(
    mode: str, is_idle: bool, expected: bool
) -> None:
    assert rejoin_allowed(mode, is_idle=is_idle) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "code", "action", "news", "expected"),
    [
        (State.FAILED, "worker_lost", Action.RETRY, {B}, True),
        (State.FAILED, "worker_out_of_memory", Action.SMALLER_SHARE, {B}, True),
        (State.FAILED, "worker_incompatible", Action.EXCLUDE, {B}, True),
        (State.FAILED, "no_devices", Action.RETRY, {B}, True),
        (State.FAILED, "insufficient_memory", Action.GIVE_UP, {B}, True),
        (State.FAILED, "worker_incompatible", Action.GIVE_UP, {B}, True),
        (State.FAILED, "model_broken", Action.GIVE_UP, {B}, False),
        (State.FAILED, "engine_refused_flag", Action.GIVE_UP, {B}, False),
        (State.FAILED, "worker_lost", Action.RETRY, set(), False),
        (State.STOPPED, "worker_lost", Action.RETRY, {B}, False),
        (State.BACKOFF, "worker_lost", Action.RETRY, {B}, False),
    ],
)
def test_a_device_revives_what_failed_for_want_of_devices(
    state: State, code: str, action: Action, news: set[AgentId], expected: bool
) -> None:
    cause = Cause(code=code, sentence="x", action=action)
    assert may_revive(state, cause, news) is expected


def test_what_failed_for_unknown_reasons_waits_for_a_human() -> None:
    assert not may_revive(State.FAILED, None, {B})


def test_what_a_failed_plan_could_use_is_no_news_but_for_the_culprit() -> None:
    cause = Cause(code="link_lost", sentence="lost", agent_id=B)
    assert had_their_chance({A, B}, cause) == {A}
    assert had_their_chance({A, B}, Cause(code="engine_exited", sentence="ended")) == {A, B}
    assert had_their_chance({A, B}, None) == {A, B}
