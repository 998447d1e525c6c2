"""The search: equal to brute force, the cases one knows the answer of, overrides and refusals."""

import random
import struct
from bisect import bisect_right
from collections.abc import Sequence
from math import inf
from typing import Any

import pytest
from planning_world import (
    LOCAL,
    brute_force,
    device,
    host,
    layer,
    link,
    model,
    random_request,
    requests,
    score_factor,
    speed,
    wired,
)

from supervisor.core.entities import Preset
from supervisor.core.memory import GIB, MIB, Platform
from supervisor.core.model_shape import ModelShape
from supervisor.core.planning import (
    HOST,
    DeviceOffer,
    Goal,
    HostOffer,
    NoFit,
    Overrides,
    Placement,
    Planned,
    PlanRequest,
    Rules,
    Wanted,
)
from supervisor.core.search import best_placement, contexts_of, plan
from supervisor.core.speed import Output, Workload
from supervisor.errors import BadSplit, DeviceUnknown, NoDevices

EIGHT = model([layer(600 * MIB)] * 8)
GPU = device("gpu", 12, speed(300, 20_000), wired(), Platform.GPU)
MAC = device("mac", 16, speed(100, 3500), wired(), Platform.GPU)
PI = device("pi", 7, speed(6, 40), wired())
PHONE = device("phone", 8, speed(15, 150), link(5, 25, 30), Platform.ANDROID, is_reliable=False)
NO_LAYERS = host(8, may_hold_layers=False)


def request(
    *devices: DeviceOffer, shape: ModelShape = EIGHT, main: HostOffer = NO_LAYERS, **more: Any
) -> PlanRequest:
    return PlanRequest(shape=shape, devices=devices, host=main, **more)


def planned(*devices: DeviceOffer, **more: Any) -> Planned:
    result = plan(request(*devices, **more))
    assert isinstance(result, Planned)
    return result


def refused(*devices: DeviceOffer, **more: Any) -> NoFit:
    result = plan(request(*devices, **more))
    assert isinstance(result, NoFit)
    return result


def names(placement: Placement) -> list[str]:
    return [placed.name for placed in placement.devices]


def test_sixty_clusters_cost_what_brute_force_says() -> None:
    for case in requests(seed=11, count=60, sizes=((2, 6), (3, 5), (4, 5), (5, 4))):
        found, expected = best_placement(case), brute_force(case)
        if found is None:
            assert expected == inf
        else:
            factor = score_factor(case, [placed.name for placed in found.devices])
            assert found.cost_s * factor == pytest.approx(expected, rel=1e-9)


def test_the_cost_is_that_of_the_formulas() -> None:
    rng = random.Random(3)
    for _ in range(20):
        case = random_request(rng, 4, 24)
        found = best_placement(case)
        if found is None:
            continue
        work = case.goal.workload
        tokens = work.generated_tokens / work.users
        parts = tokens * found.times.token_s + found.times.prompt_s
        assert found.cost_s == pytest.approx(
            parts + found.times.load_s / case.goal.requests_per_load
        )


def test_every_placement_is_whole_and_fits() -> None:
    rng = random.Random(4)
    for _ in range(20):
        result = plan(random_request(rng, 5, 30))
        if isinstance(result, NoFit):
            continue
        for found in (result.best, *result.runners_up):
            places = [found.host, *found.devices]
            assert found.n_layers == 30
            assert all(place.memory.peak_bytes <= place.memory.budget_bytes for place in places)
            ends = [place.first_layer + place.layers for place in places]
            assert [place.first_layer for place in places[1:]] == ends[:-1]
            assert sum(found.tensor_split) == found.gpu_layers or not found.devices
        costs = [found.cost_s for found in (result.best, *result.runners_up)]
        assert result.best.cost_s <= min(costs) * 1.1**5


def float32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def assigned(n_layers: int, gpu_layers: int, split: Sequence[int]) -> list[int]:
    """llama.cpp's own rule (planning.md 1.1), in its arithmetic; -1 is the main host."""
    first = max(n_layers + 1 - gpu_layers, 0)
    count = min(gpu_layers, n_layers + 1) if split else 0
    sums: list[float] = []
    for share in split:
        sums.append(float32((sums[-1] if sums else 0.0) + share))
    ends = [float32(one / sums[-1]) for one in sums]
    return [
        -1
        if i < first or i - first >= count
        else bisect_right(ends, float32(float32(i - first) / float32(count)))
        for i in range(n_layers + 1)
    ]


def test_llama_cpp_places_the_layers_exactly_as_planned() -> None:
    rng = random.Random(5)
    seen = 0
    for _ in range(60):
        found = best_placement(random_request(rng, 6, rng.randrange(12, 90)))
        if found is None:
            continue
        seen += 1
        expected = [-1] * found.host.layers
        for index, placed in enumerate(found.devices):
            expected += [index] * placed.layers
        expected.append(len(found.devices) - 1 if found.devices else -1)
        assert assigned(found.n_layers, found.gpu_layers, found.tensor_split) == expected
    assert seen > 30


@pytest.mark.parametrize(
    ("gpu_layers", "split", "expected"),
    [
        (9, (5, 4), [0] * 5 + [1] * 4),
        (9, (9, 0), [0] * 9),  # the output goes to the last device with a share
        (4, (1, 3), [-1] * 5 + [0] + [1] * 3),  # the first layers stay, not the output
        (0, (), [-1] * 9),
    ],
)
def test_facts_about_llama_cpps_rule(
    gpu_layers: int, split: tuple[int, ...], expected: list[int]
) -> None:
    assert assigned(8, gpu_layers, split) == expected


def test_what_fits_one_device_is_not_split() -> None:
    result = planned(GPU, MAC, PI)
    assert names(result.best) == ["gpu"]
    assert result.best.tensor_split == (9,)
    assert result.best.tensor_overrides == ()
    assert result.is_proven


def test_each_device_that_is_left_out_has_its_price() -> None:
    result = planned(GPU, MAC, PI, device("tiny", 1, speed(50, 100)))
    assert {one.name for one in result.left_out} == {"mac", "pi", "tiny"}
    prices = {one.name: one for one in result.left_out}
    with_pi = prices["pi"].tokens_per_s
    assert with_pi is not None and with_pi < result.best.decode_tokens_per_s
    assert prices["pi"].cost_s is not None and prices["pi"].cost_s > result.best.cost_s
    assert prices["tiny"].tokens_per_s is None
    assert prices["tiny"].reason == "no room for one layer"


def test_the_faster_device_is_filled_first() -> None:
    large = model([layer(1200 * MIB)] * 16)
    best = planned(PI, GPU, MAC, shape=large).best
    layers = {placed.name: placed.layers for placed in best.devices}
    assert set(layers) == {"gpu", "mac"}
    assert layers["gpu"] >= 7


def test_a_device_behind_a_bad_link_is_not_last() -> None:
    fast = device("fast", 6, speed(60, 1000), link(20, 20, 6))
    slow = device("slow", 6, speed(25, 400), link(1, 1, 100))
    goal = Goal(requests_per_load=inf)
    best = planned(
        fast, slow, shape=model([layer(700 * MIB)] * 8), goal=goal, main=host(4, 0.5)
    ).best
    assert names(best) == ["fast", "slow"]
    assert best.output_device == "slow"


def test_a_large_vocabulary_on_wifi_is_scored_on_the_main_host() -> None:
    wifi = device("wifi", 12, speed(100, 5000), link(3, 6, 5))
    best = planned(wifi).best
    assert best.output is Output.HOST
    assert best.output_device == HOST
    assert best.tensor_overrides == (r"^output\.weight=CPU",)
    assert best.tensor_split == (9,)


def test_tokens_may_be_picked_on_the_device_if_that_is_allowed() -> None:
    wifi = device("wifi", 12, speed(100, 5000), link(3, 6, 5))
    best = planned(wifi, rules=Rules(allow_sampling_on_devices=True)).best
    assert best.output is Output.SAMPLED


def test_tied_embeddings_have_another_pattern() -> None:
    wifi = device("wifi", 12, speed(100, 5000), link(3, 6, 5))
    best = planned(wifi, shape=EIGHT.model_copy(update={"is_tied": True})).best
    assert best.tensor_overrides == (r"^token_embd\.weight=CPU",)


def test_several_devices_turn_off_the_input_copies() -> None:
    best = planned(GPU, MAC, shape=model([layer(1200 * MIB)] * 16)).best
    assert len(best.devices) == 2
    assert best.output is Output.LAST
    assert best.tensor_overrides == ("zzz=CPU",)


def test_the_main_host_takes_the_first_layers_if_that_helps() -> None:
    best = planned(PI, main=host(16, 40), shape=model([layer(900 * MIB)] * 12)).best
    assert not best.devices or best.host.layers > 0
    assert best.host.layers + sum(best.tensor_split) == 13 if best.devices else True


def test_a_fast_main_host_needs_nobody() -> None:
    best = planned(PI, PHONE, main=host(32, 60)).best
    assert best.devices == ()
    assert (best.host.layers, best.gpu_layers, best.tensor_split) == (8, 0, ())
    assert best.output_device == HOST
    assert best.tensor_overrides == ()


def test_a_local_gpu_is_last_without_sending_anything() -> None:
    local = device("local", 5, speed(200, 10_000), LOCAL, Platform.GPU)
    best = planned(local, GPU, shape=model([layer(900 * MIB)] * 14)).best
    assert names(best) == ["gpu", "local"]
    assert best.times.stages[-1].hop_s == 0


ANSWERS = Goal(workload=Workload(prompt_tokens=16, generated_tokens=1000), requests_per_load=inf)


@pytest.mark.parametrize("gain", [1.05, 1.3])
def test_a_device_that_may_drop_out_must_earn_its_place(gain: float) -> None:
    steady = device("steady", 12, speed(50, 1000, 0), wired())
    shaky = device("shaky", 12, speed(50 * gain, 1000 * gain, 0), wired(), is_reliable=False)
    best = planned(steady, shaky, goal=ANSWERS).best
    assert names(best) == (["shaky"] if gain > 1.2 else ["steady"])


def test_a_device_that_may_drop_out_is_used_if_nothing_else_holds_the_model() -> None:
    large = model([layer(900 * MIB)] * 12)
    assert names(planned(PI, PHONE, shape=large).best) in (["pi", "phone"], ["phone", "pi"])


def test_a_link_with_long_tails_counts_as_unreliable() -> None:
    steady = device("steady", 12, speed(50, 1000), link(1, 2, 100))
    tails = device("tails", 12, speed(53, 1060), link(1, 2, 100))
    assert names(planned(steady, tails, goal=ANSWERS).best) == ["tails"]
    strict = Rules(max_rtt_p90_s=0.001)
    near = device("steady", 12, speed(50, 1000), link(0.9, 0.9, 100))
    assert names(planned(near, tails, goal=ANSWERS, rules=strict).best) == ["steady"]


def test_prefill_decides_for_long_prompts() -> None:
    reader = device("reader", 12, speed(60, 40_000), wired(), Platform.GPU)
    writer = device("writer", 12, speed(120, 500), wired(), Platform.GPU)
    long_prompt = Goal(workload=Workload(prompt_tokens=4000, generated_tokens=16))
    long_answer = Goal(workload=Workload(prompt_tokens=16, generated_tokens=1000))
    wanted = Wanted(ctx_tokens=8192)
    assert names(planned(reader, writer, goal=long_prompt, wanted=wanted).best) == ["reader"]
    assert names(planned(reader, writer, goal=long_answer, wanted=wanted).best) == ["writer"]


def test_loading_counts_as_often_as_it_happens() -> None:
    near = device("near", 12, speed(60, 3000), wired(0.3, 280), Platform.GPU)
    far = device("far", 12, speed(120, 6000), wired(0.5, 40), Platform.GPU)
    once = Goal(workload=ANSWERS.workload, requests_per_load=1)
    never = Goal.preset(Preset.LATENCY, ANSWERS.workload)
    shape = model([layer(600 * MIB)] * 8, vocabulary=1000)
    assert names(planned(near, far, shape=shape, goal=once).best) == ["near"]
    assert names(planned(near, far, shape=shape, goal=never).best) == ["far"]


def test_layers_that_a_device_has_already_draw_the_plan_to_it() -> None:
    one = device("one", 12, speed(60, 3000), link(1, 2, 20), Platform.GPU)
    other = one.model_copy(update={"name": "other", "cached_layers": frozenset(range(9))})
    assert names(planned(one, other).best) == ["other"]


def test_the_fewest_devices_may_be_asked_for() -> None:
    shape = model([layer(700 * MIB)] * 8)
    slow = device("slow", 16, speed(5, 100), wired())
    pair = [device(f"fast-{i}", 5.5, speed(300, 20_000), wired()) for i in range(2)]
    assert len(planned(slow, *pair, shape=shape).best.devices) == 2
    fewest = Goal.preset(Preset.FEWEST_DEVICES)
    assert names(planned(slow, *pair, shape=shape, goal=fewest).best) == ["slow"]


def test_throughput_counts_all_users() -> None:
    goal = Goal.preset(Preset.THROUGHPUT)
    assert goal.workload.users == 8
    assert Goal.preset(Preset.THROUGHPUT, Workload(users=3)).workload.users == 3
    one, eight = planned(GPU).best, planned(GPU, goal=goal, wanted=Wanted(slots=8)).best
    assert eight.decode_tokens_per_s > 3 * one.decode_tokens_per_s


def test_equal_devices_are_interchangeable_and_quick_to_plan() -> None:
    same = [device(f"pi-{i}", 7, speed(6, 40), wired()) for i in range(14)]
    best = planned(*same, shape=model([layer(450 * MIB)] * 80)).best
    assert names(best) == [f"pi-{i}" for i in range(len(best.devices))]


def test_a_search_that_is_too_long_settles() -> None:
    rng = random.Random(2)
    near = [
        device(f"pi-{i}", rng.uniform(5, 7), speed(rng.uniform(5.5, 6.5), 40), wired())
        for i in range(12)
    ]
    result = planned(*near, shape=model([layer(400 * MIB)] * 60), rules=Rules(work_limit=200))
    assert not result.is_proven
    assert result.best.n_layers == 60


# --- settings that give way -----------------------------------------------------------------------

HUNGRY = model([layer(600 * MIB, kv_elements=8192)] * 8)


def test_ubatch_gives_way_before_anything_that_the_user_sees() -> None:
    tight = device("tight", 7.58, speed(100, 3500), wired(), Platform.GPU)
    result = planned(tight, shape=HUNGRY, wanted=Wanted(ctx_tokens=8192))
    assert result.best.run.kv_type == "f16"
    assert result.best.run.ubatch < 512
    assert result.shrunk == ()


def test_then_the_cache_is_quantised() -> None:
    tight = device("tight", 9.5, speed(100, 3500), wired(), Platform.GPU)
    result = planned(tight, shape=HUNGRY, wanted=Wanted(ctx_tokens=16_384))
    assert result.best.run.kv_type == "q8_0"
    assert result.shrunk == ("q8_0 cache instead of f16",)


def test_then_the_context_shrinks_down_to_the_minimum() -> None:
    wanted = Wanted(ctx_tokens=131_072, min_ctx_tokens=8192)
    result = planned(MAC, shape=HUNGRY, wanted=wanted)
    assert 8192 <= result.best.run.ctx_tokens < 131_072
    assert "instead of 131072" in result.shrunk[0]
    assert isinstance(plan(request(MAC, shape=HUNGRY, wanted=Wanted(ctx_tokens=131_072))), NoFit)


@pytest.mark.parametrize(
    ("ctx", "least", "expected"),
    [
        (4096, None, [4096]),
        (8192, 4096, [8192, 6144, 4096]),
        (8192, 3000, [8192, 6144, 4096, 3072, 3000]),
        (300, 256, [300, 256]),
    ],
)
def test_contexts_shrink_by_quarters(ctx: int, least: int | None, expected: list[int]) -> None:
    assert contexts_of(Wanted(ctx_tokens=ctx, min_ctx_tokens=least)) == expected


# --- nothing fits ---------------------------------------------------------------------------------


def test_what_does_not_fit_says_by_how_much_per_device() -> None:
    huge = model([layer(2 * GIB)] * 20)
    result = refused(PI, PHONE, shape=huge)
    assert 10 < result.missing_layers < 20
    assert result.missing_bytes > 10 * 2 * GIB
    assert result.needed_bytes > 40 * GIB > result.budget_bytes
    assert [one.name for one in result.devices] == [HOST, "pi", "phone"]
    assert all(one.needs_bytes > one.budget_bytes for one in result.devices[1:])
    assert result.nearest is None


def test_the_nearest_that_fits_is_named() -> None:
    result = refused(MAC, shape=HUNGRY, wanted=Wanted(ctx_tokens=131_072))
    assert result.run.ctx_tokens == 131_072
    assert result.run.kv_type == "q8_0"
    nearest = result.nearest
    assert nearest is not None
    overrides = Overrides(ctx_tokens=nearest.ctx_tokens, kv_type=nearest.kv_type)
    assert isinstance(plan(request(MAC, shape=HUNGRY, overrides=overrides)), Planned)


def test_a_main_host_without_room_for_the_embeddings_is_a_shortfall() -> None:
    result = refused(GPU, main=host(1.2, may_hold_layers=False))
    assert result.devices[0].name == HOST
    assert result.devices[0].needs_bytes > result.devices[0].budget_bytes
    assert result.missing_layers == 9


def test_layers_that_belong_together_are_not_separated() -> None:
    shared = model([layer(900 * MIB)] * 12).model_copy(update={"last_cut": 4})
    small, large = device("small", 7, speed(300, 9000)), device("large", 14, speed(20, 900))
    best = planned(small, large, shape=shared).best
    assert all(placed.first_layer <= 4 for placed in best.devices)
    with_host = host(4, may_hold_layers=True)
    assert isinstance(plan(request(small, shape=shared, main=with_host)), NoFit)


# --- overrides ------------------------------------------------------------------------------------


def overridden(*devices: DeviceOffer, more: dict[str, Any] | None = None, **given: Any) -> Planned:
    return planned(*devices, overrides=Overrides(**given), **(more or {}))


def test_given_devices_are_all_used_and_no_others() -> None:
    result = overridden(GPU, MAC, PI, devices=("mac", "pi"))
    assert set(names(result.best)) == {"mac", "pi"}
    assert result.left_out == ()
    assert result.unrestricted is not None
    assert result.unrestricted.cost_s < result.best.cost_s


def test_an_excluded_device_is_not_used() -> None:
    result = overridden(GPU, MAC, PI, exclude=("gpu",))
    assert "gpu" not in names(result.best)
    assert ("gpu", "you excluded it") in [(one.name, one.reason) for one in result.left_out]


def test_the_main_host_may_be_excluded_or_included() -> None:
    main = host(32, 60)
    assert overridden(PI, more={"main": main}, exclude=(HOST,)).best.host.layers == 0
    assert overridden(PI, more={"main": main}, devices=("pi",)).best.host.layers == 0
    assert overridden(PI, more={"main": main}, devices=(HOST, "pi")).best.host.layers > 0


def test_a_given_order_is_kept() -> None:
    result = overridden(GPU, MAC, PI, order=("pi", "gpu", "mac"))
    assert names(result.best) == ["pi", "gpu", "mac"]
    assert result.best.output_device in {"mac", HOST}


def test_a_given_split_is_taken_as_it_is() -> None:
    result = overridden(GPU, MAC, PI, devices=("mac", "gpu"), split=(3, 6))
    assert names(result.best) == ["mac", "gpu"]
    assert [placed.layers for placed in result.best.devices] == [3, 5]
    assert result.best.tensor_split == (3, 6)


def test_a_given_split_costs_what_the_formulas_say() -> None:
    free = overridden(GPU, MAC, order=("mac", "gpu")).best
    again = overridden(GPU, MAC, order=("mac", "gpu"), split=free.tensor_split).best
    assert again.cost_s == pytest.approx(free.cost_s)


def test_devices_with_a_split_of_zero_are_not_connected() -> None:
    assert names(overridden(GPU, MAC, devices=("mac", "gpu"), split=(0, 9)).best) == ["gpu"]


def test_a_split_that_does_not_fit_is_refused_with_numbers() -> None:
    huge = model([layer(2 * GIB)] * 8)
    result = refused(GPU, PI, shape=huge, overrides=Overrides(devices=("gpu", "pi"), split=(4, 5)))
    needs = {one.name: one for one in result.devices}
    assert needs["pi"].needs_bytes > needs["pi"].budget_bytes


@pytest.mark.parametrize(("pinned", "last"), [("mac", "mac"), ("gpu", "gpu"), (HOST, HOST)])
def test_the_output_may_be_pinned(pinned: str, last: str) -> None:
    result = overridden(GPU, MAC, pin_output=pinned)
    assert result.best.output_device == last


def test_settings_may_be_given() -> None:
    best = overridden(GPU, ctx_tokens=2048, kv_type="q5_1", ubatch=64).best
    assert (best.run.ctx_tokens, best.run.kv_type, best.run.ubatch) == (2048, "q5_1", 64)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kv_type": "q3_k"}, "no cache type"),
        ({"devices": ("gpu", "gpu")}, "names a device twice"),
        ({"devices": ("gpu",), "exclude": ("gpu",)}, "both chosen and excluded"),
        ({"devices": ("gpu", "mac"), "order": ("gpu", "pi")}, "name different devices"),
        ({"split": (4, 5)}, "needs the devices"),
        ({"devices": ("gpu", "mac"), "split": (9,)}, "1 entries for 2 devices"),
        ({"devices": ("gpu", "mac"), "split": (4, 4)}, "sums to 8, but the model has 9 layers"),
        ({"devices": ("gpu", "mac"), "split": (-1, 10)}, "sums to 9"),
        ({"devices": ("gpu",), "pin_output": "mac"}, "pinned to 'mac', which is not among gpu"),
        ({"order": ("gpu", "mac"), "pin_output": "gpu"}, "mac is last in the order"),
    ],
)
def test_overrides_that_cannot_be_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(BadSplit, match=says):
        plan(request(GPU, MAC, PI, overrides=Overrides(**given)))


def test_a_split_that_separates_shared_caches_is_refused() -> None:
    shared = EIGHT.model_copy(update={"last_cut": 4})
    given = Overrides(devices=("gpu", "mac"), split=(6, 3))
    with pytest.raises(BadSplit, match="read the cache"):
        plan(request(GPU, MAC, shape=shared, overrides=given))


@pytest.mark.parametrize("field", ["devices", "exclude", "order"])
def test_unknown_devices_are_named(field: str) -> None:
    with pytest.raises(DeviceUnknown, match="'nobody'; there are: gpu, mac"):
        plan(request(GPU, MAC, overrides=Overrides(**{field: ("nobody",)})))


def test_without_any_device_there_is_nothing_to_plan() -> None:
    with pytest.raises(NoDevices, match="join one"):
        plan(request())


def test_more_devices_than_llama_cpp_takes_are_left_out_by_speed() -> None:
    many = [device(f"pi-{i}", 7, speed(5 + i, 40), wired()) for i in range(16)]
    result = planned(*many)
    beyond = [one.name for one in result.left_out if "at most 14" in one.reason]
    assert sorted(beyond) == ["pi-0", "pi-1"]
    with pytest.raises(BadSplit, match="16 remote devices"):
        plan(request(*many, overrides=Overrides(devices=tuple(d.name for d in many))))


def test_predicted_times_are_those_of_the_stages() -> None:
    best = planned(GPU, MAC, shape=model([layer(1200 * MIB)] * 16)).best
    assert len(best.times.stages) == len(best.devices) == 2
    assert best.decode_tokens_per_s == pytest.approx(1 / best.times.token_s)
    assert best.prefill_tokens_per_s == pytest.approx(1000 / best.times.prompt_s)


def test_blocks_without_weights_have_a_speed_like_any_others() -> None:
    best = planned(GPU, shape=model([layer(1200 * MIB)])).best
    times = best.times.model_copy(update={"prompt_s": 0.0})
    assert best.model_copy(update={"times": times}).prefill_tokens_per_s > 0
