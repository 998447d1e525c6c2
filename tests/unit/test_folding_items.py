"""Messages and responses, as recorded, folded: answers that are made of blocks or items."""

from collections.abc import Mapping
from typing import Any

import pytest
from test_folding import event, folded, whole

from supervisor.core.folding.fold import fold_of
from supervisor.core.gateway_routes import Api

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"


def told(kind: str, **more: Any) -> bytes:
    return event({"type": kind, **more}, kind)


def start() -> bytes:
    usage = {"cache_read_input_tokens": 30, "input_tokens": 1, "output_tokens": 0}
    empty: dict[str, Any] = {
        "content": [],
        "model": "demo",
        "stop_reason": None,
        "stop_sequence": None,
    }
    message = {"id": "chatcmpl-1", "type": "message", "role": "assistant", **empty, "usage": usage}
    return told("message_start", message=message)


def opened(index: int, **block: Any) -> bytes:
    return told("content_block_start", index=index, content_block=block)


def part(index: int, kind: str, **more: Any) -> bytes:
    return told("content_block_delta", index=index, delta={"type": kind, **more})


def message_end(reason: str = "end_turn", tokens: int = 9, word: str | None = None) -> list[bytes]:
    delta = {"stop_reason": reason, "stop_sequence": word}
    ended = told("message_delta", delta=delta, usage={"output_tokens": tokens})
    return [told("content_block_stop", index=0), ended, told("message_stop")]


def hello(*texts: str) -> list[bytes]:
    return [opened(0, type="text", text=""), *(part(0, "text_delta", text=each) for each in texts)]


def test_a_message_is_folded_in_the_order_of_a_whole_answer() -> None:
    events = [
        start(),
        told("ping"),
        opened(0, type="thinking", thinking=""),
        part(0, "thinking_delta", thinking="Hm"),
        part(0, "thinking_delta", thinking=" so"),
        opened(1, type="text", text=""),
        part(1, "text_delta", text="I look"),
        opened(2, type="tool_use", id="a", name="loo"),
        opened(2, type="tool_use", id="a", name="look"),
        part(2, "input_json_delta", partial_json='{"at":'),
        part(2, "input_json_delta", partial_json='"sky"}'),
        opened(3, type="tool_use", id="b", name="wait"),
        part(0, "signature_delta", signature=""),
        *message_end("tool_use"),
    ]
    folding = folded(MESSAGES, events)
    assert folding.is_exact
    _, body = folding.answer()
    assert body == (
        b'{"id":"chatcmpl-1","type":"message","role":"assistant","content":['
        b'{"type":"thinking","thinking":"Hm so","signature":""},{"type":"text","text":"I look"},'
        b'{"type":"tool_use","id":"a","name":"look","input":{"at":"sky"}},'
        b'{"type":"tool_use","id":"b","name":"wait","input":{}}],"model":"demo",'
        b'"stop_reason":"tool_use","stop_sequence":null,'
        b'"usage":{"cache_read_input_tokens":30,"input_tokens":1,"output_tokens":9}}'
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a":1,"b":-2.5,"a":3}', '{"a":3,"b":-2.5}'),
        ("[18446744073709551615,-9223372036854775808]", None),
        ("18446744073709551616", "1.8446744073709552e+19"),
        ("-9223372036854775809", "-9.223372036854776e+18"),
        ("1e400", "{}"),
        ("NaN", "{}"),
        ("9" * 400, "{}"),
        ('{"a":', "{}"),
        ("", "{}"),
        ('"\\ud800"', "{}"),
        ("[" * 100_000, "{}"),
    ],
)
def test_the_arguments_of_a_tool_are_read_as_the_engine_reads_them(
    arguments: str, expected: str | None
) -> None:
    opening = opened(0, type="tool_use", id="a", name="look")
    given = part(0, "input_json_delta", partial_json=arguments)
    _, body = folded(MESSAGES, [start(), opening, given, *message_end("tool_use")]).answer()
    assert f'"input":{expected or arguments}}}]'.encode() in body


@pytest.mark.parametrize(
    ("reason", "tokens", "stop", "is_exact"),
    [
        ("max_tokens", 2, ["you"], True),
        ("max_tokens", 3, ["you"], False),  # the third may be held back
        ("max_tokens", 3, None, True),
        ("end_turn", 3, ["you"], True),
    ],
)
def test_a_message_may_end_with_text_that_is_held_back(
    reason: str, tokens: int, stop: Any, is_exact: bool
) -> None:
    events = [start(), *hello("a", "b"), *message_end(reason, tokens)]
    assert folded(MESSAGES, events, stop_sequences=stop).is_exact is is_exact


def test_reasoning_does_not_tell_its_tokens() -> None:
    thought = [part(0, "thinking_delta", thinking="a"), *hello("b", "c")]
    events = [start(), *thought, *message_end("max_tokens", 2)]
    assert not folded(MESSAGES, events, stop_sequences=["you"]).is_exact


@pytest.mark.parametrize(
    ("reason", "tokens", "word", "is_exact"),
    [
        ("end_turn", 1, None, True),  # the end-of-text token
        ("end_turn", 1, "you", False),
        ("end_turn", 3, None, False),
        ("max_tokens", 1, None, False),
    ],
)
def test_a_message_without_anything_to_read_may_be_unreadable(
    reason: str, tokens: int, word: str | None, is_exact: bool
) -> None:
    folding = folded(MESSAGES, [start(), *message_end(reason, tokens, word)])
    assert folding.is_exact is is_exact
    assert whole(folding)["content"] == []


def test_a_message_that_has_no_start_is_known_at_once() -> None:
    folding = fold_of(Api.MESSAGES, MESSAGES, {"model": "mine"})
    exact = []
    for each in [told("ping"), *hello("é"), *message_end()]:
        folding.take(each)
        exact.append(folding.is_exact)
    assert exact == [True, False, False, False, False, False]
    answer = whole(folding)
    assert (answer["model"], answer["content"]) == ("mine", [{"type": "text", "text": "é"}])


def test_what_belongs_to_no_tool_is_left_out() -> None:
    events = [start(), *hello("a"), part(0, "input_json_delta", partial_json="{"), *message_end()]
    assert whole(folded(MESSAGES, events))["content"] == [{"type": "text", "text": "a"}]


# -- responses ---------------------------------------------------------------------------------

RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1795256420,
    "status": "completed",
    "model": "demo",
    "usage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12},
}
REASONING = {
    "id": "rs_1",
    "summary": [],
    "type": "reasoning",
    "content": [{"text": "Hm", "type": "reasoning_text"}],
    "encrypted_content": "",
}
PART = {"type": "output_text", "annotations": [], "logprobs": [], "text": "I look"}
MESSAGE = {
    "type": "message",
    "status": "completed",
    "id": "msg_1",
    "content": [PART],
    "role": "assistant",
}
CALL = {
    "id": "fc_1",
    "type": "function_call",
    "status": "completed",
    "arguments": "{}",
    "call_id": "call_1",
    "name": "look",
}


def completed(*output: Mapping[str, Any], tokens: int = 7) -> bytes:
    usage = {**RESPONSE["usage"], "output_tokens": tokens}
    return told("response.completed", response={**RESPONSE, "output": output, "usage": usage})


def test_a_response_is_folded_in_the_order_of_a_whole_answer() -> None:
    first = {"id": "resp_1", "object": "response", "status": "in_progress"}
    events = [
        told("response.created", response=first),
        told("response.output_text.delta", item_id="msg_1", delta="I look"),
        completed(REASONING, MESSAGE, CALL),
    ]
    folding = folded(RESPONSES, events)
    assert folding.is_exact
    answer = whole(folding)
    assert list(answer) == [
        *("completed_at", "created_at", "id", "model", "object", "output", "status", "usage")
    ]
    assert answer["completed_at"] == answer["created_at"] == RESPONSE["created_at"]
    reasoning, message, call_ = answer["output"]
    assert list(reasoning.items()) == [*REASONING.items(), ("status", "completed")]
    assert list(message) == ["content", "id", "role", "status", "type"] and message == MESSAGE
    assert list(call_.items()) == list(CALL.items())


@pytest.mark.parametrize(("tokens", "is_exact"), [(0, True), (1, False), (5, False)])
def test_a_response_without_anything_to_read_may_be_unreadable(tokens: int, is_exact: bool) -> None:
    assert folded(RESPONSES, [completed(tokens=tokens)]).is_exact is is_exact
