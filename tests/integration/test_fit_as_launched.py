"""A fit is judged with what a launch now would take, and nothing of the judging stays behind."""

import asyncio
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster import eventually
from hub_stand_in import HubStandIn, hub_stand_in, nobodys_account
from suggest_world import Cluster, device, model_files, named, tokenizer, write_repository

from agents.contract import EngineFacts
from agents.errors import FolderNotWritable
from supervisor.adapters.catalogue_file import read_catalogue
from supervisor.adapters.hub_http import Patience
from supervisor.adapters.hub_repo import RepoHeaders
from supervisor.adapters.sparse_model import sparse_model
from supervisor.core.entities import DeploymentSpec, Plan
from supervisor.core.model_settings import ModelSettings
from supervisor.core.planning import HOST
from supervisor.errors import NoDevices
from supervisor.ports import ModelReader
from supervisor.service.fitting import Fitter, listed
from supervisor.service.suggesting import Suggester, SuggestProgress, SuggestWish

__all__ = ["nobodys_account"]

REPO = "owner/Model-GGUF"
CALM = Patience(connect_s=5, silence_s=30, range_s=60, tries=2, first_pause_s=0.01)


def keep(cluster: Cluster, model: str, **values: object) -> None:
    cluster.tools.store.save_model_settings(ModelSettings(model=model, values=values))


def fitter_of(cluster: Cluster, path: Path) -> Fitter:
    known = listed(lambda _: SimpleNamespace(path=str(path)))
    return Fitter(cluster.tools, cluster.planner, known)


def suggester(cluster: Cluster, folder: Path, made: HubStandIn) -> Suggester:
    fitter = Fitter(cluster.tools, cluster.planner, listed(lambda _: None))
    return Suggester(fitter, RepoHeaders(folder, lambda: made.hub(CALM)), read_catalogue, folder)


# -- settings that are kept ------------------------------------------------------------------------


async def test_a_fit_takes_what_is_kept_for_the_model_unless_a_context_is_named(
    engine: EngineFacts, tmp_path: Path
) -> None:
    path = sparse_model(model_files(named("dense 8B"), "Q4_K_M"), tmp_path)
    cluster = Cluster("laptop", engine, tmp_path / "kept")
    fitter = fitter_of(cluster, path)
    before = await fitter.of_file("m", None)
    assert (before.ctx_tokens, before.kv_type) == (8192, "f16")
    keep(cluster, str(path.resolve()), ctx_tokens=2048, kv_type="q8_0", min_ctx_tokens=512)
    after = await fitter.of_file("m", None)
    assert (after.ctx_tokens, after.kv_type) == (2048, "q8_0")
    assert after.is_checked
    asked = await fitter.of_file("m", 4096)
    assert (asked.ctx_tokens, asked.kv_type) == (4096, "q8_0")
    too_long = await fitter.of_file("m", 1 << 20)
    assert not too_long.fits, "who names a context gets no smaller one"
    keep(cluster, str(path.resolve()), ctx_tokens=1 << 20)
    assert not (await fitter.of_file("m", None)).fits
    cluster.tools.store.delete_model_settings(str(path.resolve()))
    assert await fitter.of_file("m", None) == before


async def test_settings_of_a_reference_count_in_its_row_and_nowhere_else(
    engine: EngineFacts, tmp_path: Path
) -> None:
    write_repository(tmp_path / "hub" / REPO, named("tiny body"), ("Q4_K_M", "Q6_K", "Q8_0"))
    cluster = Cluster("laptop", engine, tmp_path / "kept")
    keep(cluster, f"{REPO}:Q8_0", ctx_tokens=1024, kv_type="q8_0")
    keep(cluster, f"{REPO}:Q6_K", devices=["gone"])
    with hub_stand_in(tmp_path / "hub") as made:
        of = suggester(cluster, tmp_path / "kept", made)
        found = await of.suggest(SuggestWish(REPO), lambda _: None)
    rows = {row.label: row for row in found.suggestions}
    assert (rows["Q8_0"].fit.ctx_tokens, rows["Q8_0"].fit.kv_type) == (1024, "q8_0")
    assert (rows["Q4_K_M"].fit.ctx_tokens, rows["Q4_K_M"].fit.kv_type) == (8192, "f16")
    assert not rows["Q6_K"].fit.fits
    assert rows["Q6_K"].fit.error_code == "device_unknown"
    assert "gone" in rows["Q6_K"].reason
    assert found.command == f"supervisor launch {REPO}:Q8_0 --ctx 1024"


# -- the cluster of now ----------------------------------------------------------------------------


async def test_a_plan_of_a_cluster_that_changed_meanwhile_is_not_kept(tmp_path: Path) -> None:
    path = sparse_model(model_files(named("dense 8B"), "Q4_K_M"), tmp_path)
    cluster = Cluster("laptop", None, tmp_path / "kept")
    preview, joins = cluster.planner.preview, [device("second", 16)]

    async def changing(spec: DeploymentSpec, read_model: ModelReader) -> Plan:
        if joins:
            cluster.registry.listed[:] = [joins.pop()]
        return await preview(spec, read_model)

    cluster.planner.preview = changing  # type: ignore[method-assign]
    fitter = fitter_of(cluster, path)
    other = await fitter.of_file("m", None)
    cluster.registry.listed[:] = [device("laptop", 11)]
    alone = await fitter.of_file("m", None)
    assert "second" in other.devices
    assert "second" not in alone.devices


async def test_the_catalogue_answers_without_a_network_whatever_the_cluster(
    tmp_path: Path,
) -> None:
    nobody = HubStandIn("http://127.0.0.1:9")
    many = [device(f"node-{n}", 40) for n in range(4)]
    for listed_now, best in (([], HOST), ([device("one", 60)], "one"), (many, "node-")):
        cluster = Cluster("laptop", None, tmp_path / "kept")
        cluster.registry.listed[:] = listed_now
        of = suggester(cluster, tmp_path / "kept", nobody)
        found = await of.suggest(SuggestWish(), lambda _: None)
        (chosen,) = (row for row in found.suggestions if row.is_recommended)
        assert any(name.startswith(best) for name in chosen.fit.devices)
        assert {row.id for row in found.suggestions} == {m.id for m in read_catalogue()}
        assert all(row.fit.is_estimate for row in found.suggestions)
        assert any("cannot be reached" in note for note in found.notes)


async def test_without_any_place_for_layers_the_answer_is_what_to_do(tmp_path: Path) -> None:
    cluster = Cluster("laptop", None, tmp_path / "kept")
    cluster.registry.listed.clear()
    cluster.tools.settings = cluster.tools.settings.model_copy(  # type: ignore[misc]
        update={"host_layers": False}
    )
    of = suggester(cluster, tmp_path / "kept", HubStandIn("http://127.0.0.1:9"))
    with pytest.raises(NoDevices, match="supervisor join"):
        await of.suggest(SuggestWish(), lambda _: None)


# -- nothing stays behind --------------------------------------------------------------------------


async def test_who_leaves_a_slow_hub_holds_up_nothing(tmp_path: Path) -> None:
    write_repository(tmp_path / "hub" / REPO, named("dense 8B"), ("Q4_K_M", "Q8_0"))
    words = model_files(named("dense 8B"), "Q2_K", tokenizer(128_256))
    sparse_model(words, tmp_path / "hub" / REPO)
    with hub_stand_in(tmp_path / "hub", "--drip-s", "0.5") as made:
        of = suggester(Cluster("laptop", None, tmp_path / "kept"), tmp_path / "kept", made)
        before = set(threading.enumerate())
        task = asyncio.create_task(of.suggest(SuggestWish(REPO), lambda _: None))

        def own() -> list[threading.Thread]:
            found = set(threading.enumerate()) - before
            return [thread for thread in found if not thread.name.startswith("asyncio")]

        async def reads() -> bool:
            return any(request["server"] == "hub" for request in made.requests) and bool(own())

        await eventually(reads, within_s=60, what="a header is asked for")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert all(thread.daemon for thread in own()), "the end of the program waits for no hub"

        async def ended() -> bool:
            return not own()

        await eventually(ended, within_s=30, what="its threads end by themselves")


async def test_two_questions_at_once_and_the_third_is_told_to_wait(tmp_path: Path) -> None:
    write_repository(tmp_path / "hub" / REPO, named("tiny body"), ("Q4_K_M", "Q8_0"))
    told: list[SuggestProgress] = []
    with hub_stand_in(tmp_path / "hub") as made:
        of = suggester(Cluster("laptop", None, tmp_path / "kept"), tmp_path / "kept", made)
        found = await asyncio.gather(
            *(of.suggest(SuggestWish(REPO), told.append) for _ in range(3))
        )
    assert len({answer.words for answer in found}) == 1
    assert [p.step for p in told].count("waiting for other questions") == 1
    assert not list((tmp_path / "kept").glob(".suggest-*"))


async def test_stand_ins_of_a_run_that_was_killed_are_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    cluster = Cluster("laptop", None, kept)
    (kept / ".suggest-old").mkdir()
    (kept / ".suggest-old" / "header.gguf").touch()
    suggester(cluster, kept, HubStandIn("http://127.0.0.1:9"))
    assert not list(kept.glob(".suggest-*"))
    assert (kept / "laptop.db").exists(), "nothing else is touched"


async def test_a_disk_that_takes_no_header_is_named(tmp_path: Path) -> None:
    write_repository(tmp_path / "hub" / REPO, named("tiny body"), ("Q4_K_M", "Q8_0"))
    with hub_stand_in(tmp_path / "hub") as made:
        repo = await RepoHeaders(tmp_path / "kept", lambda: made.hub(CALM)).open(REPO)
        await repo.begin()
        with pytest.raises(FolderNotWritable, match="cannot be kept"):
            await repo.read(f"{REPO}:Q8_0", tmp_path / "gone")


async def test_a_header_that_was_forgotten_meanwhile_is_read_again(tmp_path: Path) -> None:
    write_repository(tmp_path / "hub" / REPO, named("tiny body"), ("Q4_K_M", "Q8_0"))
    stand_ins = tmp_path / "stand-ins"
    stand_ins.mkdir()
    with hub_stand_in(tmp_path / "hub") as made:
        repo = await RepoHeaders(tmp_path / "kept", lambda: made.hub(CALM)).open(REPO)
        await repo.begin()
        first = await repo.read(f"{REPO}:Q4_K_M", stand_ins)
        shutil.rmtree(first.file.parent)
        again = await repo.read(f"{REPO}:Q4_K_M", stand_ins)
    assert again.shape == first.shape
    assert again.file.exists()
