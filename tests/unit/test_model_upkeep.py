"""Models are checked against what they should contain, located, and deleted with care."""

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from gateway_world import deployment
from model_places_made import (
    REPO,
    hub_repo,
    llama_cpp_file,
    model,
    ollama_model,
    own_places,
    part_name,
    projector,
    put,
    scanner,
    split,
)

from supervisor.adapters.model_checks import ModelChecks
from supervisor.adapters.model_removal import places_of, removed
from supervisor.adapters.model_walk import Stopped
from supervisor.api import problems
from supervisor.api.models_api import create_models_router
from supervisor.core.entities import Deployment, DeploymentSpec
from supervisor.core.library_views import VerifiedModel, VerifyProgress
from supervisor.core.lifecycle import State
from supervisor.errors import HubOffline, ModelInUse, ModelKeptElsewhere, ModelMissing
from supervisor.service.events import EventBus
from supervisor.service.library import Library
from supervisor.service.model_upkeep import ModelUpkeep


def no_etags(repo: str) -> Mapping[str, str]:
    raise HubOffline(f"nobody asks for {repo}")


class World:
    """A made-up home, its library and what deployments there are."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.deployments: list[Deployment] = []
        self.etags: dict[str, str] | None = None
        made = scanner(home)
        made.scan(threading.Event(), lambda _: None)
        self.library = Library(made, EventBus())
        self.upkeep = ModelUpkeep(
            self.library,
            lambda: self.deployments,
            removed,
            ModelChecks(lambda repo: no_etags(repo) if self.etags is None else self.etags),
            places_of,
            lambda: [(place.source, place.path) for place in own_places(home)],
        )

    async def verified(self, name: str | None = None) -> list[VerifiedModel]:
        return list(await self.upkeep.verify(name, lambda _: None))


def cache_of(home: Path) -> Path:
    return home / ".cache" / "huggingface" / "hub"


def left(folder: Path) -> list[str]:
    """Names of all files and links below, without their folders."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() or path.is_symlink())


# -- deleting: the hub's cache -------------------------------------------------------------------


async def test_the_only_model_of_a_repository_goes_with_all_that_lies_beside(
    tmp_path: Path,
) -> None:
    files = {"Small-Q4_K_M.gguf": model(), "mmproj-f16.gguf": projector(), "README.md": b"a"}
    folder = hub_repo(cache_of(tmp_path), REPO, {"a" * 40: files}, main="a" * 40)
    other = hub_repo(cache_of(tmp_path), "owner/Other", {"b" * 40: {"o-Q8_0.gguf": model("O")}})
    world = World(tmp_path)
    told = await world.upkeep.remove(f"{REPO}:Q4_K_M", dry_run=True)
    assert (told.is_done, told.deletes) == (False, (str(folder),))
    assert folder.exists()
    done = await world.upkeep.remove(f"{REPO}:Q4_K_M")
    assert (done.is_done, done.freed_bytes) == (True, told.freed_bytes)
    assert done.freed_bytes >= len(model())
    assert not folder.exists()
    assert other.exists()
    names = [found.name for found in (await world.library.models()).models]
    assert names == ["o-Q8_0"]


async def test_one_of_several_quantisations_goes_alone(tmp_path: Path) -> None:
    files = {"Small-Q4_K_M.gguf": model(), "Small-Q8_0.gguf": model(file_type=7)}
    folder = hub_repo(cache_of(tmp_path), REPO, {"a" * 40: files})
    done = await World(tmp_path).upkeep.remove(f"{REPO}:Q8_0")
    assert len(done.deletes) == 2
    assert len(left(folder / "blobs")) == 1
    assert left(folder / "snapshots") == ["Small-Q4_K_M.gguf"]


async def test_a_blob_that_another_revision_needs_stays(tmp_path: Path) -> None:
    shared, count = split(2, 2), 2
    first, second = part_name("b-Q4_0", 1, count), part_name("b-Q4_0", 2, count)
    old = {first: split(2, 1), second: shared, "c-Q8_0.gguf": model("C")}
    new = {first: split(2, 1) + b"\0", second: shared, "c-Q8_0.gguf": model("C")}
    folder = hub_repo(cache_of(tmp_path), REPO, {"a" * 40: old, "b" * 40: new}, main="b" * 40)
    blobs = left(folder / "blobs")
    done = await World(tmp_path).upkeep.remove(str(folder / "snapshots" / ("a" * 40) / first))
    assert [kept for kept in done.keeps if "another revision needs it" in kept]
    gone = set(blobs) - set(left(folder / "blobs"))
    assert len(gone) == 1
    assert left(folder / "snapshots" / ("b" * 40)) == sorted(new)
    assert left(folder / "snapshots" / ("a" * 40)) == ["c-Q8_0.gguf"]


# -- deleting: elsewhere -------------------------------------------------------------------------


async def test_own_files_and_all_their_parts_go(tmp_path: Path) -> None:
    for number in (1, 2):
        put(tmp_path / "models" / part_name("big", number, 2), split(2, number))
    keeps = put(tmp_path / "models" / "other.gguf", model())
    await World(tmp_path).upkeep.remove("big")
    assert left(tmp_path / "models") == [keeps.name]


async def test_of_a_link_only_the_link_goes(tmp_path: Path) -> None:
    real = put(tmp_path / "disk" / "real.gguf", model())
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link.gguf").symlink_to(real)
    done = await World(tmp_path).upkeep.remove("link")
    assert (done.freed_bytes, real.exists()) == (0, True)
    assert done.keeps == (f"{real}: {tmp_path}/models/link.gguf is only a link to it",)
    assert left(tmp_path / "models") == []


async def test_no_other_file_of_this_host_is_looked_at_or_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "models" / "a.gguf", model())
    secret = put(tmp_path / "secret.gguf", model("Secret"))
    monkeypatch.chdir(tmp_path)
    upkeep = World(tmp_path).upkeep
    for name in (str(secret), "secret.gguf", "./secret.gguf", "models/../secret.gguf"):
        for work in (upkeep.remove, upkeep.where):
            with pytest.raises(ModelMissing, match="is not on this host"):
                await work(name)
        with pytest.raises(ModelMissing):
            await upkeep.verify(name, lambda _: None)
    assert secret.exists()


async def test_a_file_of_llama_cpps_cache_goes_with_what_it_keeps_beside(tmp_path: Path) -> None:
    cache = tmp_path / ".cache" / "llama.cpp"
    llama_cpp_file(cache, REPO, "Small-Q8_0.gguf", model())
    await World(tmp_path).upkeep.remove(f"{REPO}:Q8_0")
    assert left(cache) == []


async def test_nothing_is_deleted_behind_the_back_of_another_tool(tmp_path: Path) -> None:
    blob = ollama_model(tmp_path / ".ollama" / "models", "gemma3:4b", model())
    lm = tmp_path / ".lmstudio" / "models" / "owner" / "Studio-GGUF"
    studio = put(lm / "Studio-Q6_K.gguf", model("Studio"))
    world = World(tmp_path)
    with pytest.raises(ModelKeptElsewhere, match="'ollama rm gemma3:4b'"):
        await world.upkeep.remove("gemma3:4b")
    with pytest.raises(ModelKeptElsewhere, match="under My Models"):
        await world.upkeep.remove("Studio-Q6_K")
    assert blob.exists()
    assert studio.exists()


@pytest.mark.parametrize("by", ["plan", "path", "name"])
async def test_what_a_deployment_runs_is_not_deleted(tmp_path: Path, by: str) -> None:
    path = put(tmp_path / "models" / "a.gguf", model())
    world = World(tmp_path)
    running = deployment("mine", spec=DeploymentSpec(model="a" if by == "name" else str(path)))
    assert running.plan is not None
    facts = running.plan.model.model_copy(update={"path": str(path)})
    planned = running.plan.model_copy(update={"model": facts}) if by == "plan" else None
    world.deployments = [running.model_copy(update={"plan": planned})]
    with pytest.raises(ModelInUse, match="in use by deployment mine; stop it first"):
        await world.upkeep.remove("a", dry_run=True)
    stopped = running.model_copy(update={"plan": None, "state": State.STOPPED})
    world.deployments = [stopped]
    assert (await world.upkeep.remove("a", dry_run=True)).deployments == ("mine",)
    assert path.exists()


# -- checking ------------------------------------------------------------------------------------


async def test_blobs_are_checked_against_their_names(tmp_path: Path) -> None:
    hub_repo(cache_of(tmp_path), REPO, {"a" * 40: {"Small-Q4_K_M.gguf": model()}})
    blob = ollama_model(tmp_path / ".ollama" / "models", "gemma3:4b", model("Gemma"))
    world = World(tmp_path)
    assert [found.verdict for found in await world.verified()] == ["good", "good"]
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1  # a bit of a weight, which no header tells
    blob.write_bytes(content)
    (wrong,) = await world.verified("gemma3:4b")
    assert wrong.verdict == "wrong"
    assert "its name says" in wrong.files[0].detail
    assert [f.verdict for f in await world.verified(f"{REPO}:Q4_K_M")] == ["good"]


async def test_a_download_of_llama_cpp_is_checked_against_what_the_hub_said(tmp_path: Path) -> None:
    cache = tmp_path / ".cache" / "llama.cpp"
    path = llama_cpp_file(cache, REPO, "Small-Q8_0.gguf", model())
    world = World(tmp_path)
    assert [found.verdict for found in await world.verified()] == ["good"]
    path.write_bytes(model()[:-1] + b"\1")
    assert [found.verdict for found in await world.verified()] == ["wrong"]


async def test_a_file_of_a_known_repository_is_checked_against_the_hub(tmp_path: Path) -> None:
    import hashlib

    lm = tmp_path / ".lmstudio" / "models" / "owner" / "Small-GGUF"
    put(lm / "Small-Q6_K.gguf", model())
    world = World(tmp_path)
    (offline,) = await world.verified()
    assert offline.verdict == "unproven"
    world.etags = {"Small-Q6_K.gguf": hashlib.sha256(model()).hexdigest()}
    (good,) = await world.verified()
    assert (good.verdict, good.files[0].detail) == ("good", f"sha256 as told by the hub, of {REPO}")
    world.etags = {"Small-Q6_K.gguf": "0" * 64}
    assert [found.verdict for found in await world.verified()] == ["wrong"]


async def test_a_file_of_which_nothing_is_told_has_only_its_structure(tmp_path: Path) -> None:
    put(tmp_path / "models" / "good.gguf", model())
    put(tmp_path / "models" / "short.gguf", model("Short")[:-9])
    found = {each.name: each for each in await World(tmp_path).verified()}
    assert found["good"].verdict == "unproven"
    assert found["short"].verdict == "wrong"
    assert "is truncated" in found["short"].files[-1].detail


async def test_a_check_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    path = ollama_model(tmp_path / ".ollama" / "models", "gemma3:4b", model())
    os.truncate(path, 1 << 40)  # sparse: an hour of reading
    world = World(tmp_path)
    began = asyncio.Event()
    task = asyncio.create_task(world.upkeep.verify(None, lambda _: began.set()))
    async with asyncio.timeout(60):
        await began.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while any(thread.name.startswith("asyncio") and _reads(thread) for thread in _threads()):
            await asyncio.sleep(0.05)


def _threads() -> list[threading.Thread]:
    return threading.enumerate()


def _reads(thread: threading.Thread) -> bool:
    import sys

    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_name == "_digest_of":
            return True
        frame = frame.f_back
    return False


def test_progress_counts_all_files_and_stops_when_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        ollama_model(tmp_path / ".ollama" / "models", f"{name}:1", model(name))
    made = scanner(tmp_path)
    models = list(made.scan(threading.Event(), lambda _: None).models)
    told: list[VerifyProgress] = []
    checks = ModelChecks(no_etags)
    checks.verify(models, told.append, threading.Event())
    assert {each.total_bytes for each in told} == {len(model("a")) + len(model("b"))}
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        checks.verify(models, told.append, stop)


# -- where, and the API --------------------------------------------------------------------------


async def test_where_a_model_is_says_what_it_takes_on_the_disk(tmp_path: Path) -> None:
    folder = hub_repo(cache_of(tmp_path), REPO, {"a" * 40: {"Small-Q4_K_M.gguf": model()}})
    (part,) = (await World(tmp_path).upkeep.where(REPO)).parts
    assert part.size_bytes == len(model())
    assert part.disk_bytes >= part.size_bytes
    assert Path(part.content).parent == folder / "blobs"
    with pytest.raises(ModelMissing):
        await World(tmp_path).upkeep.where("nothing-such")


@contextlib.asynccontextmanager
async def api(world: World) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    problems.install(app)
    app.include_router(create_models_router(world.library, world.upkeep))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        yield client


async def test_the_api_lists_locates_checks_and_deletes(tmp_path: Path) -> None:
    path = put(tmp_path / "models" / "a.gguf", model())
    put(tmp_path / "models" / "mmproj.gguf", projector())
    put(tmp_path / "models" / "broken.gguf", b"<html>")
    world = World(tmp_path)
    async with api(world) as client:
        found = {m["name"]: m for m in (await client.get("/api/models")).json()}
        assert set(found) == {"a", "broken"}
        assert found["a"]["path"] == str(path)
        assert found["a"]["projector"] == ""  # whose it is nobody can say: there are two models
        assert "is a web page" in found["broken"]["problem"]
        everything = (await client.get("/api/models?companions=true")).json()
        assert [m["kind"] for m in everything if m["is_companion"]] == ["projector"]
        seen = (await client.get("/api/models/places")).json()
        (own,) = [place for place in seen["places"] if place["is_there"]]
        assert (own["source"], own["models"]) == ("folder", 3)
        where = (await client.get("/api/models/where", params={"model": "a"})).json()
        assert where["parts"][0]["path"] == str(path)
        events = _events((await client.post("/api/models/verify", params={"model": "a"})).text)
        assert events[-1][0] == "result"
        assert events[-1][1][0]["verdict"] == "unproven"
        missing = await client.post("/api/models/verify", params={"model": "nothing-such"})
        assert _events(missing.text)[-1][1]["code"] == "model_missing"
        gone = await client.delete("/api/models", params={"path": str(path)})
        assert gone.json()["is_done"]
        again = await client.delete("/api/models", params={"path": str(path)})
        assert (again.status_code, again.json()["code"]) == (422, "model_missing")
        assert [m["name"] for m in (await client.get("/api/models")).json()] == ["broken"]
        put(path, model())
        fresh = (await client.get("/api/models", params={"max_age_s": 0})).json()
        assert {m["name"] for m in fresh} == {"a", "broken"}


def _events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found
