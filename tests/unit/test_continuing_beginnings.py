"""Answers whose beginning the client gave: what is asked for after a cut, and what goes through."""

import json
from typing import Any

import pytest

from supervisor.core.continuing.transcript import (
    Continue,
    Hopeless,
    Restart,
    Transcript,
    transcript_of,
)
from supervisor.core.gateway_routes import Api

USER = {"role": "user", "content": "Hi"}


def event(told: dict[str, Any]) -> bytes:
    name = f"event: {told['type']}\n" if "type" in told else ""
    return f"{name}data: {json.dumps(told)}\n\n".encode()


def chunk(**delta: str) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return event({"choices": [choice], "id": "chatcmpl-1"})


def block(index: int, kind: str) -> bytes:
    told = {"type": "content_block_start", "index": index, "content_block": {"type": kind}}
    return event(told)


def part(index: int, **delta: str) -> bytes:
    kinds = {"text": "text_delta", "thinking": "thinking_delta"}
    kind = next(kinds[name] for name in delta)
    told = {"type": "content_block_delta", "index": index, "delta": {"type": kind, **delta}}
    return event(told)


def text_item(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text}]
    return {"type": "message", "role": "assistant", "content": content}


def reasoning_item(*texts: str) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text} for text in texts]
    return {"type": "reasoning", "summary": [], "content": content}


def heard(api: Api, body: dict[str, Any], *events: bytes) -> Transcript:
    before = json.dumps(body)
    transcript = transcript_of(api, "/", body)
    for one in events:
        assert transcript.take(one) == one
    transcript.cut()
    assert json.dumps(body) == before, "the client's request was changed"
    return transcript


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


CHATS: list[tuple[dict[str, Any], list[bytes], dict[str, Any], str]] = [
    (USER, [chunk(content="a")], assistant("a"), "content"),
    (
        USER,
        [chunk(reasoning_content="r")],
        assistant("", reasoning_content="r"),
        "reasoning_content",
    ),
    (
        USER,
        [chunk(reasoning_content="r"), chunk(content="a"), chunk(content="b")],
        assistant("ab", reasoning_content="r"),
        "content",
    ),
    (assistant("It"), [chunk(content="It is")], assistant("It is"), "content"),
    (
        assistant("It", reasoning_content="Hm", name="x"),
        [chunk(reasoning_content="Hm\n"), chunk(content="It is")],
        assistant("It is", reasoning_content="Hm", name="x"),
        "content",
    ),
    (
        assistant(None, reasoning_content="Hm"),
        [chunk(reasoning_content="Hm so"), chunk(content="It")],
        assistant("It", reasoning_content="Hm so"),
        "content",
    ),
    (
        assistant([{"type": "text", "text": "It"}, {"type": "text", "text": " is"}]),
        [chunk(content="It\n\n is so")],
        assistant([{"type": "text", "text": "It"}, {"type": "text", "text": " is so"}]),
        "content",
    ),
]


@pytest.mark.parametrize(("last", "events", "message", "where"), CHATS)
def test_a_chat_goes_on_with_the_last_message(
    last: dict[str, Any], events: list[bytes], message: dict[str, Any], where: str
) -> None:
    before = [USER] if last is not USER else []
    outcome = heard(Api.CHAT, {"messages": [*before, last], "echo": True}, *events).cut()
    expected = [*before, message] if last is not USER else [USER, message]
    assert outcome == Continue(
        {
            "messages": expected,
            "timings_per_token": True,
            "add_generation_prompt": False,
            "continue_final_message": where,
        }
    )


@pytest.mark.parametrize("asked", [True, "content"])
def test_a_beginning_that_is_not_said_again(asked: object) -> None:
    body = {"messages": [USER, assistant("It")], "continue_final_message": asked}
    outcome = heard(Api.CHAT, body, chunk(content="It")).cut()
    assert isinstance(outcome, Continue)
    assert outcome.body["messages"] == [USER, assistant("ItIt")]
    with_echo = heard(Api.CHAT, {**body, "echo": True}, chunk(content="It")).cut()
    assert isinstance(with_echo, Restart)


def test_a_message_of_another_role_may_be_continued_too() -> None:
    body = {"messages": [USER], "continue_final_message": True, "add_generation_prompt": False}
    outcome = heard(Api.CHAT, body, chunk(content=" there")).cut()
    assert isinstance(outcome, Continue)
    assert outcome.body["messages"] == [{"role": "user", "content": "Hi there"}]


def test_a_prompt_that_lets_the_model_choose_its_role_is_hopeless() -> None:
    body = {"messages": [USER], "add_generation_prompt": False}
    assert isinstance(heard(Api.CHAT, body, chunk(content="x")).cut(), Hopeless)


def test_a_cut_within_what_the_client_gave_begins_again_after_it() -> None:
    given = assistant("It", reasoning_content="Hm")
    first, second = chunk(reasoning_content="Hm\n"), chunk(content="It is")
    transcript = heard(Api.CHAT, {"messages": [USER, given]}, first)
    assert isinstance(transcript.cut(), Restart)
    assert transcript.take(first) == b""
    assert json.loads(transcript.take(second)[6:]) == json.loads(second[6:])
    outcome = transcript.cut()
    assert isinstance(outcome, Continue)
    assert outcome.body["messages"] == [USER, {**given, "content": "It is"}]


def test_a_response_cut_within_what_its_client_gave() -> None:
    body = {"input": [USER, reasoning_item("Hm"), text_item("It")]}
    first, second = delta("reasoning_text", "Hm\n"), delta("output_text", "It is")
    transcript = heard(Api.RESPONSES, body, first)
    assert isinstance(transcript.cut(), Restart)
    assert transcript.take(first) == b""
    assert b'"delta":"It is"' in transcript.take(second)


MESSAGES: list[tuple[Any, list[bytes], Any]] = [
    (None, [block(0, "text"), part(0, text="a")], [{"type": "text", "text": "a"}]),
    (
        None,
        [block(0, "thinking"), part(0, thinking="r"), block(1, "text"), part(1, text="a")],
        [{"type": "thinking", "thinking": "r", "signature": ""}, {"type": "text", "text": "a"}],
    ),
    ("It", [block(0, "text"), part(0, text="It is")], "It is"),
    (
        "",
        [block(0, "thinking"), part(0, thinking="r")],
        [{"type": "thinking", "thinking": "r", "signature": ""}],
    ),
    (
        [{"type": "thinking", "thinking": "Hm", "signature": "s"}],
        [block(0, "thinking"), part(0, thinking="Hm so")],
        [{"type": "thinking", "thinking": "Hm so", "signature": "s"}],
    ),
    (
        [{"type": "text", "text": "It"}, {"type": "text", "text": " is"}],
        [block(0, "text"), part(0, text="It\n\n is so")],
        [{"type": "text", "text": "It"}, {"type": "text", "text": " is so"}],
    ),
]


@pytest.mark.parametrize(("given", "events", "content"), MESSAGES)
def test_a_message_goes_on_with_its_blocks(given: Any, events: list[bytes], content: Any) -> None:
    before = [USER] if given is None else [USER, assistant(given)]
    outcome = heard(Api.MESSAGES, {"messages": before}, *events).cut()
    assert isinstance(outcome, Continue)
    assert outcome.body.pop("max_tokens") < 4096
    assert outcome.body == {"messages": [USER, assistant(content)]}


def test_what_a_message_says_again_is_left_out() -> None:
    events = [block(0, "thinking"), part(0, thinking="r"), block(1, "text"), part(1, text="a")]
    transcript = heard(Api.MESSAGES, {"messages": [USER]}, *events)
    again = [
        event({"type": "ping"}),
        block(0, "thinking"),
        part(0, thinking="r\n"),
        block(1, "text"),
        part(1, text="ab"),
        part(1, text="c"),
        part(7, text="of no block"),
        block(2, "tool_use"),
        event({"type": "content_block_stop", "index": 7}),
    ]
    passed = [transcript.take(one) for one in again]
    shown = [json.loads(one.split(b"data: ")[1]) for one in passed if one]
    assert [told["type"] for told in shown] == [
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_start",
    ]
    assert [told["delta"]["text"] for told in shown[1:3]] == ["b", "c"]
    assert shown[3]["index"] == 2
    assert isinstance(transcript.cut(), Hopeless)


def delta(kind: str, text: str) -> bytes:
    prefix = {"output_text": "msg_1", "reasoning_text": "rs_1"}.get(kind, "fc_1")
    return event({"type": f"response.{kind}.delta", "delta": text, "item_id": prefix})


RESPONSES: list[tuple[Any, list[bytes], list[Any]]] = [
    ("Hi", [delta("output_text", "a")], [USER, text_item("a")]),
    ("Hi", [delta("reasoning_text", "r")], [USER, reasoning_item("r")]),
    (
        [USER],
        [delta("reasoning_text", "r"), delta("output_text", "a")],
        [USER, reasoning_item("r"), text_item("a")],
    ),
    ([USER, text_item("It")], [delta("output_text", "It is")], [USER, text_item("It is")]),
    (
        [USER, reasoning_item("Hm", "unread"), text_item("It")],
        [delta("reasoning_text", "Hm\n"), delta("output_text", "It is")],
        [USER, reasoning_item("Hm", "unread"), text_item("It is")],
    ),
    (
        [USER, reasoning_item("Hm", "unread")],
        [delta("reasoning_text", "Hm so"), delta("output_text", "It")],
        [USER, reasoning_item("Hm so", "unread"), text_item("It")],
    ),
    (
        [text_item("before"), USER, "odd"],
        [delta("output_text", "a")],
        [text_item("before"), USER, "odd", text_item("a")],
    ),
]


@pytest.mark.parametrize(("given", "events", "items"), RESPONSES)
def test_a_response_goes_on_with_its_items(
    given: Any, events: list[bytes], items: list[Any]
) -> None:
    outcome = heard(Api.RESPONSES, {"input": given, "max_output_tokens": 9}, *events).cut()
    assert isinstance(outcome, Continue)
    assert outcome.body["input"] == items
    assert outcome.body["max_output_tokens"] < 9
    has_text = any(isinstance(i, dict) and i == items[-1] and "role" in i for i in items)
    expected = "content" if has_text else "reasoning_content"
    assert outcome.body["continue_final_message"] == expected
    assert outcome.body["add_generation_prompt"] is False


def test_a_tool_call_in_a_response_is_hopeless_to_its_end() -> None:
    call = {"type": "function_call", "id": "fc_1", "name": "look"}
    events = [
        event({"type": "response.output_item.added", "item": call}),
        delta("function_call_arguments", "{"),
    ]
    done = event({"type": "response.output_item.done", "item": call})
    for count in (1, 2, 3):
        transcript = heard(Api.RESPONSES, {"input": "Hi"}, *[*events, done][:count])
        assert transcript.has_begun
        assert isinstance(transcript.cut(), Hopeless)


@pytest.mark.parametrize("kind", ["response.failed", "error"])
def test_a_response_may_end_in_other_ways(kind: str) -> None:
    assert heard(Api.RESPONSES, {"input": "Hi"}, event({"type": kind})).is_complete


def test_a_response_of_which_only_the_text_is_known_ends_with_ids_of_its_own() -> None:
    body = {"input": "Hi", "max_output_tokens": 1}
    created = event({"type": "response.created", "response": {"id": "resp_77"}})
    transcript = heard(Api.RESPONSES, body, created, delta("output_text", "a"))
    usage = {"input_tokens": 5, "output_tokens": 1, "total_tokens": 6}
    response = {"id": "resp_88", "output": [], "usage": usage}
    ends = transcript.take(event({"type": "response.completed", "response": response}))
    told = [json.loads(line[6:]) for line in ends.split(b"\n") if line.startswith(b"data: ")]
    kinds = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [one["type"] for one in told] == [f"response.{kind}" for kind in kinds]
    assert told[2]["item"] == told[3]["response"]["output"][0]
    assert told[2]["item"]["id"] == told[0]["item_id"] == "msg_77"
    assert told[3]["response"]["id"] == "resp_77"
    assert told[3]["response"]["usage"] == usage
    assert transcript.is_complete


def test_new_lines_before_a_cut_are_remembered() -> None:
    counts = {"tokens_predicted": 1, "tokens_evaluated": 2}
    transcript = transcript_of(Api.NATIVE, "/completion", {"prompt": "Hi"})
    transcript.take(event({"content": "a\n", "stop": False, **counts}))
    transcript.cut()
    last = {"content": "", "stop": True, "has_new_line": False, "prompt": "<s> Hia\n", **counts}
    told = json.loads(transcript.take(event(last))[6:])
    assert told == {**last, "has_new_line": True, "prompt": "<s> Hi", "tokens_predicted": 2}


def test_what_is_told_again_of_progress_is_left_out() -> None:
    counts = {"tokens_predicted": 0, "tokens_evaluated": 2}
    progress = event({"content": "", "stop": False, "prompt_progress": {"total": 2}, **counts})
    transcript = transcript_of(Api.NATIVE, "/completion", {"prompt": "Hi"})
    assert transcript.take(progress) == progress
    assert isinstance(transcript.cut(), Restart)
    assert transcript.take(progress) == b""
