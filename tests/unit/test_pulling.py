"""Fetching the files of a model into the hub's cache, from a hub with faults."""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import pytest
from filelock import FileLock
from gateway_world import deployment, plan
from hub_stand_in import (
    QUICK,
    SMALL,
    SPLIT,
    HubStandIn,
    files,
    hub_stand_in,
    nobodys_account,
    part_name,
)
from huggingface_hub import constants, try_to_load_from_cache

from agents.errors import DiskFull, ProjectError
from supervisor.adapters.hub import resolve
from supervisor.adapters.hub_http import RemotePart
from supervisor.core.lifecycle import State
from supervisor.core.outlook import outlook
from supervisor.core.pulling import Meter, PullPart, PullView, key_of, label_of
from supervisor.errors import (
    HubOffline,
    HubUnreachable,
    ModelDigestWrong,
    ModelForbidden,
    ModelMissing,
)
from supervisor.fetching import blob
from supervisor.fetching.cached import HubFiles, launch_reader
from supervisor.fetching.fetch import Progress, fetch
from supervisor.fetching.line import Line

__all__ = ["files", "nobodys_account"]

pytestmark = pytest.mark.timeout(90)

BIG = "owner/Big-GGUF"
BIG_BYTES = 3 << 20


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One model of three megabytes, whose bytes differ from place to place."""
    folder = tmp_path_factory.mktemp("repositories")
    (folder / BIG).mkdir(parents=True)
    (folder / BIG / "Big-Q4_K_M.gguf").write_bytes(os.urandom(BIG_BYTES))
    yield folder


def fetched(made: HubStandIn, cache: Path, parts: list[RemotePart] | None = None) -> Path:
    return fetch(
        resolve(BIG, made.hub()) if parts is None else parts,
        cache,
        Line(QUICK, made.endpoint),
        lambda _: None,
        Event(),
    )


def incomplete(cache: Path) -> list[Path]:
    return list(cache.rglob("*.incomplete"))


def served(made: HubStandIn, repo: str = BIG) -> int:
    return sum(int(str(r["sent"])) for r in made.of("store") if repo in str(r["path"]))


# Fetching


def test_a_model_comes_whole_and_lies_where_every_tool_of_the_hub_looks(
    repositories: Path, tmp_path: Path
) -> None:
    told: list[Progress] = []
    with hub_stand_in(repositories) as made:
        parts = resolve(BIG, made.hub())
        line = Line(QUICK, made.endpoint)
        path = fetch(parts, tmp_path, line, told.append, Event())
        again = fetch(parts, tmp_path, line, told.append, Event())
    assert path.read_bytes() == (repositories / BIG / "Big-Q4_K_M.gguf").read_bytes()
    revision = parts[0].revision
    known = try_to_load_from_cache(BIG, "Big-Q4_K_M.gguf", cache_dir=tmp_path, revision=revision)
    assert str(path) == known
    assert path == again
    assert served(made) == BIG_BYTES
    assert told[-1].done == {} or told[-1].done == {0: BIG_BYTES}
    assert not incomplete(tmp_path)


def test_the_parts_of_a_split_model_come_side_by_side(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files) as made:
        path = fetched(made, tmp_path, resolve(SPLIT, made.hub()))
    assert path.name == part_name(1)
    for number in (1, 2, 3):
        there = path.parent / part_name(number)
        assert there.read_bytes() == (files / SPLIT / part_name(number)).read_bytes()


def test_it_goes_on_with_what_was_begun(repositories: Path, tmp_path: Path) -> None:
    whole = (repositories / BIG / "Big-Q4_K_M.gguf").read_bytes()
    with hub_stand_in(repositories) as made:
        parts = resolve(BIG, made.hub())
        places = blob.Places.of(tmp_path, BIG, parts[0].etag)
        places.blob.parent.mkdir(parents=True)
        places.incomplete.write_bytes(whole[: BIG_BYTES // 2])
        path = fetched(made, tmp_path, parts)
    assert path.read_bytes() == whole
    assert served(made) == BIG_BYTES - BIG_BYTES // 2


def test_a_store_without_ranges_is_read_again_and_only_the_rest_is_kept(
    repositories: Path, tmp_path: Path
) -> None:
    whole = (repositories / BIG / "Big-Q4_K_M.gguf").read_bytes()
    with hub_stand_in(repositories, "--no-ranges") as made:
        parts = resolve(BIG, made.hub())
        places = blob.Places.of(tmp_path, BIG, parts[0].etag)
        places.blob.parent.mkdir(parents=True)
        places.incomplete.write_bytes(whole[:1000])
        assert fetched(made, tmp_path, parts).read_bytes() == whole


def test_what_is_not_whole_does_not_look_like_a_model(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files) as made:
        parts = resolve(SPLIT, made.hub())
        gone = [*parts, RemotePart(SPLIT, parts[0].revision, "Gone.gguf", 5, "a" * 64)]
        with pytest.raises(ModelMissing, match="Gone"):
            fetched(made, tmp_path, gone)
        assert not list(tmp_path.rglob("*.gguf"))
        fetched(made, tmp_path, parts)
    assert len(list(tmp_path.rglob("*.gguf"))) == len(parts)


def test_another_program_that_fetches_the_same_is_waited_for(
    repositories: Path, tmp_path: Path
) -> None:
    told: list[Progress] = []
    whole = (repositories / BIG / "Big-Q4_K_M.gguf").read_bytes()
    with hub_stand_in(repositories) as made:
        parts = resolve(BIG, made.hub())
        places = blob.Places.of(tmp_path, BIG, parts[0].etag)
        for folder in (places.blob.parent, places.lock.parent):
            folder.mkdir(parents=True)

        def note(progress: Progress) -> None:
            told.append(progress)
            if "another program" in progress.detail:
                places.blob.write_bytes(whole)
                other.release()

        other = FileLock(places.lock)
        with other:
            line = Line(QUICK, made.endpoint)
            assert fetch(parts, tmp_path, line, note, Event()).read_bytes() == whole
    assert any("another program" in progress.detail for progress in told)
    assert served(made) == 0


# Faults


@pytest.mark.parametrize(
    "flags",
    [
        ("--cut-after", "1000000"),
        ("--cut-after", "200000", "--times", "7"),
        ("--store-status", "503", "--times", "2"),
        ("--store-status", "429", "--header", "Retry-After=1", "--times", "1"),
        ("--silent-after", "100000", "--times", "1"),
    ],
    ids=" ".join,
)
def test_what_a_hub_does_now_and_then_is_lived_through(
    flags: tuple[str, ...], repositories: Path, tmp_path: Path
) -> None:
    with hub_stand_in(repositories, *flags) as made:
        path = fetched(made, tmp_path)
    assert path.read_bytes() == (repositories / BIG / "Big-Q4_K_M.gguf").read_bytes()
    assert served(made) <= BIG_BYTES * 1.05


def test_a_hub_that_gives_nothing_is_given_up_and_what_came_is_kept(
    repositories: Path, tmp_path: Path
) -> None:
    with hub_stand_in(repositories) as made:
        parts = resolve(BIG, made.hub())
    places = blob.Places.of(tmp_path, BIG, parts[0].etag)
    places.blob.parent.mkdir(parents=True)
    places.incomplete.write_bytes(b"x" * 1000)
    with (
        hub_stand_in(repositories, "--store-status", "500") as made,
        pytest.raises(HubUnreachable, match="HTTP 500"),
    ):
        fetched(made, tmp_path, parts)
    assert len(made.of("store")) == QUICK.tries
    assert places.incomplete.stat().st_size == 1000


def test_wrong_bytes_are_thrown_away(repositories: Path, tmp_path: Path) -> None:
    with (
        hub_stand_in(repositories, "--wrong-bytes") as made,
        pytest.raises(ModelDigestWrong, match=r"Big-Q4_K_M.*thrown away"),
    ):
        fetched(made, tmp_path)
    assert not incomplete(tmp_path)
    assert not list(tmp_path.rglob("*.gguf"))


def test_who_may_not_read_it_is_told_where_to_ask(repositories: Path, tmp_path: Path) -> None:
    with (
        hub_stand_in(repositories, "--token", "secret") as made,
        pytest.raises(ModelForbidden, match=rf"{made.endpoint}/{BIG}.*HF_TOKEN"),
    ):
        fetched(made, tmp_path)


def test_a_file_that_is_gone_is_named_with_the_link(repositories: Path, tmp_path: Path) -> None:
    with hub_stand_in(repositories) as made:
        parts = [RemotePart(BIG, "0" * 40, "Gone-Q4_K_M.gguf", 5, "a" * 64)]
        with pytest.raises(ModelMissing, match=rf"{made.endpoint}/{BIG}.*Gone"):
            fetched(made, tmp_path, parts)


def test_offline_nothing_is_asked(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_stand_in(repositories) as made:
        parts = resolve(BIG, made.hub())
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubOffline, match="HF_HUB_OFFLINE"):
            fetched(made, tmp_path, parts)
    assert [r["method"] for r in made.requests] == ["GET"]  # of the listing, before


def test_room_is_looked_at_first_and_both_figures_are_told(
    repositories: Path, tmp_path: Path
) -> None:
    with hub_stand_in(repositories) as made:
        parts = resolve(BIG, made.hub())
    blob.check_room(parts, tmp_path)
    free_bytes = shutil.disk_usage(tmp_path).free
    with pytest.raises(DiskFull, match=r"are missing .* has .* free, of which other pulls need"):
        blob.check_room(parts, tmp_path, free_bytes)
    parts = [RemotePart(BIG, "0" * 40, "Big-Q4_K_M.gguf", 1 << 60, "a" * 64)]
    with pytest.raises(DiskFull, match=r"1073741824.* GiB are missing .* has .* GiB free"):
        blob.check_room(parts, tmp_path)


def test_what_another_program_goes_on_with_is_not_removed(tmp_path: Path) -> None:
    part = RemotePart(BIG, "0" * 40, "Big-Q4_K_M.gguf", 5, "a" * 64)
    places = blob.Places.of(tmp_path, BIG, part.etag)
    for folder in (places.blob.parent, places.lock.parent):
        folder.mkdir(parents=True)
    places.incomplete.write_bytes(b"x")
    with FileLock(places.lock):
        blob.forget(part, tmp_path)
        assert places.incomplete.exists()
    blob.forget(part, tmp_path)
    assert not places.incomplete.exists()


def test_what_others_left_behind_does_not_hide_the_progress_of_another_program(
    tmp_path: Path,
) -> None:
    places = blob.Places.of(tmp_path, BIG, "a" * 64)
    places.blob.parent.mkdir(parents=True)
    left = places.blob.with_name(f"{places.blob.name}.0123.incomplete")
    left.write_bytes(b"x" * 1000)
    os.utime(left, (1, 1))
    places.incomplete.write_bytes(b"x")
    before = places.coming()
    assert before[1] == 1
    os.utime(places.incomplete, (2e9, 2e9))  # a program that writes in no order
    assert places.coming() > before


@pytest.mark.parametrize("name", ["../../x-Q4_K_M.gguf", "/x-Q4_K_M.gguf", "a//../x-Q4_K_M.gguf"])
def test_a_file_that_would_lie_outside_its_repository_is_none(
    name: str, repositories: Path
) -> None:
    with hub_stand_in(repositories, "--listed", name) as made:
        assert [part.path for part in resolve(BIG, made.hub())] == ["Big-Q4_K_M.gguf"]
        assert [file.path for file in made.hub().listing(BIG).files] == ["Big-Q4_K_M.gguf"]


@pytest.mark.parametrize("etag", ["../../x", "..", "a/b", "x" * 200])
def test_a_version_that_is_no_file_name_is_refused(etag: str, tmp_path: Path) -> None:
    with pytest.raises(ProjectError):
        blob.Places.of(tmp_path, BIG, etag)


# What a pull is


def part(path: str = "X-Q4_K_M.gguf", etag: str = "e", revision: str = "r") -> PullPart:
    return PullPart(repo=SMALL, revision=revision, path=path, size_bytes=10, etag=etag)


def test_the_same_files_are_one_pull_whatever_they_were_called() -> None:
    assert key_of([part()]) == key_of([part(revision="later")])
    assert key_of([part()]) != key_of([part(etag="other")])
    assert key_of([part("a"), part("b")]) == key_of([part("b"), part("a")])


def test_a_pull_is_called_by_its_quantisation_or_its_file() -> None:
    assert label_of([part("folder/X-Q4_K_M-00001-of-00002.gguf")]) == "Q4_K_M"
    assert label_of([part("folder/plain.gguf")]) == "plain"


def test_the_rate_is_of_the_last_seconds() -> None:
    meter = Meter()
    assert meter.eta_s(100) is None
    for second in range(20):
        meter.note(second, second * (100 if second < 10 else 1000))
    assert meter.bytes_per_s == 1000
    assert meter.eta_s(5000) == 5.0
    meter.note(20, 0)
    assert meter.bytes_per_s == 0


# What waits for it


@pytest.mark.parametrize(
    ("state", "eta_s", "said", "after_s"),
    [("fetching", 30.0, "a is fetching, 25% fetched", 50), ("paused", None, "(paused), 25%", None)],
)
def test_a_request_hears_how_far_the_pull_is(
    state: str, eta_s: float | None, said: str, after_s: int | None
) -> None:
    pull = PullView.model_validate(
        {
            "id": "p1",
            "reference": SMALL,
            "repo": SMALL,
            "label": "Q4_0",
            "files": 1,
            "state": state,
            "done_bytes": 25,
            "total_bytes": 100,
            "eta_s": eta_s,
        }
    )
    waits = deployment("a", state=State.FETCHING, pull=pull, plan=plan(load_s=20))
    found = outlook(waits, datetime(2026, 11, 1, tzinfo=UTC))
    assert said in found.sentence
    assert found.progress == 0.25
    assert found.retry_after_s == after_s


# What is here already


def test_a_model_of_the_cache_is_found_and_read_without_the_hub(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_stand_in(files) as made:
        path = fetched(made, tmp_path / "cache", resolve(f"{SMALL}:Q8_0", made.hub()))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = HubFiles()
    for name in (f"{SMALL}:q8_0", f"{SMALL}/Small-Q8_0.gguf", SMALL):
        assert cached.find(name) == path
    assert cached.find(f"{SMALL}:Q4_0") is None
    assert cached.find("owner/unknown:Q4_0") is None
    read = launch_reader(lambda _: None, cached.find, tmp_path / "headers")
    assert read(SMALL).facts.path == str(path)  # only because the hub cannot be asked
    with pytest.raises(HubOffline):
        read(f"{SMALL}:Q4_0")
