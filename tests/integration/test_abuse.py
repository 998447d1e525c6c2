"""Clients that mean no good: the supervisor lives, stays small and silent, and serves the others.

One cluster is abused by all tests in turn. After each of them it has to have the descriptors and
the memory that it had before, and not one traceback in its log.
"""

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from cluster import Cluster, Program, eventually

from supervisor.core.gateway_routes import ROUTES, Api, GatewayRoute, api_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.alone]

FLOOD = Path(__file__).parents[1] / "lab" / "abuse.py"
FLOOD_S = 10.0
MIB = 1024 * 1024
GIGABYTE = 10**9
CONNECTIONS = 300
STALL_S = 3.0
HEAD_S = 10.0
MORE_MIB = 48
"""What memory the supervisor may have more than before; allocators keep some."""
MORE_DESCRIPTORS = 8
SOON_S = 20.0
SLOWEST_S = 15.0
"""For the four tokens of another user."""
JSON = {"content-type": "application/json"}


# -- who is abused, and who suffers --------------------------------------------------------------


@dataclass
class Abused:
    """A supervisor with one deployment."""

    cluster: Cluster
    program: Program
    key: str = ""
    engine: httpx.AsyncClient = field(init=False)

    @property
    def port(self) -> int:
        return int(self.cluster.url.rpartition(":")[2])

    @property
    def memory_mib(self) -> int:
        return self._memory_mib("VmRSS")

    @property
    def peak_mib(self) -> int:
        """The most that it ever had."""
        return self._memory_mib("VmHWM")

    def _memory_mib(self, name: str) -> int:
        status = Path(f"/proc/{self.program.process.pid}/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) // 1024

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.program.process.pid}/fd"))

    async def ask(self) -> httpx.Response:
        """As another user does, who has a key."""
        asked = {"model": "test", "prompt": "Hello", "max_tokens": 4, "temperature": 0}
        headers = {"authorization": f"Bearer {self.key}"}
        return await self.cluster.http.post("/v1/completions", json=asked, headers=headers)

    @contextlib.asynccontextmanager
    async def serving_others(self) -> AsyncIterator[None]:
        """While the block runs, another user asks once a second and is answered each time."""
        told: list[tuple[int, float]] = []
        is_over = asyncio.Event()

        async def go_on() -> None:
            while not is_over.is_set():
                began_s = time.monotonic()
                status = (await self.ask()).status_code
                told.append((status, time.monotonic() - began_s))
                with contextlib.suppress(TimeoutError):
                    left_s = began_s + 1.0 - time.monotonic()
                    await asyncio.wait_for(is_over.wait(), max(left_s, 0.0))

        async with asyncio.TaskGroup() as group:
            group.create_task(go_on())
            yield
            is_over.set()
        assert {status for status, _ in told} == {200}, told
        slowest_s = max(took_s for _, took_s in told)
        print(f"{len(told)} answers for another user, the slowest after {slowest_s:.1f} s")
        assert slowest_s < SLOWEST_S

    @contextlib.contextmanager
    def connected(self, said: bytes = b"") -> Iterator[socket.socket]:
        """A connection that takes little at once."""
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.connect(("127.0.0.1", self.port))
            client.setblocking(False)
            client.send(said)
            yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    tmp_path_factory: pytest.TempPathFactory, random_model: Path
) -> AsyncIterator[Abused]:
    cluster = Cluster(tmp_path_factory.mktemp("abused"))
    try:
        program = await cluster.supervisor(
            connections_limit=CONNECTIONS, client_stall_s=STALL_S, bodies_limit_mib=128
        )
        await cluster.agent("one")
        await cluster.launch(random_model, slots=4, ctx_tokens=4 * 512)
        deployment = await cluster.settled()
        assert deployment["state"] == "ready", deployment
        made = Abused(cluster, program)
        wanted = {"name": "other", "scopes": ["inference"]}
        made.key = (await cluster.http.post("/api/keys", json=wanted)).json()["text"]
        address = f"http://127.0.0.1:{deployment['port']}"
        made.engine = httpx.AsyncClient(
            base_url=address, headers=cluster.engine_headers, timeout=60, trust_env=False
        )
        async with made.engine:
            yield made
    finally:
        await cluster.close()


@pytest_asyncio.fixture(loop_scope="module")
async def abused(shared: Abused) -> AsyncIterator[Abused]:
    """What is abused, and afterwards is as it was."""
    assert (await shared.ask()).status_code == 200
    memory_mib, descriptors = shared.memory_mib, shared.descriptors
    said_before = len(shared.program.said())
    yield shared

    async def is_as_before() -> bool:
        assert shared.program.process.poll() is None
        found = shared.memory_mib - memory_mib, shared.descriptors - descriptors
        return found[0] <= MORE_MIB and found[1] <= MORE_DESCRIPTORS

    await eventually(is_as_before, within_s=SOON_S, what="memory and descriptors are given back")
    print(f"{memory_mib} MiB before, {shared.memory_mib} after, at most {shared.peak_mib}")
    assert (await shared.ask()).status_code == 200
    deployment = (await shared.cluster.http.get("/api/deployments/test")).json()
    assert (deployment["state"], deployment["failures"]) == ("ready", 0)
    said = shared.program.said()[said_before:]
    assert "Traceback" not in said, said[-5000:]
    assert " ERROR " not in said, said[-5000:]


# -- bodies --------------------------------------------------------------------------------------


async def sent_until_answered(abused: Abused, path: str, *, chunked: bool) -> tuple[bytes, int]:
    """Send a gigabyte until somebody says something; returns that, and the bytes sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", abused.port)
    how = "transfer-encoding: chunked" if chunked else f"content-length: {GIGABYTE}"
    writer.write(f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{how}\r\n\r\n".encode())
    piece = b" " * MIB
    framed = b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
    answering = asyncio.create_task(reader.read())
    sent_bytes = 0
    try:
        while not answering.done() and sent_bytes < GIGABYTE:
            writer.write(framed)
            await writer.drain()
            sent_bytes += len(piece)
        return await answering, sent_bytes
    finally:
        answering.cancel()
        writer.transport.abort()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/api/deployments"])
async def test_a_gigabyte_is_refused_early(abused: Abused, path: str) -> None:
    limit_mib = 0 if path.startswith("/api") else 64
    kernel_mib = 96  # what is sent and not read yet, by two programs that may be slow
    async with abused.serving_others():
        for chunked in (False, True):
            answer, sent_bytes = await sent_until_answered(abused, path, chunked=chunked)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 413 "), head
            assert b"request_too_large" in body
            if path == "/v1/messages":
                assert json.loads(body)["type"] == "error"
            assert sent_bytes <= (limit_mib * chunked + kernel_mib) * MIB


async def test_many_large_bodies_at_once_are_bounded_together(abused: Abused) -> None:
    calls = [sent_until_answered(abused, "/v1/completions", chunked=True) for _ in range(12)]
    async with abused.serving_others():
        answers = await asyncio.gather(*calls)
    statuses = Counter(answer.split(b" ", 2)[1].decode() for answer, _ in answers)
    assert set(statuses) <= {"413", "429"}, statuses
    for answer, _ in answers:
        assert b" 429 " not in answer[:20] or b"retry-after: " in answer.lower()


# -- heads ---------------------------------------------------------------------------------------


async def test_heads_that_are_bombs_are_refused(abused: Abused) -> None:
    start = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    bombs = {
        "one giant header": [start, b"a: ", *[b"x" * 65536] * 160, b"\r\n\r\n"],
        "10 000 headers": [start, *(b"h%d: a\r\n" % number for number in range(10_000)), b"\r\n"],
        "no end": [start, *[b"a: b\r\n" * 1000] * 1000],
        "a giant path": [b"GET /", *[b"x" * 65536] * 160, b" HTTP/1.1\r\n\r\n"],
        "a giant folded header": [start, b"a: b\r\n", *[b" c\r\n" * 1000] * 1000, b"\r\n"],
    }

    async def throw(pieces: list[bytes]) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", abused.port)
        try:
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            async with asyncio.timeout(SOON_S):
                return await reader.read(65536)
        finally:
            writer.transport.abort()

    async with abused.serving_others():
        for name, pieces in bombs.items():
            for answer in await asyncio.gather(*(throw(pieces) for _ in range(8))):
                assert answer[:13] in (b"HTTP/1.1 431 ", b"HTTP/1.1 400 "), (name, answer[:200])


# -- who is slow, and how many -------------------------------------------------------------------


def post(path: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {size}\r\n\r\n"
    return head.encode() + body


async def ended(client: socket.socket) -> bytes:
    """What is still said until the other side ends the connection."""
    loop, said = asyncio.get_running_loop(), b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(SOON_S):
            while more := await loop.sock_recv(client, 65536):
                said += more
    return said


def question(tokens: int) -> bytes:
    """Answered by a stream of some 8 KB for each token."""
    asked = {"model": "test", "prompt": "Hello", "max_tokens": tokens, "logprobs": 200}
    return post("/v1/completions", json.dumps({**asked, "stream": True}).encode())


async def test_slow_readers_and_writers_hold_nobody_up(abused: Abused) -> None:
    """Who reads nothing, or brings no whole head, is cut off; the others may be slow."""
    with contextlib.ExitStack() as stack:

        def clients(count: int, said: bytes) -> list[socket.socket]:
            return [stack.enter_context(abused.connected(said)) for _ in range(count)]

        deaf, slow = clients(12, question(48)), clients(24, question(8))
        heads = clients(24, question(1)[:40])
        bodies = clients(24, post("/v1/completions", b"{", 900))
        read = dict.fromkeys(slow, 0)

        async def have_come_on() -> bool:
            for client in slow:
                with contextlib.suppress(BlockingIOError):
                    read[client] += len(client.recv(4096))
            for client in heads + bodies:
                with contextlib.suppress(ConnectionError):
                    client.send(b"x")
            return min(read.values()) > 30_000

        async with abused.serving_others():
            await eventually(have_come_on, within_s=60, what="the slow ones are served, too")
            for client in heads:
                assert (await ended(client)).startswith(b"HTTP/1.1 408 ")
            for client in deaf:
                assert not (await ended(client)).endswith(b"0\r\n\r\n")


async def test_more_connections_than_allowed_are_refused_at_once(abused: Abused) -> None:
    half = post("/v1/completions", b"")[:20]
    async with abused.serving_others():
        with contextlib.ExitStack() as stack:
            for _ in range(CONNECTIONS):
                stack.enter_context(abused.connected(half))
            await asyncio.sleep(1.0)
            late = [stack.enter_context(abused.connected(half)) for _ in range(100)]
            for said in await asyncio.gather(*map(ended, late)):
                assert said.startswith(b"HTTP/1.1 503 "), said
                assert b"retry-after: " in said


# -- nonsense ------------------------------------------------------------------------------------

NOT_JSON = {
    "nothing": b"",
    "half": b'{"model": "test", "prompt": "a',
    "two": b"{}{}",
    "a list": b"[]",
    "null": b"null",
    "invalid UTF-8": b'{"model": "test", "prompt": "\xff\xfe"}',
    "UTF-16": '{"model": "test", "prompt": "a", "max_tokens": 2}'.encode("utf-16"),
    "a bracket 100 000 times": b"[" * 100_000,
    "arrays 100 000 deep": b'{"model": "test", "prompt": %b%b}' % (b"[" * 100_000, b"]" * 100_000),
    "objects 50 000 deep": b'{"a":' * 50_000,
    "an integer of 5000 digits": b'{"model": "test", "max_tokens": %b}' % (b"9" * 5000),
    "NaN": b'{"model": "test", "prompt": "a", "temperature": NaN, "max_tokens": 2}',
    "infinity": b'{"model": "test", "prompt": "a", "temperature": -Infinity, "max_tokens": 2}',
    "a bare control character": b'{"model": "test", "prompt": "\x00"}',
}
"""Refused by us, whatever the route; the engine never sees it."""

STRANGE = {
    "a number of 30 digits": b'{"model": "test", "prompt": "a", "max_tokens": %b}' % (b"9" * 30),
    "1e999": b'{"model": "test", "prompt": "a", "temperature": 1e999, "max_tokens": 2}',
    "a lone surrogate": b'{"model": "test", "prompt": "\\ud800", "max_tokens": 2}',
    "a lone surrogate as model": b'{"model": "\\udfff", "max_tokens": 2}',
    "a lone surrogate as key": b'{"\\ud800": 1, "model": "test", "prompt": "a", "max_tokens": 2}',
    "NUL": b'{"model": "test", "prompt": "\\u0000", "max_tokens": 2}',
    "keys twice": b'{"model": "no", "model": "test", "prompt": 1, "prompt": "a", "max_tokens": 2}',
    "arrays 900 deep": b'{"model": "test", "prompt": %b%b}' % (b"[" * 900, b"]" * 900),
    "a byte order mark": b'\xef\xbb\xbf{"model": "test", "prompt": "a", "max_tokens": 2}',
    "an endless name": b'{"model": "%b"}' % (b"x" * 100_000),
}
"""Valid, more or less: whatever llama-server says of it."""

FIELDS = {
    Api.CHAT: "messages max_tokens temperature stop n logprobs top_logprobs tools tool_choice seed "
    "response_format logit_bias stream stream_options parallel_tool_calls chat_template_kwargs",
    Api.COMPLETIONS: "prompt max_tokens temperature stop n logprobs logit_bias stream echo suffix",
    Api.RESPONSES: "input instructions max_output_tokens tools tool_choice text reasoning stream",
    Api.MESSAGES: "messages system max_tokens stop_sequences tools tool_choice thinking metadata "
    "stream temperature",
    Api.NATIVE: "prompt n_predict grammar json_schema samplers stop n_probs logit_bias lora "
    "id_slot cache_prompt dry_sequence_breakers response_fields t_max_predict_ms content tokens "
    "messages input_prefix input_suffix input_extra query documents top_n input stream",
}
WRONG: tuple[Any, ...] = (None, True, -2, 1e20, "x", [], [[]], {"a": {}}, [{"role": 1}], [1, "x"])
SOUND = {
    "model": "test",
    "prompt": "a",
    "messages": [{"role": "user", "content": "a"}],
    "input": "a",
    "content": "a",
    "tokens": [1],
    "query": "a",
    "documents": ["a"],
    "input_prefix": "a",
    "input_suffix": "b",
    "max_tokens": 2,
    "max_output_tokens": 2,
    "n_predict": 2,
}
POSTED = [route for route in ROUTES.values() if route.method == "POST"]
AT_ONCE = 8


def is_refusal(answer: httpx.Response, api: Api) -> bool:
    """Whether it is our 400 in the shape of an API."""
    body = answer.json()
    has_shape = "message" in body["error"] and ("type" in body) == (api is Api.MESSAGES)
    return answer.status_code == 400 and has_shape


async def asked_all(abused: Abused, asks: list[tuple[GatewayRoute, bytes]]) -> list[httpx.Response]:
    """All answers, in order."""
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(route: GatewayRoute, body: bytes) -> httpx.Response:
        async with places:
            return await abused.cluster.http.post(route.path, content=body, headers=JSON)

    return await asyncio.gather(*(ask(*each) for each in asks))


async def assert_not_ours(abused: Abused, path: str, body: bytes, answer: httpx.Response) -> None:
    """A 5xx has to be what llama-server itself says to this."""
    if answer.status_code >= 500:
        told = await abused.engine.post(path, content=body, headers=JSON)
        said = path, body[:200], answer.text[:300], told.text[:300]
        assert told.status_code == answer.status_code, said


async def test_what_is_no_json_is_refused_everywhere(abused: Abused) -> None:
    passed = {}
    async with abused.serving_others():
        for name, body in NOT_JSON.items():
            answers = await asked_all(abused, [(route, body) for route in POSTED])
            for route, answer in zip(POSTED, answers, strict=True):
                if not is_refusal(answer, api_of(route.path)):
                    passed[name] = answer.text[:200]
    assert not passed


async def test_strange_json_hurts_nobody(abused: Abused) -> None:
    async with abused.serving_others():
        for body in STRANGE.values():
            answers = await asked_all(abused, [(route, body) for route in POSTED])
            for route, answer in zip(POSTED, answers, strict=True):
                await assert_not_ours(abused, route.path, body, answer)


async def test_wrong_types_hurt_nobody(abused: Abused) -> None:
    dice = random.Random(1)
    asks = [
        (route, json.dumps({**SOUND, name: wrong}).encode())
        for route in POSTED
        for name in FIELDS[route.api].split()
        for wrong in dice.sample(WRONG, 2)
    ]
    async with abused.serving_others():
        answers = await asked_all(abused, asks)
        for (route, body), answer in zip(asks, answers, strict=True):
            await assert_not_ours(abused, route.path, body, answer)


# -- how often -----------------------------------------------------------------------------------


async def test_a_flood_of_clients_that_vanish(abused: Abused) -> None:
    """From two programs, as fast as they can."""
    floods = [
        subprocess.Popen(
            [sys.executable, str(FLOOD), str(abused.port), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for seed in (1, 2)
    ]
    lines = len(abused.program.said().splitlines())
    try:
        async with abused.serving_others():
            await asyncio.sleep(FLOOD_S)
    finally:
        said = [flood.communicate()[0] for flood in floods]
    vanished, answers = Counter[str](), Counter[str]()
    for text in said:
        told = json.loads(text.splitlines()[-1])
        vanished.update(told["vanished"])
        answers.update(told["answers"])
    print(f"{vanished.total() / FLOOD_S:.0f} connections a second: {vanished}; {answers}")
    assert {"connected", "in the head", "in the body", "queued"} <= set(vanished)
    assert set(answers) <= {"whole", "429", "503"}, answers
    assert len(abused.program.said().splitlines()) - lines < 20
