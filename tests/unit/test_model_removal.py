"""Deleting takes what was asked for and nothing that anybody else needs, whoever links to it."""

import asyncio
import os
from pathlib import Path

import pytest
from gateway_world import deployment
from model_places_made import (
    REPO,
    hub_repo,
    model,
    ollama_model,
    own_places,
    part_name,
    projector,
    put,
    scanner,
    split,
)

from agents.errors import FolderNotWritable
from supervisor.adapters.model_checks import ModelChecks
from supervisor.adapters.model_removal import places_of, removed
from supervisor.core.entities import Deployment, DeploymentSpec
from supervisor.core.library_views import Removal
from supervisor.core.lifecycle import State
from supervisor.core.model_options import Lora
from supervisor.errors import ModelInUse, ModelKeptElsewhere, ModelMissing
from supervisor.service.events import EventBus
from supervisor.service.library import Library
from supervisor.service.model_upkeep import ModelUpkeep

MAIN, OLD = "a" * 40, "b" * 40


class Home:
    """A made-up home, and what deployments there are."""

    def __init__(self, folder: Path, *folders: Path) -> None:
        self.deployments: list[Deployment] = []
        self.cache = folder / ".cache" / "huggingface" / "hub"
        self.own = folder / "models"
        self.upkeep = ModelUpkeep(
            Library(scanner(folder, folders), EventBus()),
            lambda: self.deployments,
            removed,
            ModelChecks(lambda _: {}),
            places_of,
            lambda: [(place.source, place.path) for place in own_places(folder, folders)],
        )

    async def rm(self, name: str | Path) -> Removal:
        """Remove it; what was told before is what was done."""
        told = await self.upkeep.remove(str(name), dry_run=True)
        assert not told.is_done
        done = await self.upkeep.remove(str(name))
        assert done == told.model_copy(update={"is_done": True})
        assert not any(os.path.lexists(path) for path in done.deletes)
        return done

    async def names(self) -> list[str]:
        assert isinstance(self.upkeep._library, Library)
        return [each.name for each in (await self.upkeep._library.models(0)).models]


# -- the hub's cache -----------------------------------------------------------------------------


async def test_a_download_into_the_same_repository_loses_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path)
    folder = hub_repo(home.cache, REPO, {MAIN: {"Small-Q8_0.gguf": model()}}, main=MAIN)
    coming = put(folder / "blobs" / f"{'c' * 64}.incomplete", b"half of another quantisation")
    done = await home.rm(f"{REPO}:Q8_0")
    assert coming.exists()
    assert any(str(coming) in kept and "not over" in kept for kept in done.keeps)
    assert os.listdir(folder / "blobs") == [coming.name]
    assert await home.names() == []


async def test_a_file_that_several_repositories_share_stays_for_the_others(tmp_path: Path) -> None:
    """As huggingface_hub 2.4 lays out what comes by xet: the blob is a link into one store."""
    home = Home(tmp_path)
    store = put(home.cache / "blobs" / "ab" / ("ab" * 32), model("Shared"))
    put(home.cache / "blobs" / ".huggingface-shared-blobs", b"1\n")
    other_file = {"Other-Q8_0.gguf": model("Other")}
    for repo in ("owner/One-GGUF", "owner/Two-GGUF"):
        folder = hub_repo(home.cache, repo, {MAIN: {"s-Q4_K_M.gguf": model("x"), **other_file}})
        blob = (folder / "snapshots" / MAIN / "s-Q4_K_M.gguf").resolve()
        blob.unlink()
        blob.symlink_to(os.path.relpath(store, blob.parent))
    references = [f"models--owner--{name}-GGUF/blobs/{blob.name}\n" for name in ("One", "Two")]
    put(store.with_name(f"{store.name}.refs"), "".join(references).encode())
    await home.rm("owner/Two-GGUF:Q4_K_M")
    one, two = (home.cache / f"models--owner--{name}-GGUF" for name in ("One", "Two"))
    assert (one / "snapshots" / MAIN / "s-Q4_K_M.gguf").read_bytes() == model("Shared")
    assert os.listdir(two / "snapshots" / MAIN) == ["Other-Q8_0.gguf"]
    assert len(os.listdir(two / "blobs")) == 1
    done = await home.rm("owner/One-GGUF:Q4_K_M")
    assert done.freed_bytes == len(model("Shared"))
    assert not store.exists()


async def test_a_blob_goes_with_the_last_of_all_revisions_that_link_to_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    small, other = {"Small-Q8_0.gguf": model()}, {"Other-Q4_0.gguf": model("Other")}
    folder = hub_repo(home.cache, REPO, {OLD: small, MAIN: small | other}, main=MAIN)
    done = await home.rm(f"{REPO}:Q8_0")
    assert done.freed_bytes == len(model())
    assert os.listdir(folder / "snapshots") == [MAIN]
    assert os.listdir(folder / "snapshots" / MAIN) == ["Other-Q4_0.gguf"]
    assert len(os.listdir(folder / "blobs")) == 1
    await home.rm(f"{REPO}:Q4_0")
    assert not folder.exists()


async def test_nothing_is_said_to_be_deleted_that_is_not(tmp_path: Path) -> None:
    home = Home(tmp_path)
    folder = hub_repo(home.cache, REPO, {MAIN: {"Small-Q8_0.gguf": model()}})
    (folder / "snapshots" / MAIN / "gone.json").symlink_to("../../blobs/nothing")
    with pytest.raises(FolderNotWritable, match="broken symlink"):
        await home.upkeep.remove(f"{REPO}:Q8_0")
    assert len(await home.names()) == 1


async def test_a_large_file_of_another_kind_keeps_its_revision(tmp_path: Path) -> None:
    home = Home(tmp_path)
    files = {"Small-Q8_0.gguf": model(), "model.onnx": b"other weights", "imatrix.gguf": b"GGUF"}
    folder = hub_repo(home.cache, REPO, {MAIN: files})
    await home.rm(f"{REPO}:Q8_0")
    assert (folder / "snapshots" / MAIN / "model.onnx").read_bytes() == b"other weights"


async def test_a_cache_on_another_disk_is_found_through_its_link(tmp_path: Path) -> None:
    home = Home(tmp_path)
    real = hub_repo(tmp_path / "disk", REPO, {MAIN: {"Small-Q8_0.gguf": model()}})
    home.cache.parent.mkdir(parents=True)
    home.cache.symlink_to(tmp_path / "disk")
    await home.rm(f"{REPO}:Q8_0")
    assert not real.exists()


async def test_a_folder_of_ones_own_inside_the_cache_changes_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / ".cache")
    folder = hub_repo(home.cache, REPO, {MAIN: {"Small-Q8_0.gguf": model()}})
    await home.rm(folder / "snapshots" / MAIN / "Small-Q8_0.gguf")
    assert not folder.exists()


async def test_a_cache_that_is_looked_through_as_ones_own_folder_is_still_a_cache(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path, tmp_path / "disk")
    folder = hub_repo(tmp_path / "disk", REPO, {MAIN: {"Small-Q8_0.gguf": model()}})
    assert (await home.rm("Small-Q8_0")).freed_bytes == len(model())
    assert not folder.exists()


# -- links and other names -----------------------------------------------------------------------


@pytest.mark.parametrize("by_name", [True, False])
async def test_of_another_way_to_a_model_only_that_way_goes(tmp_path: Path, by_name: bool) -> None:
    home = Home(tmp_path)
    folder = hub_repo(home.cache, REPO, {MAIN: {"Small-Q8_0.gguf": model()}})
    blob = next((folder / "blobs").iterdir())
    home.own.mkdir()
    link = home.own / "mine.gguf"
    link.symlink_to(blob)
    done = await home.rm("mine" if by_name else link)
    assert (done.deletes, done.freed_bytes) == ((str(link),), 0)
    assert blob.read_bytes() == model()


async def test_a_path_through_a_link_to_its_folder_is_the_same_file(tmp_path: Path) -> None:
    home = Home(tmp_path)
    folder = hub_repo(home.cache, REPO, {MAIN: {"Small-Q8_0.gguf": model()}})
    home.own.mkdir()
    (home.own / "all").symlink_to(folder / "snapshots" / MAIN)
    done = await home.rm(home.own / "all" / "Small-Q8_0.gguf")
    assert (done.deletes, done.keeps) == ((str(folder),), ())


async def test_links_that_would_lead_nowhere_are_told(tmp_path: Path) -> None:
    home = Home(tmp_path)
    folder = hub_repo(home.cache, REPO, {MAIN: {"Small-Q8_0.gguf": model()}})
    home.own.mkdir()
    (home.own / "mine.gguf").symlink_to(next((folder / "blobs").iterdir()))
    done = await home.rm(f"{REPO}:Q8_0")
    assert done.keeps == (f"{home.own}/mine.gguf: a link, which then leads nowhere",)


async def test_a_real_file_goes_before_a_link_to_it_in_the_same_folder(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for number in (1, 2):
        real = put(home.own / part_name("real", number, 2), split(2, number))
        (home.own / part_name("a-link", number, 2)).symlink_to(real)
    assert await home.names() == ["real"]
    done = await home.rm("a-link")
    assert len(done.deletes) == 2
    assert sorted(os.listdir(home.own)) == [part_name("real", n, 2) for n in (1, 2)]
    assert len((await home.rm("real")).deletes) == 2


async def test_a_hard_link_goes_and_its_content_stays(tmp_path: Path) -> None:
    home = Home(tmp_path)
    one = put(home.own / "one.gguf", model())
    os.link(one, tmp_path / "kept.gguf")
    done = await home.rm("one")
    assert done.freed_bytes == 0
    assert done.keeps == (f"what is in {one}: it has another name on this disk as well",)
    assert (tmp_path / "kept.gguf").read_bytes() == model()


async def test_a_link_to_a_blob_of_ollama_goes_and_the_blob_stays(tmp_path: Path) -> None:
    home = Home(tmp_path)
    blob = ollama_model(tmp_path / ".ollama" / "models", "gemma3:4b", model())
    home.own.mkdir()
    (home.own / "gemma.gguf").symlink_to(blob)
    for name in ("gemma3:4b", str(blob)):
        with pytest.raises(ModelKeptElsewhere, match="'ollama rm gemma3:4b'"):
            await home.upkeep.remove(name)
    await home.rm(home.own / "gemma.gguf")
    assert blob.exists()


async def test_a_model_to_which_ollama_links_is_not_deleted(tmp_path: Path) -> None:
    home = Home(tmp_path)
    real = put(home.own / "gemma.gguf", model())
    blob = ollama_model(tmp_path / ".ollama" / "models", "gemma3:4b", model())
    blob.unlink()
    blob.symlink_to(real)
    with pytest.raises(ModelKeptElsewhere, match="'ollama rm gemma3:4b'"):
        await home.upkeep.remove(str(real))
    assert real.exists()


async def test_names_cannot_lead_out_of_the_places(tmp_path: Path) -> None:
    home = Home(tmp_path)
    put(home.own / "a.gguf", model())
    secret = put(tmp_path / "secret.gguf", model("Secret"))
    for name in (f"{home.own}/../secret.gguf", "../secret.gguf", "a.gguf/../../secret.gguf"):
        with pytest.raises(Exception, match="is not on this host"):
            await home.upkeep.remove(name)
    assert secret.exists()


# -- who needs it --------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["projector", "adapter", "template"])
async def test_what_a_running_deployment_reads_besides_its_model_stays(
    tmp_path: Path, what: str
) -> None:
    home = Home(tmp_path)
    files = {"Small-Q8_0.gguf": model(), "mmproj-f16.gguf": projector(), "chat.jinja": b"{{ a }}"}
    folder = hub_repo(home.cache, REPO, {MAIN: files})
    snapshot = folder / "snapshots" / MAIN
    elsewhere = str(put(tmp_path / "elsewhere.gguf", model("Elsewhere")))
    spec = {
        "projector": DeploymentSpec(model=elsewhere, mmproj=str(snapshot / "mmproj-f16.gguf")),
        "adapter": DeploymentSpec(
            model=elsewhere, lora=(Lora(path=str(snapshot / "Small-Q8_0.gguf")),)
        ),
        "template": DeploymentSpec(
            model=elsewhere, chat_template_file=str(snapshot / "chat.jinja")
        ),
    }[what]
    home.deployments = [deployment("mine", spec=spec).model_copy(update={"plan": None})]
    with pytest.raises(ModelInUse, match="in use by deployment mine"):
        await home.upkeep.remove(f"{REPO}:Q8_0")
    home.deployments = [
        each.model_copy(update={"state": State.STOPPED}) for each in home.deployments
    ]
    assert (await home.upkeep.remove(f"{REPO}:Q8_0", dry_run=True)).deployments == ("mine",)


async def test_the_projector_that_a_plan_found_by_itself_stays(tmp_path: Path) -> None:
    home = Home(tmp_path)
    put(home.own / "a.gguf", model())
    eyes = put(home.own / "mmproj.gguf", projector())
    running = deployment("mine", spec=DeploymentSpec(model="/elsewhere.gguf"))
    assert running.plan is not None
    plan = running.plan.model_copy(update={"option_words": ("--mmproj", str(eyes))})
    home.deployments = [running.model_copy(update={"plan": plan})]
    with pytest.raises(ModelInUse):
        await home.upkeep.remove("mmproj")
    assert eyes.exists()


async def test_a_link_goes_while_a_deployment_runs_the_model_by_another_path(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path)
    real = put(home.own / "real.gguf", model())
    link = home.own / "link.gguf"
    link.symlink_to(real)
    home.deployments = [deployment("mine", spec=DeploymentSpec(model=str(real)))]
    await home.rm(link)
    link.symlink_to(real)
    home.deployments = [deployment("mine", spec=DeploymentSpec(model=str(link)))]
    for name in (link, real):
        with pytest.raises(ModelInUse):
            await home.upkeep.remove(str(name))


async def test_of_two_who_delete_the_same_one_does_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    hub_repo(home.cache, REPO, {MAIN: {"Small-Q8_0.gguf": model()}})
    both = (home.upkeep.remove(f"{REPO}:Q8_0") for _ in range(2))
    one, other = await asyncio.gather(*both, return_exceptions=True)
    assert isinstance(one, Removal)
    assert isinstance(other, ModelMissing)


async def test_what_is_gone_by_then_is_no_failure(tmp_path: Path) -> None:
    home = Home(tmp_path)
    path = put(home.own / "a.gguf", model())
    seen = (await home.upkeep._library.models()).models[0]
    path.unlink()
    done = await asyncio.to_thread(lambda: removed(seen, dry_run=False))
    assert done.freed_bytes == 0


@pytest.mark.skipif(os.geteuid() == 0 and os.name != "posix", reason="needs rights of files")
async def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    home = Home(tmp_path)
    folder = hub_repo(home.cache, REPO, {MAIN: {"Small-Q8_0.gguf": model()}}, main=MAIN)
    own = put(home.own / "a.gguf", model("Own"))
    seen = {each.name: each for each in (await home.upkeep._library.models()).models}
    root = os.geteuid() == 0
    for each in (tmp_path, *tmp_path.parents):
        if root and each != Path("/"):
            each.chmod(each.stat().st_mode | 0o055)
    if root:
        os.seteuid(65_534)
    else:
        for path in (home.own, folder / "snapshots" / MAIN):
            path.chmod(0o555)
    try:
        for name in ("a", "Small-Q8_0"):
            with pytest.raises(FolderNotWritable, match="cannot be deleted"):
                removed(seen[name], dry_run=False)
    finally:
        if root:
            os.seteuid(0)
        for path in (home.own, folder / "snapshots" / MAIN):
            path.chmod(0o755)
    assert own.exists()
    assert len(await home.names()) == 2
