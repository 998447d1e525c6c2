"""Speed: the bytes of a capture, ten measured splits, and sums that must hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_world import LOCAL, layer, link, model, speed, wired

from supervisor.core.memory import MIB, Run
from supervisor.core.model_shape import ModelShape, Weights
from supervisor.core.speed import (
    DeviceSpeed,
    LinkSpeed,
    Output,
    SpeedModel,
    Stage,
    Times,
    Workload,
    predict,
)

MATRIX = 2048 * 32_000 * 18 // 32  # all of it in Q4_0
SMALL = model([layer(29 * MIB, embedding=2048)] * 8, embedding=2048, vocabulary=32_000).model_copy(
    update={"output": Weights(size_bytes=MATRIX, reads=(("Q4_0", MATRIX),), largest_bytes=MATRIX)}
)


def speed_model(
    shape: ModelShape = SMALL,
    *,
    prompt: int = 100,
    generated: int = 100,
    users: int = 1,
    kv_type: str = "f16",
    ubatch: int = 512,
) -> SpeedModel:
    work = Workload(prompt_tokens=prompt, generated_tokens=generated, users=users)
    return SpeedModel(shape, Run(ctx_tokens=8192, kv_type=kv_type, ubatch=ubatch), work)


def test_the_bytes_of_a_token_are_those_of_a_capture() -> None:
    shape = model([layer(MIB, embedding=512)] * 4, embedding=512)
    found = speed_model(shape)  # at most 256 tokens in the cache
    assert found.decode_up_bytes(is_last=False) == 4484
    assert found.decode_down_bytes(None) == 2056
    assert found.decode_up_bytes(is_last=True) == 4484 + 314


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (Output.LAST, 8 + 4 * 128_256),  # half a megabyte per token for Llama 3
        (Output.HOST, 8 + 4 * 4096),
        (Output.SAMPLED, 516),
        (None, 8 + 4 * 4096),
    ],
)
def test_what_comes_back_depends_on_where_the_output_is(
    output: Output | None, expected: int
) -> None:
    assert speed_model(model([layer(MIB)])).decode_down_bytes(output) == expected


def test_a_quantised_cache_uploads_its_rotations_with_every_token() -> None:
    plain, quantised = speed_model(), speed_model(kv_type="q8_0")
    more = quantised.decode_up_bytes(is_last=False) - plain.decode_up_bytes(is_last=False)
    assert more == 4 * (128**2 + 64**2) + 2 * 314


def test_sliding_windows_add_a_mask_and_its_indices() -> None:
    sliding = model([layer(MIB, window_tokens=512), layer(MIB)])
    more = speed_model(sliding).decode_up_bytes(is_last=False) - speed_model(
        model([layer(MIB)])
    ).decode_up_bytes(is_last=False)
    assert more == 3 * 314 + 2 * 256


# planning.md 3.2: two workers, the fast one behind 20 ms and 6 MB/s, the slow one behind 1 ms and
# 100 MB/s; layers on the fast one, what was predicted there, what was measured (ms per token).
SPLITS = [
    (0, 141.7, 140.4),
    (1, 156.7, 164.1),
    (2, 148.1, 156.6),
    (3, 139.4, 139.7),
    (4, 130.8, 135.8),
    (5, 122.1, 132.9),
    (6, 113.5, 113.0),
    (7, 104.8, 106.8),
    (8, 96.2, 98.3),
]
FAST_LAYER_S, SLOWDOWN = 0.00617, 2.4


def two_workers(fast_layers: int, *, output_on_fast: bool = False) -> float:
    """Milliseconds per token; rates are such that a layer takes as long as the probe said."""
    found = speed_model()
    size = SMALL.layers[0].size_bytes

    def rated(factor: float) -> DeviceSpeed:
        return DeviceSpeed(decode_bytes_per_s=size / FAST_LAYER_S / factor, prefill_flops=1e12)

    fast, slow = rated(1), rated(SLOWDOWN)
    bad, good = link(20, 20, 6), link(1, 1, 100)
    stages = [Stage(fast, bad, 0, fast_layers), Stage(slow, good, fast_layers, 8)]
    if fast_layers == 0:
        stages = stages[1:]
    if output_on_fast:
        stages = stages[:1]
    return 1000 * predict(found, stages, Output.LAST, slow).token_s


@pytest.mark.parametrize(("fast_layers", "predicted", "measured"), SPLITS)
def test_measured_splits_are_predicted(fast_layers: int, predicted: float, measured: float) -> None:
    found = two_workers(fast_layers)
    assert found == pytest.approx(predicted, rel=0.03)
    assert found == pytest.approx(measured, rel=0.1)


def test_measured_splits_are_predicted_closely_on_average() -> None:
    errors = [abs(two_workers(fast) / measured - 1) for fast, _, measured in SPLITS]
    assert sum(errors) / len(errors) < 0.05


def test_everything_on_the_fast_worker_is_predicted_too() -> None:
    found = two_workers(8, output_on_fast=True)
    assert found == pytest.approx(101.0, rel=0.03)
    assert found == pytest.approx(104.7, rel=0.09)


def test_the_best_of_the_measured_splits_is_the_best_predicted() -> None:
    assert min(range(9), key=two_workers) == 8
    assert two_workers(8) < two_workers(8, output_on_fast=True)


@pytest.mark.parametrize(
    ("prompt", "others", "last", "expected"),
    [
        (512, 2.0, 1.0, 3.0),  # one ubatch: nothing overlaps
        (1024, 2.0, 1.0, 5.0),
        (1024, 1.0, 2.0, 5.0),
        (2048, 1.0, 1.0, 5.0),  # two equal stages: perfectly pipelined
        (2048, 0.0, 1.0, 4.0),  # one device
    ],
)
def test_a_prompt_overlaps_the_last_stage_with_all_others(
    prompt: int, others: float, last: float, expected: float
) -> None:
    assert speed_model(prompt=prompt).prefill_s(others, last) == pytest.approx(expected)


def test_the_last_stage_of_a_prompt_sends_nothing_back() -> None:
    found, path = speed_model(prompt=512), link(10, 10, 10)
    middle = found.prefill_hop_s(path, is_last=False)
    assert middle - found.prefill_hop_s(path, is_last=True) == pytest.approx(4 * 2048 * 512 / 10e6)


def test_the_main_host_itself_has_no_hops() -> None:
    found = speed_model()
    assert LOCAL.is_local
    assert found.hop_s(LOCAL, Output.LAST) == 0
    assert found.prefill_hop_s(LOCAL, is_last=False) == 0
    assert not wired().is_local


def test_rates_are_those_of_the_type_if_it_was_measured() -> None:
    device = DeviceSpeed(decode_bytes_per_s=1e9, decode_by_type={"Q4_K": 2e9}, prefill_flops=1e12)
    assert device.rate("Q4_K") == 2e9
    assert device.rate("IQ4_XS") == 1e9


def test_a_deep_cache_costs_reading_but_a_window_limits_it() -> None:
    shape = model([layer(MIB), layer(MIB, window_tokens=256)])
    device = speed(1, 100)
    shallow, deep = (
        [speed_model(shape, prompt=p).decode_layer_s(one, device) for one in shape.layers]
        for p in (100, 6000)
    )
    assert deep[0] - shallow[0] == pytest.approx((6050 - 150) * 2048 * 2 / 1e9)
    assert deep[1] < deep[0]


def test_recurrent_state_is_read_and_written() -> None:
    device, state = speed(1, 100), layer(MIB, kv_elements=0, state_elements=1_000_000)
    none = layer(MIB, kv_elements=0)
    found = speed_model()
    more = found.decode_layer_s(state, device) - found.decode_layer_s(none, device)
    assert more == pytest.approx(8e6 / 1e9)


def test_many_users_share_the_reading_of_weights() -> None:
    device = speed(10, 10_000)
    one = speed_model(users=1).decode_layer_s(SMALL.layers[0], device)
    eight = speed_model(users=8).decode_layer_s(SMALL.layers[0], device)
    assert one < eight < 2 * one
    slow = speed(10, 10)  # computing for eight takes longer than reading for one
    by_flops = 2 * SMALL.layers[0].active_elements * 8 / 10e9
    assert speed_model(users=8).decode_layer_s(SMALL.layers[0], slow) > by_flops


@pytest.mark.parametrize(
    ("up", "disk", "expected_s"), [(20e6, 0, 1000), (20e6, 1e9, 1000), (0, 1e9, 20), (0, 0, 0)]
)
def test_loading_takes_as_long_as_the_slower_of_disk_and_link(
    up: float, disk: float, expected_s: float
) -> None:
    path = LinkSpeed(rtt_p50_s=0.001, up_bytes_per_s=up)
    assert speed_model().load_s(20e9, path, disk) == pytest.approx(expected_s)


def test_layers_that_are_there_already_are_not_sent_again() -> None:
    device, path = speed(10, 100), wired()

    def load_s(cached: frozenset[int]) -> float:
        stages = [Stage(device, path, 0, 8, cached)]
        return predict(speed_model(), stages, Output.LAST, device).load_s

    everything = SMALL.layers[0].size_bytes * 8 + SMALL.output.size_bytes
    assert load_s(frozenset()) == pytest.approx(everything / 110e6)
    assert load_s(frozenset(range(8))) == pytest.approx(SMALL.output.size_bytes / 110e6)
    assert load_s(frozenset(range(9))) == 0


def test_the_mean_round_trip_lies_between_median_and_ninth_decile() -> None:
    assert link(5, 30, 10).rtt_s == pytest.approx(0.0125)
    assert link(5, 5, 10).rtt_s == pytest.approx(0.005)
    assert LinkSpeed(rtt_p50_s=0.005).rtt_s == pytest.approx(0.005)


def whole(stages: list[Stage], output: Output) -> Times:
    return predict(speed_model(), stages, output, speed(20, 100), token_overhead_s=0.001)


@given(st.integers(1, 7), st.floats(1, 100), st.floats(1, 100), st.sampled_from(Output))
def test_a_token_is_the_sum_of_its_parts(
    cut: int, one: float, other: float, output: Output
) -> None:
    stages = [Stage(speed(one, 100), wired(), 0, cut), Stage(speed(other, 100), LOCAL, cut, 8)]
    times = whole(stages, output)
    parts = sum(stage.compute_s + stage.hop_s for stage in times.stages)
    assert times.token_s == pytest.approx(0.001 + times.output_s + parts)
    assert times.stages[1].hop_s == 0


@given(st.floats(0, 50), st.floats(0, 50))
def test_a_slower_link_never_makes_a_token_faster(one_ms: float, other_ms: float) -> None:
    slow, fast = max(one_ms, other_ms), min(one_ms, other_ms)
    device = speed(10, 100)
    times = [
        whole([Stage(device, link(rtt, rtt, 10), 0, 8)], Output.LAST).token_s
        for rtt in (fast, slow)
    ]
    assert times[0] <= times[1]
