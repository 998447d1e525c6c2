"""Placement: whole layers in proportion to memory, and refusals that carry their numbers."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.entities import MAX_REMOTE_DEVICES, AgentId, Candidate, ModelFacts, Plan
from supervisor.core.placement import place, proportional
from supervisor.errors import BadSplit, InsufficientMemory, NoDevices

GIB = 1 << 30

WEIGHTS = st.lists(st.integers(0, 1 << 40), min_size=1, max_size=14)


def model(block_count: int = 8, size_bytes: int = 9 * GIB) -> ModelFacts:
    return ModelFacts(
        path="/m.gguf",
        name="m",
        architecture="llama",
        block_count=block_count,
        size_bytes=size_bytes,
    )


def candidates(*available_gib: float) -> list[Candidate]:
    return [
        Candidate(
            agent_id=AgentId(f"id-{i}"),
            device=f"device-{i}",
            ggml_device="CPU",
            host=f"10.0.0.{i}",
            available_bytes=int(gib * GIB),
        )
        for i, gib in enumerate(available_gib)
    ]


def placed(offers: Sequence[Candidate], facts: ModelFacts, split: Sequence[int] = ()) -> Plan:
    return place(facts, offers, ctx_tokens=4096, slots=2, split=split)


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [
        ([1], 9, [9]),
        ([1, 1], 9, [5, 4]),
        ([1, 1, 1], 9, [3, 3, 3]),
        ([3, 1], 8, [6, 2]),
        ([1, 1_000_000], 9, [1, 8]),  # a device that is connected gets something to do
        ([0, 1], 9, [0, 9]),  # one with nothing to offer gets nothing
        ([0, 0], 9, [5, 4]),  # unless nobody has: then the check of memory says so
        ([1, 1, 1], 2, [1, 1, 0]),
        ([10**30, 1], 5, [4, 1]),
        ([9, 1, 1], 3, [1, 1, 1]),
    ],
)
def test_layers_are_whole_and_in_proportion(
    weights: list[int], total: int, expected: list[int]
) -> None:
    assert proportional(weights, total) == expected


@given(weights=WEIGHTS, total=st.integers(1, 200))
def test_layers_always_add_up(weights: list[int], total: int) -> None:
    counts = proportional(weights, total)
    assert len(counts) == len(weights)
    assert sum(counts) == total
    assert min(counts) >= 0


@given(weights=WEIGHTS, total=st.integers(14, 200))
def test_a_device_gets_a_layer_exactly_if_it_has_memory(weights: list[int], total: int) -> None:
    if any(weights):
        counts = proportional(weights, total)
        assert [count > 0 for count in counts] == [weight > 0 for weight in weights]


@given(weights=WEIGHTS, total=st.integers(1, 200))
def test_more_memory_never_means_fewer_layers(weights: list[int], total: int) -> None:
    counts = proportional(weights, total)
    for weight, count in zip(weights, counts, strict=True):
        for other_weight, other_count in zip(weights, counts, strict=True):
            if weight > other_weight:
                # One less is possible: a layer that was moved to a device that had none.
                assert count >= other_count - 1


@given(weights=WEIGHTS, total=st.integers(1, 200))
def test_no_share_is_far_from_its_exact_proportion(weights: list[int], total: int) -> None:
    if not any(weights):
        return
    counts = proportional(weights, total)
    lifted = sum(1 for w in weights if 0 < total * w < sum(weights))
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - total * weight / sum(weights)) <= 1 + lifted


def test_a_plan_places_every_layer_and_the_output() -> None:
    plan = placed(candidates(6, 3, 3), model())
    assert [s.layers for s in plan.shards] == [5, 2, 2]
    assert sum(s.layers for s in plan.shards) == plan.total_layers == 9
    assert [s.weight_bytes for s in plan.shards] == [5 * GIB, 2 * GIB, 2 * GIB]
    assert [s.has_output for s in plan.shards] == [False, False, True]
    assert plan.agent_ids == ("id-0", "id-1", "id-2")
    assert (plan.ctx_tokens, plan.slots) == (4096, 2)
    assert plan.reasons == ("layers in proportion to the memory that is truly available",)


def test_a_device_without_memory_is_not_connected_at_all() -> None:
    plan = placed(candidates(10, 0), model())
    assert [s.device for s in plan.shards] == ["device-0"]
    assert plan.shards[-1].has_output


def test_a_given_split_is_taken_as_it_is() -> None:
    plan = placed(candidates(9, 9, 9), model(), split=(1, 7, 1))
    assert [s.layers for s in plan.shards] == [1, 7, 1]
    assert plan.reasons == ("the split was given",)


def test_a_device_with_a_split_of_zero_is_left_out_and_the_output_moves() -> None:
    plan = placed(candidates(9, 9, 9), model(), split=(4, 5, 0))
    assert [(s.device, s.has_output) for s in plan.shards] == [
        ("device-0", False),
        ("device-1", True),
    ]


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ((9,), r"the split has 1 entries for 2 devices \(device-0, device-1\)"),
        ((3, 3, 3), "has 3 entries for 2 devices"),
        ((4, 4), r"the split 4,4 sums to 8, but m has 9 layers to place \(8 and the output layer"),
        ((5, 5), "sums to 10, but m has 9 layers"),
        ((-1, 10), "the split -1,10 sums to 9"),
        ((0, 0), "sums to 0"),
    ],
)
def test_a_split_that_cannot_be_is_refused_with_the_numbers(
    split: tuple[int, ...], says: str
) -> None:
    with pytest.raises(BadSplit, match=says):
        placed(candidates(9, 9), model(), split=split)


def test_devices_beyond_the_limit_of_llama_cpp_are_left_out_by_name() -> None:
    plan = placed(candidates(*[2] * 16), model(block_count=79))
    assert len(plan.shards) == MAX_REMOTE_DEVICES == 14
    assert plan.reasons[:2] == (
        "left out device-14: at most 14 devices can take part",
        "left out device-15: at most 14 devices can take part",
    )


def test_there_are_never_more_devices_than_layers() -> None:
    plan = placed(candidates(2, 2, 2), model(block_count=1, size_bytes=2 * GIB))
    assert [s.layers for s in plan.shards] == [1, 1]
    assert plan.reasons[0] == "left out device-2: at most 2 devices can take part"


def test_no_device_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(NoDevices, match="join one with 'supervisor join'"):
        placed([], model())


def test_too_little_memory_is_refused_with_both_numbers() -> None:
    with pytest.raises(InsufficientMemory, match=r"m needs 9\.0 GiB .*the devices offer 4\.5 GiB"):
        placed(candidates(3, 1.5), model())


def test_a_split_that_overloads_one_device_is_refused_with_its_numbers() -> None:
    with pytest.raises(
        InsufficientMemory,
        match=r"device-1 would get 7 layers of 7\.0 GiB but has 2\.0 GiB available",
    ):
        placed(candidates(9, 2), model(), split=(2, 7))


@given(
    available=st.lists(st.integers(0, 64), min_size=1, max_size=16),
    blocks=st.integers(1, 100),
    size_gib=st.integers(1, 200),
)
def test_a_plan_is_whole_or_refused(available: list[int], blocks: int, size_gib: int) -> None:
    facts = model(block_count=blocks, size_bytes=size_gib * GIB)
    try:
        plan = placed(candidates(*available), facts)
    except InsufficientMemory:
        return
    assert sum(s.layers for s in plan.shards) == blocks + 1
    assert [s.has_output for s in plan.shards].index(True) == len(plan.shards) - 1
    assert all(s.weight_bytes <= s.available_bytes for s in plan.shards)
    assert sum(s.weight_bytes for s in plan.shards) >= facts.size_bytes


def test_a_device_without_room_for_one_layer_is_left_out_instead_of_failing_all() -> None:
    plan = placed([*candidates(8, 8), *candidates(0)], model())
    assert len(plan.shards) == 2
    assert any("no room for one layer" in reason for reason in plan.reasons)
