"""Models on the hub: their names, their headers, and what is kept of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import (
    LARGE_FILE,
    QUICK,
    REPO,
    SMALL,
    SPLIT,
    files,
    hub_stand_in,
    nobodys_account,
    part_name,
    small,
    split_part,
)
from made_gguf import LLAMA, STRING, array, gguf, u16

from agents.errors import FolderNotWritable
from supervisor.adapters import hub as hub_module
from supervisor.adapters.gguf import read_header
from supervisor.adapters.hub import is_reference, read_remote, resolve
from supervisor.adapters.hub_http import Hub
from supervisor.adapters.models import read_any_model, read_model, read_remote_model
from supervisor.adapters.sparse_model import sparse_model
from supervisor.errors import HubOffline, ModelAmbiguous, ModelBroken, ModelMissing

__all__ = ["files", "nobodys_account"]

pytestmark = pytest.mark.timeout(90)

MB = 1_000_000
MIB = 1 << 20


# Names


def test_a_reference_is_told_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text_ in ("owner/repo", "owner/repo:Q4_K_M", "owner/repo/file.gguf"):
        assert is_reference(text_)
    for text_ in ("model.gguf", "models/x.gguf", "/a/b", "./a/b", "~/a", "a/b/c", "", "a/b\0"):
        assert not is_reference(text_)
    (tmp_path / "owner" / "repo").mkdir(parents=True)
    assert not is_reference("owner/repo")
    assert not is_reference("owner/repo/file.gguf")
    assert is_reference("owner/repo:Q4_K_M")


def test_the_parts_of_a_model_are_listed_in_order(files: Path) -> None:
    with hub_stand_in(files) as made:
        parts = resolve(SPLIT, made.hub())
        only = resolve(f"{REPO}:q4_k_m", made.hub())
        by_file = resolve(f"{REPO}/{LARGE_FILE}", made.hub())
    assert [part.path for part in parts] == [part_name(number) for number in (1, 2, 3)]
    assert [part.size_bytes for part in parts] == [len(split_part(n)) for n in (1, 2, 3)]
    assert only == by_file
    assert only[0].name == f"{REPO}/{LARGE_FILE}"
    assert only[0].size_bytes == (files / REPO / LARGE_FILE).stat().st_size > 39_000 * MB
    assert len(made.requests) == 3


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("owner/None", ModelMissing, "/owner/None does not exist, or is private"),
        ("owner/Empty", ModelMissing, "owner/Empty has no GGUF model"),
        (f"{SMALL}:Q5_K_M", ModelMissing, "has no Q5_K_M; it has Q2_K"),
        (f"{SMALL}:Small", ModelAmbiguous, "may be any of 3 models"),
        ("not a name", ModelMissing, "'not a name' is no name of a model on the hub"),
    ],
)
def test_a_name_that_fits_nothing_is_answered_with_what_does(
    files: Path, reference: str, error: type[Exception], says: str
) -> None:
    with hub_stand_in(files) as made, pytest.raises(error) as caught:
        resolve(reference, made.hub())
    assert says in str(caught.value)


def test_a_renamed_repository_is_followed(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files, "--renamed", f"owner/Old={SMALL}") as made:
        model = read_remote("owner/Old", tmp_path, made.hub())
    assert model.header.path == Path(f"{SMALL}/Small-Q4_0.gguf")
    assert not [r for r in made.of("hub") if "/owner/Old/resolve" in str(r["path"])]


# Headers


def test_the_header_of_40_gigabytes_costs_some_megabytes(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files) as made:
        remote = read_remote_model(REPO, tmp_path, made.hub())
        local = read_model(str(files / REPO / LARGE_FILE))
    assert remote.shape == local.shape
    assert remote.facts == local.facts.model_copy(update={"path": REPO})
    assert made.stored_bytes == 12 * MIB
    assert [r["range"] for r in made.of("store")] == ["bytes=0-4194303", "bytes=4194304-12582911"]
    assert remote.file.stat().st_size == (files / REPO / LARGE_FILE).stat().st_size
    assert remote.file.stat().st_blocks * 512 < 8 * MB


def test_the_stand_in_is_the_header_and_can_be_written_again(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files) as made:
        model = read_remote(REPO, tmp_path / "kept", made.hub())
    (tmp_path / "again").mkdir()
    again = read_header(sparse_model(model.starts(), tmp_path / "again"))
    here = read_header(files / REPO / LARGE_FILE)
    assert (again.metadata, again.tensors) == (here.metadata, here.tensors)
    assert (model.header.metadata, model.header.tensors) == (here.metadata, here.tensors)
    assert model.header.path == Path(f"{REPO}/{LARGE_FILE}")
    assert model.header.name == here.name


def test_a_second_plan_asks_for_the_listing_alone(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files) as made:
        first = read_remote(REPO, tmp_path, made.hub())
    with hub_stand_in(files) as other:
        again = Hub(QUICK, other.endpoint)
        assert read_remote(REPO, tmp_path, again).stand_in != first.stand_in  # another hub
        assert read_remote(REPO, tmp_path, again).header == first.header
        read_remote(f"{REPO}:Q4_K_M", tmp_path, again)
    assert len(made.of("hub")) == 3  # listing, and one redirect per range
    assert len(other.of("store")) == 2
    assert len(other.of("hub")) == 5
    assert "Signature: 8a477f597d28d172789f06886806bc55" in (tmp_path / "CACHEDIR.TAG").read_text()


def test_a_new_version_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(small())
    with hub_stand_in(tmp_path) as made:
        old = read_remote("a/b", tmp_path / "kept", made.hub())
        path.write_bytes(small(data_bytes=98))
        new = read_remote("a/b", tmp_path / "kept", made.hub())
    assert (old.header.size_bytes, new.header.size_bytes) == (len(small()), len(small(98)))


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_a_damaged_copy_is_read_again(files: Path, tmp_path: Path, damage: str) -> None:
    with hub_stand_in(files) as made:
        first = read_remote(SMALL, tmp_path, made.hub())
        if damage == "cut":
            os.truncate(first.stand_in, 40)
        elif damage == "other":
            first.stand_in.write_bytes(b"x" * first.header.size_bytes)
        else:
            first.stand_in.unlink()
        again = read_remote(SMALL, tmp_path, made.hub())
    assert again == first
    assert read_header(again.stand_in).tensors == first.header.tensors
    assert len(made.of("store")) == 2


def test_only_so_many_headers_are_kept(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "KEPT_MODELS", 2)
    with hub_stand_in(files) as made:
        kept = [
            read_remote(f"{SMALL}:{quant}", tmp_path, made.hub())
            for quant in ("Q2_K", "Q4_0", "Q8_0")
        ]
    assert [model.stand_in.is_file() for model in kept] == [False, True, True]


def test_a_folder_that_cannot_be_written_is_named(files: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with hub_stand_in(files) as made, pytest.raises(FolderNotWritable, match="cannot be kept in"):
        read_remote(SMALL, tmp_path / "file", made.hub())


def test_a_split_model_is_read_as_one(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files) as made:
        model = read_remote(SPLIT, tmp_path, made.hub())
        assert model.header.parts[2] == Path(f"{SPLIT}/{part_name(3)}")
        local = read_header(files / SPLIT / part_name(1))
    assert model.header.tensors == local.tensors
    assert model.header.size_bytes == local.size_bytes
    assert [start.name for start in model.starts()] == [part_name(n) for n in (1, 2, 3)]
    assert read_header(model.stand_in).tensors == local.tensors


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html>" * 9, "is not a GGUF file"),
        (b"", "is empty"),
        (gguf([LLAMA[0]]), "has no llama.block_count"),
        (gguf([*LLAMA, u16("split.count", 3), u16("split.no", 0)]), "not named so"),
        (gguf([array("k", STRING, 1, b"\0\0\0\0\4\0\0\0")]), "is truncated"),
    ],
)
def test_what_is_no_model_is_refused_by_its_name(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x-Q4_K_M.gguf").write_bytes(content)
    with hub_stand_in(tmp_path) as made, pytest.raises(ModelBroken) as caught:
        read_remote("a/b", tmp_path / "kept", made.hub())
    assert str(caught.value).startswith("a/b/x-Q4_K_M.gguf ")
    assert says in str(caught.value)
    assert not (tmp_path / "kept").exists()


def test_parts_that_contradict_their_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for number in (1, 2, 3):
        (tmp_path / "a" / "b" / part_name(number)).write_bytes(small())
    with (
        hub_stand_in(tmp_path) as made,
        pytest.raises(ModelBroken, match="says that it has 1 parts"),
    ):
        read_remote("a/b", tmp_path, made.hub())


def test_a_header_that_never_ends_is_given_up(tmp_path: Path) -> None:
    """Its texts would need 16 GB; nothing of them is fetched."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = tmp_path / "a" / "b" / "x.gguf"
    path.write_bytes(gguf([array("k", STRING, 1, (1 << 34).to_bytes(8, "little"))]))
    os.truncate(path, 1 << 36)
    with (
        hub_stand_in(tmp_path) as made,
        pytest.raises(ModelBroken, match="bytes of header, at most"),
    ):
        read_remote("a/b", tmp_path, made.hub())
    assert made.stored_bytes <= 4 << 20


# The environment


def plan_elsewhere(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Read a model in a process of its own, since huggingface_hub reads its variables once."""
    code = (
        "import json, pathlib, sys\n"
        "from agents.errors import ProjectError\n"
        "from supervisor.adapters.models import read_any_model\n"
        "try: found = read_any_model(sys.argv[1], pathlib.Path(sys.argv[2])).facts.model_dump()\n"
        "except ProjectError as exc: found = {'code': exc.code, 'message': str(exc)}\n"
        "print(json.dumps(found))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, SMALL, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HOME": str(folder), **environment},
    )


def test_the_endpoint_and_token_of_the_environment_are_used(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files, "--token", "hf_mine") as made:
        ended = plan_elsewhere(tmp_path, HF_ENDPOINT=made.endpoint + "/", HF_TOKEN="hf_mine")
    assert json.loads(ended.stdout)["name"] == "Small"
    assert json.loads(ended.stdout)["path"] == SMALL
    assert made.of("store")


def test_offline_mode_is_obeyed(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files) as made:
        ended = plan_elsewhere(tmp_path, HF_ENDPOINT=made.endpoint, HF_HUB_OFFLINE="1")
    found = json.loads(ended.stdout)
    assert found["code"] == HubOffline.code
    assert found["message"].startswith(f"HF_HUB_OFFLINE is set, so {SMALL} cannot be looked up")
    assert made.requests == []


def test_a_file_is_read_without_asking_anybody(files: Path, tmp_path: Path) -> None:
    path = files / SMALL / "Small-Q8_0.gguf"
    assert read_any_model(str(path), tmp_path) == read_model(str(path))
    with pytest.raises(ModelMissing, match="does not exist"):
        read_any_model("models/absent.gguf", tmp_path)
