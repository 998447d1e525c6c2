"""Explanations: whole sentences with numbers, and no word that needs a manual."""

import random
from typing import Any

import pytest
from planning_world import device, host, layer, link, model, random_request, speed, wired

from supervisor.core.explain import explain
from supervisor.core.memory import MIB, Platform
from supervisor.core.planning import (
    DeviceOffer,
    Goal,
    LeftOut,
    Overrides,
    Placement,
    Planned,
    PlanRequest,
    Rules,
    Wanted,
    WhatIf,
)
from supervisor.core.search import plan
from supervisor.core.speed import Workload
from supervisor.core.what_if import what_if

GPU = device("gpu", 12, speed(300, 20_000), wired(), Platform.GPU)
MAC = device("mac", 16, speed(100, 3500), wired(), Platform.GPU)
PI = device("pi", 7, speed(6, 40), wired())
PHONE = device("phone", 8, speed(15, 150), link(5, 25, 30), Platform.ANDROID, is_reliable=False)
WIFI = device("wifi", 12, speed(100, 5000), link(3, 6, 5))
SMALL, LARGE = model([layer(600 * MIB)] * 8), model([layer(900 * MIB)] * 20)
ALONE = host(8, may_hold_layers=False)

JARGON = ("tensor", "ngl", "ubatch", "shard", "KV ", "prefill", "decode", "-ot", "hop", "logit")


def sentences(*devices: DeviceOffer, what_ifs: tuple[WhatIf, ...] = (), **more: Any) -> list[str]:
    case = PlanRequest.model_validate({"shape": SMALL, "devices": devices, "host": ALONE} | more)
    return explain(case, plan(case), what_ifs)


def text(*devices: DeviceOffer, **more: Any) -> str:
    return " ".join(sentences(*devices, **more))


def test_one_device_is_said_to_be_enough() -> None:
    found = sentences(GPU, PI)
    assert found[0].startswith("The whole model (")
    assert "runs on gpu: it fits there" in found[0]
    assert "would only add waiting for the network" in found[0]


def test_a_main_host_alone_is_said_to_be_enough() -> None:
    found = text(PI, host=host(32, 60))
    assert "The main host runs the whole model" in found
    assert "Nothing waits for the network." in found


def test_each_device_has_its_layers() -> None:
    found = text(GPU, MAC, PI, shape=LARGE)
    assert "stack of 20 layers" in found
    assert "2 of 3 devices share it" in found
    assert "Layers 1 to " in found
    assert "of weights)." in found


def test_the_main_hosts_own_layers_are_named() -> None:
    found = text(PI, host=host(10, 12), shape=model([layer(900 * MIB)] * 12))
    assert "on the main host, by its own processor" in found


def test_speed_and_limits_have_numbers() -> None:
    found = text(GPU)
    assert "tokens per second while answering" in found
    assert "to load." in found
    assert "most of it is gpu computing" in found
    assert "Waiting for the network takes" in found
    assert "With all 4096 tokens of context in use, gpu is the fullest" in found


def test_what_is_left_out_has_its_price() -> None:
    found = sentences(GPU, PI, device("tiny", 1, speed(50, 100)))
    assert any(
        one.startswith("pi is left out: with it, it would be ") and "instead of" in one
        for one in found
    )
    assert "tiny is left out: no room for one layer." in found


def test_a_device_that_changes_nothing_is_one_more_that_can_fail() -> None:
    case = PlanRequest(shape=SMALL, devices=(GPU,), host=ALONE)
    result = plan(case)
    assert isinstance(result, Planned)
    rate = result.best.decode_tokens_per_s
    twin = LeftOut(name="twin", reason="would not pay", tokens_per_s=rate, cost_s=1)
    found = explain(case, result.model_copy(update={"left_out": (twin,)}))
    assert any("twin is left out: with it, it would be about as fast" in one for one in found)


def test_a_device_may_be_faster_and_still_not_pay() -> None:
    quick = device("quick", 12, speed(330, 20_000), wired(), is_reliable=False)
    goal = Goal(workload=Workload(prompt_tokens=16), requests_per_load=float("inf"))
    assert "risk of losing it costs more" in text(GPU, quick, goal=goal)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (Rules(), "is computed on the main host: otherwise 513 kB would cross the network"),
        (Rules(allow_sampling_on_devices=True), "picks the token itself"),
    ],
)
def test_the_place_of_the_output_has_a_reason(rules: Rules, says: str) -> None:
    assert says in text(WIFI, rules=rules)


def test_devices_that_may_drop_out_are_warned_about() -> None:
    found = text(PI, PHONE, shape=model([layer(900 * MIB)] * 12))
    assert "phone may drop out (battery, Wi-Fi or heat)" in found


def test_what_had_to_shrink_is_said() -> None:
    hungry = model([layer(600 * MIB, kv_elements=8192)] * 8)
    wanted = Wanted(ctx_tokens=131_072, min_ctx_tokens=4096)
    found = text(MAC, shape=hungry, wanted=wanted)
    assert "What you asked for does not fit, so this has a context " in found
    assert " instead of 131072 tokens" in found


def test_overrides_have_their_price() -> None:
    assert "Your own settings have a price" in text(GPU, PI, overrides=Overrides(devices=("pi",)))
    assert "Your own settings cost nothing" in text(GPU, PI, overrides=Overrides(devices=("gpu",)))


def test_guesses_are_called_guesses() -> None:
    guessed = GPU.model_copy(
        update={
            "speed": GPU.speed.model_copy(update={"is_guess": True}),
            "link": GPU.link.model_copy(update={"is_guess": True}),
        }
    )
    found = text(guessed)
    assert "The speed of gpu is a guess" in found
    assert "The network to gpu is a guess" in found
    assert "guess" not in text(GPU)


def test_a_guess_about_the_main_host_counts_if_it_computes() -> None:
    main = host(32, 60)
    main = main.model_copy(update={"speed": main.speed.model_copy(update={"is_guess": True})})
    assert "The speed of the main host is a guess" in text(PI, host=main)


def test_a_search_that_settled_says_so() -> None:
    many = [device(f"pi-{i}", 6 + i / 10, speed(5 + i / 9, 40), wired()) for i in range(10)]
    found = text(*many, shape=model([layer(400 * MIB)] * 60), rules=Rules(work_limit=100))
    assert "a slightly better one may exist" in found


def test_notes_about_the_model_are_passed_on() -> None:
    odd = SMALL.model_copy(update={"notes": ("it is odd",)})
    assert "Note: it is odd." in sentences(GPU, shape=odd)


def test_what_does_not_fit_is_explained_with_numbers() -> None:
    found = text(PI, PHONE, shape=LARGE)
    assert found.startswith("The model does not fit: with 4096 tokens of context it needs ")
    assert "of its 20 layers find no place" in found
    assert "pi may use " in found
    assert "No smaller context helps; add a device or choose a smaller quantisation." in found


def test_the_nearest_that_fits_is_named() -> None:
    hungry = model([layer(600 * MIB, kv_elements=8192)] * 8)
    assert "The nearest that fits: " in text(MAC, shape=hungry, wanted=Wanted(ctx_tokens=131_072))


def best(case: PlanRequest) -> Placement:
    result = plan(case)
    assert isinstance(result, Planned)
    return result.best


def test_changes_are_tried_out() -> None:
    case = PlanRequest(shape=LARGE, devices=(GPU, PI, WIFI), host=ALONE)
    now = best(case)
    changes = {one.change: one for one in what_if(case, now)}
    assert set(changes) == {
        "another gpu",
        "a quantisation that is a quarter smaller",
        "a cable to wifi",
    }
    assert changes["another gpu"].tokens_per_s > now.decode_tokens_per_s
    assert changes["a quantisation that is a quarter smaller"].tokens_per_s > (
        now.decode_tokens_per_s
    )
    found = explain(case, plan(case), tuple(changes.values()))
    assert any(one.startswith("With another gpu, it would be ") for one in found)


@pytest.mark.parametrize(
    ("tokens_per_s", "cost_factor", "says"),
    [
        (2.0, 0.5, "With a thing, it would be "),
        (0.0, 0.5, "With a thing, answering would be no faster"),
        (0.0, 1.0, "With a thing, it would be no faster."),
    ],
)
def test_changes_are_put_into_words(tokens_per_s: float, cost_factor: float, says: str) -> None:
    case = PlanRequest(shape=SMALL, devices=(GPU,), host=ALONE)
    now = best(case)
    change = WhatIf(
        change="a thing",
        tokens_per_s=tokens_per_s * now.decode_tokens_per_s,
        cost_s=cost_factor * now.cost_s,
    )
    found = explain(case, plan(case), (change,))
    assert any(one.startswith(says) for one in found)


def test_everybody_can_read_it() -> None:
    rng = random.Random(8)
    for _ in range(20):
        case = random_request(rng, 4, 20)
        for one in explain(case, plan(case)):
            assert not one[0].islower() or one.split()[0].split("-")[0] in {
                "phone", "pi", "laptop", "mini", "studio", "gpu", "big", "main",
            }  # fmt: skip
            assert one.endswith(".")
            assert not any(word in one for word in JARGON), one
