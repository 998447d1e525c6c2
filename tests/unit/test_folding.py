"""Streams of llama-server, as recorded, folded into whole answers."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from supervisor.core.api_errors import error_body, error_event
from supervisor.core.folding.fold import Fold, as_stream, can_fold, fold_of
from supervisor.core.gateway_routes import Api, api_of

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
COMPLETIONS, NATIVE, INFILL = "/v1/completions", "/completion", "/infill"
PATHS = {
    Api.CHAT: CHAT,
    Api.RESPONSES: RESPONSES,
    Api.MESSAGES: MESSAGES,
    Api.COMPLETIONS: COMPLETIONS,
    Api.NATIVE: NATIVE,
}
DONE = b"data: [DONE]\n\n"
MADE: dict[str, Any] = {"created": 1795256420, "id": "chatcmpl-HvkzyBqIk693", "model": "demo.gguf"}
BUILD = {"system_fingerprint": "b1-0c1e570"}
USAGE = {
    "completion_tokens": 3,
    "prompt_tokens": 28,
    "total_tokens": 31,
    "prompt_tokens_details": {"cached_tokens": 0},
}


def timings(tokens: int) -> dict[str, Any]:
    return {"cache_n": 0, "prompt_n": 28, "prompt_ms": 0.984, "predicted_n": tokens}


def event(told: Mapping[str, Any], name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(told, ensure_ascii=False)}\n\n".encode()


def folded(path: str, events: Iterable[bytes], **body: Any) -> Fold:
    folding = fold_of(api_of(path), path, body)
    for each in events:
        assert not folding.is_complete
        folding.take(each)
    return folding


def whole(folding: Fold) -> Any:
    status, body = folding.answer()
    assert status == 200
    return json.loads(body)


# -- which requests, and how they are asked ---------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": []}),
        ("/chat/completions", {"stream": None, "stream_options": {"include_usage": False}}),
        (CHAT, {"stream": False, "stream_options": None, "timings_per_token": True}),
        (CHAT, {"n": 1, "logprobs": False, "top_logprobs": None, "stop": ["a", "b"]}),
        (CHAT, {"stream_options": 7, "verbose": False, "echo": True, "response_fields": []}),
        (RESPONSES, {"input": "a"}),
        (MESSAGES, {"stop_sequences": ["a"]}),
        (COMPLETIONS, {"prompt": "a", "logprobs": 3}),
        (COMPLETIONS, {"prompt": [1, 2, "a"], "n_probs": 3, "stop": []}),
        (NATIVE, {"prompt": ["a"], "n_cmpl": None}),
        ("/completions", {"prompt": [[1, 2, 3]]}),
        (INFILL, {"input_prefix": "a", "input_suffix": "b"}),
    ],
)
def test_these_requests_can_be_folded(path: str, body: dict[str, Any]) -> None:
    assert can_fold(api_of(path), path, body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"stream": True}),
        (CHAT, {"stream": "no"}),
        (CHAT, {"stream": 0}),
        (CHAT, {"stream_options": {"include_usage": 1}}),
        (CHAT, {"timings_per_token": "yes"}),
        (CHAT, {"echo": 1}),
        (CHAT, {"n": 2}),
        (CHAT, {"n_cmpl": 2, "n": 1}),
        (CHAT, {"n": 0}),
        (CHAT, {"logprobs": True}),
        (CHAT, {"n_probs": 2}),
        (CHAT, {"top_logprobs": 2}),
        (CHAT, {"reasoning_format": "deepseek-legacy"}),
        (CHAT, {"verbose": True}),
        (RESPONSES, {"stop": "a"}),
        (RESPONSES, {"top_logprobs": 2}),
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"prompt": [[1], [2]]}),
        (COMPLETIONS, {"prompt": []}),
        (COMPLETIONS, {"prompt": "a", "logprobs": 2, "stop": "b"}),
        (COMPLETIONS, {"prompt": "a", "n_probs": 2, "post_sampling_probs": True}),
        (NATIVE, {"prompt": "a", "response_fields": ["content"]}),
        (NATIVE, {"prompt": "a", "return_tokens": True}),
        (NATIVE, {"prompt": "a", "n_indent": 2}),
        ("/v1/embeddings", {"input": "a"}),
        ("/v1/chat/completions/input_tokens", {"messages": []}),
        ("/elsewhere", {}),
    ],
)
def test_these_requests_are_asked_as_they_are(path: str, body: dict[str, Any]) -> None:
    assert not can_fold(api_of(path), path, body)


TIMED = {"stream": True, "stream_options": {"include_usage": True}, "timings_per_token": True}


@pytest.mark.parametrize(
    ("api", "members"),
    [
        (Api.CHAT, {**TIMED, "echo": True}),
        (Api.COMPLETIONS, TIMED),
        (Api.RESPONSES, {"stream": True}),
        (Api.MESSAGES, {"stream": True}),
        (Api.NATIVE, {"stream": True}),
    ],
)
@pytest.mark.parametrize(
    "body", [b"{}", b" { \n} \n", b'{"a": "}", "stream": false}\n', b'{"a":{}}']
)
def test_a_stream_is_asked_for_by_members_before_the_last_brace(
    api: Api, members: dict[str, Any], body: bytes
) -> None:
    asked = as_stream(api, body)
    assert json.loads(asked) == {**json.loads(body), **members}
    end = body.rindex(b"}")
    assert asked.startswith(body[:end]) and asked.endswith(body[end:])


# -- chat --------------------------------------------------------------------------------------


def chat(delta: Mapping[str, Any], finish: str | None = None, tokens: int = 0) -> bytes:
    choice = {"finish_reason": finish, "index": 0, "delta": delta}
    told = {"choices": [choice], **MADE, **BUILD, "object": "chat.completion.chunk"}
    return event({**told, **({"timings": timings(tokens)} if tokens else {})})


def chat_end(finish: str = "stop", tokens: int = 3) -> list[bytes]:
    told = {"choices": [], **MADE, **BUILD, "object": "chat.completion.chunk"}
    last = {**told, "usage": {**USAGE, "completion_tokens": tokens}, "timings": timings(tokens)}
    return [chat({}, finish), event(last), DONE]


ROLE = chat({"role": "assistant", "content": None})


def call(**more: Any) -> bytes:
    return chat({"tool_calls": [{"index": 0, **more}]})


def test_a_chat_is_folded_in_the_order_of_a_whole_answer() -> None:
    parts = [chat({"content": " sound"}), b":\n\n", chat({"content": " \N{FOX FACE}"})]
    folding = folded(CHAT, [ROLE, *parts, *chat_end()])
    assert folding.is_exact and folding.is_complete
    _, body = folding.answer()
    assert body.startswith(
        b'{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant",'
        b'"content":" sound \xf0\x9f\xa6\x8a"}}],"created":1795256420,"model":"demo.gguf",'
        b'"system_fingerprint":"b1-0c1e570","object":"chat.completion",'
        b'"usage":{"completion_tokens":3,'
    )
    assert body.endswith(
        b'"id":"chatcmpl-HvkzyBqIk693","timings":{"cache_n":0,"prompt_n":28,"prompt_ms":0.984,'
        b'"predicted_n":3}}'
    )


def test_a_chat_with_reasoning_and_calls() -> None:
    events = [
        ROLE,
        chat({"reasoning_content": "Hm"}),
        chat({"reasoning_content": " so", "content": "I"}),
        call(id="a", type="function", function={"name": "get"}),
        call(id="a", type="function", function={"name": "get_it", "arguments": '{"n'}),
        call(function={"arguments": '":1}'}),
        chat({"tool_calls": [{"index": 1, "function": {"name": "look", "arguments": "{}"}}]}),
        *chat_end("tool_calls"),
    ]
    message = whole(folded(CHAT, events))["choices"][0]["message"]
    assert list(message) == ["role", "content", "reasoning_content", "tool_calls"]
    assert (message["content"], message["reasoning_content"]) == ("I", "Hm so")
    first, second = message["tool_calls"]
    assert list(first.items()) == [
        ("type", "function"),
        ("function", {"name": "get_it", "arguments": '{"n":1}'}),
        ("id", "a"),
    ]
    assert second == {"type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("finish", "shown", "tokens", "stop", "is_exact"),
    [
        ("length", 3, 3, ["you"], True),
        ("length", 2, 3, ["you"], False),  # the third may be held back
        ("length", 0, 3, ["you"], False),  # nothing tells how many were shown
        ("length", 2, 3, None, True),
        ("stop", 2, 3, ["you"], True),
    ],
)
def test_a_chat_may_end_with_text_that_is_held_back(
    finish: str, shown: int, tokens: int, stop: Any, is_exact: bool
) -> None:
    events = [ROLE, chat({"content": "a"}, tokens=shown), *chat_end(finish, tokens)]
    folding = folded(CHAT, events, stop=stop)
    assert folding.is_exact is is_exact
    assert whole(folding)["choices"][0]["finish_reason"] == finish


@pytest.mark.parametrize(
    ("finish", "tokens", "stop", "is_exact"),
    [
        ("stop", 1, None, True),  # the end-of-text token
        ("stop", 1, "a", False),
        ("stop", 3, None, False),
        ("length", 1, None, False),
    ],
)
def test_a_chat_without_anything_to_read_may_be_unreadable(
    finish: str, tokens: int, stop: Any, is_exact: bool
) -> None:
    folding = folded(CHAT, [ROLE, *chat_end(finish, tokens)], stop=stop)
    assert folding.is_exact is is_exact
    assert whole(folding)["choices"][0]["message"] == {"role": "assistant", "content": ""}


def test_timings_are_left_out_where_the_engine_tells_none() -> None:
    told = {"choices": [], **MADE, **BUILD, "usage": USAGE}
    folding = folded(CHAT, [chat({"content": "a"}), chat({}, "stop"), event(told), DONE])
    assert list(whole(folding))[-1] == "id"


# -- completions -------------------------------------------------------------------------------


def text(text_: str, tokens: int = 0, finish: str | None = None, **more: Any) -> bytes:
    choice = {"text": text_, "index": 0, "logprobs": None, "finish_reason": finish, **more}
    told: dict[str, Any] = {"choices": [choice], **MADE, **BUILD, "object": "text_completion"}
    if finish:
        told["usage"] = {**USAGE, "completion_tokens": tokens}
    return event({**told, **({"timings": timings(tokens)} if tokens else {})})


def test_a_completion_is_folded_in_the_order_of_a_whole_answer() -> None:
    folding = folded(COMPLETIONS, [text(" way", 1), text(" out", 2), text("", 2, "length"), DONE])
    assert folding.is_exact
    _, body = folding.answer()
    assert body.startswith(
        b'{"choices":[{"text":" way out","index":0,"logprobs":null,"finish_reason":"length"}],'
        b'"created":1795256420,"model":"demo.gguf","system_fingerprint":"b1-0c1e570",'
        b'"object":"text_completion","usage":{'
    )
    assert b'"id":"chatcmpl-HvkzyBqIk693","timings":{' in body


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([text("a", 1), text("", 3, "length")], "a\ufffd"),
        ([text("", 1, "length")], "\ufffd"),
        ([text("a"), text("", 3, "length")], "a"),  # nothing tells how many tokens it shows
        ([text("a", 1), text("", 3, "stop")], "a"),
    ],
)
def test_a_limit_within_a_character_shows(events: list[bytes], expected: str) -> None:
    assert whole(folded(COMPLETIONS, [*events, DONE]))["choices"][0]["text"] == expected


@pytest.mark.parametrize(
    ("last", "finish", "stop", "is_exact"),
    [
        ("", "length", ["you"], False),
        ("b", "length", ["you"], True),
        ("", "length", None, True),
        ("", "stop", ["you"], True),
    ],
)
def test_a_completion_may_end_with_text_that_is_held_back(
    last: str, finish: str, stop: Any, is_exact: bool
) -> None:
    events = [text("a", 1), text(last, 2), text("", 2, finish), DONE]
    assert folded(COMPLETIONS, events, stop=stop).is_exact is is_exact


def test_the_probabilities_of_a_completion_are_put_together() -> None:
    one, two = ({"id": n, "token": "a", "logprob": -0.5} for n in (1, 2))
    events = [
        text("a", 1, logprobs={"content": [one]}),
        text("a", 2, logprobs={"content": [two]}),
        text("", 2, "length"),
        DONE,
    ]
    assert whole(folded(COMPLETIONS, events))["choices"][0]["logprobs"] == {"content": [one, two]}


# -- the engine's own --------------------------------------------------------------------------


def token(content: str, tokens: int, **more: Any) -> bytes:
    told = {"index": 0, "content": content, "tokens": [354], "stop": False, "id_slot": -1}
    return event({**told, "tokens_predicted": tokens, "tokens_evaluated": 3, **more})


def last(tokens: int, stop_type: str = "limit") -> bytes:
    told = {"index": 0, "content": "", "tokens": [], "id_slot": 1, "stop": True, "model": "demo"}
    settings = {"n_predict": 9, "stream": True, "reasoning_in_content": True, "lora": []}
    numbers = {"tokens_predicted": tokens, "generation_settings": settings}
    return event({**told, **numbers, "stop_type": stop_type, "timings": timings(tokens)})


@pytest.mark.parametrize("path", [NATIVE, "/completions", INFILL])
def test_a_native_completion_is_its_last_event_with_the_text(path: str) -> None:
    folding = folded(path, [token(" only", 1), token(" now", 2), last(2)])
    assert folding.is_exact
    _, body = folding.answer()
    assert body == (
        b'{"index":0,"content":" only now","tokens":[],"id_slot":1,"stop":true,"model":"demo",'
        b'"tokens_predicted":2,"generation_settings":{"n_predict":9,"stream":false,'
        b'"reasoning_in_content":false,"lora":[]},"stop_type":"limit","timings":{"cache_n":0,'
        b'"prompt_n":28,"prompt_ms":0.984,"predicted_n":2}}'
    )


def test_the_probabilities_of_a_native_completion_come_last() -> None:
    one, two = ({"id": n, "logprob": -0.5} for n in (1, 2))
    events = [
        token("a", 1, completion_probabilities=[one]),
        token("b", 2, completion_probabilities=[two]),
        last(2, "eos"),
    ]
    told = whole(folded(NATIVE, events))
    assert list(told.items())[-1] == ("completion_probabilities", [one, two])


@pytest.mark.parametrize(
    ("events", "expected", "is_exact"),
    [
        ([token("a", 1), last(3)], "a\ufffd", True),
        ([last(1)], "\ufffd", True),
        ([token("a", 1), last(3, "eos")], "a", True),
        ([token("a", 1), token("", 2), last(2)], "a", False),
        ([token("a", 1), token("", 2), last(2, "word")], "a", True),
    ],
)
def test_a_native_completion_may_end_with_what_is_not_shown(
    events: list[bytes], expected: str, is_exact: bool
) -> None:
    folding = folded(NATIVE, events, stop=["you"])
    assert (whole(folding)["content"], folding.is_exact) == (expected, is_exact)


# -- errors ------------------------------------------------------------------------------------

ERROR = {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}


def engine_error(api: Api, error: Mapping[str, Any] = ERROR) -> bytes:
    return event(error, "error") if api is Api.MESSAGES else event({"error": error})


@pytest.mark.parametrize("api", PATHS)
def test_an_error_of_the_engine_is_that_of_a_whole_answer(api: Api) -> None:
    folding = folded(PATHS[api], [b":\n\n", engine_error(api)])
    assert folding.is_complete and folding.is_exact
    status, body = folding.answer()
    assert (status, json.loads(body)) == (500, {"error": ERROR})


@pytest.mark.parametrize("api", PATHS)
def test_an_error_that_only_a_stream_can_have_is_not_exact(api: Api) -> None:
    error = {**ERROR, "message": "Invalid diff: now finding less tool calls!"}
    assert not folded(PATHS[api], [engine_error(api, error)]).is_exact


@pytest.mark.parametrize("code", [399, 600, "server_error", None])
def test_an_error_without_a_status_is_one_of_the_server(code: object) -> None:
    status, _ = folded(CHAT, [engine_error(Api.CHAT, {**ERROR, "code": code})]).answer()
    assert status == 500


@pytest.mark.parametrize("api", PATHS)
def test_an_error_of_the_gateway_keeps_its_shape(api: Api) -> None:
    body = error_body(api, 503, "answer_lost", "it is gone")
    folding = fold_of(api, PATHS[api], {})
    for each in error_event(api, body).split(b"\n\n")[:-1]:
        folding.take(each + b"\n\n")
    _, answer = folding.answer()
    assert json.loads(answer) == body


def test_an_error_that_is_no_object_is_passed_on() -> None:
    status, body = folded(CHAT, [event({"error": "gone"})]).answer()
    assert (status, json.loads(body)) == (500, {"error": {"error": "gone"}})


# -- what no engine sends ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "odd"),
    [
        (CHAT, b"data: {\n\n"),
        (CHAT, b'data: {"choices":7}\n\n'),
        (CHAT, b'data: {"choices":[{"finish_reason":null,"delta":[]}]}\n\n'),
        (COMPLETIONS, b'data: {"choices":[{}]}\n\n'),
        (NATIVE, b"data: {}\n\n"),
        (MESSAGES, b"data: {}\n\n"),
        (RESPONSES, b'data: {"type":"response.completed"}\n\n'),
        (CHAT, b'data: {"\xff":1}\n\n'),
        (CHAT, b"data: {" + b'"a":{' * 100_000 + b"\n\n"),
    ],
)
def test_an_event_of_another_shape_is_refused(path: str, odd: bytes) -> None:
    with pytest.raises(ValueError, match="an unexpected event"):
        folded(path, [odd])


@pytest.mark.parametrize("api", PATHS)
def test_there_is_no_answer_before_the_end(api: Api) -> None:
    with pytest.raises(ValueError, match="has not ended"):
        fold_of(api, PATHS[api], {}).answer()


def test_there_is_no_answer_without_its_usage() -> None:
    with pytest.raises(ValueError, match="left out a part"):
        folded(CHAT, [chat({"content": "a"}), chat({}, "stop"), DONE]).answer()
