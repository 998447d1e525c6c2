"""Streams of the real llama-server, folded, beside its whole answers to the same requests."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx
import pytest
from lab.engine import LoneEngine, lone_engine
from lab.recited import TEMPLATE, as_bytes, as_tokens, write_reciting_model

from agents.contract import EngineFacts
from supervisor.core.continuing.events import EventSplitter
from supervisor.core.continuing.transcript import (
    Continue,
    Transcript,
    asked_upstream,
    transcript_of,
)
from supervisor.core.folding.fold import Fold, as_stream, can_fold, fold_of
from supervisor.core.gateway_routes import api_of
from supervisor.demo_model import write_demo_model

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
COMPLETIONS, NATIVE, INFILL = "/v1/completions", "/completion", "/infill"

PLAIN = [
    *as_tokens(["The", " sun", " is", " "]),
    *as_bytes("😀"),
    *as_tokens([" 🎉", " warm", " today"]),
    *as_bytes("你"),
    *as_tokens(["好", " Cafe"]),
    *as_bytes("\u0301"),
    *as_tokens([' "quoted"', " back\\slash\n", " end", "ing", " now."]),
]
THINKING = as_tokens(["<think>", "\nHm", " why", " 🧠", " then\n", "</think>", "\n\nSo", " 42"])
CALLING = as_tokens(
    ["I", " look:", "<tool_call>", '\n{"name": "look"', ', "arguments": {"at"', ': "sky', ' blue"}']
) + as_tokens(["}\n", "</tool_call>"])
UNTOLD = as_tokens(["<th", "ink>\n\n</th", "ink>\n\n"])
TORN = [*as_bytes("é"), *as_tokens(["tude"])]
SONGS = {"": PLAIN, "¶": THINKING, "§": CALLING, "¢": UNTOLD, "¥": TORN, "£": []}

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"at": {"type": "string"}, "far": {"type": "number"}},
    "required": ["at"],
}
TOOL: Final[dict[str, Any]] = {
    "name": "look",
    "description": "Look at something",
    "parameters": SCHEMA,
}
TOOLS: Final[dict[str, Any]] = {"tools": [{"type": "function", "function": TOOL}]}
MESSAGES_TOOLS: Final[dict[str, Any]] = {
    "tools": [{"name": "look", "description": "", "input_schema": SCHEMA}]
}
RESPONSES_TOOLS: Final[dict[str, Any]] = {"tools": [{"type": "function", **TOOL}]}
JSON: Final[dict[str, Any]] = {
    "type": "json_schema",
    "json_schema": {"name": "at", "schema": SCHEMA},
}
USER: Final[dict[str, Any]] = {"role": "user", "content": "Hi"}
SYSTEM: Final[dict[str, Any]] = {"role": "system", "content": "Be brief."}
BEGUN: Final[dict[str, Any]] = {"role": "assistant", "content": "The sun"}
CONTINUED: Final[dict[str, Any]] = {"continue_final_message": True, "add_generation_prompt": False}
THOUGHT: Final[dict[str, Any]] = {**BEGUN, "reasoning_content": "Hm", "content": "So"}
CERTAIN: Final[dict[str, Any]] = {"temperature": 0}
SHORT: Final[dict[str, Any]] = {"max_tokens": 40, **CERTAIN}
LONG: Final = "word " * 3000

Case = tuple[str, dict[str, Any]]


def _chat(*messages: Mapping[str, Any], song: str = "", **more: Any) -> Case:
    return CHAT, {"messages": list(messages or [USER]), **_song(song), **SHORT, **more}


def _message(*messages: Mapping[str, Any], song: str = "", **more: Any) -> Case:
    return MESSAGES, {"messages": list(messages or [USER]), **_song(song), **SHORT, **more}


def _response(given: Any = "Hi", song: str = "", **more: Any) -> Case:
    return RESPONSES, {"input": given, **_song(song), "max_output_tokens": 40, **CERTAIN, **more}


def _song(song: str) -> dict[str, Any]:
    return {"chat_template_kwargs": {"song": song}} if song else {}


def _texts(**more: Any) -> list[Case]:
    body = {"prompt": "Once", **SHORT, **more}
    return [(COMPLETIONS, body), (NATIVE, body), ("/completions", body)]


ITEM: Final[dict[str, Any]] = {"type": "message", "role": "assistant"}

RECITED: Final[list[Case]] = [
    _chat(),
    _chat(SYSTEM, USER),
    *[_chat(max_tokens=tokens) for tokens in range(10)],
    _chat(max_completion_tokens=7, max_tokens=9),
    _chat(max_tokens=None),
    _chat(stop=" today"),
    _chat(stop=[" today", "warm"]),
    _chat(stop=[" tomorrow"]),
    _chat(stop=["\n"]),
    _chat(song="£"),
    _chat(song="¥"),
    _chat(song="¶"),
    _chat(song="¶", max_tokens=4),
    _chat(song="¶", reasoning_format="none"),
    _chat(song="¶", reasoning_format="deepseek"),
    _chat(song="¶", stop=["42"]),
    _chat(USER, BEGUN),
    _chat(USER, THOUGHT),
    _chat(USER, BEGUN, **CONTINUED),
    _chat(USER, BEGUN, **CONTINUED, echo=True),
    _chat(USER, THOUGHT, **{**CONTINUED, "continue_final_message": "content"}),
    _chat(**TOOLS),
    _chat(song="§", **TOOLS),
    _chat(song="§", **TOOLS, tool_choice="auto", parallel_tool_calls=True),
    _chat(song="§", **TOOLS, tool_choice="none"),
    _chat(song="§", **TOOLS, max_tokens=8),
    _chat(song="§"),
    _chat(timings_per_token=True),
    _chat(timings_per_token=False, stream=False, stream_options={"include_usage": False}),
    _chat(stream=None, stream_options=None, n=1, logprobs=False, echo=False),
    _chat(return_progress=True),
    _message(),
    _message(system="Be brief.", top_k=3),
    *[_message(max_tokens=tokens) for tokens in (0, 1, 4, 5, 7, 9)],
    _message(stop_sequences=[" today"]),
    _message(stop_sequences=[" tomorrow"]),
    _message(song="£"),
    _message(song="¶"),
    _message(song="¶", max_tokens=5, thinking={"type": "enabled", "budget_tokens": 1024}),
    _message(USER, BEGUN),
    _message(**MESSAGES_TOOLS),
    _message(song="§", **MESSAGES_TOOLS),
    _message(song="§", **MESSAGES_TOOLS, tool_choice={"type": "auto"}),
    _message(song="§", **MESSAGES_TOOLS, max_tokens=8),
    _message(stream=False),
    _response(),
    _response([{"role": "user", "content": "Hi"}], instructions="Be brief."),
    *[_response(max_output_tokens=tokens) for tokens in (1, 4, 5, 7, 9)],
    _response(song="¥"),
    _response(song="¶"),
    _response(song="¶", max_output_tokens=4, reasoning={"effort": "low"}),
    _response([USER, {**ITEM, "content": [{"type": "output_text", "text": "The sun"}]}]),
    _response([USER, {**ITEM, "content": "The sun"}], **CONTINUED),
    _response(**RESPONSES_TOOLS),
    _response(song="§", **RESPONSES_TOOLS),
    _response(song="§", **RESPONSES_TOOLS, max_output_tokens=8),
    *_texts(),
    *[case for tokens in range(10) for case in _texts(max_tokens=tokens)],
    *_texts(stop=[" today"]),
    *_texts(stop=[" tomorrow"]),
    *_texts(prompt="£"),
    *[case for tokens in (1, 2, 3) for case in _texts(prompt="¥", max_tokens=tokens)],
    *_texts(prompt=["Once"]),
    *_texts(prompt=[1, 5, "Once"]),
    *_texts(prompt=""),
    *_texts(n_probs=3),
    *_texts(n_probs=3, max_tokens=6),
    *_texts(logprobs=2, prompt="£"),
    *_texts(timings_per_token=True),
    *_texts(timings_per_token=False, stream=False, stream_options={"include_usage": False}),
    *_texts(return_progress=True, ignore_eos=True, n_predict=60),
    (INFILL, {"input_prefix": "Once", "input_suffix": "end", "n_predict": 9}),
]
"""With a model that says what is expected, byte by byte where that is of interest."""

RANDOM: Final[dict[str, Any]] = {"temperature": 1.5, "max_tokens": 120}
DRAWN: Final[list[Case]] = [
    *[_chat(**RANDOM, seed=seed) for seed in range(3)],
    _chat(ignore_eos=True),
    _chat(**RANDOM, seed=1, **TOOLS),
    _chat(**RANDOM, seed=2, **TOOLS, tool_choice="required"),
    _chat(**RANDOM, seed=3, **TOOLS, tool_choice="required", parallel_tool_calls=True),
    _chat(**{**RANDOM, "max_tokens": 25}, seed=2, **TOOLS, tool_choice="required"),
    _chat(**RANDOM, seed=4, **TOOLS, tool_choice="none"),
    _chat(**RANDOM, seed=5, response_format=JSON),
    _chat(**RANDOM, seed=6, response_format={"type": "json_object"}),
    _chat(**RANDOM, seed=7, grammar='root ::= "é" [a-z]+ "ñ"'),
    _message(),
    _message(**MESSAGES_TOOLS),
    _message(**MESSAGES_TOOLS, tool_choice={"type": "any"}, max_tokens=400),
    _message(**MESSAGES_TOOLS, tool_choice={"type": "any"}, max_tokens=30),
    _response(temperature=1.5, seed=8),
    _response(temperature=1.5, seed=9, **RESPONSES_TOOLS, tool_choice="required"),
    *_texts(**RANDOM, seed=10),
    *_texts(**RANDOM, seed=11, json_schema=SCHEMA),
    *_texts(**RANDOM, seed=12, grammar='root ::= "é" [a-z]+ "ñ"', n_probs=2),
    *_texts(prompt="word " * 900, max_tokens=-1),  # to the end of the context
    # Errors.
    _chat(messages=5),
    _chat({"role": "user", "content": LONG}),
    _chat(grammar="root ::= ("),
    _chat(response_format={"type": "xml"}),
    _chat(**TOOLS, tool_choice="sometimes"),
    _chat(top_k="many"),
    _chat(n_predict=-7),
    _chat(stream_options=7, top_k="many"),
    (CHAT, {}),
    _message({"role": "user", "content": LONG}),
    (MESSAGES, {"max_tokens": 3}),
    _response(LONG),
    _response([{"type": "what"}]),
    _response(previous_response_id="resp_1"),
    (RESPONSES, {}),
    *_texts(prompt=LONG),
    *_texts(prompt={"no": "prompt"}),
    *_texts(json_schema=SCHEMA, grammar="root ::= ("),
    (NATIVE, {}),
    (INFILL, {"input_prefix": "Once"}),
]
"""With a model whose words are arbitrary, so that a grammar may lead it anywhere."""

UNTELLABLE: Final[list[Case]] = [
    # A limit, while the beginning of a stop word is held back.
    _chat(max_tokens=11, stop=[" today you can"]),
    _message(max_tokens=11, stop_sequences=[" today you can"]),
    *_texts(max_tokens=11, stop=[" today you can"]),
    # The marks of an empty reasoning.
    _chat(song="¢"),
    _message(song="¢"),
    _response(song="¢"),
    # The first token is part of a character: no event tells the prompt's tokens.
    _message(song="¥"),
]
"""Streams that do not tell all of the answer."""


@pytest.fixture(scope="module")
def reciter(engine: EngineFacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoneEngine]:
    path = tmp_path_factory.mktemp("reciter") / "songs.gguf"
    write_reciting_model(path, SONGS, TEMPLATE)
    marks = ("prefix", "suffix", "middle")
    flags = [f"tokenizer.ggml.{mark}_token_id=int:{n}" for n, mark in enumerate(marks, 10)]
    with lone_engine(
        engine, path, "-np", "2", "--no-cache-prompt", "--override-kv", ",".join(flags)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def rambler(engine: EngineFacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoneEngine]:
    path = tmp_path_factory.mktemp("rambler") / "random.gguf"
    write_demo_model(path, layers=2, embedding=128, feed_forward=128, heads=4, recite=False)
    with lone_engine(engine, path, "-np", "2", "--no-cache-prompt") as running:
        yield running


def _named(cases: list[Case]) -> pytest.MarkDecorator:
    names = [f"{number}-{path.rsplit('/', 1)[-1]}" for number, (path, _) in enumerate(cases)]
    return pytest.mark.parametrize(("path", "body"), cases, ids=names)


@_named(RECITED)
def test_a_recited_answer_is_the_same_folded(
    reciter: LoneEngine, path: str, body: dict[str, Any]
) -> None:
    assert_equal(reciter, path, body)


@_named(DRAWN)
def test_a_drawn_answer_or_an_error_is_the_same_folded(
    rambler: LoneEngine, path: str, body: dict[str, Any]
) -> None:
    assert_equal(rambler, path, body)


def assert_equal(engine: LoneEngine, path: str, body: dict[str, Any]) -> None:
    assert can_fold(api_of(path), path, body)
    whole = engine.http.post(path, json=body)
    status, folded, is_exact = fold(engine, path, body)
    assert (status, normal(folded)) == (whole.status_code, normal(whole.content))
    assert is_exact


def fold(engine: LoneEngine, path: str, body: dict[str, Any]) -> tuple[int, bytes, bool]:
    """Ask for a stream instead, as the gateway does."""
    folding = fold_of(api_of(path), path, body)
    asked = as_stream(api_of(path), json.dumps(body).encode())
    transcript = transcript_of(api_of(path), path, json.loads(asked))
    refused = pour(engine, path, asked, transcript, folding)
    if refused is not None:
        return refused.status_code, refused.content, True
    return *folding.answer(), folding.is_exact


def pour(
    engine: LoneEngine,
    path: str,
    asked: bytes,
    transcript: Transcript,
    folding: Fold,
    events: int | None = None,
) -> httpx.Response | None:
    """Take the events of an answer, or the first of them. The answer, if it is no stream."""
    headers = {"content-type": "application/json"}
    with engine.http.stream("POST", path, content=asked, headers=headers) as answer:
        if answer.status_code != 200:
            answer.read()
            return answer
        splitter = EventSplitter()
        for chunk in answer.iter_raw():
            for event in splitter.feed(chunk):
                if events is not None and (events := events - 1) < 0:
                    return None
                for shown in EventSplitter().feed(transcript.take(event)):
                    folding.take(shown)
    assert splitter.rest == b""
    return None


def normal(body: bytes) -> Any:
    """An answer in the order of its keys, without what differs from one to the next."""
    return json.loads(body, object_pairs_hook=_pairs, parse_float=lambda digits: (float(digits),))


def _pairs(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    return [(name, _masked(name, value)) for name, value in pairs]


def _masked(name: str, value: Any) -> Any:
    if name == "id_slot" or name in ("created", "created_at", "completed_at"):
        return type(value)
    if name in ("id", "call_id") and isinstance(value, str):
        return value.partition("-")[0].rpartition("_")[0], len(value)
    if name == "timings":
        return [(key, figure if key.endswith("_n") else None) for key, figure in value]
    return value


@_named(UNTELLABLE)
def test_a_stream_that_does_not_tell_all_is_known(
    reciter: LoneEngine, path: str, body: dict[str, Any]
) -> None:
    whole = reciter.http.post(path, json=body)
    status, folded, is_exact = fold(reciter, path, body)
    assert (status, is_exact) == (200, False)
    assert normal(folded) != normal(whole.content), "this one could be exact"


def test_an_answer_without_a_start_is_known_at_its_first_event(reciter: LoneEngine) -> None:
    path, body = _message(song="¥")
    folding = fold_of(api_of(path), path, body)
    [first, *_] = reciter.events(path, body)
    folding.take(first)
    assert not folding.is_exact and not folding.is_complete


@pytest.mark.parametrize(
    ("path", "body"),
    [_chat(), _chat(song="¶"), _message(), _message(song="¶"), _response(), *_texts()],
)
def test_an_answer_whose_engine_is_lost_is_continued_and_folded(
    reciter: LoneEngine, path: str, body: dict[str, Any]
) -> None:
    """With a model whose words do not depend on how they came to be."""
    whole = reciter.http.post(path, json=body)
    stream = json.loads(as_stream(api_of(path), json.dumps(body).encode()))
    transcript = transcript_of(api_of(path), path, stream)
    folding = fold_of(api_of(path), path, body)
    asked = json.dumps(asked_upstream(api_of(path), stream)).encode()
    pour(reciter, path, asked, transcript, folding, events=10)
    rest = transcript.cut()
    assert isinstance(rest, Continue)
    pour(reciter, path, json.dumps(rest.body).encode(), transcript, folding)
    status, folded = folding.answer()
    assert (status, normal(_uncounted(folded))) == (200, normal(_uncounted(whole.content)))
    assert folding.is_exact


def _uncounted(body: bytes) -> bytes:
    """Without what a cut leaves inexact: the tokens of messages, and all timings."""
    told = json.loads(body)
    told.pop("timings", None)
    if told.get("type") == "message":
        del told["usage"]["output_tokens"]
    return json.dumps(told).encode()


def test_an_error_within_the_answer_is_that_of_the_whole_answer(
    engine: EngineFacts, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two answers outgrow a context that they share."""
    path = tmp_path_factory.mktemp("shared") / "random.gguf"
    write_demo_model(path, layers=2, embedding=128, feed_forward=128, heads=4, recite=False)
    flags = ("-np", "2", "-c", "256", "--kv-unified", "--no-cache-prompt")
    with lone_engine(engine, path, *flags) as shared:
        for case in (_chat(ignore_eos=True), _response(ignore_eos=True), _message()):
            _assert_error_is_equal(shared, *case)


def _assert_error_is_equal(engine: LoneEngine, path: str, body: dict[str, Any]) -> None:
    name = "max_output_tokens" if path == RESPONSES else "max_tokens"
    body = {**body, name: -1}

    def ask_whole() -> tuple[int, bytes]:
        answer = engine.http.post(path, json=body)
        return answer.status_code, answer.content

    whole = _error_of_two(ask_whole)
    assert whole[0] == 500
    assert _error_of_two(lambda: fold(engine, path, body)[:2]) == whole


def _error_of_two(ask: Callable[[], tuple[int, bytes]]) -> tuple[int, Any]:
    """What the first gets that is in the way of the other; again if they did not meet."""
    for _ in range(20):
        with ThreadPoolExecutor(2) as pool:
            for status, answer in pool.map(lambda _: ask(), range(2)):
                if status != 200:
                    return status, normal(answer)
    raise AssertionError("both had room")


def test_a_client_that_leaves_frees_its_slot_only_if_the_engine_streams(
    engine: EngineFacts, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """While another slot generates, a whole answer goes on: that is why there is folding."""
    path = tmp_path_factory.mktemp("slow") / "random.gguf"
    write_demo_model(path, layers=16, recite=False)
    body = {"prompt": "Once", "n_predict": 3900, "ignore_eos": True, "temperature": 0}
    with lone_engine(engine, path, "-np", "2", "-c", "8192") as slow:
        ending = threading.Event()
        neighbour = threading.Thread(target=_generate, args=(slow, {**body, "id_slot": 0}, ending))
        neighbour.start()
        try:
            _await(lambda: _busy(slow) == [True, False], 10.0)
            asked = {**body, "id_slot": 1}
            folded_s = _held_s(slow, as_stream(api_of(NATIVE), json.dumps(asked).encode()))
            whole_s = _held_s(slow, json.dumps(asked).encode())
            assert neighbour.is_alive()
        finally:
            ending.set()
            neighbour.join()
    assert folded_s < 1.0 and whole_s >= 2.0


def _generate(engine: LoneEngine, body: Mapping[str, Any], ending: threading.Event) -> None:
    while not ending.is_set():
        with engine.http.stream("POST", NATIVE, json={**body, "stream": True}) as answer:
            for _ in answer.iter_raw():
                if ending.is_set():
                    return


def _busy(engine: LoneEngine) -> list[bool]:
    return [slot["is_processing"] for slot in engine.http.get("/slots").json()]


def _await(is_so: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _held_s(engine: LoneEngine, body: bytes) -> float:
    """How long the second slot goes on, up to two seconds, after its client left."""
    url = engine.http.base_url
    head = f"POST {NATIVE} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((url.host, url.port or 0)) as client:
        client.sendall(head.encode() + body)
        _await(lambda: _busy(engine)[1], 10.0)
    left_at = time.monotonic()
    while _busy(engine)[1] and time.monotonic() < left_at + 2.0:
        time.sleep(0.02)
    return time.monotonic() - left_at
