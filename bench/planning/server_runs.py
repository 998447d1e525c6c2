"""Runs of llama-server over emulated devices: started, loaded unshaped, timed shaped, ended."""

import asyncio
import json
import statistics
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
from layouts import Layout
from worker_lab import GRACE_S, LOOPBACK, Lab, engine_environment

from agents import engine as engines
from agents import logfile, ports, process
from agents.contract import EngineFacts
from supervisor.core.commands import chosen_flags, known_flags
from supervisor.core.memory import Run

READY_S = 120.0
REQUEST_S = 180.0
NO_KEEPALIVE = httpx.Limits(max_keepalive_connections=0)
"""llama-server sometimes closes a connection after a stream just when it is used again."""

PAUSE_S = 0.02
FIRST_TOKEN = 300
TOKENS = 97
"""Prompts go round in this many words; what they are changes nothing."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One request: its prompt, and a token of its answer."""

    prompt_s: float
    token_s: float


@dataclass(frozen=True, slots=True)
class Bench:
    """What stays the same for all runs of a scenario."""

    engine: EngineFacts
    flags: tuple[str, ...]
    model: Path
    pattern: str
    run: Run
    folder: Path

    @classmethod
    async def of(
        cls, engine: EngineFacts, model: Path, pattern: str, run: Run, folder: Path
    ) -> "Bench":
        """Ask the engine for the flags that it knows."""
        _, text = await engines.run([engine.llama_server, "--help"], engines.inherited())
        return cls(engine, tuple(chosen_flags(known_flags(text))), model, pattern, run, folder)

    def argv(self, layout: Layout, endpoints: Mapping[str, str], port: int) -> list[str]:
        run = self.run
        settings = {
            "--model": str(self.model),
            "--host": LOOPBACK,
            "--port": str(port),
            "-c": str(run.ctx_tokens),
            "-np": "1",
            "-ub": str(run.ubatch),
            "-ctk": run.kv_type,
            "-ctv": run.kv_type,
            "-fa": "on",
            "-t": "1",
        }
        words = [word for pair in settings.items() for word in pair]
        devices = layout.arguments(endpoints, self.pattern)
        return [self.engine.llama_server, *words, *devices, *self.flags]

    async def timed(
        self, layout: Layout, lab: Lab, prompt: int, tokens: int, *, is_prompt_timed: bool
    ) -> Timing:
        """Load a placement and time a request to it.

        A prompt that is not timed is read unshaped, and its cache is used.

        Raises:
            RuntimeError: llama-server ended, or did not load or answer in time.
        """
        await lab.shape(is_on=False)
        endpoints = {name: worker.endpoint for name, worker in lab.workers.items()}
        async with self._served(layout, endpoints) as http:
            await completion(http, 2 if is_prompt_timed else prompt, 2)
            await lab.shape(is_on=True)
            if is_prompt_timed:
                await completion(http, 2, 3)
            return await completion(http, prompt, tokens, keeps=not is_prompt_timed)

    @asynccontextmanager
    async def _served(
        self, layout: Layout, endpoints: Mapping[str, str]
    ) -> AsyncIterator[httpx.AsyncClient]:
        reservation = ports.reserve(LOOPBACK)
        log_path = self.folder / "llama-server-0.log"
        log_path.unlink(missing_ok=True)
        try:
            child = await process.spawn(
                "llama-server",
                self.argv(layout, endpoints, reservation.port),
                log_path=log_path,
                environment=engine_environment(),
            )
            try:
                url = f"http://{LOOPBACK}:{reservation.port}"
                async with httpx.AsyncClient(
                    base_url=url, trust_env=False, timeout=REQUEST_S, limits=NO_KEEPALIVE
                ) as http:
                    await _ready(http, child)
                    yield http
            except (httpx.HTTPError, TimeoutError) as exc:
                await asyncio.sleep(PAUSE_S)
                tail = " / ".join(logfile.tail(log_path, 3))
                how = process.describe_exit(child.exit_status)
                raise RuntimeError(f"{layout}: {exc!r}, llama-server {how}: {tail}") from exc
            finally:
                await child.stop(grace_s=GRACE_S)
        finally:
            reservation.release()


async def _ready(http: httpx.AsyncClient, child: process.Child) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            if child.exit_status is not None:
                raise httpx.ConnectError(process.describe_exit(child.exit_status))
            try:
                if (await http.get("/health")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(PAUSE_S)


async def completion(
    http: httpx.AsyncClient, prompt: int, tokens: int, *, keeps: bool = False
) -> Timing:
    """One request; llama-server's own clock tells when each token was there.

    ``keeps``: what is in the cache of the same prompt is not computed again.
    """
    request = {
        "prompt": [FIRST_TOKEN + number % TOKENS for number in range(prompt)],
        "n_predict": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": keeps,
        "stream": True,
        "timings_per_token": True,
    }
    at_ms: list[float] = []
    prompt_ms = 0.0
    async with http.stream("POST", "/completion", json=request) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                said = json.loads(line.removeprefix("data: "))
                prompt_ms = said["timings"]["prompt_ms"]
                if not said["stop"]:
                    at_ms.append(said["timings"]["predicted_ms"])
    return Timing(prompt_ms / 1e3, token_s(at_ms))


def token_s(at_ms: Sequence[float]) -> float:
    """Mean of the middle half of the steps.

    The first is left out: its graph is sent anew, once in 256 tokens of a long answer.
    """
    steps = sorted(after - before for before, after in pairwise(at_ms[1:]))
    if not steps:
        return at_ms[-1] / 1e3
    cut = len(steps) // 4
    return statistics.mean(steps[cut : len(steps) - cut]) / 1e3
