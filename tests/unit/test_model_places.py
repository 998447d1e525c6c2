"""Models are found in each tool's own layout, once, under the best name, and never copied."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
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

from supervisor.adapters import model_walk
from supervisor.adapters.model_places import places
from supervisor.adapters.model_scanner import ModelScanner
from supervisor.core.library import LibraryModel, Listing


def listed(made: ModelScanner) -> Listing:
    return made.scan(threading.Event(), lambda _: None)


def only(made: ModelScanner) -> LibraryModel:
    (found,) = listed(made).models
    return found


def cache_of(home: Path) -> Path:
    return home / ".cache" / "huggingface" / "hub"


def test_a_model_in_the_hubs_cache_has_its_reference_and_is_listed_with_its_header(
    tmp_path: Path,
) -> None:
    folder = hub_repo(
        cache_of(tmp_path), REPO, {"aaa": {"Small-Q4_K_M.gguf": model(), "config.json": b"{}"}}
    )
    found = only(scanner(tmp_path))
    assert found.path == str(folder / "snapshots" / "aaa" / "Small-Q4_K_M.gguf")
    assert (found.source, found.reference, found.repo) == ("hub", f"{REPO}:Q4_K_M", REPO)
    assert (found.architecture, found.title) == ("llama", "Small")
    assert (found.parameters, found.quantisation, found.ctx_train_tokens) == (40, "Q4_K_M", 4096)
    assert found.size_bytes == len(model())
    assert (found.problem, found.warning, found.is_companion) == ("", "", False)


def test_several_revisions_of_one_blob_are_one_model_under_the_name_of_main(tmp_path: Path) -> None:
    files = {"Small-Q4_K_M.gguf": model()}
    folder = hub_repo(cache_of(tmp_path), REPO, {"aaa": files, "bbb": files}, main="bbb")
    found = only(scanner(tmp_path))
    assert found.path == str(folder / "snapshots" / "bbb" / "Small-Q4_K_M.gguf")
    assert str(folder / "snapshots" / "aaa" / "Small-Q4_K_M.gguf") in found.also


def test_two_files_of_one_quantisation_are_told_apart_by_their_names(tmp_path: Path) -> None:
    files = {f"{name}-Q4_K_M.gguf": model(name) for name in ("One", "Two")}
    hub_repo(cache_of(tmp_path), REPO, {"aaa": files})
    references = {found.reference for found in listed(scanner(tmp_path)).models}
    assert references == {f"{REPO}/One-Q4_K_M.gguf", f"{REPO}/Two-Q4_K_M.gguf"}


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HUB_CACHE": "{}/here"}, "here"),
        ({"HF_HOME": "{}/there"}, "there/hub"),
        ({"XDG_CACHE_HOME": "{}/cache"}, "cache/huggingface/hub"),
    ],
)
def test_the_hubs_cache_is_where_the_environment_says(
    tmp_path: Path, environ: dict[str, str], folder: str
) -> None:
    hub_repo(tmp_path / folder, REPO, {"aaa": {"Small-Q8_0.gguf": model()}})
    given = {name: value.format(tmp_path) for name, value in environ.items()}
    assert only(scanner(tmp_path, (), **given)).source == "hub"


def test_all_parts_of_a_split_model_in_the_hubs_cache_are_one_model(tmp_path: Path) -> None:
    files = {f"Q4_K_M/{part_name('Big-Q4_K_M', n, 3)}": split(3, n) for n in (1, 2, 3)}
    hub_repo(cache_of(tmp_path), REPO, {"aaa": files})
    found = only(scanner(tmp_path))
    assert found.reference == f"{REPO}:Q4_K_M"
    assert [Path(part).name for part in found.parts] == [Path(name).name for name in files]
    assert found.size_bytes == sum(map(len, files.values()))
    assert (found.parameters, found.problem) == (3 * 40, "")


def test_a_projector_lies_beside_its_model_and_is_no_model(tmp_path: Path) -> None:
    files = {"Small-Q4_K_M.gguf": model(), "mmproj-Small-f16.gguf": projector()}
    hub_repo(cache_of(tmp_path), REPO, {"aaa": files})
    found = {each.kind: each for each in listed(scanner(tmp_path)).models}
    assert set(found) == {"model", "projector"}
    assert found["model"].projector == found["projector"].path
    assert found["projector"].is_companion
    assert found["model"].reference == f"{REPO}:Q4_K_M"


def test_llama_cpps_cache_is_named_by_its_manifest_or_else_by_the_files_name(
    tmp_path: Path,
) -> None:
    cache = tmp_path / ".cache" / "llama.cpp"
    llama_cpp_file(cache, "owner/No_Suffix", "a_b-Q8_0.gguf", model("One"), tag="latest")
    llama_cpp_file(cache, "owner/Other-GGUF", "Other-Q4_0.gguf", model("Two"))
    llama_cpp_file(cache, "strange", "name.gguf", model("Three"))
    found = {each.title: each for each in listed(scanner(tmp_path)).models}
    assert found["One"].reference == "owner/No_Suffix:Q8_0"
    assert found["One"].repo_files == ("a_b-Q8_0.gguf",)
    assert found["Two"].reference == "owner/Other-GGUF:Q4_0"
    assert found["Three"].reference == ""
    assert {each.source for each in found.values()} == {"llama.cpp"}


def test_a_mac_keeps_llama_cpps_cache_elsewhere(tmp_path: Path) -> None:
    folders = {place.path for place in places({}, tmp_path, platform="darwin")}
    assert str(tmp_path / "Library" / "Caches" / "llama.cpp") in folders


@pytest.mark.parametrize("how", ["usual", "older", "pointer", "settings"])
def test_lm_studios_folder_is_owner_and_repository(tmp_path: Path, how: str) -> None:
    folder = tmp_path / ".lmstudio" / "models"
    if how == "older":
        folder = tmp_path / ".cache" / "lm-studio" / "models"
    elif how == "pointer":
        (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path}/moved\n")
        folder = tmp_path / "moved" / "models"
    elif how == "settings":
        folder = tmp_path / "elsewhere"
        text = f'{{"downloadsFolder": "{folder}"}}'
        put(tmp_path / ".lmstudio" / "settings.json", text.encode())
    put(folder / "owner" / "Small-GGUF" / "Small-Q6_K.gguf", model(file_type=18))
    found = only(scanner(tmp_path))
    assert (found.source, found.reference) == ("lm studio", f"{REPO}:Q6_K")


def test_ollamas_manifests_name_its_blobs(tmp_path: Path) -> None:
    models = tmp_path / ".ollama" / "models"
    eyes = model("Eyes")
    ollama_model(models, "gemma3:4b", eyes, projector=projector())
    ollama_model(models, "somebody/thing:q8", model("Thing"))
    ollama_model(models, f"{REPO}:Q4_K_M", model("Hub"), registry="hf.co")
    found = {each.title: each for each in listed(scanner(tmp_path)).models}
    assert found["Eyes"].name == found["Eyes"].reference == "gemma3:4b"
    assert "/blobs/sha256-" in found["Eyes"].projector
    assert found["Eyes"].size_bytes == len(eyes)
    assert found["Thing"].name == "somebody/thing:q8"
    assert found["Hub"].name == f"hf.co/{REPO}:Q4_K_M"
    assert found["Hub"].reference == f"{REPO}:Q4_K_M"
    assert {each.source for each in found.values()} == {"ollama"}


def test_two_tags_of_one_blob_are_one_model_with_both_names(tmp_path: Path) -> None:
    models = tmp_path / "elsewhere"
    for tag in ("4b", "latest"):
        ollama_model(models, f"gemma3:{tag}", model())
    found = only(scanner(tmp_path, OLLAMA_MODELS=str(models)))
    assert found.name == "gemma3:4b"
    assert "gemma3:latest" in found.also


def test_a_manifest_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    models = tmp_path / ".ollama" / "models"
    put(tmp_path / "secret.gguf", model())
    layer = '{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../x"}'
    manifest = models / "manifests" / "registry.ollama.ai" / "library" / "bad"
    put(manifest / "1", f'{{"layers": [{layer}]}}'.encode())
    put(manifest / "2", b"[" * 100_000)
    put(manifest / "3", b'{"layers": [3, {"digest": null}]}')
    assert listed(scanner(tmp_path)).models == ()


def test_exos_folder_and_ones_own_are_listed(tmp_path: Path) -> None:
    put(tmp_path / ".exo" / "models" / "owner--Small-GGUF" / "Small-Q4_0.gguf", model("Exo"))
    put(tmp_path / "models" / "deep" / "er" / "Own.gguf", model("Own"))
    put(tmp_path / "set" / "Set.GGUF", model("Set"))
    found = {each.title: each for each in listed(scanner(tmp_path, [tmp_path / "set"])).models}
    assert found["Exo"].reference == f"{REPO}:Q4_0"
    assert {title: each.source for title, each in found.items()} == {
        "Exo": "exo",
        "Own": "folder",
        "Set": "folder",
    }


def test_one_file_reached_by_several_ways_is_listed_once_with_the_best_name(tmp_path: Path) -> None:
    folder = hub_repo(cache_of(tmp_path), REPO, {"aaa": {"Small-Q4_K_M.gguf": model()}})
    blob = next((folder / "blobs").iterdir())
    own = tmp_path / "models"
    own.mkdir()
    (own / "link.gguf").symlink_to(blob)
    os.link(blob, own / "hard.gguf")
    found = only(scanner(tmp_path))
    assert found.reference == f"{REPO}:Q4_K_M"
    assert {str(own / "link.gguf"), str(own / "hard.gguf")} <= set(found.also)


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    real = tmp_path / "disk" / "inner"
    put(real / "a.gguf", model())
    own = tmp_path / "models"
    own.mkdir()
    (own / "more").symlink_to(tmp_path / "disk")
    (real / "back").symlink_to(own)
    (real / "self").symlink_to(real)
    made = scanner(tmp_path)
    assert only(made).path == str(own / "more" / "inner" / "a.gguf")
    inside = [folder for folder in made._scan.folders if folder.startswith(f"{own}/")]
    assert sorted(inside) == [str(own / "more"), str(own / "more" / "inner")]


def test_what_cannot_be_looked_at_is_skipped_and_counted(tmp_path: Path) -> None:
    own = tmp_path / "models"
    put(own / "good.gguf", model())
    (own / "circle").symlink_to(own / "circle")
    (own / "gone.gguf").symlink_to(tmp_path / "nothing")
    listing = listed(scanner(tmp_path))
    assert [Path(found.path).name for found in listing.models] == ["good.gguf"]
    assert len(listing.skipped) == 2
    assert any("circle" in skipped and "symbolic links" in skipped for skipped in listing.skipped)


@contextmanager
def nobody(folder: Path) -> Iterator[None]:
    """Root may read everything; so be somebody else, who may look into ``folder``."""
    if os.geteuid() != 0:
        yield
        return
    for each in (folder, *folder.parents):
        if each.stat().st_uid == 0 and each != Path("/"):
            each.chmod(each.stat().st_mode | 0o055)
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_unreadable_folders_and_files_are_skipped_and_counted(tmp_path: Path) -> None:
    own = tmp_path / "models"
    put(own / "good.gguf", model("Good"))
    put(own / "closed" / "hidden.gguf", model("Hidden"))
    put(own / "locked.gguf", model("Locked")).chmod(0)
    (own / "closed").chmod(0)
    with nobody(own):
        made = ModelScanner(lambda: own_places(tmp_path), scanner(tmp_path)._headers)
        listing = made.scan(threading.Event(), None)
        for group in listing.models:
            made.examined(group.path)
        locked = made.examined(str(own / "locked.gguf"))
    (own / "closed").chmod(0o755)
    assert [Path(found.path).name for found in listing.models] == ["good.gguf", "locked.gguf"]
    (skipped,) = listing.skipped
    assert skipped == f"{own / 'closed'}: Permission denied"
    assert "cannot be read: Permission denied; check its rights" in locked.problem


def test_partial_and_hidden_files_are_no_models(tmp_path: Path) -> None:
    own = tmp_path / "models"
    for name in ("a.gguf.part", "b.gguf.incomplete", ".c.gguf", ".hidden/d.gguf", "e.gguf.tmp"):
        put(own / name, model())
    put(cache_of(tmp_path) / "models--a--b" / "blobs" / "123.incomplete", model())
    assert listed(scanner(tmp_path)).models == ()


def test_names_that_are_no_text_are_told_and_harm_no_other(tmp_path: Path) -> None:
    own = tmp_path / "models"
    put(own / "good.gguf", model("A\x1b[2Jname\u202e"))
    for name in (b"caf\xe9.gguf", b"bad\x1b[2J.gguf", b"line\n.gguf"):
        Path(os.fsdecode(os.path.join(os.fsencode(own), name))).write_bytes(model())
    listing = listed(scanner(tmp_path))
    (found,) = listing.models
    assert (found.name, found.title) == ("good", "A?[2Jname?")
    assert f"{own}/caf?.gguf: its name is no text; rename it" in listing.skipped
    assert len(listing.skipped) == 3
    "".join(listing.skipped).encode()


def test_more_files_than_are_looked_at_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_walk, "MAX_FILES", 2)
    for name in "abcd":
        put(tmp_path / "models" / f"{name}.gguf", model(name))
    listing = listed(scanner(tmp_path))
    assert [found.name for found in listing.models] == ["a", "b"]
    assert listing.skipped == (f"{tmp_path}/models: models beyond the first 2",)


def test_a_folder_that_is_a_file_or_a_pipe_named_as_a_model_does_no_harm(tmp_path: Path) -> None:
    put(tmp_path / "models", b"a file")
    folder = tmp_path / "set"
    folder.mkdir()
    os.mkfifo(folder / "pipe.gguf")
    (folder / "folder.gguf").mkdir()
    assert listed(scanner(tmp_path, [folder])).models == ()
