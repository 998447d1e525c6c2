"""What of a request tells how its answer can be continued."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.continuing.budget import Budget
from supervisor.core.continuing.channel import Channel, Echo
from supervisor.core.continuing.completions import extended_prompt
from supervisor.core.continuing.exactness import answers_to, why_inexact
from supervisor.core.continuing.prefill import extended, last_assistant, text_of
from supervisor.core.gateway_routes import Api


@pytest.mark.parametrize(
    ("api", "body", "name", "tokens"),
    [
        (Api.CHAT, {"max_tokens": 9}, "max_tokens", 9),
        (Api.CHAT, {"max_tokens": 9, "max_completion_tokens": 8}, "max_completion_tokens", 8),
        (Api.CHAT, {"max_tokens": 9, "n_predict": 7}, "n_predict", 7),
        (Api.CHAT, {"max_tokens": 9, "n_predict": None}, "max_tokens", 9),
        (Api.CHAT, {"max_tokens": 9.0}, "max_tokens", 9),
        (Api.CHAT, {"max_tokens": float("inf")}, "n_predict", None),
        (Api.CHAT, {"max_tokens": "9"}, "n_predict", None),
        (Api.NATIVE, {"n_predict": -1, "max_tokens": 5}, "n_predict", None),
        (Api.NATIVE, {"n_predict": 0}, "n_predict", 1),
        (Api.COMPLETIONS, {}, "n_predict", None),
        (Api.RESPONSES, {"max_output_tokens": 4, "max_tokens": 3}, "max_output_tokens", 4),
        (Api.MESSAGES, {}, "max_tokens", 4096),
        (Api.MESSAGES, {"max_tokens": None}, "max_tokens", None),
        (Api.MESSAGES, {"max_tokens": 5, "n_predict": 2}, "max_tokens", 5),
    ],
)
def test_the_budget_is_what_the_engine_would_read(
    api: Api, body: dict[str, Any], name: str, tokens: int | None
) -> None:
    assert Budget.of(api, body) == Budget(name, tokens)


def test_what_is_left_of_a_budget() -> None:
    budget, endless = Budget("max_tokens", 9), Budget("n_predict", None)
    assert budget.after(4) == {"max_tokens": 5}
    assert endless.after(4) == {}
    assert [budget.is_used_up(n) for n in (8, 9, 10)] == [False, True, True]
    assert not endless.is_used_up(10**9)
    assert (budget.capped(12), endless.capped(12)) == (9, 12)
    assert (budget.least(), endless.least()) == ({"max_tokens": 1}, {"n_predict": 1})


INEXACT: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "several"),
    ({"n_cmpl": 3}, "several"),
    ({"prompt": ["a", "b"]}, "several"),
    ({"prompt": [[1], [2]]}, "several"),
    ({"grammar": "root ::= x"}, "grammar"),
    ({"json_schema": {}}, "grammar"),
    ({"response_format": {"type": "json_object"}}, "grammar"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "grammar"),
    ({"text": {"format": {"type": "json_schema"}}}, "grammar"),
    ({"tool_choice": "required"}, "tool call"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool call"),
    ({"tool_choice": {"type": "any"}}, "tool call"),
    ({"logprobs": True}, "probabilities"),
    ({"logprobs": 3}, "probabilities"),
    ({"n_probs": 1}, "probabilities"),
    ({"n_indent": 4}, "indented"),
]
EXACT: list[dict[str, Any]] = [
    {"n": 1, "n_cmpl": None},
    {"prompt": ["a"]},
    {"prompt": [1, 2, "b"]},
    {"grammar": "", "json_schema": None, "response_format": {"type": "text"}},
    {"response_format": None, "text": {"verbosity": "low"}},
    {"tool_choice": "auto", "tools": [{}]},
    {"tool_choice": {"type": "auto"}},
    {"tool_choice": "none"},
    {"logprobs": False, "n_probs": 0, "top_logprobs": None, "n_indent": 0},
]


@pytest.mark.parametrize(("body", "why"), INEXACT)
def test_what_cannot_be_continued(body: dict[str, Any], why: str) -> None:
    assert why in why_inexact(body)


@pytest.mark.parametrize("body", EXACT)
def test_what_can_be_continued(body: dict[str, Any]) -> None:
    assert why_inexact(body) == ""
    assert answers_to(body) == 1


def test_answers_are_counted() -> None:
    assert answers_to({"prompt": ["a", "b"], "n": 3}) == 6
    assert answers_to({"n": "many"}) == 1


@pytest.mark.parametrize(
    ("prompt", "longer"),
    [
        ("ab", "abcd"),
        (["ab"], ["abcd"]),
        ([1, 2], [1, 2, "cd"]),
        ([1, "ab"], [1, "abcd"]),
        ([[1, 2]], [[1, 2, "cd"]]),
        ({"prompt_string": "ab", "multimodal_data": []}, {"prompt_string": "abcd"}),
        ([{"prompt_string": [1]}], [{"prompt_string": [1, "cd"]}]),
    ],
)
def test_an_answer_is_put_after_a_prompt(prompt: Any, longer: Any) -> None:
    made = extended_prompt(prompt, "cd")
    if isinstance(made, dict):
        made = {"prompt_string": made["prompt_string"]}
    assert made == longer


@pytest.mark.parametrize("prompt", [None, [], ["a", "b"], 7, {}])
def test_no_answer_is_put_after_other_things(prompt: Any) -> None:
    with pytest.raises(ValueError, match="no prompt, or several"):
        extended_prompt(prompt, "cd")


@pytest.mark.parametrize(
    ("content", "text", "longer"),
    [
        ("ab", "ab", "ab!"),
        (None, "", "!"),
        ([], "", [{"type": "text", "text": "!"}]),
        (
            [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "a\n\nb",
            [{"type": "text", "text": "a"}, {"type": "text", "text": "b!"}],
        ),
        (
            [{"type": "text", "text": "a"}, {"type": "image"}],
            "a",
            [{"type": "text", "text": "a!"}, {"type": "image"}],
        ),
        ([7], "", [7, {"type": "text", "text": "!"}]),
    ],
)
def test_contents_of_all_shapes(content: Any, text: str, longer: Any) -> None:
    before = repr(content)
    assert text_of(content) == text
    assert extended(content, "!") == longer
    assert repr(content) == before, "the client's own was changed"


@pytest.mark.parametrize(
    "messages", [None, "x", [], [3], [{"role": "user"}], [{"role": "assistant"}, {}]]
)
def test_no_beginning_of_an_answer(messages: Any) -> None:
    assert last_assistant(messages) is None


# -- what an engine says again ---------------------------------------------------------------


@given(given=st.text(max_size=12), new=st.text(max_size=12), cuts=st.lists(st.integers(0, 24)))
def test_an_echo_in_any_pieces_is_left_out(given: str, new: str, cuts: list[int]) -> None:
    whole = given + new
    places = sorted({0, *(min(cut, len(whole)) for cut in cuts), len(whole)})
    echo = Echo(given)
    pieces = [whole[a:b] for a, b in pairwise(places)]
    assert "".join(map(echo.new_in, pieces)) == new


@pytest.mark.parametrize(
    ("given", "said", "new"),
    [
        ("so", "</think>so on", " on"),  # a mark of the template before it
        ("\nso ", "so on", "on"),  # white space taken off, or changed
        (" so", "\n\nso on", " on"),
        ("so\n\n", "so\n on", " on"),
        ("so", "well", "well"),  # none at all
        (" ", "x", "x"),
        ("\n\n", "\nSo", "So"),
        ("so ", "x so", "x so"),
    ],
)
def test_an_echo_with_something_around_it(given: str, said: str, new: str) -> None:
    assert Echo(given).new_in(said) == new


def test_only_the_first_text_may_have_something_before_the_echo() -> None:
    echo = Echo("so on")
    assert echo.new_in("so") == ""
    assert echo.new_in("x on") == "x on"


def test_a_channel_from_cut_to_cut() -> None:
    channel = Channel("Once", is_echoed=True)
    assert channel.hear("Once") == ("Once", "")
    channel.restart()
    assert channel.hear("Once") == ("", ""), "what was passed on is not said twice"
    assert channel.hear(" upon") == (" upon", " upon")
    assert (channel.new, channel.whole, channel.told) == (" upon", "Once upon", "Once upon")
    channel.go_on(is_echoed=True, is_over=False)
    assert channel.hear("Once upon a") == (" a", " a")
    channel.go_on(is_echoed=False, is_over=False)
    assert channel.hear(" time") == (" time", " time")
    channel.go_on(is_echoed=True, is_over=True)
    assert channel.hear("Once upon a time, there") == ("", "")
    assert channel.whole == "Once upon a time"


def test_a_channel_that_is_over_passes_on_what_its_client_gave() -> None:
    channel = Channel("Hm", is_echoed=True, is_over=True)
    assert channel.hear("Hm\n") == ("Hm\n", "")
    assert (channel.whole, channel.told) == ("Hm", "Hm\n")
    channel.restart()
    assert channel.hear("Hm\n") == ("", "")
