"""What a cluster says of itself, with the moment at which it was heard; and requests meanwhile."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from chaos.world import DEPLOYMENT, World

RECONNECT_S = 0.05
RETRY_S = 0.1
BUSY_S = 15.0
LONG_TOKENS = 3000
WORDS = ("river", "water", "home", "language", "machine", "music", "family", "point", "world")
PROMPT_WORDS = 150


@dataclass(frozen=True, slots=True)
class Seen:
    """What the deployment was, as told at a moment of the monotonic clock."""

    at_s: float
    state: str
    launch_id: int | None
    code: str
    reason: str


class Watcher:
    """Listens to the stream of changes, and again after the supervisor was away."""

    def __init__(self, world: World) -> None:
        self._url = f"http://127.0.0.1:{world.port}"
        self._news = asyncio.Event()
        self.seen: list[Seen] = []

    async def run(self) -> None:
        """For ever."""
        timeout = httpx.Timeout(None, connect=5.0)
        async with httpx.AsyncClient(base_url=self._url, timeout=timeout, trust_env=False) as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    async with http.stream("GET", "/api/events") as answer:
                        await self._listen(answer)
                await asyncio.sleep(RECONNECT_S)

    async def _listen(self, answer: httpx.Response) -> None:
        name = ""
        async for line in answer.aiter_lines():
            if line.startswith("event:"):
                name = line.removeprefix("event:").strip()
            elif line.startswith("data:"):
                self._note(name, json.loads(line.removeprefix("data:")))

    def _note(self, name: str, body: Any) -> None:
        if name == "snapshot":
            found = [each for each in body["deployments"] if each["id"] == DEPLOYMENT]
        elif name == "deployment" and body["id"] == DEPLOYMENT:
            found = [body]
        else:
            return
        for each in found:
            state, launch_id = each["state"], each["launch_id"]
            seen = Seen(time.monotonic(), state, launch_id, each["error_code"], each["reason"])
            self.seen.append(seen)
        self._news.set()

    async def first(
        self, wanted: Callable[[Seen], bool], *, after_s: float, within_s: float, what: str
    ) -> Seen:
        """The first of the kind after a moment; waits for it."""
        deadline_s = time.monotonic() + within_s
        while True:
            self._news.clear()
            for each in self.seen:
                if each.at_s >= after_s and wanted(each):
                    return each
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"{what}: not within {within_s} s; last: {self.seen[-1:]}"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._news.wait()

    def states_since(self, after_s: float) -> set[str]:
        return {each.state for each in self.seen if each.at_s >= after_s}

    def launch_ids(self, state: str = "") -> set[int]:
        """Of every launch that was ever shown, or shown in that state."""
        shown = (each for each in self.seen if state in ("", each.state))
        return {each.launch_id for each in shown if each.launch_id is not None}


@asynccontextmanager
async def watching(world: World) -> AsyncIterator[Watcher]:
    made = Watcher(world)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# -- load ------------------------------------------------------------------------------------------


@dataclass
class Load:
    """One client that asks, reads the answer as it comes, and asks again, whatever happens."""

    url: str
    seed: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    """Answers that broke off, and requests that were refused."""

    async def run(self) -> None:
        """For ever."""
        rng = random.Random(self.seed)
        timeout = httpx.Timeout(None, connect=5.0)
        async with httpx.AsyncClient(
            base_url=self.url, headers=self.headers, timeout=timeout, trust_env=False
        ) as http:
            while True:
                try:
                    await self._ask(http, " ".join(rng.choices(WORDS, k=PROMPT_WORDS)))
                except (httpx.HTTPError, Refused) as exc:
                    self.errors.append(f"{type(exc).__name__}: {exc}")
                    await asyncio.sleep(RETRY_S)

    async def _ask(self, http: httpx.AsyncClient, prompt: str) -> None:
        body = {
            "model": DEPLOYMENT,
            "prompt": prompt,
            "max_tokens": LONG_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
        }
        is_whole = False
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                raise Refused(f"{answer.status_code}: {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                is_whole = is_whole or line == "data: [DONE]"
                self.tokens += line.startswith("data: {")
        if not is_whole:
            raise Refused("the answer broke off")

    async def moves(self, tokens: int = 8) -> None:
        """Wait until so many more tokens have come."""
        target = self.tokens + tokens
        async with asyncio.timeout(BUSY_S):
            while self.tokens < target:
                await asyncio.sleep(0.01)


class Refused(Exception):
    """No answer, or only a part of it."""


@asynccontextmanager
async def load(
    url: str, seed: int = 1, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Load]:
    """A client of ``url`` that is being answered; llama-server itself wants a key, in headers."""
    made = Load(url, seed, headers or {})
    task = asyncio.create_task(made.run())
    try:
        await made.moves()
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
