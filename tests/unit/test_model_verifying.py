"""Checking files reads what is there, asks as little as it can, and ends when nobody waits."""

import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from model_places_made import REPO, hub_repo, model, ollama_model, part_name, put, scanner, split

from supervisor.adapters.model_checks import ModelChecks
from supervisor.adapters.model_scanner import ModelScanner
from supervisor.adapters.model_walk import Stopped
from supervisor.core.library_views import VerifiedModel, VerifyProgress
from supervisor.errors import HubUnreachable


def silent(_: str) -> Mapping[str, str]:
    return {}


def verified(made: ModelScanner, checks: ModelChecks | None = None) -> dict[str, VerifiedModel]:
    models = list(made.scan(threading.Event(), lambda _: None).models)
    found = (checks or ModelChecks(silent)).verify(models, lambda _: None, threading.Event())
    return {each.name: each for each in found}


def lm_studio(home: Path, *repos: str) -> None:
    for at, repo in enumerate(repos):
        for label in ("Q6_K", "Q8_0"):
            path = home / ".lmstudio" / "models" / repo / f"Small-{label}.gguf"
            put(path, model(f"{label}{at}"))


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path) -> None:
    lm_studio(tmp_path, "owner/One", "owner/Two")
    asked: list[str] = []

    def etags(repo: str) -> Mapping[str, str]:
        asked.append(repo)
        raise HubUnreachable("it is silent")

    found = verified(scanner(tmp_path), ModelChecks(etags))
    assert len(asked) == 1
    assert {each.verdict for each in found.values()} == {"unproven"}


def test_a_repository_is_asked_for_once_and_not_when_nobody_waits(tmp_path: Path) -> None:
    lm_studio(tmp_path, "owner/One", "owner/Two")
    asked: list[str] = []
    stop = threading.Event()

    def etags(repo: str) -> Mapping[str, str]:
        asked.append(repo)
        return {"Small-Q6_K.gguf": hashlib.sha256(model("Q6_K0")).hexdigest()}

    verified(scanner(tmp_path), ModelChecks(etags))
    assert sorted(asked) == ["owner/One", "owner/Two"]

    def last(repo: str) -> Mapping[str, str]:
        stop.set()
        return etags(repo)

    asked.clear()
    models = list(scanner(tmp_path).scan(threading.Event(), lambda _: None).models)
    with pytest.raises(Stopped):
        ModelChecks(last).verify(models, lambda _: None, stop)
    assert len(asked) == 1


@pytest.mark.parametrize("how", ["longer", "replaced", "overwritten"])
def test_a_file_that_changes_while_it_is_read_is_not_called_wrong(tmp_path: Path, how: str) -> None:
    path = ollama_model(tmp_path / ".ollama" / "models", "gemma3:4b", model())
    os.truncate(path, 100 << 20)  # sparse, and long enough to be told of in the middle
    models = list(scanner(tmp_path).scan(threading.Event(), lambda _: None).models)

    def change(progress: VerifyProgress) -> None:
        if not progress.done_bytes:
            return
        if how == "replaced":
            put(path.with_name("new"), model("New")).replace(path)
            return
        with path.open("ab" if how == "longer" else "r+b") as file:
            file.write(b"else")
        os.utime(path, (1, 1))

    (found,) = ModelChecks(silent).verify(models, change, threading.Event())
    assert (found.verdict, len(found.files)) == ("unproven", 1)
    assert "changed while it was read" in found.files[0].detail


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    path = ollama_model(tmp_path / ".ollama" / "models", "gemma3:4b", model())
    models = list(scanner(tmp_path).scan(threading.Event(), lambda _: None).models)
    path.unlink()
    os.mkfifo(path)
    (found,) = ModelChecks(silent).verify(models, lambda _: None, threading.Event())
    assert found.verdict != "good"


def test_a_blob_that_links_into_the_shared_store_is_checked_by_its_own_name(tmp_path: Path) -> None:
    """As huggingface_hub 2.4 lays out what comes by xet; names in the store are other hashes."""
    cache = tmp_path / ".cache" / "huggingface" / "hub"
    folder = hub_repo(cache, REPO, {"a" * 40: {"Small-Q8_0.gguf": model()}})
    (blob,) = (folder / "blobs").iterdir()
    store = put(cache / "blobs" / "ab" / ("ab" * 32), model())
    blob.unlink()
    blob.symlink_to(os.path.relpath(store, blob.parent))
    assert verified(scanner(tmp_path))["Small-Q8_0"].verdict == "good"
    store.write_bytes(model()[:-1] + b"\1")
    assert verified(scanner(tmp_path))["Small-Q8_0"].verdict == "wrong"


def test_what_only_the_engine_does_not_know_is_not_wrong(tmp_path: Path) -> None:
    put(tmp_path / "models" / "newest.gguf", model(architecture="from-the-future-9"))
    put(tmp_path / "models" / part_name("half", 1, 2), split(2, 1))
    made = scanner(tmp_path)
    made._knows = lambda architecture: architecture == "llama"
    found = verified(made)
    assert found["newest"].verdict == "unproven"
    assert found["half"].verdict == "wrong"
    assert "missing" in found["half"].files[-1].detail
