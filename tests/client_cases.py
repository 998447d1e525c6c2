"""Real clients of a server with llama-server's API, and what they ask of it in tests."""

import inspect
import json
import operator
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

NAME: Final = "test"
"""Of the deployment."""

RANDOM, RECITING, CALLING = "random", "reciting", "calling"
"""The models: random words; the demo's sentence; a thought, a text and a call of a tool."""

CALL: Final = (
    "Somebody asks for the weather. </think> I look outside:"
    ' <tool_call> {"name": "get_weather", "arguments": {"city": "Rome", "days": 3}} </tool_call>'
)
"""What the third model recites."""

# A grammar for tools begins with the end of the prompt, read anew: no word may begin like it.
CALLING_TEMPLATE: Final = (
    "{%- if tools %}{{ '[system]\\n' }}"
    "{% for tool in tools %}{{ (tool | tojson) + '\\n' }}{% endfor %}{% endif %}"
    "{%- for message in messages %}{{ '[' + message['role'] + ']\\n' }}"
    "{%- if message['reasoning_content'] %}"
    "{{ '<think> ' + message['reasoning_content'] + ' </think> ' }}{% endif %}"
    "{{- message['content'] or '' }}"
    "{%- for call in message['tool_calls'] or [] %}"
    "{{ ' <tool_call> {\"name\": \"' + call['function']['name'] + '\", \"arguments\": '"
    " + (call['function']['arguments'] | tojson) + '} </tool_call>' }}{% endfor %}"
    "{{ '\\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '[assistant]\\n' }}"
    "{%- if enable_thinking %}{{ '<think>\\n' }}{% endif %}{% endif %}"
)

Body = dict[str, Any]

# -- clients ---------------------------------------------------------------------------------------


class Litellm:
    """litellm, in a process of its own."""

    def __init__(self, log: Path) -> None:
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lab.litellm_program"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
                text=True,
            )

    def call(self, function: str, arguments: Body, take: int | None = None) -> str:
        """What came of it, an error or not; ``take``: the stream is left after so many pieces."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        call = {"function": function, "arguments": arguments, "take": take}
        print(json.dumps(call), file=self._process.stdin, flush=True)
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert told["asked"] == [], "it looked for other hosts"
        return str(told["result"])

    def close(self) -> None:
        with self._process:
            self._process.kill()


@dataclass
class Clients:
    """All clients, made for one server."""

    url: str
    key: str
    litellm: Litellm
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def openai(self) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", **self._options())

    @cached_property
    def anthropic(self) -> Any:
        from anthropic import Anthropic

        return Anthropic(base_url=self.url, **self._options())

    def _options(self) -> Body:
        return {"api_key": self.key, "max_retries": 0, "default_headers": self.headers}

    def close(self) -> None:
        for name in ("openai", "anthropic"):
            if name in self.__dict__:
                self.__dict__[name].close()


Act = Callable[[Clients], object]


def shown(result: Any) -> str:
    """A result of a client library as text; a stream is read to its end."""
    if hasattr(result, "model_dump_json"):
        return str(result.model_dump_json())
    return "\n".join(shown(each) for each in result)


def called(function: Any, body: Body) -> Any:
    """Call a method of a client library; what it has no argument for goes into the body as is."""
    known = inspect.signature(function).parameters
    own = {key: value for key, value in body.items() if key in known}
    other = {key: value for key, value in body.items() if key not in known}
    return function(**own, **({"extra_body": other} if other else {}))


def openai(path: str, body: Body) -> Act:
    """A method of the OpenAI SDK, such as ``chat.completions.create``."""
    return lambda clients: shown(called(operator.attrgetter(path)(clients.openai), body))


def anthropic(path: str, body: Body) -> Act:
    """A method of the Anthropic SDK, such as ``messages.create``."""
    return lambda clients: shown(called(operator.attrgetter(path)(clients.anthropic), body))


def helper(of: str, path: str, body: Body) -> Act:
    """A helper for streams, such as ``messages.stream``, which puts the pieces together."""

    def act(clients: Clients) -> str:
        with called(operator.attrgetter(f"{of}.{path}")(clients), body) as stream:
            return shown(stream)

    return act


def litellm(function: str, body: Body) -> Act:
    """A function of litellm; the provider is in the model's name."""

    def act(clients: Clients) -> str:
        return clients.litellm.call(function, litellm_arguments(clients, body))

    return act


def litellm_arguments(clients: Clients, body: Body) -> Body:
    """With where to, and no second try."""
    is_anthropic = str(body["model"]).startswith("anthropic/")
    base = clients.url if is_anthropic else f"{clients.url}/v1"
    return {**body, "api_base": base, "api_key": clients.key, "max_retries": 0}


def curl(path: str, body: Body | str | None = None) -> Act:
    """``curl``, as it is written in everybody's notes."""

    def act(clients: Clients) -> str:
        command = curl_command(clients, path, body)
        done = subprocess.run(command, check=True, capture_output=True, timeout=60)
        return done.stdout.decode()

    return act


def curl_command(clients: Clients, path: str, body: Body | str | None) -> list[str]:
    command = ["curl", "-sS", "-N", "--noproxy", "*", f"{clients.url}{path}"]
    command += ["-H", f"Authorization: Bearer {clients.key}"]
    if body is None:
        return command
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    return [*command, "-H", "Content-Type: application/json", "-d", text]


# -- what they ask ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Something that a client does."""

    name: str
    act: Act
    model: str = RANDOM
    status: int = 200
    says: Sequence[str] = ()
    """What the answer holds, so that two that say nothing are not taken for a success."""

    @property
    def is_untimed(self) -> bool:
        """Whether timings come once with the last word, too, unless they are asked for.

        llama-server does that before a stop word. The gateway asks for all, and takes all out.
        """
        return "stop words, streamed" in self.name

    @property
    def is_racing(self) -> bool:
        """Whether several answers come at once, in no order among them."""
        return "two" in self.name and "streamed" in self.name


WEATHER: Final[Body] = {
    "name": "get_weather",
    "description": "Looks outside.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "Rome"]},
            "days": {"type": "integer"},
        },
        "required": ["city"],
    },
}
TOOLS: Final = [{"type": "function", "function": WEATHER}]
ANTHROPIC_TOOLS: Final = [
    {"name": "get_weather", "description": "-", "input_schema": WEATHER["parameters"]}
]
SCHEMA: Final[Body] = {
    "type": "object",
    "properties": {"river": {"enum": ["long", "wide"]}},
    "required": ["river"],
    "additionalProperties": False,
}
DENSE: Final[Body] = {"logit_bias": {"12": -100, "13": -100, "35": -100}}
"""Without white space, of which a grammar for JSON allows a lot, and random weights make it all."""
THOUGHTLESS: Final[Body] = {"chat_template_kwargs": {"enable_thinking": False}}
NO_IMAGE: Final = "image input is not supported"


def user(content: object) -> list[Body]:
    return [{"role": "user", "content": content}]


def chat(text: str = "Hello", **more: Any) -> Body:
    """A request for a chat, or for messages, that has one answer."""
    return {"model": NAME, "messages": user(text), "temperature": 0, "max_tokens": 12, **more}


def text(prompt: object = "The water of the river", **more: Any) -> Body:
    return {"model": NAME, "prompt": prompt, "temperature": 0, "max_tokens": 12, **more}


def response(asked: object = "The water of the river", **more: Any) -> Body:
    return {"model": NAME, "input": asked, "temperature": 0, "max_output_tokens": 12, **more}


CONVERSATION: Final = [
    {"role": "system", "content": "You are a river."},
    {"role": "developer", "content": "Say little."},
    {"role": "user", "content": "Où est la mer? 🌊"},
    {"role": "assistant", "content": "Down there."},
    {"role": "user", "content": [{"type": "text", "text": "How far is it?"}]},
]
USED_TOOL: Final = [
    *user("Weather?"),
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
]

CHATS: Final[Mapping[str, tuple[str, Body, Sequence[str]]]] = {
    "roles": (RANDOM, chat(messages=CONVERSATION), ()),
    "prefill": (RANDOM, chat(messages=[*user("Hi"), {"role": "assistant", "content": "It"}]), ()),
    "stop words": (RANDOM, chat(stop=["the", "made", "has"], max_tokens=60), ('"stop"',)),
    "seed": (RANDOM, chat(seed=42, temperature=0.9, top_p=0.8), ()),
    "max_completion_tokens": (
        RANDOM,
        chat(max_tokens=None, max_completion_tokens=5),
        ('"length"',),
    ),
    "two answers": (RANDOM, chat(n=2, seed=7, temperature=1.0), ('"index":1',)),
    "logprobs": (RANDOM, chat(logprobs=True, top_logprobs=3), ('"top_logprobs"',)),
    "penalties": (RANDOM, chat(frequency_penalty=0.5, logit_bias={"300": 5}), ()),
    "JSON schema": (
        RANDOM,
        chat(
            max_tokens=40,
            response_format={"type": "json_schema", "json_schema": {"name": "r", "schema": SCHEMA}},
            **DENSE,
        ),
        ('"stop"',),
    ),
    "JSON object": (RANDOM, chat(response_format={"type": "json_object"}), ("{",)),
    "grammar": (RANDOM, chat(grammar='root ::= " make" | " made"'), ('"stop"',)),
    "timings": (RANDOM, chat(timings_per_token=True), ('"predicted_n":12',)),
    "progress": (RANDOM, chat(return_progress=True), ()),
    "unknown model": (RANDOM, chat(model="gpt-9"), ()),
    "tools, auto": (
        CALLING,
        chat(max_tokens=40, tools=TOOLS, tool_choice="auto"),
        ("reasoning_content", "Rome", '"tool_calls"'),
    ),
    "tools, required": (
        CALLING,
        chat(max_tokens=40, tools=TOOLS, tool_choice="required", **THOUGHTLESS),
        ("Rome", '"tool_calls"'),
    ),
    "tools, none": (
        CALLING,
        chat(max_tokens=40, tools=TOOLS, tool_choice="none"),
        ("reasoning_content", "tool_call>", '"stop"'),
    ),
    "tools, cut": (CALLING, chat(max_tokens=14, tools=TOOLS), ("get_weather", '"length"')),
    "tools, used": (CALLING, chat(max_tokens=40, tools=TOOLS, messages=USED_TOOL), ("Rome",)),
    "reasoning": (CALLING, chat(max_tokens=40, reasoning_effort="low"), ("reasoning_content",)),
    "raw reasoning": (CALLING, chat(max_tokens=40, reasoning_format="none"), ("</think>",)),
}
COMPLETIONS: Final[Mapping[str, Body]] = {
    "plain": text(),
    "stop words": text(stop=[" the", " made", " has"], max_tokens=60),
    "seed": text(seed=3, temperature=0.9),
    "two answers": text(seed=3, temperature=0.9, n=2),
    "two prompts": text(["The water", "A family"]),
    "numbers": text([1, 300, 301, 302]),
    "logprobs": text(logprobs=2),
    "unknown model": text(model="davinci"),
}
RESPONSES: Final[Mapping[str, tuple[str, Body, Sequence[str]]]] = {
    "instructions": (RANDOM, response(instructions="Say little."), ("output_text",)),
    "messages": (RANDOM, response([{"role": "developer", "content": "Hm."}, *user("Hello")]), ()),
    "JSON schema": (
        RANDOM,
        response(
            max_output_tokens=40,
            text={"format": {"type": "json_schema", "name": "r", "schema": SCHEMA}},
            **DENSE,
        ),
        ("output_text",),
    ),
    "tools": (
        CALLING,
        response(max_output_tokens=40, tools=[{"type": "function", **WEATHER}]),
        ("function_call", "reasoning_text", "Rome"),
    ),
}
MESSAGES: Final[Mapping[str, tuple[str, Body, Sequence[str]]]] = {
    "system": (RANDOM, chat(system="You are a river."), ("max_tokens",)),
    "stop words": (RANDOM, chat(stop_sequences=["the", "made"], max_tokens=60), ()),
    "unknown model": (RANDOM, chat(model="claude-9"), ()),
    "tools, auto": (
        CALLING,
        chat(max_tokens=40, tools=ANTHROPIC_TOOLS, tool_choice={"type": "auto"}),
        ("tool_use", "Rome", "thinking"),
    ),
    "tools, any": (
        CALLING,
        chat(max_tokens=40, tools=ANTHROPIC_TOOLS, tool_choice={"type": "any"}),
        ("tool_use", "Rome"),
    ),
    "thinking": (
        CALLING,
        chat(max_tokens=40, thinking={"type": "enabled", "budget_tokens": 1024}),
        ("thinking", "Somebody"),
    ),
}

PICTURE: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)
WITH_IMAGE: Final = [
    {"type": "text", "text": "What is it?"},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
]
ANTHROPIC_IMAGE: Final = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": PICTURE},
}
REFUSED: Final[Mapping[str, tuple[int, Act]]] = {
    "openai chat, image": (500, openai("chat.completions.create", chat(messages=user(WITH_IMAGE)))),
    "openai chat, no messages": (400, openai("chat.completions.create", chat(messages="Hello"))),
    "openai chat, no number": (400, openai("chat.completions.create", chat(max_tokens="many"))),
    "openai chat, no tool": (500, openai("chat.completions.create", chat(tools=[{"a": 1}]))),
    "openai chat, no grammar": (400, openai("chat.completions.create", chat(grammar="root ="))),
    "openai chat, too long": (400, openai("chat.completions.create", chat("water " * 3000))),
    "openai completions, no prompt": (400, openai("completions.create", text(None))),
    "openai responses, no input": (400, openai("responses.create", response(None))),
    "openai responses, continued": (
        400,
        openai("responses.create", response(previous_response_id="resp_1")),
    ),
    "openai embeddings": (501, openai("embeddings.create", {"model": NAME, "input": "Hello"})),
    "anthropic messages, image": (
        500,
        anthropic("messages.create", chat(messages=user([ANTHROPIC_IMAGE]))),
    ),
    "anthropic messages, no number": (400, anthropic("messages.create", chat(temperature="hot"))),
    "curl chat, nothing": (400, curl("/v1/chat/completions", {})),
    "curl chat, streamed": (400, curl("/v1/chat/completions", {"stream": True})),
    "curl completions, nothing": (400, curl("/v1/completions", {})),
    "curl responses, nothing": (400, curl("/v1/responses", {})),
    "curl messages, nothing": (500, curl("/v1/messages", {})),
    "curl count_tokens, nothing": (500, curl("/v1/messages/count_tokens", {})),
    "curl embeddings, native": (501, curl("/embedding", {"content": "Hello"})),
    "curl rerank": (501, curl("/v1/rerank", {"query": "river", "documents": ["water"]})),
    "curl infill": (501, curl("/infill", {"input_prefix": "the", "input_suffix": "river"})),
    "curl tokenize, number": (500, curl("/detokenize", {"tokens": ["x"]})),
}

HELPERS: Final = (
    ("openai", "chat.completions.stream", chat(max_tokens=40, tools=TOOLS)),
    ("anthropic", "messages.stream", MESSAGES["tools, auto"][1]),
)

NATIVE: Final[Body] = {"prompt": "The water", "temperature": 0, "seed": 1, "n_predict": 12}
CURL: Final[Mapping[str, Act]] = {
    "/completion": curl("/completion", NATIVE),
    "/completion, streamed": curl("/completion", {**NATIVE, "stream": True}),
    "/completion, n_probs": curl("/completion", {**NATIVE, "stream": True, "n_probs": 2}),
    "/completion, fields": curl("/completion", {**NATIVE, "response_fields": ["content"]}),
    "/completions, native": curl("/completions", {**NATIVE, "return_tokens": True, "stream": True}),
    "/chat/completions": curl("/chat/completions", chat()),
    "/v1/chat/completions, streamed": curl("/v1/chat/completions", chat(stream=True)),
    "/v1/chat/completions, spaces": curl(
        "/v1/chat/completions", json.dumps(chat(stream=True), indent=3)
    ),
    "/v1/completions": curl("/v1/completions", text()),
    "/v1/completions, streamed": curl("/v1/completions", text(stream=True)),
    "/v1/responses": curl("/v1/responses", response()),
    "/responses, streamed": curl("/responses", response(stream=True)),
    "/v1/messages": curl("/v1/messages", chat()),
    "/v1/messages, streamed": curl("/v1/messages", chat(stream=True)),
    "/tokenize": curl("/tokenize", {"content": "The water 🌊", "with_pieces": True}),
    "/detokenize": curl("/detokenize", {"tokens": [1, 300, 301]}),
    "/apply-template": curl("/apply-template", {"messages": CONVERSATION}),
    "/v1/chat/completions/input_tokens": curl("/v1/chat/completions/input_tokens", chat()),
    "/v1/responses/input_tokens": curl("/v1/responses/input_tokens", response()),
    "/v1/messages/count_tokens": curl("/v1/messages/count_tokens", chat()),
    "/props": curl("/props"),
    "/slots": curl("/slots"),
    "/slots, query": curl("/slots?fail_on_no_slot=0"),
}


def _named(name: str, *wanted: str) -> bool:
    return any(part in name for part in wanted)


def _cases() -> list[Case]:
    cases: list[Case] = []
    for stream in (False, True):
        how: Body = {"stream": True} if stream else {}
        usage: Body = {**how, "stream_options": {"include_usage": True}} if stream else {}
        mark = ", streamed" if stream else ""
        for name, (model, body, says) in CHATS.items():
            asked = {**body, **(usage if model is CALLING else how)}
            act = openai("chat.completions.create", asked)
            cases.append(Case(f"openai chat, {name}{mark}", act, model, says=says))
            if _named(name, "roles", "JSON schema", "two", "tools, auto", "required", "unknown"):
                act = litellm("completion", {**asked, "model": f"openai/{body['model']}"})
                cases.append(Case(f"litellm chat, {name}{mark}", act, model, says=says))
        for name, body in COMPLETIONS.items():
            if name == "two prompts" and stream:
                # llama-server says "data: null" in between, at which the SDK leaves.
                cases.append(
                    Case(
                        f"curl completions, {name}{mark}",
                        curl("/v1/completions", {**body, **how}),
                        says=("travelled", "hand"),
                    )
                )
                continue
            act = openai("completions.create", {**body, **how})
            cases.append(Case(f"openai completions, {name}{mark}", act))
        for name, (model, body, says) in RESPONSES.items():
            act = openai("responses.create", {**body, **how})
            cases.append(Case(f"openai responses, {name}{mark}", act, model, says=says))
        for name, (model, body, says) in MESSAGES.items():
            act = anthropic("messages.create", {**body, **how})
            cases.append(Case(f"anthropic messages, {name}{mark}", act, model, says=says))
        plain = {"messages": user("Hello"), "max_tokens": 12, "temperature": 0, **how}
        as_messages = {**plain, "model": f"anthropic/{NAME}"}
        as_text = {**text(), **how, "model": f"text-completion-openai/{NAME}"}
        cases += [
            Case(f"litellm messages{mark}", litellm("completion", as_messages)),
            Case(
                f"litellm messages, tools{mark}",
                litellm("completion", {**as_messages, "max_tokens": 40, "tools": TOOLS}),
                CALLING,
                says=("Rome",),
            ),
            Case(f"litellm completions{mark}", litellm("text_completion", as_text)),
            Case(
                f"litellm responses{mark}",
                litellm("responses", {**response(**how), "model": f"openai/{NAME}"}),
            ),
        ]
    whole = chat(max_tokens=100, stream=True)
    as_litellm = {**whole, "model": f"openai/{NAME}"}
    recitals = {
        "openai chat": openai("chat.completions.create", chat(max_tokens=100)),
        "openai chat, streamed": openai("chat.completions.create", whole),
        "anthropic messages, streamed": anthropic("messages.create", whole),
        "litellm chat, streamed": litellm("completion", as_litellm),
        "curl chat, streamed": curl("/v1/chat/completions", whole),
    }
    for name, act in recitals.items():
        cases.append(Case(f"{name}, whole", act, RECITING, says=("conversation.",)))
    count = anthropic("messages.count_tokens", {"model": NAME, "messages": user("Hello")})
    cases.append(Case("anthropic count_tokens", count, says=("input_tokens",)))
    for of, path, body in HELPERS:
        cases.append(Case(f"{of} {path}", helper(of, path, body), CALLING, says=("Rome",)))
    cases += [Case(f"curl {name}", act) for name, act in CURL.items()]
    cases += [Case(name, act, status=status) for name, (status, act) in REFUSED.items()]
    return cases


CASES: Final = sorted(_cases(), key=lambda case: case.model)  # each model is launched once
