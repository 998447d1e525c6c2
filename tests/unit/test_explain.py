"""Explanations of a plan: whole sentences with numbers, and no word that needs a manual."""

import random
from typing import Any

import pytest
from planning_world import device, host, layer, link, model, random_request, speed, wired

from supervisor.core.entities import LeftOut
from supervisor.core.explain import explain
from supervisor.core.explain_words import rate
from supervisor.core.memory import MIB, Platform
from supervisor.core.planning import (
    DeviceOffer,
    Goal,
    Overrides,
    Placement,
    Planned,
    PlanRequest,
    Rules,
    Wanted,
    WhatIf,
)
from supervisor.core.search import plan
from supervisor.core.speed import Output, Workload
from supervisor.core.what_if import what_if

GPU = device("gpu", 12, speed(300, 20_000), wired(), Platform.GPU)
MAC = device("mac", 16, speed(100, 3500), wired(), Platform.GPU)
PI = device("pi", 7, speed(6, 40), wired())
PHONE = device("phone", 8, speed(15, 150), link(5, 25, 30), Platform.ANDROID, is_reliable=False)
WIFI = device("wifi", 12, speed(100, 5000), link(3, 6, 5))
SMALL, LARGE = model([layer(600 * MIB)] * 8), model([layer(900 * MIB)] * 20)
ALONE = host(8, may_hold_layers=False)

JARGON = ("tensor", "ngl", "ubatch", "shard", "KV ", "prefill", "decode", "-ot", "hop", "logit")


def request(*devices: DeviceOffer, **more: Any) -> PlanRequest:
    return PlanRequest.model_validate({"shape": SMALL, "devices": devices, "host": ALONE} | more)


def sentences(*devices: DeviceOffer, what_ifs: tuple[WhatIf, ...] = (), **more: Any) -> list[str]:
    case = request(*devices, **more)
    return explain(case, plan(case), what_ifs)


def text(*devices: DeviceOffer, **more: Any) -> str:
    return " ".join(sentences(*devices, **more))


def planned(case: PlanRequest) -> Planned:
    result = plan(case)
    assert isinstance(result, Planned)
    return result


def best(case: PlanRequest) -> Placement:
    return planned(case).best


# Who runs the model


def test_one_device_is_said_to_be_enough() -> None:
    assert sentences(GPU, PI)[0] == (
        "gpu runs the whole model (5.4 GiB): it fits there, and sharing it would not pay."
    )
    assert sentences(GPU)[0] == "gpu runs the whole model (5.4 GiB)."
    assert sentences(WIFI)[0] == "wifi runs all layers of the model (5.4 GiB)."


def test_a_main_host_alone_is_said_to_be_enough() -> None:
    found = text(PI, host=host(32, 60))
    assert found.startswith("The main host runs the whole model (5.4 GiB): it fits there")
    assert "and nothing waits for the network." in found


def test_devices_that_share_a_model_are_named_with_the_reason() -> None:
    assert sentences(GPU, MAC, PI, shape=LARGE)[0] == (
        "mac and gpu share the model (18.3 GiB), since no device can hold it alone."
    )
    quick = Goal(workload=Workload(prompt_tokens=4000, generated_tokens=1))
    twins = [GPU.model_copy(update={"name": name}) for name in ("one", "two")]
    assert "since that is faster than any device alone" in text(*twins, goal=quick)
    roomy = text(GPU, shape=LARGE, host=host(32, 60))
    assert roomy.startswith("The main host and gpu share the model (18.3 GiB), since that is ")


def test_what_each_of_several_requests_has_of_the_context_is_said() -> None:
    split = text(GPU, wanted=Wanted(ctx_tokens=4096, slots=4, is_unified=False))
    assert (
        "Up to 4 requests are answered at once (-np 4), each with a context of 1024 tokens, since"
        " the 4096 are divided among them." in split
    )
    shared = text(GPU, wanted=Wanted(ctx_tokens=4096, slots=4, is_unified=True))
    assert "(-np 4), and they share the context of 4096 tokens." in shared
    assert "at once" not in text(GPU)


def test_each_device_has_its_layers() -> None:
    found = sentences(GPU, MAC, PI, shape=LARGE)
    (layers,) = [one for one in found if one.startswith("Every token passes through 20 layers")]
    assert "on one device after the other: mac 1 to 9 (7.9 GiB), gpu 10 to 20 (" in layers
    assert "gpu is the fastest and takes as many layers as fit there." in found


def test_equally_fast_devices_are_named_together() -> None:
    twins = [GPU.model_copy(update={"name": name}) for name in ("one", "two")]
    found = text(*twins, PI, shape=model([layer(900 * MIB)] * 26))
    assert "are the fastest and take as many layers as fit there." in found


def test_a_single_layer_and_a_lone_output_are_put_into_words() -> None:
    chosen = Overrides(order=("mac", "gpu"), split=(1, 8))
    assert "mac 1 (600.0 MiB), gpu 2 to 8 (" in text(GPU, MAC, overrides=chosen)
    apart = Overrides(order=("mac", "gpu"), split=(8, 1))
    assert "mac 1 to 8 (4.7 GiB), gpu only the output (" in text(GPU, MAC, overrides=apart)


def test_the_main_hosts_own_layers_are_named() -> None:
    found = text(PI, host=host(10, 12), shape=model([layer(900 * MIB)] * 12))
    assert found.startswith("The main host and pi share the model (11.2 GiB)")
    assert ": the main host 1 to " in found


# How fast, and how sure


def test_speed_has_numbers_and_a_meaning() -> None:
    found = text(GPU)
    assert (
        "tokens per second (a token is a word or a piece of one): faster than most people" in found
    )
    assert "A prompt of 1000 tokens takes " in found
    assert "before the answer begins, and loading the model 50 seconds." in found
    assert "gpu computes for " in found
    assert ", and the network takes " in found
    assert "With a full context of 4096 tokens gpu uses " in found
    assert "about as fast as most people read" in text(PHONE, shape=model([layer(200 * MIB)] * 8))
    assert "slower than most people read" in text(PI)


def test_several_users_share_the_speed() -> None:
    goal = Goal(workload=Workload(users=4))
    found = text(GPU, goal=goal, wanted=Wanted(slots=4))
    assert "tokens per second for all 4 users together, " in found
    assert " for each (a token is " in found
    assert "One token for every user takes " in found


def test_the_fullest_of_several_devices_is_named() -> None:
    found = text(GPU, MAC, shape=LARGE)
    assert "Memory is tightest on gpu: with a full context of 4096 tokens it uses " in found
    assert "are kept free for its system." in found


def test_of_many_devices_only_the_slowest_is_named() -> None:
    many = [device(f"pi-{i}", 7, speed(5 + i, 40), wired()) for i in range(6)]
    (found,) = [one for one in sentences(*many, shape=LARGE) if one.startswith("A token takes")]
    assert "% of it is computing, the most of that on pi-" in found
    assert "and the network takes " in found
    assert ", mostly to pi-" in found


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (Rules(), "is done on the main host: otherwise 513 kB of scores would cross the network"),
        (Rules(allow_sampling_on_devices=True), "also picks the next token, so that 513 kB of"),
    ],
)
def test_the_place_of_the_output_has_a_reason(rules: Rules, says: str) -> None:
    assert says in text(WIFI, rules=rules)


def test_scores_that_take_long_are_mentioned_and_others_not() -> None:
    pinned = Overrides(pin_output="wifi")
    assert "wifi sends 513 kB of scores for every token" in text(WIFI, overrides=pinned)
    quick = GPU.model_copy(update={"link": wired(0.1, 10_000)})
    assert "scores" not in text(quick, overrides=Overrides(pin_output="gpu"))


def test_devices_that_may_drop_out_are_warned_about() -> None:
    found = sentences(PI, PHONE, shape=model([layer(900 * MIB)] * 10))
    warning = (
        "The model stops when any of its devices drops out, which phone may (battery, Wi-Fi or"
    )
    assert any(one.startswith(warning) for one in found)
    assert "drops out" not in text(GPU, PHONE)


def test_guesses_are_called_guesses() -> None:
    guessed = GPU.model_copy(
        update={
            "speed": GPU.speed.model_copy(update={"is_guess": True}),
            "link": GPU.link.model_copy(update={"is_guess": True}),
        }
    )
    says = (
        "This rests on a guess of the speed of gpu and of the network to gpu; 'supervisor measure'"
    )
    assert says in text(guessed)
    assert "guess" not in text(GPU)


def test_a_guess_about_the_main_host_counts_if_it_computes() -> None:
    main = host(32, 60)
    main = main.model_copy(update={"speed": main.speed.model_copy(update={"is_guess": True})})
    assert "a guess of the speed of the main host;" in text(PI, host=main)
    idle = main.model_copy(update={"may_hold_layers": False})
    assert "guess" not in text(GPU, host=idle, overrides=Overrides(pin_output="gpu"))


def test_a_search_that_settled_says_so() -> None:
    many = [device(f"pi-{i}", 6 + i / 10, speed(5 + i / 9, 40), wired()) for i in range(10)]
    found = text(*many, shape=model([layer(400 * MIB)] * 60), rules=Rules(work_limit=100))
    assert "a slightly better one may exist" in found


def test_notes_about_the_model_are_passed_on() -> None:
    odd = SMALL.model_copy(update={"notes": ("it is odd",)})
    assert sentences(GPU, shape=odd)[-1] == "Note: it is odd."
    assert sentences(PI, shape=LARGE.model_copy(update={"notes": ("odd",)}))[-1] == "Note: odd."


# What was asked for


def test_what_had_to_shrink_is_said_second() -> None:
    hungry = model([layer(600 * MIB, kv_elements=8192)] * 8)
    wanted = Wanted(ctx_tokens=131_072, min_ctx_tokens=4096)
    found = sentences(MAC, shape=hungry, wanted=wanted)[1]
    assert found.startswith("What you asked for does not fit, so the model remembers ")
    assert " instead of 131072 tokens of a conversation (its context)" in found
    coarse = sentences(MAC, shape=hungry, wanted=Wanted(ctx_tokens=40_000))[1]
    assert coarse == (
        "What you asked for does not fit, so its memory of a conversation is stored more coarsely"
        " (a q8_0 cache)."
    )


def test_a_wish_of_another_kind_is_passed_on() -> None:
    case = request(GPU)
    result = planned(case).model_copy(update={"shrunk": ("something is smaller",)})
    assert explain(case, result)[1] == ("What you asked for does not fit, so something is smaller.")


def test_overrides_have_their_price() -> None:
    found = text(GPU, PI, overrides=Overrides(devices=("pi",)))
    assert "Your own settings have a price: without them it would be " in found
    assert "less time." in found
    assert "Your own settings cost nothing" in text(GPU, PI, overrides=Overrides(devices=("gpu",)))


# What was left out


def left_out(*found: LeftOut) -> list[str]:
    case = request(GPU)
    result = planned(case).model_copy(update={"left_out": found})
    return [one for one in explain(case, result) if "left out" in one]


def rated(name: str, factor: float) -> LeftOut:
    """A device with which it would be so many times as fast."""
    now = best(request(GPU)).decode_tokens_per_s
    return LeftOut(name=name, reason="would not pay", tokens_per_s=now * factor, cost_s=1)


def test_what_is_left_out_has_its_price() -> None:
    found = sentences(GPU, PI, device("tiny", 1, speed(50, 100)))
    assert any(
        one.startswith("pi is left out: with it, it would be ") and "instead of" in one
        for one in found
    )
    assert "tiny is left out: too little memory for even one layer." in found


def test_equal_devices_are_left_out_in_one_sentence() -> None:
    phones = [rated(f"phone-{number}", 0.5) for number in (1, 2, 3)]
    (found,) = left_out(*phones)
    assert found.startswith(
        "phone-1, phone-2 and phone-3 are left out: with any one of them, it would be "
    )
    slow, fast = left_out(*phones, rated("laptop", 0.8))
    assert slow.startswith("phone-1, phone-2 and phone-3 are")
    assert fast.startswith("laptop is left out: with it, it would be ")


def test_many_different_devices_are_left_out_in_one_sentence() -> None:
    (found,) = left_out(rated("a", 0.5), rated("b", 0.6), rated("c", 0.7), rated("d", 0.7))
    now = best(request(GPU)).decode_tokens_per_s
    assert found == (
        f"a, b, c and d are left out: with any one of them, it would be {rate(0.5 * now)} to"
        f" {rate(0.7 * now)} tokens per second instead of {rate(now)}."
    )


def test_a_device_that_changes_nothing_is_one_more_that_can_fail() -> None:
    assert left_out(rated("twin", 1.0), rated("other", 1.02)) == [
        "twin and other are left out: with any one of them, it would be about as fast, and one"
        " more device could fail."
    ]


def test_a_device_may_be_faster_and_still_not_pay() -> None:
    quick = device("quick", 12, speed(330, 20_000), wired(), is_reliable=False)
    goal = Goal(workload=Workload(prompt_tokens=16), requests_per_load=float("inf"))
    assert "risk of losing it costs more" in text(GPU, quick, goal=goal)


def test_the_same_reason_is_given_once() -> None:
    silent = [LeftOut(name=name, reason="its agent does not answer") for name in ("a", "b")]
    assert left_out(*silent, LeftOut(name="c", reason="would not pay")) == [
        "a and b are left out for the same reason: its agent does not answer.",
        "c is left out: nothing faster was found with it.",
    ]


# What would change it


def test_changes_are_tried_out() -> None:
    case = request(GPU, PI, WIFI, shape=LARGE)
    now = best(case)
    changes = {one.change: one for one in what_if(case, now)}
    smaller = "a version of the model that is a quarter smaller (a coarser quantisation)"
    assert set(changes) == {"another gpu", smaller, "a cable to wifi"}
    assert changes["another gpu"].tokens_per_s > now.decode_tokens_per_s
    assert changes[smaller].tokens_per_s > now.decode_tokens_per_s
    found = explain(case, plan(case), tuple(changes.values()))
    assert any(one.startswith("With another gpu, it would be ") for one in found)


@pytest.mark.parametrize(
    ("tokens_per_s", "cost_factor", "says"),
    [
        (2.0, 0.5, "With a thing, it would be "),
        (0.0, 0.5, "With a thing, answers would come no faster, but a whole request"),
        (0.0, 1.0, "It would be no faster with a thing or a thing."),
    ],
)
def test_changes_are_put_into_words(tokens_per_s: float, cost_factor: float, says: str) -> None:
    case = request(GPU)
    now = best(case)
    change = WhatIf(
        change="a thing",
        tokens_per_s=tokens_per_s * now.decode_tokens_per_s,
        cost_s=cost_factor * now.cost_s,
    )
    found = explain(case, plan(case), (change, change))
    assert any(one.startswith(says) for one in found)


def test_a_change_that_gives_back_context_is_not_called_useless() -> None:
    case = request(GPU)
    result = planned(case).model_copy(update={"shrunk": ("context",)})
    change = WhatIf(change="a thing", tokens_per_s=0.0, cost_s=result.best.cost_s)
    assert not any("a thing" in one for one in explain(case, result, (change,)))


# Words


def test_the_most_important_comes_first() -> None:
    case = request(GPU, MAC, PI, PHONE, shape=LARGE)
    found = explain(case, plan(case), what_if(case, best(case)))
    starts = (
        "mac and gpu share the model",
        "Answers should come at",
        "A prompt of",
        "Every token passes through",
        "gpu is the fastest",
        "The last step",
        "A token takes",
        "Memory is tightest",
        "pi is left out",
        "With another gpu",
    )
    order = [start for one in found for start in starts if one.startswith(start)]
    assert order == [start for start in starts if start in order]
    assert len(order) >= 8


def test_everybody_can_read_it() -> None:
    rng = random.Random(8)
    outputs: set[Output | None] = set()
    for _ in range(40):
        case = random_request(rng, 4, 20)
        result = plan(case)
        what_ifs = what_if(case, result.best) if isinstance(result, Planned) else ()
        outputs |= {result.best.output} if isinstance(result, Planned) else {None}
        for one in explain(case, result, what_ifs):
            assert not one[0].islower() or one.split()[0].split("-")[0] in {
                "phone", "pi", "laptop", "mini", "studio", "gpu", "big",
            }, one  # fmt: skip
            assert one.endswith(".")
            assert "  " not in one
            assert len(one) < 400
            assert not any(word in one for word in JARGON), one
    assert {Output.LAST, Output.HOST, None} <= outputs
