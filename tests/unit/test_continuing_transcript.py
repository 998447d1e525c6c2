"""Answers recorded from the real llama-server, cut and continued.

Each file in ``answers`` holds a request and its events, then what continuations of it got after so
many of these events (``lab.engine.record``).
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.continuing.events import EventSplitter, data_start
from supervisor.core.continuing.transcript import (
    Continue,
    Hopeless,
    Numbers,
    Restart,
    Transcript,
    asked_upstream,
    transcript_of,
)
from supervisor.core.gateway_routes import Api

ANSWERS = Path(__file__).with_name("answers")
APIS = {"chat": Api.CHAT, "completion": Api.COMPLETIONS, "native": Api.NATIVE}
APIS |= {"message": Api.MESSAGES, "response": Api.RESPONSES}


@dataclass
class Recorded:
    """One request, its events, and those of continuations by the place of the cut."""

    api: Api
    path: str
    asked: dict[str, Any]
    events: list[bytes]
    rests: dict[int, tuple[dict[str, Any], list[bytes]]]

    @classmethod
    def of(cls, name: str) -> "Recorded":
        lines = (ANSWERS / f"{name}.jsonl").read_text().splitlines()
        first, *others = map(json.loads, lines)
        rests = {int(o["cut"]): (o["asked"], _split(o["events"])) for o in others}
        api = APIS[name.partition("_")[0]]
        return cls(api, first["path"], first["asked"], _split(first["events"]), rests)

    @property
    def body(self) -> dict[str, Any]:
        """As the client sent it."""
        is_ours = self.api not in (Api.NATIVE, Api.MESSAGES)
        return {k: v for k, v in self.asked.items() if not (is_ours and k == "timings_per_token")}

    def transcript(self, count: int = 0, **body: Any) -> Transcript:
        """Of so many events."""
        made = transcript_of(self.api, self.path, {**self.body, **body})
        for event in self.events[:count]:
            made.take(event)
        return made


def _split(events: str) -> list[bytes]:
    return EventSplitter().feed(events.encode())


@dataclass
class Said:
    """What all events of a stream say together."""

    reasoning: str = ""
    content: str = ""
    arguments: str = ""
    ids: frozenset[str] = frozenset()
    ends: int = 0
    generated_tokens: int | None = None

    @classmethod
    def in_(cls, stream: bytes) -> "Said":
        said = cls(ids=frozenset(re.findall(r'"(?:id|item_id)":"(\w+[_-]\w+)"', stream.decode())))
        for event in _split(stream.decode()):
            if (start := data_start(event)) >= 0:
                said.hear(json.loads(event[start:]))
        return said

    def hear(self, told: dict[str, Any]) -> None:
        kind = told.get("type", "")
        choice = (told.get("choices") or [{}])[0]
        delta = choice.get("delta", told.get("delta", {}))
        if isinstance(delta, str):
            self.content += delta if kind == "response.output_text.delta" else ""
            self.reasoning += delta if kind == "response.reasoning_text.delta" else ""
            return
        self.content += delta.get("content") or delta.get("text") or choice.get("text") or ""
        self.content += told.get("content", "")
        self.reasoning += delta.get("reasoning_content") or delta.get("thinking") or ""
        self.arguments += delta.get("partial_json", "")
        for call in delta.get("tool_calls", ()):
            self.arguments += call["function"]["arguments"]
        is_end = kind in ("message_stop", "response.completed") or told.get("stop") is True
        self.ends += is_end or choice.get("finish_reason") is not None
        usage = told.get("usage") or told.get("response", {}).get("usage") or {}
        count = usage.get("completion_tokens", usage.get("output_tokens"))
        if count is not None or told.get("stop"):
            self.generated_tokens = told["tokens_predicted"] if count is None else count


NAMES = sorted(path.stem for path in ANSWERS.glob("*.jsonl"))
CUTS = [(name, cut) for name in NAMES for cut in Recorded.of(name).rests]


def test_there_are_answers_of_every_api() -> None:
    assert {name.partition("_")[0] for name in NAMES} == set(APIS)
    assert len(CUTS) > 20


@pytest.mark.parametrize("name", NAMES)
def test_without_a_cut_nothing_changes_but_the_timings_that_we_asked_for(name: str) -> None:
    recorded = Recorded.of(name)
    assert asked_upstream(recorded.api, recorded.body) == recorded.asked
    transcript = recorded.transcript()
    assert transcript.numbers == Numbers()
    begun = False
    for number, event in enumerate(recorded.events):
        assert not transcript.is_complete
        passed = transcript.take(event)
        is_last = number >= len(recorded.events) - 2
        assert passed == event or (
            not is_last and passed == re.sub(rb',"timings":\{[^}]*\}', b"", event)
        )
        begun = begun or bool(Said.in_(passed).content or Said.in_(passed).reasoning)
        assert transcript.has_begun >= begun
    assert transcript.is_complete and transcript.has_begun
    numbers = transcript.numbers
    assert numbers.prompt_tokens and numbers.cached_tokens is not None
    said = Said.in_(b"".join(recorded.events))
    assert numbers.generated_tokens == said.generated_tokens


@pytest.mark.parametrize(("name", "cut"), CUTS)
def test_a_cut_answer_is_continued(name: str, cut: int) -> None:
    recorded = Recorded.of(name)
    whole = recorded.transcript()
    uncut = Said.in_(b"".join(map(whole.take, recorded.events)))
    transcript = recorded.transcript()
    before = b"".join(map(transcript.take, recorded.events[:cut]))
    asked, events = recorded.rests[cut]
    outcome = transcript.cut()
    assert outcome == transcript.cut(), "asking twice is asking once"
    assert isinstance(outcome, Continue | Restart)
    if recorded.api is not Api.MESSAGES:
        assert outcome.body == asked
    else:  # it was counted more exactly when this was recorded
        assert {**outcome.body, "max_tokens": asked["max_tokens"]} == asked
    after = b"".join(map(transcript.take, [b":\n\n", *events]))
    said = Said.in_(before + after)
    assert after.startswith(b":\n\n")
    assert (said.reasoning, said.content) == (uncut.reasoning, uncut.content)
    assert (said.arguments, said.ends) == (uncut.arguments, uncut.ends)
    assert len(said.ids) == len(uncut.ids)
    assert transcript.is_complete
    assert transcript.numbers.generated_tokens == said.generated_tokens
    assert transcript.numbers.prompt_tokens == whole.numbers.prompt_tokens
    if recorded.api is not Api.MESSAGES and not uncut.arguments:
        assert said.generated_tokens == uncut.generated_tokens


def test_nothing_is_asked_twice_of_what_was_held_back() -> None:
    recorded = Recorded.of("completion_held")
    counts = []
    for count in range(1, 6):
        transcript = recorded.transcript(count)
        outcome = transcript.cut()
        assert isinstance(outcome, Continue)
        counts.append((transcript.numbers.generated_tokens, outcome.body["max_tokens"]))
    # From the second token on a stop word may have begun, so they wait; they count, and are not
    # taken off what is left.
    assert counts == [(1, 8), (2, 8), (3, 8), (7, 8), (8, 1)]


@pytest.mark.parametrize("cut", sorted(Recorded.of("response_thinks").rests))
def test_a_response_opens_and_ends_each_part_once_and_tells_all_of_it(cut: int) -> None:
    recorded = Recorded.of("response_thinks")
    transcript = recorded.transcript()
    stream = b"".join(map(transcript.take, recorded.events[:cut]))
    transcript.cut()
    stream += b"".join(map(transcript.take, recorded.rests[cut][1]))
    named = re.compile(rb"event: ([\w.]+)\n")
    uncut = named.findall(b"".join(recorded.events))
    assert [n for n in named.findall(stream) if b".delta" not in n] == [
        n for n in uncut if b".delta" not in n
    ]
    said = Said.in_(stream)
    last = json.loads(stream.rpartition(b"data: ")[2])
    texts = [item["content"][0]["text"] for item in last["response"]["output"]]
    assert texts == [said.reasoning, said.content]


def test_what_the_engine_says_of_the_reasoning_at_its_end_may_have_other_white_space() -> None:
    recorded = Recorded.of("response_thinks")
    transcript = recorded.transcript(12)
    transcript.cut()
    events = recorded.rests[12][1]
    assert b'here\\n\\n"' in b"".join(events)
    after = b"".join(map(transcript.take, events))
    assert b'here\\n"' in after and b'here\\n\\n"' not in after


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_of_which_nothing_can_be_seen_begins_again(name: str) -> None:
    recorded = Recorded.of(name)
    transcript = recorded.transcript(grammar='root ::= "x"')  # which could not be continued
    first = recorded.events[0]
    sent = (
        transcript.take(first) if recorded.api in (Api.CHAT, Api.MESSAGES, Api.RESPONSES) else b""
    )
    if transcript.has_begun:
        return  # it begins with what its client gave
    assert transcript.cut() == Restart({**recorded.asked, "grammar": 'root ::= "x"'})
    second = recorded.transcript()
    other = [
        event.replace(b"chatcmpl-", b"chatcmpl-2").replace(b"resp_", b"resp_2")
        for event in recorded.events
    ]
    sent += b"".join(map(transcript.take, other))
    assert Said.in_(sent).content == Said.in_(b"".join(map(second.take, other))).content
    for mark in (b'"role":"assistant","content":null', b'"message_start"', b"response.created\n"):
        assert sent.count(mark) <= 1
    assert len(Said.in_(sent).ids) == len(Said.in_(b"".join(recorded.events)).ids)


WHY_NOT: list[dict[str, Any]] = [
    {"n": 2},
    {"grammar": "root ::= x"},
    {"response_format": {"type": "json_object"}},
    {"tool_choice": "required"},
    {"logprobs": True},
    {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False},
]


@pytest.mark.parametrize("more", WHY_NOT)
def test_what_cannot_be_exact_is_hopeless_once_it_has_begun(more: dict[str, Any]) -> None:
    recorded = Recorded.of("chat_thinks")
    transcript = recorded.transcript(**more)
    assert isinstance(transcript.cut(), Restart)
    for event in recorded.events[:2]:
        transcript.take(event)
    outcome = transcript.cut()
    assert isinstance(outcome, Hopeless)
    assert outcome.reason and not outcome.reason.endswith(".")


@pytest.mark.parametrize("name", ["chat_calls", "message_calls"])
def test_a_tool_call_that_was_begun_is_hopeless_until_it_has_ended(name: str) -> None:
    recorded = Recorded.of(name)
    places = range(1, len(recorded.events))
    kinds = [type(recorded.transcript(place).cut()) for place in places]
    begun, ended = kinds.index(Hopeless), len(kinds) - kinds[::-1].index(Hopeless)
    assert b'"name":"look"' in recorded.events[begun]
    assert set(kinds[begun:ended]) == {Hopeless}
    assert set(kinds[:begun]) == {Restart, Continue}
    assert kinds[ended:] and set(kinds[ended:]) == {Continue}


def test_a_gap_that_is_filled_is_hopeless() -> None:
    recorded = Recorded.of("native_held")
    transcript = transcript_of(Api.NATIVE, "/infill", {"input_prefix": "a", "input_suffix": "b"})
    assert isinstance(transcript.cut(), Restart)
    transcript.take(recorded.events[0])
    assert isinstance(transcript.cut(), Hopeless)


def test_a_request_of_unknown_shape_is_hopeless() -> None:
    recorded = Recorded.of("native_held")
    transcript = transcript_of(Api.NATIVE, "/completion", {"prompt": {"made_up": 1}})
    transcript.take(recorded.events[0])
    assert isinstance(transcript.cut(), Hopeless)


# -- tokens ----------------------------------------------------------------------------------


def test_tokens_of_messages_are_counted_by_their_text() -> None:
    recorded = Recorded.of("message_thinks")
    transcript = recorded.transcript(max_tokens=20)
    for event in recorded.events[:5]:
        transcript.take(event)
    assert transcript.uncounted_text == "Let me reason"
    assert transcript.numbers.generated_tokens == 3
    for counted, left in ((None, 17), (2, 17), (3, 17), (7, 13), (19, 1)):
        outcome = transcript.cut(counted)
        assert isinstance(outcome, Continue)
        assert outcome.body["max_tokens"] == left
    assert transcript.uncounted_text == "Let me reason", "nothing changes before the next event"
    used_up = transcript.cut(20)
    assert used_up == Continue({**recorded.body, "max_tokens": 1})


def test_an_answer_whose_budget_is_used_up_ends_without_more_text() -> None:
    recorded = Recorded.of("message_thinks")
    transcript = recorded.transcript(max_tokens=3)
    before = b"".join(map(transcript.take, recorded.events[:5]))
    transcript.cut()
    asked, events = recorded.rests[13]
    assert asked["max_tokens"] == 1
    after = b"".join(map(transcript.take, events))
    told = [json.loads(event[data_start(event) :]) for event in _split(after.decode())]
    assert [t["type"] for t in told] == [
        "content_block_delta",  # the signature
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert told[2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert told[2]["usage"]["output_tokens"] == transcript.numbers.generated_tokens == 3
    assert Said.in_(before + after).reasoning == "Let me reason"
    assert transcript.is_complete


@pytest.mark.parametrize(
    ("name", "place"),
    [("chat_limit", 4), ("native_held", 5), ("response_thinks", 5), ("message_thinks", 5)],
)
def test_an_engine_that_ends_while_an_answer_is_closed(name: str, place: int) -> None:
    recorded = Recorded.of(name)
    limit = {Api.RESPONSES: "max_output_tokens", Api.NATIVE: "n_predict"}
    key = limit.get(recorded.api, "max_tokens")
    tokens = recorded.transcript(place).numbers.generated_tokens or 0
    transcript = recorded.transcript(place, **{key: tokens})
    assert transcript.has_begun
    first = transcript.cut()
    assert isinstance(first, Continue) and first.body[key] == 1
    before = transcript.take(recorded.events[0])
    assert before == b"" and transcript.cut() == first
    after = b"".join(map(transcript.take, recorded.events))
    assert transcript.is_complete
    assert transcript.numbers.generated_tokens == tokens
    said = Said.in_(after)
    assert (said.content, said.reasoning, said.ends) == ("", "", 1)
    assert said.generated_tokens == tokens
    if recorded.api is Api.CHAT:
        assert b'"finish_reason":"length"' in after
    if recorded.api is Api.NATIVE:
        assert b'"stop_type":"limit"' in after


@pytest.mark.parametrize("own", [{"verbose": True}, {"timings_per_token": False}])
def test_where_no_timings_may_be_asked_for_tokens_are_counted_by_the_text(
    own: dict[str, Any],
) -> None:
    recorded = Recorded.of("chat_limit")
    transcript = recorded.transcript(**own)
    body = {**recorded.body, **own}
    assert asked_upstream(Api.CHAT, body) == body
    untimed = [re.sub(rb',"timings":\{[^}]*\}', b"", event) for event in recorded.events]
    for event in untimed[:4]:
        assert transcript.take(event) == event
    assert transcript.uncounted_text == "Smile with "
    outcome = transcript.cut(3)
    assert isinstance(outcome, Continue) and outcome.body["max_tokens"] == 3
    assert "timings_per_token" not in outcome.body or own == {"timings_per_token": False}
    usage = b'"usage":{"completion_tokens":3,"prompt_tokens":40,"total_tokens":43}'
    last = transcript.take(b'data: {"choices":[],' + usage + b"}\n\n")
    # No event told the prompt, and that of the continuation ends in three tokens of the answer.
    assert json.loads(last[6:])["usage"] == {
        "completion_tokens": 6,
        "prompt_tokens": 37,
        "total_tokens": 43,
    }


def test_timings_that_the_client_asked_for_stay() -> None:
    recorded = Recorded.of("chat_thinks")
    transcript = recorded.transcript(timings_per_token=True)
    assert [transcript.take(event) for event in recorded.events] == recorded.events
    transcript = recorded.transcript(timings_per_token=True)
    for event in recorded.events[:4]:
        transcript.take(event)
    transcript.cut()
    after = b"".join(map(transcript.take, recorded.rests[4][1]))
    assert after.count(b'"timings"') > 4


def _event(**told: Any) -> bytes:
    return b"data: " + json.dumps(told, separators=(",", ":")).encode() + b"\n\n"


def test_several_answers_have_one_sum_and_several_ends() -> None:
    transcript = transcript_of(Api.NATIVE, "/completion", {"prompt": ["a", "b"], "n_predict": 1})
    counts = {"tokens_predicted": 1, "tokens_evaluated": 2}
    parts = [_event(index=n, content="x", tokens=[1], stop=False, **counts) for n in (0, 1)]
    ends = [_event(index=n, content="", stop=True, **counts) for n in (0, 1)]
    for event in (parts[0], ends[0], parts[1]):
        assert transcript.take(event) == event
    assert not transcript.is_complete
    assert isinstance(transcript.cut(), Hopeless)
    transcript.take(ends[1])
    numbers = transcript.numbers
    assert numbers == Numbers(2, None, 2) and transcript.is_complete


def test_two_choices_begin_again_with_their_roles() -> None:
    transcript = transcript_of(Api.CHAT, "/v1/chat/completions", {"messages": [], "n": 2})

    def chunk(index: int, reason: str | None, **delta: str) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": reason}
        return _event(choices=[choice], id="first" if first else "second")

    first = True
    assert transcript.take(chunk(0, None, role="assistant"))
    assert isinstance(transcript.cut(), Restart)
    first = False
    events = [chunk(n, None, role="assistant") for n in (0, 1)]
    events += [chunk(0, None, content="x"), chunk(0, "stop"), chunk(1, "stop")]
    passed = [transcript.take(event) for event in events]
    assert [bool(event) for event in passed] == [False, True, True, True, True]
    assert all(b'"id":"first"' in event for event in passed[1:])


# -- whatever comes --------------------------------------------------------------------------

ERROR = b'data: {"error":{"code":500,"message":"Compute error.","type":"server_error"}}\n\n'
ANTHROPIC_ERROR = (
    b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"x"}}\n\n'
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_cut", [False, True])
def test_an_error_ends_an_answer_as_it_came(name: str, is_cut: bool) -> None:
    recorded = Recorded.of(name)
    transcript = recorded.transcript()
    cut = next(iter(recorded.rests))
    for event in recorded.events[:cut]:
        transcript.take(event)
    if is_cut:
        transcript.cut()
    error = ANTHROPIC_ERROR if recorded.api is Api.MESSAGES else ERROR
    assert transcript.take(b": still here\n\n") == b": still here\n\n"
    assert not transcript.is_complete
    assert transcript.take(error) == error
    assert transcript.is_complete


_NAMES = """messages prompt input role content text type n logprobs max_tokens n_predict id item
reasoning_content choices delta index finish_reason usage item_id response tool_calls stop tokens
continue_final_message message thinking assistant content_block error timings"""
WORDS = st.sampled_from(re.findall(r"\w+", _NAMES)) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=12,
)
BODIES = st.dictionaries(WORDS, JSON, max_size=6)


@given(
    api=st.sampled_from(Api),
    body=BODIES,
    events=st.lists(BODIES | st.binary(max_size=9), max_size=5),
    cuts=st.sets(st.integers(0, 5)),
)
def test_no_request_and_no_event_is_too_strange(
    api: Api, body: dict[str, Any], events: list[Any], cuts: set[int]
) -> None:
    transcript = transcript_of(api, "/completion", body)
    assert asked_upstream(api, body).items() >= body.items() or body != body
    for number, told in enumerate(events):
        raw = told if isinstance(told, bytes) else json.dumps(told).encode()
        event = b"data: " + raw + b"\n\n"
        taken = transcript.take(event)
        assert isinstance(taken, bytes)
        assert transcript.numbers and isinstance(transcript.uncounted_text, str)
        if number in cuts:
            assert isinstance(transcript.cut(), Continue | Restart | Hopeless)


@pytest.mark.parametrize("name", NAMES)
@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 12))
def test_a_broken_event_is_passed_on(name: str, place: int, byte: int, cut: int) -> None:
    recorded = Recorded.of(name)
    transcript = recorded.transcript()
    for number, event in enumerate(recorded.events[:12]):
        broken = bytearray(event)
        broken[place % (len(event) - 2)] = byte
        if number == cut:
            transcript.cut()
        assert isinstance(transcript.take(bytes(broken)), bytes)
    transcript.cut()
