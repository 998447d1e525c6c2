"""The recommendation: the largest that fits and is fast enough, and the words for it."""

import random

import pytest
from test_launch_plan import planned, request

from supervisor.core.planning import HOST
from supervisor.core.suggesting import (
    ModelFit,
    Suggestion,
    best_first,
    bits_of,
    fit_of,
    in_words,
    judged,
    next_command,
    no_fit,
    nothing_fits,
    recommended,
    said,
    usual_ctx,
)

GIB = 1 << 30
LABELS = ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "BF16", "custom")


def one(
    label: str,
    gib: float,
    speed: float | None = 20.0,
    *,
    missing_gib: float | None = None,
    **fit: object,
) -> Suggestion:
    fits = missing_gib is None
    made = {
        "ctx_tokens": 8192,
        "fits": fits,
        "tokens_per_s": speed if fits else None,
        "devices": ("desk", "pixel") if fits else (),
        "missing_bytes": None if missing_gib is None else int(missing_gib * GIB),
    }
    return Suggestion(
        reference=f"owner/M-GGUF:{label}",
        repo="owner/M-GGUF",
        label=label,
        size_bytes=int(gib * GIB),
        fit=ModelFit.model_validate(made | fit),
    )


def chosen(*found: Suggestion, speed: float = 5.0) -> Suggestion:
    marked = [each for each in judged(found, speed) if each.is_recommended]
    assert len(marked) == 1
    return marked[0]


def test_the_largest_that_fits_is_recommended_and_the_next_one_says_what_it_lacks() -> None:
    best = chosen(
        one("Q4_K_M", 4.6, 12.8), one("Q5_K_M", 4.8, 11), one("Q6_K", 6.2, missing_gib=0.9)
    )
    assert best.reason == (
        "Q5_K_M: 4.8 GiB, 8,192 tokens fit, about 11.0 tokens per second over desk and pixel; "
        "Q6_K would need 921.6 MiB more"
    )
    assert next_command(best) == "supervisor launch owner/M-GGUF:Q5_K_M --ctx 8192"


def test_a_slow_one_is_passed_over_for_a_smaller_fast_one() -> None:
    best = chosen(one("Q4_K_M", 4, 7), one("Q8_0", 8, 3))
    assert best.label == "Q4_K_M"
    assert best.reason.endswith("Q8_0 of 8.0 GiB would give about 3.0 tokens per second")
    assert chosen(one("Q4_K_M", 4, 7), one("Q8_0", 8, 3), speed=2).label == "Q8_0"


def test_below_four_bits_the_words_say_what_it_costs_and_what_the_next_one_lacks() -> None:
    best = chosen(one("Q2_K", 2, 12), one("Q3_K_M", 3, 9), one("Q4_K_M", 4, 2))
    assert best.label == "Q3_K_M", "it is the largest with the wanted speed"
    assert "less than 4 bits per weight, so answers suffer" in best.reason
    assert best.reason.endswith("Q4_K_M of 4.0 GiB would give about 2.0 tokens per second")
    coarse = chosen(one("Q2_K", 2, 9), one("Q3_K_M", 3, 8), one("Q4_K_M", 4, missing_gib=1))
    assert coarse.label == "Q3_K_M"
    assert coarse.reason.endswith("Q4_K_M would need 1.0 GiB more")


def test_where_all_are_too_slow_less_than_four_bits_are_no_remedy() -> None:
    best = chosen(one("Q3_K_M", 3, 4), one("Q4_K_M", 4, 2), one("Q5_K_M", 5, 1))
    assert best.label == "Q4_K_M"
    assert "slower than the 5 tokens per second" in best.reason
    assert "only what is stored with less than 4 bits" in best.reason
    assert chosen(one("Q2_K", 2, 4), one("Q3_K_M", 3, 3)).label == "Q2_K"


def test_among_several_models_the_words_name_a_faster_one() -> None:
    slow = one("Q4_K_M", 20, 2).model_copy(update={"id": "big"})
    small = one("Q8_0", 1, 4).model_copy(update={"id": "small", "repo": "owner/S-GGUF"})
    words = in_words(slow, [slow, small], 5)
    assert "the fastest, small, would give about 4.0 tokens per second" in words
    assert "nothing else that fits is faster" in in_words(small, [slow, small], 5)
    assert "big" not in in_words(small, [slow, small], 5), "a larger one of another repository"


def test_where_all_are_too_slow_the_fastest_is_best() -> None:
    best = chosen(one("Q4_K_M", 4, 2), one("Q6_K", 6, 1.4), one("Q8_0", 8, 1))
    assert best.label == "Q4_K_M"
    assert "nothing else that fits is faster" in best.reason


def test_known_speeds_come_before_unknown_ones() -> None:
    assert chosen(one("Q4_K_M", 4, 7), one("Q8_0", 8, None)).label == "Q4_K_M"
    assert chosen(one("Q4_K_M", 4, 2), one("Q8_0", 8, None)).label == "Q8_0"
    best = chosen(one("Q4_K_M", 4, None), one("Q6_K", 6, None))
    assert best.label == "Q6_K"
    assert "at a speed that is not known" in best.reason


def test_of_equal_sizes_the_faster_and_then_the_first_name_wins() -> None:
    assert chosen(one("Q4_K_M", 4, 7), one("IQ4_XS", 4, 9)).label == "IQ4_XS"
    assert chosen(one("Q4_K_M", 4, 9), one("IQ4_XS", 4, 9)).label == "IQ4_XS"


def test_nothing_fits_says_what_would() -> None:
    found = [
        one("Q4_K_M", 4, missing_gib=1.5, smaller_ctx_tokens=2048, smaller_kv_type="q8_0"),
        one("Q8_0", 8, missing_gib=5),
    ]
    assert recommended(found, 5) is None
    assert nothing_fits(found) == (
        "Nothing fits with 8,192 tokens of context. The smallest, Q4_K_M of 4.0 GiB, would fit"
        " with another device that has 1.5 GiB to spare. It would fit with a context of 2,048"
        " tokens and a q8_0 cache."
    )
    assert nothing_fits([one("Q8_0", 8, missing_gib=5)]).endswith(
        "A shorter context alone does not help."
    )
    assert nothing_fits([])


def test_what_the_engine_refuses_says_why() -> None:
    refused = one("Q4_K_M", 4).model_copy(
        update={"fit": no_fit(8192, "unknown architecture", "engine_refused_model")}
    )
    assert said(refused) == "Q4_K_M: 4.0 GiB, cannot be run here: unknown architecture"
    assert "unknown architecture" in nothing_fits([refused])


def test_a_command_keeps_names_with_spaces_together() -> None:
    odd = one("Q8_0", 8).model_copy(update={"reference": "owner/M/my model.gguf"})
    assert next_command(odd) == "supervisor launch 'owner/M/my model.gguf' --ctx 8192"


@pytest.mark.parametrize(
    ("trained", "expected"), [(None, 8192), (2048, 2048), (131_072, 8192), (64, 256)]
)
def test_the_usual_context(trained: int | None, expected: int) -> None:
    assert usual_ctx(trained) == expected


def test_a_plan_tells_devices_speed_and_cache() -> None:
    plan = planned(request())
    fit = fit_of(plan)
    assert fit.fits
    assert set(fit.devices) == {"a", "b"}
    assert plan.prediction is not None
    assert fit.tokens_per_s == plan.prediction.decode_tokens_per_s
    assert not fit.is_checked, "only formulas so far"
    alone = fit_of(planned(request(names=(), host_gib=64, exclude=("a", "b"))))
    assert alone.devices == (HOST,)


def test_of_several_models_those_that_fit_and_are_fast_come_first() -> None:
    found = [
        one("Q8_0", 90, missing_gib=50),
        one("Q3_K_M", 30, 9),
        one("Q4_K_M", 20, 2),
        one("Q6_K", 9, 8),
        one("Q5_K_M", 8, 30),
    ]
    labels = [each.label for each in best_first(found, 5)]
    assert labels == ["Q6_K", "Q5_K_M", "Q3_K_M", "Q4_K_M", "Q8_0"]


def test_no_choice_is_better_than_the_recommended_one() -> None:
    """The rules, tried on every candidate one by one."""
    rng = random.Random(9)
    for _ in range(500):
        found = [
            one(
                label,
                rng.randint(1, 6),
                rng.choice((None, 1.0, 4.0, 6.0, 30.0)),
                missing_gib=rng.choice((None, None, 2.0)),
            )
            for label in rng.sample(LABELS, rng.randint(1, len(LABELS)))
        ]
        best = recommended(found, 5)
        fits = [each for each in found if each.fit.fits]
        if best is None:
            assert not fits
            continue
        fine = [each for each in fits if bits_of(each.label) in {0, 4, 5, 6, 8, 16}]
        fast = [each for each in fits if (each.fit.tokens_per_s or 0) >= 5]
        unknown = [each for each in fits if each.fit.tokens_per_s is None]
        if good := fast or unknown:
            assert best in good
            assert all(best.size_bytes >= each.size_bytes for each in good)
        else:
            assert best in (fine or fits)
            assert all(
                (best.fit.tokens_per_s or 0) >= (each.fit.tokens_per_s or 0)
                for each in fine or fits
            )
