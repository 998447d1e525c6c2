"""The API of what to run: streams, refusals, and work that ends with its caller."""

import asyncio
import json
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI

from supervisor.api import problems
from supervisor.api.suggest_api import create_suggest_router
from supervisor.core.suggesting import ModelFit, Suggestions
from supervisor.errors import HubUnreachable, ModelMissing
from supervisor.service.suggesting import Suggester, SuggestProgress, SuggestWish, Tell

FIT = ModelFit(ctx_tokens=8192, fits=True, tokens_per_s=12.5, devices=("desk",))


class Asked:
    """Answers at once, or never; remembers what became of the question."""

    def __init__(self) -> None:
        self.fitter = self
        self.wishes: list[SuggestWish] = []
        self.begun = asyncio.Event()
        self.is_cancelled = False

    async def suggest(self, wish: SuggestWish, tell: Tell) -> Suggestions:
        self.wishes.append(wish)
        tell(SuggestProgress("asking", 1, 2))
        if wish.asked == "owner/none":
            raise HubUnreachable("the hub cannot be reached; try again later")
        return Suggestions(
            asked=wish.asked,
            ctx_tokens=wish.ctx_tokens,
            min_tokens_per_s=wish.min_tokens_per_s,
            suggestions=(),
            words="Nothing fits.",
        )

    async def of_file(self, model: str, ctx_tokens: int | None) -> ModelFit:
        if model == "nothing":
            raise ModelMissing("nothing is not among the models of this host")
        if model == "endless":
            self.begun.set()
            try:
                await asyncio.sleep(600)
            finally:
                self.is_cancelled = True
        return FIT.model_copy(update={"ctx_tokens": ctx_tokens or 8192})


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def app(asked: Asked) -> FastAPI:
    made = FastAPI()
    problems.install(made)
    made.include_router(create_suggest_router(cast(Suggester, asked)))
    return made


async def events(app: FastAPI, query: str) -> list[tuple[str, Any]]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get(f"/api/models/suggest?{query}")
    assert answer.status_code == 200
    found, name = [], ""
    for line in answer.text.splitlines():
        field, _, value = line.partition(": ")
        name = value if field == "event" else name
        if field == "data":
            found.append((name, json.loads(value)))
    return found


async def test_progress_and_then_the_result(app: FastAPI, asked: Asked) -> None:
    found = await events(app, "q=owner/repo&ctx_tokens=4096&min_tokens_per_s=2")
    assert found[0] == ("progress", {"step": "asking", "done": 1, "total": 2})
    assert found[-1][0] == "result"
    assert found[-1][1]["words"] == "Nothing fits."
    assert asked.wishes == [SuggestWish("owner/repo", 4096, 2.0)]
    await events(app, "")
    assert asked.wishes[-1] == SuggestWish("", None, 5.0)


async def test_a_hub_that_is_away_is_a_problem_of_the_stream(app: FastAPI) -> None:
    name, body = (await events(app, "q=owner/none"))[-1]
    assert name == "problem"
    assert body["code"] == "hub_unreachable"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("model=m", 200),
        ("model=m&ctx_tokens=1024", 200),
        ("model=nothing", 422),
        ("", 422),
        ("model=m&ctx_tokens=1", 422),
    ],
)
async def test_a_fit_is_answered_or_refused(app: FastAPI, query: str, status: int) -> None:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get(f"/api/models/fit?{query}")
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()["tokens_per_s"] == 12.5


async def test_who_hangs_up_ends_the_plan(app: FastAPI, asked: Asked) -> None:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/api/models/fit",
        "raw_path": b"/api/models/fit",
        "query_string": b"model=endless",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    came = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        if first := next(came, None):
            return first
        await asked.begun.wait()
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        """Nobody listens any more."""

    task = asyncio.create_task(app(scope, receive, send))
    await asyncio.wait({task}, timeout=20)
    assert task.done()
    assert asked.is_cancelled
