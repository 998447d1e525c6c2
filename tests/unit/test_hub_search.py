"""Searching the hub from the page: what is asked and kept, and what goes wrong."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from fastapi import FastAPI
from hub_stand_in import (
    QUICK,
    REPO,
    SMALL,
    SPLIT,
    HubStandIn,
    files,
    hub_stand_in,
    nobodys_account,
    split_part,
)

from supervisor.adapters import hub_search as hub_search_module
from supervisor.adapters.hub import is_reference
from supervisor.adapters.hub_http import Hub, Patience
from supervisor.adapters.hub_search import KEPT_S, HubSearch
from supervisor.api import problems
from supervisor.api.hub_api import create_hub_router
from supervisor.core.model_reference import RepoFile, choose, offered, parse_reference
from supervisor.errors import HubOffline, HubUnreachable

__all__ = ["files", "nobodys_account"]

pytestmark = pytest.mark.timeout(90)

FACTS = {
    SMALL: {"downloads": 5000, "likes": 7, "gated": "manual"},
    REPO: {"downloads": 90, "likes": 12},
    "owner/Empty": {"downloads": 999_999},
}
KNOWN = tuple(f"--known={repo}={json.dumps(facts)}" for repo, facts in FACTS.items())


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def page(made: HubStandIn, clock: Clock | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the routes, which ask this stand-in."""
    app = FastAPI()
    problems.install(app)
    app.include_router(create_hub_router(HubSearch(made.hub, clock or Clock())))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        yield client


async def problem(client: httpx.AsyncClient, url: str) -> tuple[int, str, str]:
    answer = await client.get(url)
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    return answer.status_code, body["code"], body["detail"]


# -- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--status", "503"], "hub_unreachable", "is overloaded or limits us (HTTP 503); 3 tries"),
        (
            ["--status", "429", "--header", "Retry-After=3600"],
            "hub_unreachable",
            "asks to wait 3600 s",
        ),
        (["--status", "404"], "hub_unreachable", "/models cannot be read: HTTP 404"),
        (["--status", "403"], "model_forbidden", "does not let this account read http"),
        (["--status", "401"], "model_forbidden", "check the token (HF_TOKEN"),
        (["--sign-in-page"], "hub_unreachable", "whether this network wants you to sign in"),
        (["--silent"], "hub_unreachable", "cannot be reached"),
        (
            ["--known", f"{SMALL}={json.dumps({'downloads': -1})}"],
            "hub_unreachable",
            "answers, but not as a model hub does",
        ),
        (
            ["--known", f"{SMALL}={json.dumps({'downloads': 'many'})}"],
            "hub_unreachable",
            "answers, but not as a model hub does",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_a_search_that_fails_says_why_and_is_not_kept(
    files: Path, flags: list[str], code: str, says: str
) -> None:
    with hub_stand_in(files, *flags) as made:
        hub = made.hub(Patience(connect_s=1, silence_s=0.5, tries=3, first_pause_s=0.01))
        search = HubSearch(lambda: hub, Clock())
        app = FastAPI()
        problems.install(app)
        app.include_router(create_hub_router(search))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            found = await problem(client, "/api/models/search?q=small")
            again = await problem(client, "/api/models/search?q=small")
    assert (found[1], again[1]) == (code, code)
    assert says in found[2]
    asked = len(made.of("hub"))
    assert asked >= 2
    assert asked % 2 == 0


async def test_a_passing_fault_is_outlived(files: Path) -> None:
    with hub_stand_in(files, "--status", "502", "--times", "2", *KNOWN) as made:
        async with page(made) as client:
            answer = await client.get("/api/models/search?q=small")
    assert [found["repo"] for found in answer.json()] == [SMALL]


@pytest.mark.parametrize(
    "repo",
    [
        "",
        "Small-GGUF",
        f"{SMALL}:Q4_0",
        f"{SMALL}/Small-Q4_0.gguf",
        "../../etc/passwd",
        "a/../b",
        "https://hub.example/a/b",
        "owner/Small-GGUF?x",
        "a/b\n",
        "owner/Bad%2e",
    ],
)
async def test_what_is_no_repository_is_refused_without_asking(files: Path, repo: str) -> None:
    with hub_stand_in(files) as made:
        async with page(made) as client:
            answer = await client.get("/api/models/repo", params={"repo": repo})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_request")
    assert made.requests == []


async def test_limits_of_a_search_are_kept(files: Path) -> None:
    with hub_stand_in(files) as made:
        async with page(made) as client:
            for query in ("limit=0", "limit=101", "limit=x", f"q={'x' * 201}"):
                answer = await client.get(f"/api/models/search?{query}")
                assert (answer.status_code, answer.json()["code"]) == (422, "bad_request"), query
            assert (await client.get("/api/models/repo")).status_code == 422
    assert made.requests == []


async def test_a_repository_that_is_not_there_is_named(files: Path) -> None:
    with hub_stand_in(files) as made:
        async with page(made) as client:
            status, code, detail = await problem(client, "/api/models/repo?repo=owner/None")
    assert (status, code) == (422, "model_missing")
    assert "/owner/None does not exist, or is private" in detail


async def test_a_hub_that_answers_without_end_is_left(files: Path) -> None:
    """What a search may bring is bounded, whoever answers."""
    says = "and went on; try again, or search for less"
    with (
        hub_stand_in(files, "--padding", "9000000") as made,
        pytest.raises(HubUnreachable, match=says),
    ):
        made.hub().search("small", 5)


async def test_whoever_waits_for_a_hub_waits_so_long_and_no_longer() -> None:
    end = threading.Event()

    class Stuck(Hub):
        def search(self, text: str, limit: int) -> Any:
            end.wait(30)
            return []

    search = HubSearch(lambda: Stuck(QUICK, "http://127.0.0.1:9"), deadline_s=0.05)
    try:
        # More than have a thread: the later ones end as well.
        asks = [search.search(f"x{number}", 5) for number in range(9)]
        answers = await asyncio.gather(*asks, return_exceptions=True)
        assert {type(answer) for answer in answers} == {HubUnreachable}
        assert "the hub did not answer within 0.05 s" in str(answers[0])
    finally:
        end.set()


# -- what is found -----------------------------------------------------------------------------


async def test_a_search_finds_repositories_with_models_the_most_loaded_first(files: Path) -> None:
    with hub_stand_in(files, *KNOWN) as made:
        async with page(made) as client:
            every = (await client.get("/api/models/search")).json()
            two = (await client.get("/api/models/search?limit=2")).json()
            none = (await client.get("/api/models/search?q=nothing-like-it")).json()
            some = (await client.get("/api/models/search", params={"q": " BIG-70b  g "})).json()
    changed = "2026-02-03T04:05:06+00:00"
    assert every == [
        {"repo": SMALL, "downloads": 5000, "likes": 7, "updated_at": changed, "is_gated": True},
        {"repo": REPO, "downloads": 90, "likes": 12, "updated_at": changed, "is_gated": False},
        {"repo": SPLIT, "downloads": 0, "likes": 0, "updated_at": changed, "is_gated": False},
    ]
    assert two == every[:2]
    assert (none, some) == ([], [])
    query = parse_qs(str(made.requests[-1]["query"]))
    assert query == {
        "filter": ["gguf"],
        "sort": ["downloads"],
        "limit": ["20"],
        "search": ["BIG-70b g"],
        "expand": ["downloads", "gated", "lastModified", "likes"],
    }


async def test_the_models_of_a_repository_are_what_a_deployment_takes(files: Path) -> None:
    with hub_stand_in(files) as made:
        async with page(made) as client:
            small = (await client.get("/api/models/repo", params={"repo": SMALL})).json()
            split = (await client.get("/api/models/repo", params={"repo": SPLIT})).json()
            large = (await client.get("/api/models/repo", params={"repo": REPO})).json()
            empty = (await client.get("/api/models/repo", params={"repo": "owner/Empty"})).json()
    size = (files / SMALL / "Small-Q2_K.gguf").stat().st_size
    assert small["repo"] == SMALL
    assert small["files"] == [
        {"reference": f"{SMALL}:{label}", "label": label, "size_bytes": size, "parts": 1}
        for label in ("Q2_K", "Q4_0", "Q8_0")
    ]
    (whole,) = split["files"]
    assert whole["parts"] == 3
    assert whole["size_bytes"] == sum(len(split_part(number)) for number in (1, 2, 3))
    assert [model["label"] for model in large["files"]] == ["Q4_K_M"], "no projector"
    assert empty == {"repo": "owner/Empty", "files": []}
    for found in (small, split, large):
        assert all(is_reference(model["reference"]) for model in found["files"])


async def test_a_renamed_repository_is_shown_with_its_new_name(files: Path) -> None:
    with hub_stand_in(files, "--renamed", f"owner/Old={SMALL}") as made:
        async with page(made) as client:
            found = (await client.get("/api/models/repo?repo=owner/Old")).json()
    assert found["repo"] == SMALL
    assert found["files"][0]["reference"] == f"{SMALL}:Q2_K"


async def test_the_token_goes_along(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub_stand_in(files) as made:
        made.hub().search("small", 5)
    assert [request["authorization"] for request in made.requests] == ["Bearer hf_secret"]


# -- what is kept ------------------------------------------------------------------------------


async def test_an_answer_is_kept_for_a_minute(files: Path) -> None:
    clock = Clock()
    with hub_stand_in(files) as made:
        async with page(made, clock) as client:
            for after_s, asked in ((0, 2), (KEPT_S - 1, 2), (2, 4), (1, 4)):
                clock.now_s += after_s
                assert (await client.get("/api/models/search?q=none")).json() == []
                await client.get("/api/models/repo", params={"repo": SMALL})
                await client.get("/api/models/search?q=%20none%20")
                assert len(made.requests) <= asked
    assert len(made.requests) == 4
    assert [str(request["path"]) for request in made.requests].count("/api/models") == 2


async def test_only_so_many_answers_are_kept(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_search_module, "KEPT_ANSWERS", 2)
    with hub_stand_in(files) as made:
        search = HubSearch(made.hub, Clock())
        for text in ("a", "b", "c", "c", "b", "a"):
            await search.search(text, 5)
    asked = [parse_qs(str(request["query"]))["search"][0] for request in made.requests]
    assert asked == ["a", "b", "c", "a"]


# -- the environment ---------------------------------------------------------------------------


def search_elsewhere(folder: Path, **environment: str) -> dict[str, Any]:
    """Search in a process of its own, since huggingface_hub reads its variables once."""
    code = (
        "import asyncio, json\n"
        "from agents.errors import ProjectError\n"
        "from supervisor.adapters.hub_search import HubSearch\n"
        "async def main():\n"
        "    try: return {'repos': [f.repo for f in await HubSearch().search('small', 5)]}\n"
        "    except ProjectError as exc: return {'code': exc.code, 'message': str(exc)}\n"
        "print(json.dumps(asyncio.run(main())))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HOME": str(folder), **environment},
    )
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_the_endpoint_of_the_environment_is_asked(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files) as made:
        found = search_elsewhere(tmp_path, HF_ENDPOINT=made.endpoint + "/")
    assert found == {"repos": [SMALL]}
    assert len(made.requests) == 1


def test_offline_mode_is_obeyed(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files) as made:
        found = search_elsewhere(tmp_path, HF_ENDPOINT=made.endpoint, HF_HUB_OFFLINE="1")
    assert found["code"] == HubOffline.code
    assert found["message"].startswith("HF_HUB_OFFLINE is set, so the hub cannot be looked up")
    assert made.requests == []


def test_an_endpoint_that_is_none_is_named(tmp_path: Path) -> None:
    found = search_elsewhere(tmp_path, HF_ENDPOINT="hub.example")
    assert found["code"] == HubUnreachable.code
    assert "which is no http address" in found["message"]


# -- the choice of a repository, from its files alone ------------------------------------------

REPOSITORIES = [
    ("X-7B-Q4_K_M.gguf", "X-7B-f16.gguf", "mmproj-X-7B-f16.gguf", "X-7B-imatrix.gguf", "a.txt"),
    ("A-1B-Q8_0.gguf", "A-3B-Q8_0.gguf", "A-3B-Q4_0.gguf"),
    ("one.gguf", "two.gguf"),
    ("X-UD-Q4_K_M.gguf", "X-Q4_K_M.gguf", "X-UD-Q4_K_XL.gguf"),
    ("X-Q2_K.gguf", *(f"Q4_K_M/X-Q4_K_M-0000{n}-of-00003.gguf" for n in (3, 1, 2))),
    ("Q8 0/model.gguf", "Q8_0/model.gguf"),
    (),
]


@pytest.mark.parametrize("names", REPOSITORIES, ids=lambda names: ",".join(names)[:40])
def test_each_model_that_is_offered_is_the_one_that_is_chosen_by_its_reference(
    names: tuple[str, ...],
) -> None:
    files = [RepoFile(path=name, size_bytes=n + 1) for n, name in enumerate(names)]
    found = offered(files, "a/b")
    chosen: set[str] = set()
    for model in found:
        reference = parse_reference(model.reference)
        assert reference is not None
        parts = choose(files, reference)
        assert (model.size_bytes, model.parts) == (sum(p.size_bytes for p in parts), len(parts))
        chosen.update(part.path for part in parts)
    companions = {name for name in names if "mmproj" in name or "imatrix" in name}
    assert chosen == {name for name in names if name.endswith(".gguf")} - companions
    labels = [model.label for model in found]
    assert len(set(labels)) == len(labels), "or nobody could tell them apart"
    sizes = [model.size_bytes for model in found]
    assert sizes == sorted(sizes)


def test_what_nobody_could_launch_is_not_offered() -> None:
    names = ("X-Q4_0-00001-of-00002.gguf", "..gguf/../x.gguf", "X-Q8_0.gguf", "X-\nQ.gguf")
    files = [RepoFile(path=name, size_bytes=1) for name in names]
    assert [model.reference for model in offered(files, "a/b")] == ["a/b:Q8_0"]
