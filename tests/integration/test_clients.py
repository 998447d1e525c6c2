"""Real clients get through the gateway exactly what they get from llama-server directly.

The gateway and llama-server have a relay each in front of them, which keeps what they and their
clients say. Every case is run on both, and the transcripts must be equal but for ids and times.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio
from client_cases import (
    CALL,
    CALLING,
    CALLING_TEMPLATE,
    CASES,
    NAME,
    RANDOM,
    RECITING,
    Act,
    Case,
    Clients,
    Litellm,
    called,
    chat,
    curl,
    curl_command,
    litellm_arguments,
    text,
)
from cluster import Cluster, engine_pids
from lab.loopback import held_to_this_host
from lab.transcripts import (
    Relay,
    Transcript,
    by_index,
    differences,
    normalised,
    relayed,
    without_timings,
)

from supervisor import demo_model as demo

SLOTS: Final = 2
SMALL: Final[dict[str, Any]] = {
    "layers": 4,
    "embedding": 256,
    "feed_forward": 512,
    "heads": 4,
    "kv_heads": 2,
}
"""Of a model, since there are many requests."""
LONGEST_TOKENS: Final = 1900
LEFT_S: Final = 1.0
"""A client that leaves frees its slot within this time."""

_MADE_BY_CLIENT: Final = re.compile(r'"id":"(?:chatcmpl-[-0-9a-f]{36}|resp_[A-Za-z0-9+/=]{60,})"')
"""Ids of litellm's own."""

# -- the servers -----------------------------------------------------------------------------------


@dataclass
class Side:
    """One server: a relay before it, and clients that know only the relay."""

    clients: Clients
    relay: Relay

    def heard(self, act: Act) -> tuple[str, list[Transcript]]:
        """What a client made of the answer, and what was said."""

        def done() -> str:
            try:
                return str(act(self.clients))
            except Exception as exc:
                return f"{type(exc).__name__}: {exc}"

        result, said = self.relay.heard(done)
        return _MADE_BY_CLIENT.sub('"id":"#"', normalised(result.encode()).decode()), said


@dataclass
class Serving:
    """One deployment, through the gateway and directly."""

    gateway: Side
    engine: Side
    http: httpx.Client
    """To llama-server."""

    def busy_slots(self) -> int:
        return sum(slot["is_processing"] for slot in self.http.get("/slots").json())


@pytest.fixture(scope="module", autouse=True)
def _this_host_alone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "*")
        with held_to_this_host() as held:
            yield
    assert held.asked == []


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {name: folder / f"{name}.gguf" for name in (RANDOM, CALLING)}
    demo.write_demo_model(made[RANDOM], recite=False, **SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SENTENCE", CALL)
        patch.setattr(demo, "CHAT_TEMPLATE", CALLING_TEMPLATE)
        patch.setattr(demo, "_tokens", demo._tokens.__wrapped__)  # else it keeps the other ones
        demo.write_demo_model(made[CALLING], **SMALL)
    return {RECITING: demo_model, **made}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A supervisor and two workers for all tests of this file."""
    made = Cluster(tmp_path_factory.mktemp("house"))
    try:
        await made.supervisor()
        await asyncio.gather(made.agent("one"), made.agent("two"))
        yield made
    finally:
        await made.close()
    left = engine_pids()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"engine processes were left running: {left}"


@pytest.fixture(scope="module")
def litellm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Litellm]:
    made = Litellm(tmp_path_factory.mktemp("litellm") / "log")
    yield made
    made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(
    request: pytest.FixtureRequest, house: Cluster, models: dict[str, Path], litellm: Litellm
) -> AsyncIterator[Serving]:
    """The deployment of a model; one follows the other."""
    spec = {"name": NAME, "slots": SLOTS, "ctx_tokens": SLOTS * 2048}
    launched = await house.launch(models[request.param], **spec)
    assert launched.status_code == 201, launched.text
    deployment = await house.settled(NAME)
    assert deployment["state"] == "ready", deployment["reason"]
    headers, port = house.engine_headers, deployment["port"]
    key = headers["authorization"].removeprefix("Bearer ")
    with relayed(httpx.URL(house.url).port or 0) as front, relayed(port) as direct:
        gateway = Clients(front.url, "none-is-needed", litellm)
        # llama-server ends some connections after an answer, and a client may ask just then.
        engine = Clients(direct.url, key, litellm, {"Connection": "close"})
        with (
            contextlib.closing(gateway),
            contextlib.closing(engine),
            httpx.Client(base_url=direct.url, headers=headers, trust_env=False) as http,
        ):
            yield Serving(Side(gateway, front), Side(engine, direct), http)
    await house.http.post(f"/api/deployments/{NAME}/stop")
    await house.settled_as("stopped", name=NAME)
    await house.http.delete(f"/api/deployments/{NAME}")


on_random = pytest.mark.parametrize("serving", [RANDOM], indirect=True)

# -- the same, in and out --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("serving", "case"),
    [pytest.param(case.model, case, id=case.name) for case in CASES],
    indirect=["serving"],
    scope="module",
)
def test_a_client_gets_what_it_gets_directly(serving: Serving, case: Case) -> None:
    made_directly, said_directly = serving.engine.heard(case.act)
    assert [talk.status for talk in said_directly] == [case.status], said_directly
    made, said = serving.gateway.heard(case.act)
    if case.status == 200:
        # Now the engine knows the prompt, as it did when the gateway asked.
        made_directly, said_directly = serving.engine.heard(case.act)
    if case.is_untimed:
        said, said_directly = without_timings(said), without_timings(said_directly)
    elif case.is_racing:
        said, said_directly = by_index(said), by_index(said_directly)
    else:
        assert made == made_directly
    assert not (changed := differences(said, said_directly)), "\n".join(changed)
    for part in case.says:
        assert part in said[0].text


# -- what the gateway answers itself ---------------------------------------------------------------


@on_random
def test_the_models_are_listed_as_llama_server_lists_them(serving: Serving) -> None:
    ours, theirs = serving.gateway.clients.openai.models, serving.engine.clients.openai.models
    (own,), (direct,) = ours.list().data, theirs.list().data
    for name in ("id", "object", "owned_by"):
        assert getattr(own, name) == getattr(direct, name), name
    assert own.meta.items() <= direct.meta.items()
    assert own.meta.keys() >= {"n_ctx", "n_ctx_train", "size"}
    for name in (NAME, NAME.upper(), "random"):
        assert ours.retrieve(name) == own
    assert [model.id for model in serving.gateway.clients.anthropic.models.list()] == [NAME]


@on_random
def test_a_model_that_is_not_there_is_not_found(serving: Serving) -> None:
    from openai import NotFoundError

    with pytest.raises(NotFoundError, match=f"known: {NAME}"):
        serving.gateway.clients.openai.models.retrieve("gpt-9")


@on_random
def test_health_is_told_alike(serving: Serving) -> None:
    sides = (serving.gateway, serving.engine)
    through, directly = (json.loads(side.heard(curl("/health"))[0]) for side in sides)
    assert through == directly == {"status": "ok"}


@on_random
def test_one_connection_serves_many_requests(serving: Serving) -> None:
    fresh = Clients(serving.gateway.relay.url, "none", serving.gateway.clients.litellm)
    before = serving.gateway.relay.connections
    with contextlib.closing(fresh):
        for _ in range(3):
            fresh.openai.chat.completions.create(**chat())
    assert serving.gateway.relay.connections == before + 1


# -- clients that leave ----------------------------------------------------------------------------

LONG: Final = text(max_tokens=LONGEST_TOKENS)
LONG_CHAT: Final = chat(max_tokens=LONGEST_TOKENS)
SOON_S: Final = 1.5
TAKEN: Final = 200
"""Pieces of a stream, for as long."""
_CURL_TIMED_OUT: Final = 28


def _openai_leaves_a_stream(clients: Clients) -> None:
    with called(clients.openai.completions.create, {**LONG, "stream": True}) as stream:
        assert list(islice(stream, TAKEN))


def _openai_gives_up(clients: Clients) -> None:
    from openai import APITimeoutError

    with pytest.raises(APITimeoutError):
        called(clients.openai.chat.completions.create, {**LONG_CHAT, "timeout": SOON_S})


def _anthropic_leaves_a_stream(clients: Clients) -> None:
    with called(clients.anthropic.messages.create, {**LONG_CHAT, "stream": True}) as stream:
        assert list(islice(stream, TAKEN))


def _anthropic_gives_up(clients: Clients) -> None:
    from anthropic import APITimeoutError

    with pytest.raises(APITimeoutError):
        called(clients.anthropic.messages.create, {**LONG_CHAT, "timeout": SOON_S})


def _litellm_leaves_a_stream(clients: Clients) -> None:
    body = {**LONG_CHAT, "model": f"openai/{NAME}", "stream": True}
    arguments = litellm_arguments(clients, body)
    assert '"delta"' in clients.litellm.call("completion", arguments, take=TAKEN)


def _litellm_gives_up(clients: Clients) -> None:
    body = {**LONG_CHAT, "model": f"anthropic/{NAME}", "timeout": SOON_S}
    assert "imeout" in clients.litellm.call("completion", litellm_arguments(clients, body))


def _curl_leaves_a_stream(clients: Clients) -> None:
    command = curl_command(clients, "/v1/responses", {"input": "Hello", "stream": True})
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert list(islice(process.stdout, 3 * TAKEN))  # lines
        process.kill()


def _curl_gives_up(clients: Clients) -> None:
    command = curl_command(clients, "/completion", {"prompt": "Hi", "n_predict": LONGEST_TOKENS})
    done = subprocess.run([*command, "--max-time", str(SOON_S)], check=False, capture_output=True)
    assert done.returncode == _CURL_TIMED_OUT


@contextlib.contextmanager
def watched(busy_slots: Callable[[], int]) -> Iterator[list[int]]:
    """Looks at the slots all the time: how many were busy."""
    seen: list[int] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            seen.append(busy_slots())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        is_over.set()
        watching.join()


@on_random
@pytest.mark.parametrize(
    "leave",
    [
        _openai_leaves_a_stream,
        _openai_gives_up,
        _anthropic_leaves_a_stream,
        _anthropic_gives_up,
        _litellm_leaves_a_stream,
        _litellm_gives_up,
        _curl_leaves_a_stream,
        _curl_gives_up,
    ],
)
def test_a_client_that_leaves_frees_its_slot(
    serving: Serving, leave: Callable[[Clients], None]
) -> None:
    with watched(serving.busy_slots) as seen:
        leave(serving.gateway.clients)
    left_s = time.monotonic()
    while serving.busy_slots():
        assert time.monotonic() < left_s + LEFT_S
        time.sleep(0.02)
    assert any(seen), "it was never at work"
