"""Pulls by real processes from a stand-in of the hub, with the real client of the hub."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from chaos.forbidden import NotPermitted, small_disk
from cluster import eventually
from hub_stand_in import HubStandIn, hub_stand_in, nobodys_account
from huggingface_hub import constants

from agents.facts import boot_id
from agents.process import ChildLedger
from supervisor.core.entities import PullView
from supervisor.errors import PullEnded, PullFailed, PullUnknown
from supervisor.fetching.cached import HubFiles
from supervisor.fetching.processes import FetchProcesses
from supervisor.service.events import EventBus
from supervisor.service.pulls import Pulls

__all__ = ["nobodys_account"]

pytestmark = pytest.mark.timeout(170)

MIB = 1 << 20
BIG, BIG_BYTES = "owner/Big-GGUF", 32 * MIB
SPLIT, PARTS, PART_BYTES = "owner/Split-GGUF", 4, 4 * MIB
LONG_S = 90.0
IN_FLIGHT = 1.2
"""What the hub sends and a process that is killed never reads: some buffers of the kernel."""

DRIP = ("--drip-s", "0.004")
"""About ten megabytes a second for each file."""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for repo in (BIG, SPLIT):
        (folder / repo).mkdir(parents=True)
    (folder / BIG / "Big-Q4_K_M.gguf").write_bytes(os.urandom(BIG_BYTES))
    (folder / BIG / "Big-Q8_0.gguf").write_bytes(os.urandom(MIB))
    (folder / BIG / "Big-Q6_K.gguf").write_bytes(os.urandom(MIB))
    for number in range(1, PARTS + 1):
        name = f"Split-Q4_K_M-{number:05}-of-{PARTS:05}.gguf"
        (folder / SPLIT / name).write_bytes(os.urandom(PART_BYTES))
    return folder


class Host:
    """What a main host has of pulls, without the rest of its supervisor."""

    def __init__(self, folder: Path, made: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.made = folder, made
        self.cache = folder / "cache"
        self.data = folder / "data"
        self.data.mkdir(exist_ok=True)
        monkeypatch.setattr(constants, "ENDPOINT", made.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.cache))
        monkeypatch.setenv("HF_ENDPOINT", made.endpoint)
        monkeypatch.setenv("HF_HUB_CACHE", str(self.cache))

    @contextlib.asynccontextmanager
    async def pulls(self) -> AsyncIterator[Pulls]:
        fetchers = FetchProcesses(self.data, boot_id())
        made = Pulls(self.data, HubFiles(), fetchers, EventBus())
        await made.restore()
        try:
            yield made
        finally:
            await made.close()

    def served(self, repo: str = BIG) -> int:
        return sum(int(str(r["sent"])) for r in self.made.of("store") if repo in str(r["path"]))

    def starts(self) -> list[int]:
        """From which byte each request on the large model went on."""
        asked = (str(r["range"]) for r in self.made.of("store") if BIG in str(r["path"]))
        return [int(text.removeprefix("bytes=").partition("-")[0]) for text in asked]


@pytest.fixture
def host(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> Iterator[Host]:
    """With a slow hub, or as the test's parameter says."""
    flags = getattr(request, "param", DRIP)
    with hub_stand_in(repositories, *flags) as made:
        yield Host(tmp_path, made, monkeypatch)


async def until(pulls: Pulls, pull_id: str, *states: str, done_bytes: int = 0) -> PullView:
    async def is_so() -> PullView | None:
        view = next((each for each in pulls.views() if each.id == pull_id), None)
        is_it = view and view.state in states and view.done_bytes >= done_bytes
        return view if is_it else None

    what = f"{pull_id} becomes {' or '.join(states)} with {done_bytes} bytes"
    try:
        found: PullView = await eventually(is_so, within_s=LONG_S, what=what)
    except AssertionError as exc:
        raise AssertionError(f"{exc}; there are {pulls.views()}") from None
    return found


def fetching_processes() -> list[psutil.Process]:
    """That this test started and that live."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "supervisor.fetching" in child.cmdline() and child.status() != "zombie":
                found.append(child)
    return found


async def killed() -> None:
    """The process that fetches is killed, and gone."""

    async def is_there() -> list[psutil.Process]:
        return fetching_processes()

    (process,) = await eventually(is_there, within_s=LONG_S, what="a process fetches")
    process.send_signal(signal.SIGKILL)

    async def is_gone() -> bool:
        return process not in fetching_processes()

    await eventually(is_gone, within_s=LONG_S, what="the killed process is gone")


def is_whole(view: PullView, repositories: Path) -> bool:
    there = Path(view.path)
    return all(
        (there.parent / path.name).read_bytes() == path.read_bytes()
        for path in (repositories / view.repo).glob(f"*{view.label}*")
    )


@pytest.mark.parametrize("host", [("--drip-s", "0.02")], indirect=True)
async def test_a_pull_whose_process_is_killed_again_and_again_fetches_nothing_twice(
    host: Host, repositories: Path
) -> None:
    async with host.pulls() as pulls:
        view = await pulls.fetch(f"{BIG}:Q4_K_M")
        assert view.state == "fetching"
        assert view.total_bytes == BIG_BYTES
        kept: list[int] = []
        for tenths in (2, 4, 6):
            await until(pulls, view.id, "fetching", done_bytes=BIG_BYTES * tenths // 10)
            await killed()
            kept.append(sum(path.stat().st_size for path in host.cache.rglob("*.incomplete")))
        view = await until(pulls, view.id, "done")
    assert is_whole(view, repositories)
    assert not fetching_processes()
    assert not list(host.cache.rglob("*.incomplete"))
    await asyncio.sleep(0.2)  # the stand-in tells of a request at its end
    starts = host.starts()
    assert len(starts) == len(kept) + 1
    fetched_again = sum(max(0, had - at) for had, at in zip(kept, starts[1:], strict=True))
    assert fetched_again <= kept[-1] / 100, (kept, starts)
    assert BIG_BYTES <= host.served() <= BIG_BYTES * IN_FLIGHT


async def test_what_was_wanted_goes_on_with_the_next_supervisor(
    host: Host, repositories: Path
) -> None:
    async with host.pulls() as pulls:
        view = await pulls.fetch(f"{BIG}:Q4_K_M")
        await until(pulls, view.id, "fetching", done_bytes=BIG_BYTES // 2)
        other = await pulls.fetch(f"{SPLIT}:Q4_K_M")
        await pulls.pause(other.id)
    assert not fetching_processes()
    async with host.pulls() as pulls:
        assert pulls.view(other.id).state == "paused"
        view = await until(pulls, view.id, "done")
        assert (await pulls.fetch(f"{BIG}:Q8_0")).id not in (view.id, other.id)
    assert is_whole(view, repositories)
    assert host.served() <= BIG_BYTES * IN_FLIGHT + MIB


async def test_what_outlived_a_killed_supervisor_is_ended(host: Host) -> None:
    ledger = ChildLedger(host.data / "pulls.children.json", boot_id())
    program = "/bin/sleep"
    left = await ledger.spawn(
        "pull p1",
        [program, "60"],
        log_path=host.data / "pull-p1_1.log",
        environment={},
        parent_death_signal=None,
    )
    async with host.pulls():
        async with asyncio.timeout(LONG_S):
            assert await left.wait() == -signal.SIGKILL


async def test_the_parts_of_a_split_model_come_side_by_side(host: Host, repositories: Path) -> None:
    async with host.pulls() as pulls:
        view = await pulls.fetch(SPLIT)
        assert view.files == PARTS
        view = await until(pulls, view.id, "done")
    assert is_whole(view, repositories)
    assert Path(view.path).name.endswith(f"-00001-of-{PARTS:05}.gguf")
    assert host.served(SPLIT) == PARTS * PART_BYTES


async def test_whoever_asks_for_the_same_files_joins_and_others_wait_their_turn(
    host: Host,
) -> None:
    async with host.pulls() as pulls:
        references = (BIG, f"{BIG}:Q4_K_M", f"{BIG}/Big-Q4_K_M.gguf")
        views = await asyncio.gather(*(pulls.fetch(reference) for reference in references))
        assert len({view.id for view in views}) == 1
        second = await pulls.fetch(SPLIT)
        third = await pulls.fetch(f"{BIG}:Q8_0")
        fourth = await pulls.fetch(f"{BIG}:Q6_K")
        assert pulls.view(second.id).state == "fetching"
        assert [pulls.view(each.id).state for each in (third, fourth)] == ["queued"] * 2
        for view in (views[0], second, third, fourth):
            await until(pulls, view.id, "done")
        for reference in references:  # however it was asked for, it is known to be here
            assert pulls.local(reference) == Path(pulls.view(views[0].id).path)
        again = await pulls.fetch(BIG)
        assert (again.id, again.state) == (views[0].id, "done")
    assert host.served() == BIG_BYTES + 2 * MIB


async def test_a_pull_can_be_paused_resumed_and_removed(host: Host) -> None:
    async with host.pulls() as pulls:
        view = await pulls.fetch(f"{BIG}:Q4_K_M")
        running = await until(pulls, view.id, "fetching", done_bytes=BIG_BYTES // 4)
        assert running.bytes_per_s > 0
        assert running.eta_s is not None
        paused = await pulls.pause(view.id)
        assert paused.state == "paused"
        assert not fetching_processes()
        assert (await pulls.resume(view.id)).state == "fetching"
        await until(pulls, view.id, "fetching", done_bytes=BIG_BYTES // 2)
        await pulls.remove(view.id)
        assert not fetching_processes()
        with pytest.raises(PullUnknown, match="known: none"):
            pulls.view(view.id)
    assert not list(host.cache.rglob("*.incomplete"))
    assert host.served() < BIG_BYTES


# Deployments that wait


async def test_two_deployments_wait_for_one_download_and_the_last_to_leave_pauses_it(
    host: Host,
) -> None:
    told: list[PullView] = []
    async with host.pulls() as pulls:
        one = asyncio.create_task(pulls.file_for("one", f"{BIG}:Q4_K_M", told.append))
        two = asyncio.create_task(pulls.file_for("two", BIG, lambda _: None))
        await until(pulls, "p1", "fetching", done_bytes=BIG_BYTES // 8)
        assert set(pulls.view("p1").deployments) == {"one", "two"}
        two.cancel()
        await asyncio.gather(two, return_exceptions=True)
        assert pulls.view("p1").state in ("fetching", "checking")
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        assert pulls.view("p1").state == "paused"
        path = await pulls.file_for("one", f"{BIG}:Q4_K_M", told.append)
        assert path.stat().st_size == BIG_BYTES
    assert told[-1].state == "done"
    assert host.served() <= BIG_BYTES * IN_FLIGHT


async def test_what_somebody_else_wants_goes_on_without_the_deployment(host: Host) -> None:
    async with host.pulls() as pulls:
        view = await pulls.fetch(f"{BIG}:Q4_K_M")
        one = asyncio.create_task(pulls.file_for("one", BIG, lambda _: None))
        await until(pulls, view.id, "fetching", done_bytes=BIG_BYTES // 8)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        await until(pulls, view.id, "done")


async def test_who_waits_for_a_pull_that_is_removed_hears_it(host: Host) -> None:
    async with host.pulls() as pulls:
        one = asyncio.create_task(pulls.file_for("one", BIG, lambda _: None))
        await until(pulls, "p1", "fetching", done_bytes=1)
        await pulls.remove("p1")
        with pytest.raises(PullEnded, match="removed"):
            await asyncio.wait_for(one, LONG_S)


@pytest.mark.parametrize("host", [("--wrong-bytes",)], indirect=True)
async def test_wrong_bytes_fail_who_waits_with_the_cause(host: Host) -> None:
    async with host.pulls() as pulls:
        with pytest.raises(PullFailed, match="thrown away") as caught:
            await pulls.file_for("one", f"{BIG}:Q8_0", lambda _: None)
        assert caught.value.code == "model_digest_wrong"
        assert pulls.view("p1").state == "failed"
    assert not list(host.cache.rglob("*.incomplete"))


@pytest.mark.parametrize(
    "host",
    [("--store-status", "429", "--header", "Retry-After=2", "--times", "1")],
    indirect=True,
)
async def test_a_hub_that_limits_us_is_obeyed_and_it_is_said(host: Host) -> None:
    async with host.pulls() as pulls:
        view = await pulls.fetch(f"{BIG}:Q8_0")

        async def is_told() -> str:
            return pulls.view(view.id).detail

        said = await eventually(is_told, within_s=LONG_S, what="it is told")
        assert "goes on in 2 s" in said
        assert said.endswith("(HTTP 429)")
        view = await until(pulls, view.id, "done")
        assert view.detail == ""


@pytest.mark.parametrize("host", [("--token", "secret")], indirect=True)
async def test_a_gated_model_is_refused_with_the_link(host: Host) -> None:
    async with host.pulls() as pulls:
        view = await pulls.fetch(f"{BIG}:Q8_0")
        view = await until(pulls, view.id, "failed")
    assert view.error_code == "model_forbidden"
    assert f"{host.made.endpoint}/{BIG}" in view.detail


async def test_a_small_disk_is_said_before_anything_comes(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = host.folder / "disk"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(small_disk(disk, 8 * MIB))
        except NotPermitted as exc:
            pytest.skip(f"not permitted here: {exc}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk / "hub"))
        monkeypatch.setenv("HF_HUB_CACHE", str(disk / "hub"))
        async with host.pulls() as pulls:
            view = await pulls.fetch(f"{BIG}:Q4_K_M")
            view = await until(pulls, view.id, "failed")
            assert view.error_code == "disk_full"
            assert "32.0 MiB are missing" in view.detail, view.detail
            assert "8.0 MiB free" in view.detail, view.detail
    assert host.served() == 0
