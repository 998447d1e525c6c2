"""What the real llama-server says of its slots: idle, while it reads a prompt, while it answers."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cluster import eventually
from lab.capture import child, our_flags

from agents import ports
from agents.command import rpc_server_argv
from agents.contract import EngineFacts
from agents.rpc_protocol import Outcome, probe
from supervisor.adapters.llama_server import LlamaServerClient
from supervisor.core.slots import SlotState
from supervisor.demo_model import write_demo_model
from supervisor.ports import Health

CTX_TOKENS = 4096
PROMPT = [300 + number % 90 for number in range(3000)]


@dataclass
class Serving:
    """A llama-server with one worker."""

    client: LlamaServerClient
    http: httpx.AsyncClient
    worker_pid: int

    def request(self, prompt: list[int], tokens: int) -> "asyncio.Task[httpx.Response]":
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True}
        return asyncio.create_task(self.http.post("/completion", json=body))

    async def until(self, slot: int, **wanted: int) -> SlotState:
        """The slot once each of these counts is at least so much."""

        async def has_them() -> SlotState | None:
            slots = await self.client.slots(5.0)
            assert slots is not None
            found = all(getattr(slots[slot], name) >= least for name, least in wanted.items())
            return slots[slot] if found else None

        reached: SlotState = await eventually(has_them, within_s=60, what=f"slot has {wanted}")
        return reached


@pytest.fixture(scope="session")
def heavy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes seconds for a long prompt."""
    path = tmp_path_factory.mktemp("models") / "heavy.gguf"
    write_demo_model(path, layers=4, embedding=768, feed_forward=2048, heads=12, recite=False)
    return path


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    reserved = ports.reserve("127.0.0.1")
    try:
        yield reserved.port
    finally:
        reserved.release()


@pytest.fixture
async def serving(engine: EngineFacts, heavy_model: Path, tmp_path: Path) -> AsyncIterator[Serving]:
    with free_port() as rpc_port, free_port() as port:
        argv = [engine.llama_server, "--model", str(heavy_model), "--host", "127.0.0.1"]
        argv += ["--port", str(port), "--rpc", f"127.0.0.1:{rpc_port}", "-ngl", "99"]
        argv += ["-c", str(2 * CTX_TOKENS), "-np", "2", *our_flags(engine)]
        worker_argv = rpc_server_argv(engine.rpc_server, "127.0.0.1", rpc_port, 1, ["CPU"])
        client = LlamaServerClient(port)

        async def is_proven() -> bool:
            found = await probe("127.0.0.1", rpc_port, deadline_s=1)
            return found.outcome is Outcome.READY

        async def is_ready() -> bool:
            return await client.health(1.0) is Health.READY

        with child(worker_argv, tmp_path / "worker.log") as worker:
            await eventually(is_proven, within_s=10, what="the rpc-server answers")
            with child(argv, tmp_path / "server.log"):
                await eventually(is_ready, within_s=30, what="llama-server is ready")
                async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as http:
                    yield Serving(client, http, worker.pid)
        await client.close()


async def test_slots_count_what_is_read_and_answered(serving: Serving) -> None:
    fresh = await serving.client.slots(5.0)
    assert fresh == (SlotState(0, -1, is_busy=False), SlotState(1, -1, is_busy=False))
    asked = serving.request(PROMPT, 40)
    reading: SlotState | None = None
    while reading is None:
        slots = await serving.client.slots(5.0)
        assert slots is not None
        reading = next((slot for slot in slots if slot.prompt_tokens), None)
    assert reading.is_busy
    assert reading.reads_prompt
    assert reading.task >= 0
    assert 0 < reading.prompt_tokens <= len(PROMPT), "in batches"
    answering = await serving.until(reading.id, decoded_tokens=2)
    assert answering.task == reading.task
    assert answering.prompt_done_tokens == len(PROMPT)
    assert not answering.reads_prompt
    assert (await asked).status_code == 200
    slots = await serving.client.slots(5.0)
    assert slots is not None
    assert not any(slot.is_busy for slot in slots)
    assert slots[reading.id].task == reading.task, "of the last request"


async def test_what_is_found_in_the_cache_is_no_work(serving: Serving) -> None:
    await serving.request(PROMPT[:600], 1)
    longer = PROMPT[:600] + PROMPT[:500]
    asked = serving.request(longer, 2000)
    slots = await serving.client.slots(5.0)
    while not any(slot.decoded_tokens for slot in slots or ()):
        slots = await serving.client.slots(5.0)
    assert slots is not None
    (busy,) = [slot for slot in slots if slot.is_busy]
    assert 400 <= busy.prompt_done_tokens <= 600, "600 of 1100 were there"
    asked.cancel()


async def test_slots_of_a_frozen_worker_stand_still_or_say_nothing(serving: Serving) -> None:
    """And ``/health`` says ok. Which of both it is depends on the build."""
    asked = serving.request(PROMPT[:100], 3000)
    slots = await serving.client.slots(5.0)
    while not any(slot.decoded_tokens for slot in slots or ()):
        slots = await serving.client.slots(5.0)
    os.kill(serving.worker_pid, signal.SIGSTOP)

    async def stands_still() -> bool:
        """For dozens of tokens."""
        before = await serving.client.slots(1.0)
        await asyncio.sleep(0.5)
        return await serving.client.slots(1.0) == before

    await eventually(stands_still, within_s=10, what="nothing moves")
    stuck = await serving.client.slots(1.0)
    assert stuck is None or any(slot.is_busy for slot in stuck)
    assert await serving.client.health(1.0) is Health.READY
    assert not asked.done()
    asked.cancel()


# Shortened from a real answer of 2026-10 (commit 0c1e570); and what older sources would say.
NOW = """[{"id":0,"n_ctx":4096,"speculative":false,"is_processing":true,"id_task":2,
"n_prompt_tokens":3904,"n_prompt_tokens_processed":3800,"n_prompt_tokens_cache":100,
"params":{"seed":4294967295,"chat_format":"Content-only","generation_prompt":"<|assistant|>"},
"next_token":[{"has_next_token":true,"has_new_line":false,"n_remain":56,"n_decoded":4}],
"prompt":"a secret","generated":"another"},{"id":1,"n_ctx":4096,"is_processing":false}]"""
OLDER = """[{"id":0,"n_ctx":4096,"speculative":false,"is_processing":true,"id_task":2,
"params":{"seed":1},"next_token":{"has_next_token":true,"n_remain":-1,"n_decoded":4}}]"""

STAND_IN = """
import http.server, sys, time
status, delay_s = int(sys.argv[1]), float(sys.argv[2])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(delay_s)
        body = sys.argv[3].encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


async def shown(status: int, delay_s: float, body: str) -> tuple[SlotState, ...] | None:
    """What we make of an answer like this."""
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        STAND_IN,
        str(status),
        str(delay_s),
        body,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert running.stdout is not None
        client = LlamaServerClient(int(await running.stdout.readline()))
        try:
            return await client.slots(0.5 if delay_s else 5.0)
        finally:
            await client.close()
    finally:
        running.kill()
        await running.wait()


async def test_both_generations_are_read_and_no_word_of_a_prompt_is_kept() -> None:
    assert await shown(200, 0, NOW) == (
        SlotState(0, 2, True, decoded_tokens=4, prompt_tokens=3804, prompt_done_tokens=3800),
        SlotState(1, -1, is_busy=False),
    )
    assert await shown(200, 0, OLDER) == (SlotState(0, 2, True, decoded_tokens=4),)


@pytest.mark.parametrize(
    ("status", "delay_s", "body"),
    [
        (501, 0.0, '{"error":{"code":501,"message":"no slots endpoint"}}'),
        (503, 0.0, '{"error":{"code":503,"message":"Loading model"}}'),
        (200, 0.0, '{"error":"an object"}'),
        (200, 0.0, '[{"id":0}]'),
        (200, 0.0, '[{"id":0,"is_processing":true,"next_token":[7]}]'),
        (200, 0.0, "no JSON"),
        (200, 30.0, "[]"),
    ],
)
async def test_what_is_no_answer_is_none(status: int, delay_s: float, body: str) -> None:
    assert await shown(status, delay_s, body) is None


async def test_nobody_there_is_none() -> None:
    with free_port() as port:
        client = LlamaServerClient(port)
        assert await client.slots(1.0) is None
        await client.close()
