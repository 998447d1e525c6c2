"""Explanations of what does not fit: what is missing, where there is room, what would help."""

from typing import Any

import pytest
from planning_world import device, host, layer, model, speed, wired

from supervisor.core import what_if
from supervisor.core.explain import explain
from supervisor.core.memory import GIB, MIB, Platform, Run
from supervisor.core.planning import DeviceOffer, NoFit, Overrides, Planned, PlanRequest, Wanted
from supervisor.core.search import plan

PI = device("pi", 7, speed(6, 40), wired())
TWIN = PI.model_copy(update={"name": "twin"})
MAC = device("mac", 16, speed(100, 3500), wired(), Platform.GPU)
LARGE = model([layer(900 * MIB)] * 20)
ALONE = host(8, may_hold_layers=False)


def request(*devices: DeviceOffer, **more: Any) -> PlanRequest:
    return PlanRequest.model_validate({"shape": LARGE, "devices": devices, "host": ALONE} | more)


def sentences(*devices: DeviceOffer, **more: Any) -> list[str]:
    case = request(*devices, **more)
    result = plan(case)
    assert isinstance(result, NoFit)
    return explain(case, result)


def test_what_is_missing_has_numbers_and_a_remedy() -> None:
    assert sentences(PI, TWIN)[0] == (
        "The model does not fit: with 4096 tokens of context it needs 18.4 GiB, and all devices"
        " together may use 12.0 GiB."
    )


def test_room_is_listed_with_equal_devices_together() -> None:
    found = sentences(PI, TWIN)
    assert "Besides what each keeps free for its system, there are: pi and twin 6.0 GiB each." in (
        found
    )
    holding = sentences(PI, TWIN, shape=model([layer(900 * MIB)] * 40), host=host(8))
    assert (
        "Besides what each keeps free for its system, there are: the main host 7.0 GiB; pi and"
        " twin 6.0 GiB each."
    ) in holding


def test_layers_that_find_no_place_are_counted() -> None:
    found = sentences(PI, TWIN)[1]
    assert found.startswith("8 of its 20 layers find no place; that would take another device")
    assert found.endswith(" to spare.")


def test_a_single_missing_layer_is_one() -> None:
    shape = model([layer(900 * MIB)] * 13)
    found = " ".join(sentences(PI, TWIN, shape=shape))
    assert "1 of its 13 layers finds no place" in found
    assert "Freeing memory may be enough: one more layer fits with " in found
    assert " more on pi, or with " in found
    tiny = device("tiny", 0.9, speed(6, 40), wired())
    assert "Freeing memory" not in " ".join(sentences(tiny, shape=model([layer(900 * MIB)] * 2)))


def test_enough_in_sum_is_explained() -> None:
    shape = model([layer(2800 * MIB)] * 4)
    found = sentences(PI, TWIN, shape=shape)
    assert found[2] == (
        "A layer takes up to 2.7 GiB and cannot be divided: what is left of each device's memory is"
        " too little for one more."
    )


def test_a_split_that_does_not_fit_is_not_blamed_on_memory_alone() -> None:
    overrides = Overrides(order=("pi", "mac"), split=(9, 2))
    found = sentences(PI, MAC, shape=model([layer(900 * MIB)] * 10), overrides=overrides)
    assert found[-1] == "This is with your own settings; without them, more may fit."
    assert not any("Freeing memory" in one for one in found)


def test_a_main_host_that_is_too_small_is_named_first() -> None:
    found = sentences(PI, MAC, host=host(1.2, may_hold_layers=False))
    assert len(found) == 1
    assert found[0].startswith("The model does not fit: the main host is too small for its own")
    assert "or let a device with more memory be the main host." in found[0]


HUNGRY = model([layer(600 * MIB, kv_elements=8192)] * 8)


@pytest.mark.parametrize(
    ("ctx_tokens", "says"),
    [
        (150_000, "It would fit with a context of "),
        (100_000, "It would fit with a q4_0 cache (its memory of the conversation, stored more"),
    ],
)
def test_the_nearest_that_fits_is_named(ctx_tokens: int, says: str) -> None:
    found = sentences(MAC, shape=HUNGRY, wanted=Wanted(ctx_tokens=ctx_tokens))
    assert any(one.startswith(says) for one in found), found


def test_a_smaller_ubatch_may_be_all_it_needs() -> None:
    case = request(MAC, overrides=Overrides(ubatch=512))
    result = NoFit(
        needed_bytes=2,
        budget_bytes=1,
        missing_bytes=1,
        missing_layers=9,
        run=Run(ctx_tokens=4096),
        devices=(),
        nearest=Run(ctx_tokens=4096, ubatch=128),
    )
    says = "It would fit with smaller steps while reading prompts (ubatch 128)."
    assert says in explain(case, result)


@pytest.mark.parametrize(
    ("layers", "what"), [(24, "a version of it that"), (90, "a smaller model")]
)
def test_a_size_that_would_fit_is_named_and_fits(
    layers: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = model([layer(900 * MIB)] * layers)
    advice = next(one for one in sentences(PI, MAC, shape=shape) if one.startswith("A shorter"))
    assert what in advice
    size_gib = float(advice.split("of about ")[1].split(" GiB")[0])
    monkeypatch.setattr(what_if, "SMALLER", size_gib * GIB / shape.weight_bytes)
    smaller = what_if._smaller(shape)
    assert isinstance(plan(request(PI, MAC, shape=smaller)), Planned)


def test_where_nothing_fits_no_size_is_named() -> None:
    tiny = device("tiny", 1.2, speed(6, 40), wired())
    found = sentences(tiny)
    assert "A shorter context does not help; add a device, or choose a smaller model." in found
