"""Numbers and lists as an explanation says them."""

import pytest

from supervisor.core.explain_words import capital, duration, listed, rate
from supervisor.core.planning import HOST


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.917, "0.92"), (9.01, "9.0"), (25.34, "25.3"), (143.2, "143")],
)
def test_rates_have_no_more_digits_than_they_are_worth(value: float, words: str) -> None:
    assert rate(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.000257, "0.26 ms"),
        (0.0025, "2.5 ms"),
        (0.0787, "79 ms"),
        (1.08, "1.1 seconds"),
        (89.4, "89 seconds"),
        (181, "3 minutes"),
        (9000, "2.5 hours"),
    ],
)
def test_durations_are_told_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_names_are_listed_as_people_do() -> None:
    assert listed([HOST]) == "the main host"
    assert listed(["a", HOST]) == "a and the main host"
    assert listed(["a", "b", "c"], "or") == "a, b or c"
    many = [f"d{number}" for number in range(12)]
    assert listed(many) == "d0, d1, d2, d3, d4, d5, d6 and 5 more"


def test_a_sentence_has_a_capital_and_a_device_keeps_its_name() -> None:
    assert capital("the main host runs it.") == "The main host runs it."
    assert capital("the-mac runs it.") == "the-mac runs it."
