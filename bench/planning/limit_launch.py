"""Launches of the cases of ``limit_cases.py``, each worker in a memory group with a limit."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
from filled_model import FIRST_WORD, write_model
from limit_cases import Case
from limit_plan import THREADS, Need, planned
from memory_groups import MemoryGroup, make_group

from agents import engine as engines
from agents import environment, facts, logfile, ports, process
from agents.contract import EngineFacts
from agents.rpc_protocol import Outcome, probe
from supervisor.core.commands import llama_server_argv
from supervisor.core.entities import Plan

GENERATED_TOKENS = 16
SPARE_TOKENS = 8
"""Of the context, left empty: llama-server refuses a prompt that fills it."""

READY_S, LOAD_S, ANSWER_S = 10.0, 120.0, 300.0
COUNTED_S = 0.5
"""The kernel kills first and counts later."""


@dataclass(frozen=True)
class Row:
    """One worker of a case, in bytes, its own program included."""

    case: str
    settings: str
    worker: int
    formula_bytes: int
    buffers_bytes: int
    predicted_bytes: int
    limit_bytes: int
    group_peak_bytes: int
    resident_peak_bytes: int | None
    is_killed: bool
    is_complete: bool

    @property
    def share(self) -> float:
        """What the kernel counted against the limit, by what was predicted."""
        return self.group_peak_bytes / self.predicted_bytes


@dataclass(frozen=True)
class Worker:
    """A running rpc-server in its group; ``base_bytes``: what it used before any client."""

    child: process.Child
    group: MemoryGroup
    port: int
    base_bytes: int
    need: Need
    limit_bytes: int

    def row(self, case: Case, index: int, *, is_complete: bool) -> Row:
        counted = self.group.counted()
        return Row(
            case=case.name,
            settings=case.settings,
            worker=index,
            formula_bytes=self.need.formula_bytes + self.base_bytes,
            buffers_bytes=self.need.buffers_bytes + self.base_bytes,
            predicted_bytes=self.need.peak_bytes + self.base_bytes,
            limit_bytes=self.limit_bytes,
            group_peak_bytes=counted.most_bytes,
            resident_peak_bytes=facts.peak_resident_bytes(self.child.pid),
            is_killed=counted.kills > 0 or self.child.exit_status is not None,
            is_complete=is_complete,
        )


class Bench:
    """Runs cases; every process and group that it made is gone when ``run`` returns."""

    def __init__(self, engine: EngineFacts, flags: frozenset[str], folder: Path) -> None:
        self._engine = engine
        self._flags = flags
        self._folder = folder
        self._inherited = engines.inherited()
        self._environment = environment.for_engine(self._inherited, {"GGML_NO_BACKTRACE": "1"})

    async def run(self, case: Case) -> list[Row]:
        """Launch one case and fill its context.

        Raises:
            GroupsUnusable: No memory group could be made.
            EngineError: The engine cannot plan the case.
            TimeoutError: Something did not answer in time.
        """
        path = write_model(case.shape, self._folder)
        try:
            plan, needs = await planned(case, path, self._engine, self._inherited)
            async with AsyncExitStack() as stack:
                workers = [
                    await self._worker(stack, case, f"worker{index}", need)
                    for index, need in enumerate(needs)
                ]
                is_complete = await self._serve(stack, case, plan, workers)
                if not is_complete:
                    await asyncio.sleep(COUNTED_S)
                return [w.row(case, i, is_complete=is_complete) for i, w in enumerate(workers)]
        finally:
            path.unlink()

    async def _worker(self, stack: AsyncExitStack, case: Case, name: str, need: Need) -> Worker:
        group = make_group(name)
        stack.callback(group.remove)
        port = _reserved(stack)
        argv = [self._engine.rpc_server, "-H", "127.0.0.1", "-p", str(port), "-t", str(THREADS)]
        child = await self._spawn(stack, name, group.command(argv))
        async with asyncio.timeout(READY_S):
            while (await probe("127.0.0.1", port, deadline_s=2)).outcome is not Outcome.READY:
                assert child.exit_status is None, logfile.tail(child.log_path)
                await asyncio.sleep(0.05)
        counted = group.counted()
        base_bytes = counted.used_bytes - counted.page_cache_bytes
        limit_bytes = round((need.peak_bytes + base_bytes) / case.share)
        group.limit(limit_bytes)
        return Worker(child, group, port, base_bytes, need, limit_bytes)

    async def _serve(
        self, stack: AsyncExitStack, case: Case, plan: Plan, workers: Sequence[Worker]
    ) -> bool:
        """Start llama-server as planned and fill its context; false if it or a worker ended."""
        port = _reserved(stack)
        endpoints = {
            shard.agent_id: f"127.0.0.1:{worker.port}"
            for shard, worker in zip(plan.shards, workers, strict=True)
        }
        argv = llama_server_argv(
            self._engine.llama_server,
            plan,
            endpoints,
            port=port,
            known=self._flags,
            alias="bench",
        )
        server = await self._spawn(stack, "llama-server", argv)
        asking = asyncio.create_task(_fill_context(port, case))
        endings = [
            asyncio.create_task(child.wait()) for child in (server, *(w.child for w in workers))
        ]
        try:
            await asyncio.wait({asking, *endings}, return_when=asyncio.FIRST_COMPLETED)
            if any(ending.done() for ending in endings):
                return False
            await asking
            return True
        finally:
            for task in (asking, *endings):
                task.cancel()
            await asyncio.gather(asking, *endings, return_exceptions=True)

    async def _spawn(self, stack: AsyncExitStack, name: str, argv: Sequence[str]) -> process.Child:
        log_path = self._folder / f"{name}.log"
        log_path.unlink(missing_ok=True)
        child = await process.spawn(name, argv, log_path=log_path, environment=self._environment)
        stack.push_async_callback(child.stop, grace_s=1.0)
        return child


def _reserved(stack: AsyncExitStack) -> int:
    reservation = ports.reserve("127.0.0.1")
    stack.callback(reservation.release)
    return reservation.port


async def _fill_context(port: int, case: Case) -> None:
    """One request that needs every cell of the cache.

    Raises:
        TimeoutError: llama-server was not ready, or did not answer, in time.
    """
    count = case.ctx_tokens - GENERATED_TOKENS - SPARE_TOKENS
    rng = random.Random(3)
    request = {
        "prompt": [rng.randrange(FIRST_WORD, case.shape.vocabulary) for _ in range(count)],
        "n_predict": GENERATED_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=ANSWER_S) as http:
        async with asyncio.timeout(LOAD_S):
            while not await _is_healthy(http):
                await asyncio.sleep(0.1)
        try:
            answer = await http.post("/completion", json=request)
        except httpx.TransportError:
            await asyncio.sleep(READY_S)  # it ended; whoever watches it is told in a moment
            raise
    assert answer.status_code == 200, answer.text
    timings = answer.json()["timings"]
    said = (timings["prompt_n"], timings["predicted_n"])
    assert said == (count, GENERATED_TOKENS), f"{said} tokens instead of {count} and more"


async def _is_healthy(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/health")).status_code == 200
    except httpx.TransportError:
        return False
