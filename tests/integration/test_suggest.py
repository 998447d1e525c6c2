"""What to run, over headers of real model shapes and three clusters, with the engine's own word."""

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from cluster import Cluster as RealCluster
from hub_stand_in import HubStandIn, hub_stand_in, nobodys_account
from suggest_world import (
    CLUSTERS,
    QWEN3_CODER_480B,
    TYPES,
    Cluster,
    Shape,
    device,
    model_files,
    named,
    tokenizer,
    write_repository,
)

from agents.contract import EngineFacts
from supervisor.adapters.catalogue_file import read_catalogue
from supervisor.adapters.hub_http import Patience
from supervisor.adapters.hub_repo import RepoHeaders
from supervisor.adapters.models import read_remote_model
from supervisor.adapters.sparse_model import sparse_model
from supervisor.core import launch_plan
from supervisor.core.catalogue import CatalogueModel, for_task
from supervisor.core.entities import DeploymentSpec, Plan
from supervisor.core.suggesting import Suggestions, bits_of
from supervisor.errors import BadRequest, HubUnreachable, InsufficientMemory, ModelMissing
from supervisor.ports import Model, ModelReader
from supervisor.service.fitting import Fitter, listed
from supervisor.service.suggesting import Suggester, SuggestProgress, SuggestWish

__all__ = ["nobodys_account"]

REPO = "owner/Model-GGUF"
QUANTISATIONS = ("Q2_K", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
MODELS = (
    named("tiny body"),  # 0.5B
    named("dense 8B"),
    named("SWA 12B"),
    named("MLA and MoE 16B"),
    named("MoE 30B-A3B"),
    named("dense 70B"),
    QWEN3_CODER_480B,  # 510 GB in Q8_0
)
SPEED = 5.0
CALM = Patience(connect_s=5, silence_s=30, range_s=60, tries=2, first_pause_s=0.01)
"""The stand-in hashes files before it lists them."""


def suggester(
    cluster: Cluster,
    folder: Path,
    made: HubStandIn,
    catalogue: Callable[[], Sequence[CatalogueModel]] = read_catalogue,
) -> Suggester:
    fitter = Fitter(cluster.tools, cluster.planner, listed(lambda _: None))
    return Suggester(fitter, RepoHeaders(folder, lambda: made.hub(CALM)), catalogue, folder)


async def answer(of: Suggester, asked: str, ctx_tokens: int | None = None) -> Suggestions:
    return await of.suggest(SuggestWish(asked, ctx_tokens, SPEED), lambda _: None)


async def planned(cluster: Cluster, model: Model, ctx_tokens: int) -> Plan | None:
    """The planner's word on one quantisation, read whole and by itself."""
    spec = DeploymentSpec(model=model.facts.path, ctx_tokens=ctx_tokens)
    try:
        return await cluster.planner.preview(spec, lambda _: model)
    except InsufficientMemory:
        return None


async def confirmed(cluster: Cluster, model: Model, plan: Plan) -> bool:
    """Whether the engine itself finds room for everything in its place."""
    found = await cluster.oracle(model, plan)
    told = launch_plan.with_engine_memory(plan, model.shape, found)
    return all(use.peak_bytes <= use.budget_bytes for use in (told.host, *told.shards))


def largest(rows: Sequence[tuple[str, int, float]]) -> str | None:
    """By the rule alone: label, bytes and speed of everything that fits."""
    if fast := [row for row in rows if row[2] >= SPEED]:
        return max(fast, key=lambda row: row[1])[0]
    fine = [row for row in rows if bits_of(row[0]) >= 4] or list(rows)
    return max(fine, key=lambda row: row[2])[0]


@pytest.mark.parametrize("shape", MODELS, ids=lambda shape: shape.name)
async def test_what_fits_is_confirmed_and_the_largest_good_one_is_recommended(
    engine: EngineFacts, tmp_path: Path, shape: Shape
) -> None:
    write_repository(tmp_path / "hub" / REPO, shape, QUANTISATIONS)
    with hub_stand_in(tmp_path / "hub") as made:
        whole = {
            quantisation: await asyncio.to_thread(
                read_remote_model, f"{REPO}:{quantisation}", tmp_path / "whole", made.hub(CALM)
            )
            for quantisation in QUANTISATIONS
        }
        for name in CLUSTERS:
            cluster = Cluster(name, engine, tmp_path / "kept")
            found = await answer(suggester(cluster, tmp_path / "kept", made), REPO)
            assert {row.label for row in found.suggestions} == set(QUANTISATIONS)
            fitting = list[tuple[str, int, float]]()
            for row in found.suggestions:
                model = whole[row.label]
                plan = await planned(cluster, model, row.fit.ctx_tokens)
                assert row.fit.fits == (plan is not None), (name, row.reason)
                assert row.fit.ctx_tokens == 8192
                if plan is None:
                    assert row.fit.missing_bytes, row.reason
                    continue
                assert row.fit.is_checked
                assert await confirmed(cluster, model, plan), (name, row.reason)
                assert plan.prediction is not None
                assert row.fit.tokens_per_s == plan.prediction.decode_tokens_per_s
                fitting.append((row.label, row.size_bytes, row.fit.tokens_per_s))
            chosen = [row for row in found.suggestions if row.is_recommended]
            if not fitting:
                assert not chosen
                assert "Nothing fits" in found.words
                continue
            assert [row.label for row in chosen] == [largest(fitting)]
            assert found.words.startswith(f"{chosen[0].label}: ")
            assert found.command == f"supervisor launch {REPO}:{chosen[0].label} --ctx 8192"


# -- how little is read ----------------------------------------------------------------------------


async def opened(made: HubStandIn, folder: Path) -> dict[str, Model]:
    repo = await RepoHeaders(folder, lambda: made.hub(CALM)).open(REPO)
    await repo.begin()
    stand_ins = folder / "stand-ins"
    stand_ins.mkdir(exist_ok=True)
    return {each.label: await repo.read(each.reference, stand_ins) for each in repo.models}


async def test_one_header_is_read_whole_and_of_the_others_their_tables(tmp_path: Path) -> None:
    shape = named("dense 8B")
    served = tmp_path / "hub" / REPO
    served.mkdir(parents=True)
    words = tokenizer(shape.vocabulary)
    header_bytes = 0
    for number, quantisation in enumerate(TYPES):
        files = model_files(shape, quantisation, words, note="x" * 999 * number)
        header_bytes = max(header_bytes, len(files[0].start))
        sparse_model(files, served)
    assert header_bytes > 4 << 20
    with hub_stand_in(tmp_path / "hub") as made:
        found = await opened(made, tmp_path / "kept")
    first = -(-header_bytes // (4 << 20)) * (4 << 20) + (8 << 20)
    assert made.stored_bytes < first + len(TYPES) * (300 << 10)
    with hub_stand_in(tmp_path / "hub") as made:
        for quantisation, model in found.items():
            reference = f"{REPO}:{quantisation}"
            whole = await asyncio.to_thread(
                read_remote_model, reference, tmp_path / "whole", made.hub(CALM)
            )
            assert model.shape == whole.shape
            assert model.facts == whole.facts
            assert model.stand_in is not None
        again = await opened(made, tmp_path / "kept")
    assert {label: model.shape for label, model in again.items()} == {
        label: model.shape for label, model in found.items()
    }


async def test_what_was_read_is_kept_for_the_next_time(tmp_path: Path) -> None:
    write_repository(tmp_path / "hub" / REPO, named("MoE 30B-A3B"), QUANTISATIONS)
    with hub_stand_in(tmp_path / "hub") as made:
        first = await opened(made, tmp_path / "kept")
        again = await opened(made, tmp_path / "kept")
    ranges = [f"{request['path']} {request['range']}" for request in made.of("store")]
    assert len(set(ranges)) == len(ranges) >= len(QUANTISATIONS), "nothing is asked for twice"
    assert {n: model.shape for n, model in first.items()} == {
        n: model.shape for n, model in again.items()
    }


@pytest.mark.parametrize("odd", ["long notes", "more tensors", "fewer tensors", "more bytes"])
async def test_a_header_that_differs_is_read_whole(tmp_path: Path, odd: str) -> None:
    shape = named("dense 8B")
    served = tmp_path / "hub" / REPO
    served.mkdir(parents=True)
    sparse_model(model_files(shape, "Q4_K_M"), served)
    more = {"more tensors": 2, "fewer tensors": -2}.get(odd, 0)
    other = dataclasses.replace(shape, layers=shape.layers + more)
    note = "x" * (600 << 10) if odd == "long notes" else ""
    (file,) = model_files(other, "Q8_0", note=note)
    if odd == "more bytes":
        file = dataclasses.replace(file, size_bytes=file.size_bytes + (1 << 20))
    sparse_model([file], served)
    with hub_stand_in(tmp_path / "hub") as made:
        found = await opened(made, tmp_path / "kept")
        reference = f"{REPO}:Q8_0"
        whole = await asyncio.to_thread(
            read_remote_model, reference, tmp_path / "w", made.hub(CALM)
        )
    assert found["Q8_0"].shape == whole.shape
    assert found["Q8_0"].facts == whole.facts


async def test_a_table_that_says_something_else_than_the_file_is_not_believed(
    tmp_path: Path,
) -> None:
    """A file that is cut short is named as such, and the others are still answered."""
    served = tmp_path / "hub" / REPO
    write_repository(served, named("dense 8B"), ("Q2_K", "Q4_K_M", "Q6_K"))
    for quantisation in ("Q2_K", "Q6_K"):  # the smallest would be the one that is read whole
        short = served / f"Model-{quantisation}.gguf"
        os.truncate(short, short.stat().st_size - (64 << 10))
    with hub_stand_in(tmp_path / "hub") as made:
        cluster = Cluster("laptop", None, tmp_path / "kept")
        found = await answer(suggester(cluster, tmp_path / "kept", made), REPO)
    rows = {row.label: row for row in found.suggestions}
    assert rows["Q4_K_M"].is_recommended
    for quantisation in ("Q2_K", "Q6_K"):
        assert rows[quantisation].fit.error_code == "model_broken"
        assert "truncated" in rows[quantisation].reason
    assert not rows["Q4_K_M"].fit.is_checked, "there is no engine here"
    assert any("cannot check memory" in note for note in found.notes)


async def test_files_that_are_no_models_do_not_hide_the_others(tmp_path: Path) -> None:
    served = tmp_path / "hub" / REPO
    write_repository(served, named("tiny body"), ("Q2_K", "Q3_K_M", "Q4_K_M", "Q6_K", "Q8_0"))
    for quantisation in ("Q2_K", "Q3_K_M", "Q4_K_M"):
        cut = served / f"Model-{quantisation}.gguf"
        os.truncate(cut, cut.stat().st_size - (64 << 10))
    (served / "Model-Q5_K_M.gguf").touch()
    with hub_stand_in(tmp_path / "hub") as made:
        cluster = Cluster("laptop", None, tmp_path / "kept")
        found = await answer(suggester(cluster, tmp_path / "kept", made), REPO)
    rows = {row.label: row for row in found.suggestions}
    assert rows["Q8_0"].is_recommended
    assert rows["Q6_K"].fit.fits
    assert "is empty" in rows["Q5_K_M"].reason
    assert [rows[label].fit.error_code for label in ("Q2_K", "Q3_K_M")] == ["model_broken"] * 2


# -- tasks, and without the hub ------------------------------------------------------------------


async def test_a_task_is_answered_without_the_hub_by_estimates(tmp_path: Path) -> None:
    nobody = HubStandIn("http://127.0.0.1:9")
    cluster = Cluster("desk", None, tmp_path / "kept")
    told: list[SuggestProgress] = []
    of = suggester(cluster, tmp_path / "kept", nobody)
    found = await of.suggest(SuggestWish("code", None, SPEED), told.append)
    ids = {model.id for model in for_task(read_catalogue(), "code")}
    assert {row.id for row in found.suggestions} == ids
    assert all(row.fit.is_estimate for row in found.suggestions)
    best = found.suggestions[0]
    assert best.is_recommended
    assert best.fit.fits
    assert (best.fit.tokens_per_s or 0) >= SPEED
    assert best.licence
    assert found.words.startswith(f"{best.id}, ")
    assert found.command == f"supervisor launch {best.reference} --ctx 8192"
    assert any("cannot be reached" in note for note in found.notes)
    assert told[-1].done <= told[-1].total
    for asked in ("qwen3-8b", "Qwen/Qwen3-8B-GGUF"):
        known = await answer(of, asked)
        labels = [row.label for row in known.suggestions]
        assert labels == ["Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M"]
        assert known.command == "supervisor launch Qwen/Qwen3-8B-GGUF:Q8_0 --ctx 8192"
        assert "are estimates" in known.notes[0]
    with pytest.raises(HubUnreachable):
        await answer(of, "owner/Unknown-GGUF")
    with pytest.raises(BadRequest, match="reasoning"):
        await answer(of, "juggling")


async def test_a_task_is_looked_up_where_the_hub_has_it(
    engine: EngineFacts, tmp_path: Path
) -> None:
    only = read_catalogue()[-1]
    write_repository(tmp_path / "hub" / only.repo, named("tiny body"), ("Q4_K_M", "Q8_0", "F16"))
    with hub_stand_in(tmp_path / "hub") as made:
        cluster = Cluster("laptop", engine, tmp_path / "kept")
        of = suggester(cluster, tmp_path / "kept", made, lambda: (only,))
        found = await answer(of, only.good_at[0])
    (row,) = found.suggestions
    assert row.label == "F16"
    assert row.fit.is_checked
    assert not row.fit.is_estimate
    assert row.id == only.id


# -- one model of this host ------------------------------------------------------------------------


async def test_a_fit_is_remembered_until_model_or_cluster_change(
    engine: EngineFacts, tmp_path: Path
) -> None:
    (path,) = [sparse_model(model_files(named("dense 8B"), "Q4_K_M"), tmp_path)]
    cluster, asked = Cluster("laptop", engine, tmp_path / "kept"), list[int]()
    preview = cluster.planner.preview

    async def counted(spec: DeploymentSpec, read_model: ModelReader) -> Plan:
        asked.append(spec.ctx_tokens)
        return await preview(spec, read_model)

    cluster.planner.preview = counted  # type: ignore[method-assign]
    known = {name: SimpleNamespace(path=str(path)) for name in ("eight", str(path))}
    fitter = Fitter(cluster.tools, cluster.planner, listed(known.get))
    first = await fitter.of_file(str(path), None)
    assert first.fits
    assert first.is_checked
    assert await fitter.of_file("eight", None) == first
    assert asked == [8192]
    together = await asyncio.gather(*(fitter.of_file("eight", 4096) for _ in range(5)))
    assert len(set(together)) == 1
    assert asked == [8192, 4096]
    cluster.registry.listed.append(device("second", 16))
    await fitter.of_file("eight", None)
    assert asked == [8192, 4096, 8192]
    os.utime(path, (1, 1))
    await fitter.of_file("eight", None)
    assert asked == [8192, 4096, 8192, 8192]
    with pytest.raises(ModelMissing, match="not among"):
        await fitter.of_file("/etc/passwd", None)


async def test_at_most_two_plans_are_made_at_once(tmp_path: Path) -> None:
    path = sparse_model(model_files(named("tiny body"), "Q4_K_M"), tmp_path)
    cluster = Cluster("desk", None, tmp_path / "kept")
    preview, now, most = cluster.planner.preview, 0, 0

    async def counted(spec: DeploymentSpec, read_model: ModelReader) -> Plan:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            return await preview(spec, read_model)
        finally:
            now -= 1

    cluster.planner.preview = counted  # type: ignore[method-assign]
    known = listed(lambda _: SimpleNamespace(path=str(path)))
    fitter = Fitter(cluster.tools, cluster.planner, known)
    found = await asyncio.gather(*(fitter.of_file("m", 1024 * n) for n in range(1, 9)))
    assert [fit.ctx_tokens for fit in found] == [1024 * n for n in range(1, 9)]
    assert most == 2


async def test_who_leaves_ends_the_work(engine: EngineFacts, tmp_path: Path) -> None:
    write_repository(tmp_path / "hub" / REPO, named("dense 70B"), QUANTISATIONS)
    with hub_stand_in(tmp_path / "hub", "--drip-s", "0.2") as made:
        of = suggester(Cluster("lab", engine, tmp_path / "kept"), tmp_path / "kept", made)
        task = asyncio.create_task(answer(of, REPO))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left
    assert not list((tmp_path / "kept").glob(".suggest-*"))


# -- the whole program -----------------------------------------------------------------------------


def said(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "supervisor", *command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


async def test_the_command_line_shows_a_table_and_what_to_run_next(
    tmp_path: Path, demo_model: Path
) -> None:
    write_repository(tmp_path / "hub" / REPO, named("tiny body"), ("Q4_K_M", "Q8_0"))
    cluster = RealCluster(tmp_path)
    with hub_stand_in(tmp_path / "hub") as made:
        environment = {"HF_ENDPOINT": made.endpoint, "HF_HUB_OFFLINE": "0"}
        await cluster.supervisor(
            environment=environment, host_layers="true", model_folders=demo_model.parent
        )
        try:
            ask = ["models", "suggest", REPO, "--url", cluster.url]
            shown = await asyncio.to_thread(said, [*ask, "--ctx", "2048"])
            assert shown.returncode == 0, shown.stderr
            assert "Q8_0" in shown.stdout
            assert f"Next: supervisor launch {REPO}:Q8_0 --ctx 2048" in shown.stdout
            told = await asyncio.to_thread(said, [*ask, "--json"])
            assert json.loads(told.stdout)["suggestions"][0]["fit"]["fits"]
            wrong = await asyncio.to_thread(
                said, ["models", "suggest", "juggling", "--url", cluster.url]
            )
            assert wrong.returncode == 1
            assert "is no repository, task or known model" in wrong.stderr
            fit = await cluster.http.get("/api/models/fit", params={"model": str(demo_model)})
            assert fit.status_code == 200, fit.text
            assert fit.json()["fits"]
            missing = await cluster.http.get("/api/models/fit", params={"model": "/etc/passwd"})
            assert missing.json()["code"] == "model_missing"
        finally:
            await cluster.close()
