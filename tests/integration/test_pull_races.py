"""Pulls that are removed, asked for again, outdated or short of room while they run."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.forbidden import NotPermitted, small_disk
from cluster import eventually
from hub_stand_in import hub_stand_in, nobodys_account
from huggingface_hub import constants
from test_pulls import BIG, BIG_BYTES, DRIP, IN_FLIGHT, MIB, Host, fetching_processes, until

from supervisor.core.pulling import Job, PullPart, Step
from supervisor.errors import HubOffline
from supervisor.fetching.cached import HubFiles
from supervisor.service.events import EventBus
from supervisor.service.pulls import Pulls

__all__ = ["nobodys_account"]

pytestmark = pytest.mark.timeout(170)

TWINS, TWIN_BYTES = "owner/Twins-GGUF", 16 * MIB
LONG_S = 90.0


@pytest.fixture
def repositories(tmp_path: Path) -> Path:
    folder = tmp_path / "repositories"
    for repo in (BIG, TWINS):
        (folder / repo).mkdir(parents=True)
    (folder / BIG / "Big-Q4_K_M.gguf").write_bytes(os.urandom(BIG_BYTES))
    twin = os.urandom(TWIN_BYTES)
    for name in ("One-Q4_K_M.gguf", "Two-Q4_K_M.gguf"):
        (folder / TWINS / name).write_bytes(twin)
    return folder


@pytest.fixture
def host(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> Iterator[Host]:
    with hub_stand_in(repositories, *DRIP) as made:
        yield Host(tmp_path, made, monkeypatch)


def moved_to(repositories: Path, revision: str) -> None:
    """The repository has no other revision from now on."""
    (repositories / f"{BIG}.revision").write_text(revision)


async def test_what_another_pull_needs_as_well_is_not_removed(host: Host) -> None:
    async with host.pulls() as pulls:
        one = await pulls.fetch(f"{TWINS}/One-Q4_K_M.gguf")
        await until(pulls, one.id, "fetching", done_bytes=TWIN_BYTES // 4)
        two = await pulls.fetch(f"{TWINS}/Two-Q4_K_M.gguf")
        assert two.id != one.id
        await pulls.remove(two.id)
        one = await until(pulls, one.id, "done", "failed")
        assert one.state == "done", one.detail
        assert (await pulls.fetch(two.reference)).id not in (one.id, two.id)
    assert host.served(TWINS) == TWIN_BYTES


async def test_who_asks_while_it_is_removed_gets_a_pull_that_is_there(host: Host) -> None:
    async with host.pulls() as pulls:
        for _ in range(3):
            (view,) = pulls.views() or [await pulls.fetch(BIG)]
            await until(pulls, view.id, "fetching", done_bytes=view.done_bytes + 1)
            _, again = await asyncio.gather(pulls.remove(view.id), pulls.fetch(BIG))
            assert [each.id for each in pulls.views()] == [again.id]
        last = await pulls.fetch(BIG)
        last = await until(pulls, last.id, "done", "failed")
        assert last.state == "done", last.detail
        assert not fetching_processes()


async def test_all_at_once_on_one_pull_leaves_one_process_or_none(host: Host) -> None:
    async with host.pulls() as pulls:
        view = await pulls.fetch(BIG)
        await until(pulls, view.id, "fetching", done_bytes=1)
        both = (pulls.pause, pulls.resume)
        await asyncio.gather(*(do(view.id) for _ in range(6) for do in both))
        assert len(fetching_processes()) <= 1
        await pulls.pause(view.id)
        assert not fetching_processes()
        await asyncio.gather(pulls.pause(view.id), pulls.remove(view.id))
        assert not fetching_processes()
    assert not list(host.cache.rglob("*.incomplete"))


class Lingering:
    """Processes that say that they are done, and then take their time to end."""

    exit_status = None
    log_path = Path()
    is_gone = False

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    def sweep(self) -> None:
        pass

    async def start(self, name: str, parts: Iterable[PullPart], promised_bytes: int) -> "Lingering":
        return self

    async def steps(self) -> AsyncIterator[Step]:
        yield Step(event="done", path="/there")

    async def stop(self) -> None:
        await self.may_end.wait()
        self.is_gone = True


async def test_the_end_of_a_process_is_waited_for_even_if_its_pull_is_done(host: Host) -> None:
    process = Lingering()
    pulls = Pulls(host.data, HubFiles(), process, EventBus())
    view = await pulls.fetch(BIG)
    await until(pulls, view.id, "done")
    ends = [asyncio.create_task(end) for end in (pulls.remove(view.id), pulls.close())]
    await asyncio.wait(ends, timeout=0.2)
    assert not any(end.done() for end in ends)
    process.may_end.set()
    await asyncio.gather(*ends)
    assert process.is_gone


async def test_a_repository_whose_past_is_gone_is_gone_on_with_in_its_new_version(
    host: Host, repositories: Path
) -> None:
    moved_to(repositories, "a" * 40)
    async with host.pulls() as pulls:
        view = await pulls.fetch(BIG)
        await until(pulls, view.id, "fetching", done_bytes=BIG_BYTES // 2)
        await pulls.pause(view.id)
        moved_to(repositories, "b" * 40)
        assert (await pulls.fetch(BIG)).id == view.id
        view = await until(pulls, view.id, "done", "failed")
        assert view.state == "done", view.detail
        assert "b" * 40 in view.path
        moved_to(repositories, "c" * 40)
        await pulls.fetch(BIG)
        view = await until(pulls, view.id, "done", "failed")
        assert "c" * 40 in view.path, view.detail
    main = host.cache / f"models--{BIG.replace('/', '--')}" / "refs" / "main"
    assert main.read_text() == "c" * 40
    assert host.served() <= BIG_BYTES * IN_FLIGHT


async def test_every_name_that_it_was_asked_for_as_is_known_offline(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host.pulls() as pulls:
        view = await pulls.fetch(f"{TWINS}/One-Q4_K_M.gguf")
        again = await pulls.fetch(f"{TWINS}/One-Q4_K_M.gguf")
        await until(pulls, view.id, "done")
        other = await pulls.fetch(BIG)
        assert (await pulls.fetch(f"{BIG}:q4_k_m")).id == other.id
        await until(pulls, other.id, "done")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert (await pulls.fetch(f"{BIG}:q4_k_m")).id == other.id
        with pytest.raises(HubOffline):
            await pulls.fetch("owner/unknown")
    assert again.id == view.id


async def job_of(host: Host, pull_id: str) -> Job:
    async def job() -> Job | None:
        with contextlib.suppress(OSError):
            text = (host.data / "pulls" / f"{pull_id}.json").read_text()
            return Job.model_validate_json(text)
        return None

    found: Job = await eventually(job, within_s=LONG_S, what=f"the job of {pull_id}")
    return found


async def test_each_pull_knows_what_room_the_others_need(host: Host) -> None:
    async with host.pulls() as pulls:
        one = await pulls.fetch(BIG)
        one = await until(pulls, one.id, "fetching", done_bytes=1)
        two = await pulls.fetch(f"{TWINS}/One-Q4_K_M.gguf")
        found = await job_of(host, two.id)
        assert 0 < found.promised_bytes <= BIG_BYTES - one.done_bytes
    for job in (host.data / "pulls").glob("*.json"):
        job.unlink()
    async with host.pulls():  # both begin at once: not each may wait for the other
        jobs = [await job_of(host, view.id) for view in (one, two)]
        assert jobs[0].promised_bytes == 0
        assert jobs[1].promised_bytes > 0


@pytest.mark.parametrize("is_data_there", [False, True], ids=["another disk", "the same disk"])
async def test_a_disk_that_fills_up_is_said_and_what_came_is_kept(
    host: Host, monkeypatch: pytest.MonkeyPatch, is_data_there: bool
) -> None:
    disk = host.folder / "disk"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(small_disk(disk, 40 * MIB))
        except NotPermitted as exc:
            pytest.skip(f"not permitted here: {exc}")
        host.cache = disk / "hub"
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(host.cache))
        monkeypatch.setenv("HF_HUB_CACHE", str(host.cache))
        if is_data_there:
            host.data = disk / "data"
            host.data.mkdir()
        async with host.pulls() as pulls:
            view = await pulls.fetch(BIG)
            await until(pulls, view.id, "fetching", done_bytes=BIG_BYTES // 4)
            ballast = disk / "ballast"
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            view = await until(pulls, view.id, "failed", "done")
            assert (view.state, view.error_code) == ("failed", "disk_full"), view.detail
            assert "resume" in view.detail or "free space" in view.detail
            ballast.unlink()
            await pulls.resume(view.id)
            view = await until(pulls, view.id, "failed", "done")
            assert view.state == "done", view.detail
    assert host.served() <= BIG_BYTES * IN_FLIGHT
