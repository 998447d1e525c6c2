"""Answers of the real llama-server, cut at every event and continued."""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic
import openai
import pytest
from lab.engine import LoneEngine, lone_engine, parsed
from lab.recited import TEMPLATE, as_bytes, as_tokens, write_reciting_model

from agents.contract import EngineFacts
from supervisor.core.continuing.transcript import (
    Continue,
    Hopeless,
    Restart,
    Transcript,
    asked_upstream,
    transcript_of,
)
from supervisor.core.gateway_routes import Api
from supervisor.demo_model import write_demo_model

PLAIN = [
    *as_tokens(["Smile", " with", " "]),
    *as_bytes("😀"),
    *as_tokens([" 🎉", " and", " say"]),
    *as_bytes("你"),
    *as_tokens(["好", " Cafe"]),
    *as_bytes("\u0301"),
    *as_tokens([" to"]),
    *as_bytes("ñ"),
    *as_tokens([' "quoted"', " back\\slash\n", " end", "ing", " now."]),
]
THINKING = as_tokens(
    ["<think>", "\nLet", " me", " reason", " 🧠", " here\n", "</think>", "\n\nSo", " it", " is"]
)
CALLING = as_tokens(
    [
        *("I", " look", " there", " up:", "<tool_call>", '\n{"name": "look"'),
        *(', "arguments": {"at"', ': "sky', ' blue"}', "}\n", "</tool_call>"),
    ]
)
SPOKEN = 'Smile with 😀 🎉 and say你好 Cafe\u0301 toñ "quoted" back\\slash\n ending now.'
SONGS = {"": PLAIN, "¶": THINKING, "§": CALLING}
TOOL = {
    "name": "look",
    "description": "Look at something",
    "parameters": {
        "type": "object",
        "properties": {"at": {"type": "string"}},
        "required": ["at"],
    },
}
USER = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def reciter(engine: EngineFacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoneEngine]:
    """Recites; what it says does not depend on how a text came to be."""
    path = tmp_path_factory.mktemp("reciter") / "songs.gguf"
    write_reciting_model(path, SONGS, TEMPLATE)
    with lone_engine(engine, path) as running:
        yield running


@pytest.fixture(scope="module")
def rambler(engine: EngineFacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoneEngine]:
    """What it says depends on every token before."""
    path = tmp_path_factory.mktemp("rambler") / "random.gguf"
    write_demo_model(path, layers=2, embedding=128, feed_forward=128, heads=4, recite=False)
    with lone_engine(engine, path) as running:
        yield running


# -- what a client makes of a stream ---------------------------------------------------------


@dataclass
class Heard:
    """An answer as a strict client understands it."""

    reasoning: str = ""
    content: str = ""
    arguments: str = ""
    finish: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    generated_tokens: int | None = None
    ids: set[str] = field(default_factory=set)


def heard(api: Api, stream: bytes) -> Heard:
    """Read a whole stream; whatever no client may be sent is an error."""
    assert stream.endswith(b"\n\n")
    events = [part + b"\n\n" for part in stream.split(b"\n\n")[:-1]]
    readers = {Api.MESSAGES: _messages, Api.RESPONSES: _responses, Api.NATIVE: _native}
    return readers.get(api, _chunks)(events)


def _chunks(events: Sequence[bytes]) -> Heard:
    told = Heard()
    *chunks, last = map(parsed, events)
    assert last == "[DONE]"
    roles = 0
    for chunk in chunks:
        told.ids.add(chunk["id"])
        if "usage" in chunk:
            assert told.prompt_tokens is None, "usage came twice"
            usage = chunk["usage"]
            told.prompt_tokens = usage["prompt_tokens"]
            told.generated_tokens = usage["completion_tokens"]
            told.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
            assert usage["total_tokens"] == told.prompt_tokens + told.generated_tokens
        if not chunk["choices"]:
            assert told.finish is not None and chunk is chunks[-1]
            continue
        [choice] = chunk["choices"]
        assert told.finish is None, "the answer went on after its end"
        told.finish = choice["finish_reason"]
        if "text" in choice:
            told.content += choice["text"]
            continue
        roles += "role" in choice["delta"]
        assert roles <= 1
        told.content += choice["delta"].get("content") or ""
        told.reasoning += choice["delta"].get("reasoning_content") or ""
        for call in choice["delta"].get("tool_calls", ()):
            told.arguments += call["function"]["arguments"]
    assert told.finish and len(told.ids) == 1
    return told


def _native(events: Sequence[bytes]) -> Heard:
    told, count = Heard(), 0
    *parts, last = map(parsed, events)
    for part in parts:
        assert part["stop"] is False
        assert part["tokens_predicted"] > count
        count = part["tokens_predicted"]
        assert part["tokens_evaluated"] == last["tokens_evaluated"]
        told.content += part["content"]
    assert last["stop"] is True and last["content"] == ""
    told.finish = last["stop_type"]
    told.prompt_tokens, told.generated_tokens = last["tokens_evaluated"], last["tokens_predicted"]
    told.ids = {json.dumps([last["prompt"], last["has_new_line"], last["tokens_cached"]])}
    told.ids.add(json.dumps(last["generation_settings"]["n_predict"]))
    return told


def _messages(events: Sequence[bytes]) -> Heard:
    told, open_blocks, blocks = Heard(), set[int](), list[str]()
    first, *parts, ending, last = map(parsed, events)
    assert first["type"] == "message_start" and last == {"type": "message_stop"}
    usage = first["message"]["usage"]
    told.cached_tokens = usage["cache_read_input_tokens"]
    told.prompt_tokens = usage["input_tokens"] + told.cached_tokens
    told.ids.add(first["message"]["id"])
    for event, part in zip(events[1:], parts, strict=False):
        assert event.startswith(f"event: {part['type']}\n".encode())
        index = part["index"]
        if part["type"] == "content_block_start":
            assert index == len(blocks)
            blocks.append(part["content_block"]["type"])
            open_blocks.add(index)
            continue
        assert index in open_blocks, "a block that is not open"
        if part["type"] == "content_block_stop":
            open_blocks.remove(index)
            continue
        kind = {"text_delta": "text", "input_json_delta": "tool_use"}
        assert blocks[index] == kind.get(part["delta"]["type"], "thinking")
        told.content += part["delta"].get("text", "")
        told.reasoning += part["delta"].get("thinking", "")
        told.arguments += part["delta"].get("partial_json", "")
    assert not open_blocks
    assert ending["type"] == "message_delta"
    told.finish = ending["delta"]["stop_reason"]
    told.generated_tokens = ending["usage"]["output_tokens"]
    return told


def _responses(events: Sequence[bytes]) -> Heard:
    told, seen, ended = Heard(), list[tuple[str, str]](), list[dict[str, Any]]()
    *parts, last = map(parsed, events)
    for event, part in zip(events, parts, strict=False):
        kind = part["type"]
        assert event.startswith(f"event: {kind}\n".encode())
        item = part.get("item", {})
        about = part.get("item_id") or item.get("id") or part["response"]["id"]
        told.ids.add(about)
        is_delta = kind.endswith(".delta")
        assert is_delta or (kind, about) not in seen, f"{kind} came twice"
        seen.append((kind, about))
        if kind == "response.output_text.delta":
            assert ("response.content_part.added", about) in seen
            told.content += part["delta"]
        elif kind == "response.reasoning_text.delta":
            assert ("response.output_item.added", about) in seen
            told.reasoning += part["delta"]
        elif kind == "response.function_call_arguments.delta":
            told.arguments += part["delta"]
        elif kind == "response.output_item.done":
            ended.append(item)
        if kind == "response.output_text.done":
            assert part["text"] == told.content
    assert [kind for kind, _ in seen[:2]] == ["response.created", "response.in_progress"]
    assert last["type"] == "response.completed"
    response = last["response"]
    assert response["output"] == ended
    texts = {item["type"]: item["content"][0]["text"] for item in ended if "content" in item}
    assert texts.get("message", "") == told.content
    assert texts.get("reasoning", "") == told.reasoning
    assert response["id"] in told.ids and len(told.ids) == 1 + len(ended)
    told.finish = response["status"]
    usage = response["usage"]
    told.prompt_tokens, told.generated_tokens = usage["input_tokens"], usage["output_tokens"]
    told.cached_tokens = usage["input_tokens_details"]["cached_tokens"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    return told


# -- cuts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A request, and how its answer is cut."""

    name: str
    api: Api
    path: str
    body: dict[str, Any]
    tokens_off: int = 0
    """Where tokens are counted from the text."""

    def transcript(self) -> Transcript:
        return transcript_of(self.api, self.path, self.body)

    def first_events(self, engine: LoneEngine) -> list[bytes]:
        return engine.events(self.path, asked_upstream(self.api, self.body))


def following(
    engine: LoneEngine, case: Case, transcript: Transcript
) -> Continue | Restart | Hopeless:
    """Cut as the gateway does: once to see whether there is hope, once to go on."""
    early = transcript.cut()
    text = transcript.uncounted_text
    counted = None
    if text:
        body = {"content": text, "add_special": False}
        counted = len(engine.answer("/tokenize", body)["tokens"])
    late = transcript.cut(counted)
    assert type(early) is type(late)
    return late


def joined(
    engine: LoneEngine, case: Case, events: Sequence[bytes], cuts: Sequence[int]
) -> tuple[bytes, Transcript] | Hopeless:
    """The stream of a client whose engines end after so many events each."""
    transcript, sent = case.transcript(), b""
    for cut in cuts:
        if cut >= len(events):
            break
        sent += b"".join(map(transcript.take, events[:cut]))
        outcome = following(engine, case, transcript)
        if isinstance(outcome, Hopeless):
            return outcome
        events = engine.events(case.path, outcome.body)
    sent += b"".join(map(transcript.take, events))
    assert transcript.is_complete
    return sent, transcript


def is_told(case: Case, passed: Sequence[bytes]) -> bool:
    """Whether a client can know what of its prompt was cached from what it was sent."""
    transcript = case.transcript()
    for event in passed:
        transcript.take(event)
    return transcript.numbers.cached_tokens is not None


CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
COMPLETIONS, NATIVE = "/v1/completions", "/completion"
GREEDY: dict[str, Any] = {"temperature": 0, "seed": 7}
WITH_USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
GIVEN = {"role": "assistant", "content": "Smile with 😀"}
GIVEN_ITEM = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Smile with 😀"}],
}
GIVEN_PARTS = {
    "role": "assistant",
    "content": [{"type": "text", "text": "Smile"}, {"type": "text", "text": " with"}],
}
GIVEN_THOUGHT = {"type": "reasoning", "summary": [], "content": [{"text": "Let me"}]}
GIVEN_BLOCKS = [{"type": "thinking", "thinking": "Let me"}, {"type": "text", "text": "So it"}]
GIVEN_REASONS = {"role": "assistant", "content": "So", "reasoning_content": "Let me"}
HELD = [" ending soon", "🎉🎉"]
"""Stop words that the text begins with and does not complete: some tokens are held back."""


def chat(name: str, **body: Any) -> Case:
    return Case(f"chat {name}", Api.CHAT, CHAT, {**GREEDY, "messages": [USER], **body})


def completion(name: str, **body: Any) -> Case:
    whole = {**GREEDY, "prompt": "Hi", **body}
    return Case(f"completion {name}", Api.COMPLETIONS, COMPLETIONS, whole)


def native(name: str, **body: Any) -> Case:
    return Case(f"native {name}", Api.NATIVE, NATIVE, {**GREEDY, "prompt": "Hi", **body})


def message(name: str, **body: Any) -> Case:
    whole = {"temperature": 0, "messages": [USER], "max_tokens": 100, **body}
    return Case(f"message {name}", Api.MESSAGES, MESSAGES, whole, tokens_off=3)


def response(name: str, **body: Any) -> Case:
    return Case(f"response {name}", Api.RESPONSES, RESPONSES, {**GREEDY, "input": "Hi", **body})


THINKS = {"chat_template_kwargs": {"song": "¶"}}
CASES = [
    chat("plain"),
    chat("with usage", **WITH_USAGE),
    chat("with timings", timings_per_token=True, **WITH_USAGE),
    chat("up to its limit", max_tokens=15, **WITH_USAGE),
    chat("up to another limit", max_completion_tokens=24, max_tokens=3, **WITH_USAGE),
    chat("with a word held back", stop=HELD, max_tokens=25, **WITH_USAGE),
    chat("to a stop word", stop=" now", **WITH_USAGE),
    chat("after a beginning", messages=[USER, GIVEN], **WITH_USAGE),
    chat(
        "after a beginning that is not repeated",
        messages=[USER, GIVEN],
        add_generation_prompt=False,
        continue_final_message=True,
        **WITH_USAGE,
    ),
    chat("that thinks", **THINKS, **WITH_USAGE),
    chat("that thinks up to its limit", **THINKS, **WITH_USAGE, max_tokens=4),
    chat("after a beginning in parts", messages=[USER, GIVEN_PARTS], **WITH_USAGE),
    chat("within a thought", messages=[USER, {**GIVEN_REASONS, "content": ""}], **WITH_USAGE),
    chat("after a thought", messages=[USER, GIVEN_REASONS], **WITH_USAGE),
    completion("plain"),
    completion("with a word held back", stop=HELD, max_tokens=25),
    completion("to a stop word", stop=" now"),
    completion("up to its limit", max_tokens=15),
    completion("of one prompt in a list", prompt=["Hi"]),
    completion("of mixed tokens", prompt=[1, 300, "Hi"], n_predict=22, max_tokens=5),
    native("plain"),
    native("with a word held back", stop=HELD, n_predict=25),
    native("to a stop word", stop=" now"),
    native("up to its limit", n_predict=15),
    native("of an object", prompt={"prompt_string": "Hi"}),
    message("plain"),
    message("after a beginning", messages=[USER, GIVEN]),
    message("after parts", messages=[USER, GIVEN_PARTS]),
    message("after a thought", messages=[USER, {"role": "assistant", "content": GIVEN_BLOCKS}]),
    message("in a thought", messages=[USER, {"role": "assistant", "content": GIVEN_BLOCKS[:1]}]),
    message("that thinks", **THINKS),
    message("to a stop word", stop_sequences=[" now"]),
    response("plain"),
    response("up to its limit", max_output_tokens=15),
    response("that thinks", **THINKS),
    response("that thinks up to its limit", **THINKS, max_output_tokens=4),
    response("after a beginning", input=[USER, GIVEN_ITEM]),
    response("after a thought", input=[USER, GIVEN_THOUGHT, GIVEN_ITEM]),
    response("within a thought", input=[USER, GIVEN_THOUGHT]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_answer_cut_at_any_event_is_one_answer(reciter: LoneEngine, case: Case) -> None:
    events = case.first_events(reciter)
    transcript = case.transcript()
    passed = [transcript.take(event) for event in events]
    whole = heard(case.api, b"".join(passed))
    assert whole.content or whole.reasoning
    for cut in range(len(events)):
        result = joined(reciter, case, events, [cut])
        assert not isinstance(result, Hopeless), (cut, result)
        sent, transcript = result
        assert sent.startswith(b"".join(passed[:cut])), cut
        again = heard(case.api, sent)
        if again.generated_tokens is not None:
            assert transcript.numbers.generated_tokens == again.generated_tokens
            assert transcript.numbers.prompt_tokens == again.prompt_tokens
        off = abs((again.generated_tokens or 0) - (whole.generated_tokens or 0))
        assert off <= case.tokens_off, (cut, again, whole)
        again.generated_tokens = whole.generated_tokens
        if case.api is not Api.NATIVE:
            again.ids = whole.ids  # one each, or they could not be read
        if not is_told(case, events[:cut]):
            again.cached_tokens = whole.cached_tokens
        assert again == whole, cut


def masked(event: bytes) -> bytes:
    """An event without what differs between two equal answers."""
    event = re.sub(rb"[0-9A-Za-z]{32}", b"ID", event)
    event = re.sub(rb'"created(_at)?":\d+', b'"created":0', event)
    return re.sub(rb'"(\w+_ms|\w+_per_second)":[-+.\de]+', b'"ms":0', event)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_without_a_cut_the_client_gets_every_byte_as_without_us(
    reciter: LoneEngine, case: Case
) -> None:
    reciter.events(case.path, case.body)  # now the prompt is cached for both
    theirs = reciter.events(case.path, case.body)
    transcript = case.transcript()
    ours = [transcript.take(event) for event in case.first_events(reciter)]
    assert len(ours) == len(theirs)
    left_out = 0
    for mine, other in zip(map(masked, ours), map(masked, theirs), strict=True):
        if mine != other:
            left_out += 1
            assert mine == re.sub(rb',"timings":\{[^}]*\}', b"", other)
    # The text right before a stop word has timings without us, too.
    assert left_out == 0 or (left_out == 1 and case.body.get("stop") == " now")


@pytest.mark.parametrize("api", [CHAT, COMPLETIONS, NATIVE, MESSAGES, RESPONSES])
def test_two_cuts_in_one_answer(reciter: LoneEngine, api: str) -> None:
    [case, *_] = [case for case in CASES if case.path == api]
    events = case.first_events(reciter)
    whole = heard(case.api, b"".join(map(case.transcript().take, events)))
    for first in range(1, len(events), 3):
        for second in range(0, len(events) - first, 2):
            result = joined(reciter, case, events, [first, second])
            assert not isinstance(result, Hopeless)
            again = heard(case.api, result[0])
            assert again.content == whole.content == SPOKEN, (first, second)
            assert again.finish == whole.finish
            off = abs((again.generated_tokens or 0) - (whole.generated_tokens or 0))
            assert off <= 2 * case.tokens_off


# -- tools -----------------------------------------------------------------------------------

FUNCTION = {"type": "function", "function": TOOL}
ANTHROPIC_TOOL = {
    "name": TOOL["name"],
    "description": TOOL["description"],
    "input_schema": TOOL["parameters"],
}
CALLS: dict[str, Any] = {"chat_template_kwargs": {"song": "§"}}
TOOL_CASES = [
    chat("with a tool", tools=[FUNCTION], **CALLS, **WITH_USAGE),
    message("with a tool", tools=[ANTHROPIC_TOOL], **CALLS),
    response("with a tool", tools=[{"type": "function", **TOOL}], **CALLS),
]


@pytest.mark.parametrize("case", TOOL_CASES, ids=lambda case: case.name)
def test_a_text_goes_on_to_a_tool_call_and_a_begun_call_ends_the_answer(
    reciter: LoneEngine, case: Case
) -> None:
    events = case.first_events(reciter)
    transcript = case.transcript()
    passed = [transcript.take(event) for event in events]
    whole = heard(case.api, b"".join(passed))
    assert whole.arguments == '{"at": "sky blue"}'
    assert whole.content == "I look there up:"
    begun = next(n for n, event in enumerate(events) if b'"name":"look"' in event)
    ending = [n for n, event in enumerate(events) if is_end(event)]
    for cut in range(len(events)):
        result = joined(reciter, case, events, [cut])
        if begun < cut <= ending[0] or (cut > begun and case.api is Api.RESPONSES):
            assert result == Hopeless("a tool call was being sent"), cut
            continue
        assert not isinstance(result, Hopeless), cut
        again = heard(case.api, result[0])
        off = abs((again.generated_tokens or 0) - (whole.generated_tokens or 0))
        assert off <= (case.tokens_off if cut < begun else 3)  # its end is not counted
        again.generated_tokens = whole.generated_tokens
        again.ids = whole.ids
        if not is_told(case, events[:cut]):
            again.cached_tokens = whole.cached_tokens
        assert again == whole, cut


def is_end(event: bytes) -> bool:
    marks = (b'"finish_reason":"', b"content_block_stop", b"signature_delta", b".done")
    return any(mark in event for mark in marks)


# -- what follows ----------------------------------------------------------------------------

PROMPT = "tell me how the water of the river came home"
LONG = 20


def by_hand(path: str, text: str, left: int) -> dict[str, Any]:
    """The rest of an answer, as somebody would ask for it who has its beginning."""
    user, answer = {"role": "user", "content": PROMPT}, {"role": "assistant", "content": text}
    if path in (COMPLETIONS, NATIVE):
        return {"temperature": 0, "prompt": PROMPT + text, "max_tokens": left}
    if path == RESPONSES:
        part = {"type": "output_text", "text": text}
        item = {"type": "message", "role": "assistant", "content": [part]}
        return {"temperature": 0, "input": [user, item], "max_output_tokens": left}
    return {"temperature": 0, "messages": [user, answer], "max_tokens": left}


def whole_text(path: str, told: Any, text: str) -> str:
    """Of an answer that came at once; chats begin with what they were given."""
    if path == CHAT:
        return str(told["choices"][0]["message"]["content"])
    if path == MESSAGES:
        return str(told["content"][0]["text"])
    if path == RESPONSES:
        return str(told["output"][0]["content"][0]["text"])
    return text + str(told["choices"][0]["text"] if path == COMPLETIONS else told["content"])


@pytest.mark.parametrize(
    "case",
    [
        chat("", messages=[{"role": "user", "content": PROMPT}], max_tokens=LONG, **WITH_USAGE),
        completion("", prompt=PROMPT, max_tokens=LONG),
        native("", prompt=PROMPT, n_predict=LONG),
        message("", messages=[{"role": "user", "content": PROMPT}], max_tokens=LONG),
        response("", input=PROMPT, max_output_tokens=LONG),
    ],
    ids=lambda case: case.path,
)
def test_what_follows_is_what_the_engine_itself_answers(rambler: LoneEngine, case: Case) -> None:
    events = case.first_events(rambler)
    seen = 0
    for cut in range(1, len(events)):
        transcript = case.transcript()
        before = b"".join(map(transcript.take, events[:cut]))
        outcome = following(rambler, case, transcript)
        tokens = sum(is_text(event) for event in events[:cut])
        if tokens == 0:
            assert isinstance(outcome, Restart)
            continue
        assert isinstance(outcome, Continue)
        after = b"".join(map(transcript.take, rambler.events(case.path, outcome.body)))
        again = heard(case.api, before + after)
        text = "".join(text_in(event) for event in events[:cut])
        assert again.content.startswith(text)
        left = LONG - tokens
        if case.api is Api.MESSAGES:  # it can only estimate how many tokens there were
            is_whole = outcome.body["messages"] == case.body["messages"]
            estimate = 0 if is_whole else outcome.body["max_tokens"]
            assert abs(left - estimate) <= 1
            left = estimate
        if left:
            direct = rambler.answer(case.path, by_hand(case.path, text, left))
            assert again.content == whole_text(case.path, direct, text), cut
            seen += 1
        else:
            assert again.content == text
        assert again.generated_tokens == LONG
        assert again.finish in ("length", "max_tokens", "completed", "limit")
    assert seen >= LONG - 2


def text_in(event: bytes) -> str:
    """The text of one event of the first engine."""
    told = parsed(event)
    if isinstance(told, str):
        return ""
    if told.get("choices"):
        choice = told["choices"][0]
        return str(choice.get("text") or choice.get("delta", {}).get("content") or "")
    if told.get("type") == "response.output_text.delta":
        return str(told["delta"])
    if told.get("type") == "content_block_delta":
        return str(told["delta"]["text"])
    return str(told.get("content", ""))


def is_text(event: bytes) -> bool:
    return bool(text_in(event))


# -- clients ---------------------------------------------------------------------------------


class Replay(ThreadingHTTPServer):
    """Answers every request with the same stream."""

    stream = b""


class _Replaying(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Replay)
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(self.server.stream)))
        self.end_headers()
        self.wfile.write(self.server.stream)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def replay() -> Iterator[Replay]:
    with Replay(("127.0.0.1", 0), _Replaying) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


@contextlib.contextmanager
def reader(api: Api, port: int) -> Iterator[Callable[[], str]]:
    """What the official client of an API takes for the text of an answer."""
    url = f"http://127.0.0.1:{port}"
    if api is Api.MESSAGES:
        with anthropic.Anthropic(api_key="k", base_url=url) as theirs:
            yield lambda: _final_text(theirs)
        return
    with openai.OpenAI(api_key="k", base_url=url) as client:
        if api is Api.RESPONSES:
            yield lambda: _last_response(client)
        elif api is Api.COMPLETIONS:
            yield lambda: "".join(
                chunk.choices[0].text
                for chunk in client.completions.create(model="m", prompt="Hi", stream=True)
            )
        else:
            yield lambda: _final_message(client)


def _final_text(client: anthropic.Anthropic) -> str:
    with client.messages.stream(model="m", max_tokens=9, messages=[]) as streaming:
        return streaming.get_final_text()


def _last_response(client: openai.OpenAI) -> str:
    *_, last = client.responses.create(model="m", input="Hi", stream=True)
    assert last.type == "response.completed"
    return last.response.output_text


def _final_message(client: openai.OpenAI) -> str:
    with client.chat.completions.stream(model="m", messages=[]) as streaming:
        return streaming.get_final_completion().choices[0].message.content or ""


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, RESPONSES])
def test_the_clients_of_others_read_it(reciter: LoneEngine, replay: Replay, path: str) -> None:
    case = next(case for case in CASES if case.path == path)
    events = case.first_events(reciter)
    with reader(case.api, replay.server_address[1]) as read:
        for cut in range(1, len(events), 2):
            result = joined(reciter, case, events, [cut])
            assert not isinstance(result, Hopeless)
            replay.stream = result[0]
            assert read() == SPOKEN, cut
