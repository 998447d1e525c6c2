"""The library is quick, notices what changes, and finds a model by every kind of name."""

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from model_places_made import (
    REPO,
    hub_repo,
    llama_cpp_file,
    model,
    ollama_model,
    own_places,
    part_name,
    put,
    scanner,
    split,
)

from supervisor.adapters import header_store, model_scanner
from supervisor.adapters.header_store import HeaderStore
from supervisor.adapters.model_scanner import ModelScanner
from supervisor.adapters.model_walk import Stopped
from supervisor.adapters.models import read_model
from supervisor.core.entities import DeploymentSpec
from supervisor.core.library import LibraryModel, Listing
from supervisor.errors import ModelAmbiguous, ModelBroken, ModelMissing
from supervisor.service import library as library_module
from supervisor.service.events import EventBus
from supervisor.service.library import CHANGED, Library


@pytest.fixture
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file counts as settled as soon as it is written."""
    monkeypatch.setattr(header_store, "_SETTLED_NS", 0)


def listed(made: ModelScanner) -> tuple[LibraryModel, ...]:
    return made.scan(threading.Event(), lambda _: None).models


def library_of(home: Path) -> Library:
    made = scanner(home)
    listed(made)
    return Library(made, EventBus())


# -- reading once --------------------------------------------------------------------------------


@pytest.mark.usefixtures("_settled")
def test_a_header_is_read_once_per_version_of_its_file_and_remembered(tmp_path: Path) -> None:
    path = put(tmp_path / "models" / "a.gguf", model("One"))
    (first,) = listed(scanner(tmp_path))
    kept = json.loads((tmp_path / "library.json").read_text())
    assert len(kept["headers"]) == 1
    content = path.read_bytes()
    found = path.stat()
    # What a scan of another process shows now is what was remembered, since nothing of it changed.
    store = HeaderStore(tmp_path / "library.json")
    again = ModelScanner(lambda: own_places(tmp_path), store).scan(threading.Event(), None)
    assert (again.models, again.unread) == ((first,), 0)
    path.write_bytes(content.replace(b"One", b"Two"))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    (changed,) = listed(scanner(tmp_path))
    assert changed.title == "Two"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1, "headers": [[1]]}', "null"])
def test_a_damaged_memory_only_costs_time(tmp_path: Path, content: str) -> None:
    put(tmp_path / "models" / "a.gguf", model("One"))
    (tmp_path / "library.json").write_text(content)
    (found,) = listed(scanner(tmp_path))
    assert found.title == "One"


def test_a_first_scan_shows_names_at_once_and_headers_when_they_are_read(tmp_path: Path) -> None:
    put(tmp_path / "models" / "Some-Q8_0.gguf", model(file_type=7))
    told: list[tuple[int, LibraryModel]] = []
    made = scanner(tmp_path)
    made.scan(threading.Event(), lambda new: told.append((new.unread, new.models[0])))
    unread, first = told[0]
    assert (unread, first.is_read, first.parameters) == (1, False, None)
    assert (first.name, first.quantisation) == ("Some-Q8_0", "Q8_0")
    (last,) = listed(made)
    assert (last.is_read, last.parameters) == (True, 40)


def test_nobody_waits_for_headers_that_another_scan_reads(tmp_path: Path) -> None:
    path = put(tmp_path / "models" / "a.gguf", model())
    made = scanner(tmp_path)
    seen: list[list[str]] = []

    def tell(_: Listing) -> None:
        """In the middle of the first scan: here a waiting one would never come back."""
        if not seen:
            put(tmp_path / "models" / "b.gguf", model("B"))
            path.unlink()
            thread = threading.Thread(
                target=lambda: seen.append([m.name for m in listed_quickly(made)])
            )
            thread.start()
            thread.join(60)

    last = made.scan(threading.Event(), tell)
    assert seen == [["b"]]
    assert [found.name for found in last.models] == ["b"]  # and not what the first one saw


def listed_quickly(made: ModelScanner) -> tuple[LibraryModel, ...]:
    return made.scan(threading.Event()).models


def test_a_scan_can_be_stopped(tmp_path: Path) -> None:
    put(tmp_path / "models" / "a.gguf", model())
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        scanner(tmp_path).scan(stop, lambda _: None)


@pytest.mark.usefixtures("_settled")
def test_ten_thousand_files_are_listed_again_without_reading_any(tmp_path: Path) -> None:
    content = model()
    for number in range(100):
        folder = tmp_path / "models" / f"folder{number}"
        folder.mkdir(parents=True)
        for other in range(100):
            (folder / f"m{number}-{other}-Q4_K_M.gguf").write_bytes(content)
    made = scanner(tmp_path)
    assert len(listed(made)) == 10_000
    began_s = time.monotonic()
    again = made.scan(threading.Event(), None)
    assert time.monotonic() - began_s < 5  # 0.3 s on an idle machine
    assert (len(again.models), again.unread) == (10_000, 0)
    kept = ModelScanner(lambda: own_places(tmp_path), HeaderStore(tmp_path / "library.json"))
    assert kept.scan(threading.Event(), None).unread == 0


@pytest.mark.parametrize(
    ("name", "file_type", "shown"),
    [
        ("a-Q4_K_M.gguf", 15, "Q4_K_M"),
        ("a.gguf", 15, "Q4_K_M"),
        ("a-UD-Q4_K_XL.gguf", 15, "UD-Q4_K_XL"),
        ("a-Q8_0.gguf", 15, "Q4_K_M"),  # the header knows better
        ("a-IQ4_XS.gguf", 999, "Q8_0"),  # neither: what most of the weights have
        ("a.gguf", 999, "Q8_0"),
    ],
)
def test_the_quantisation_is_the_headers_or_the_names_where_that_says_more(
    tmp_path: Path, name: str, file_type: int, shown: str
) -> None:
    put(tmp_path / "models" / name, model(file_type=file_type))
    (found,) = listed(scanner(tmp_path))
    assert found.quantisation == shown


# -- changes -------------------------------------------------------------------------------------


def test_new_changed_and_deleted_files_make_a_scan_outdated(tmp_path: Path) -> None:
    path = put(tmp_path / "models" / "a.gguf", model())
    made = scanner(tmp_path)
    assert _outdated_after(made, lambda: put(tmp_path / "models" / "b.gguf", model("B")))
    assert _outdated_after(made, lambda: path.write_bytes(model("C", rows=9)))
    assert _outdated_after(made, path.unlink)
    ollama = tmp_path / ".ollama" / "models"
    assert _outdated_after(made, lambda: ollama_model(ollama, "a:b", model()))


def _outdated_after(made: ModelScanner, change: Any) -> bool:
    """A scan long after the last change is not outdated by itself, and then it is."""
    listed(made)
    made._scan.at_ns += 10_000_000_000
    assert not made.is_outdated()
    change()
    return made.is_outdated()


@contextlib.asynccontextmanager
async def running(library: Library) -> AsyncIterator[None]:
    task = asyncio.create_task(library.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_library_tells_of_changes_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "LOOK_EVERY_S", 0.1)
    put(tmp_path / "models" / "a.gguf", model("One"))
    bus = EventBus()
    library = Library(scanner(tmp_path), bus)
    async with asyncio.timeout(60):
        with bus.subscribe() as changes:
            async with running(library):
                counts = await _until(changes, lambda body: body["unread"] == 0)
                assert (counts["models"], counts["problems"]) == (1, 0)
                put(tmp_path / "models" / "b.gguf", b"<html>")
                counts = await _until(changes, lambda body: body["problems"] == 1)
                assert counts["models"] == 2
                (tmp_path / "models" / "a.gguf").unlink()
                counts = await _until(changes, lambda body: body["models"] == 1)
                assert counts["removed"] == 1
        assert [found.name for found in (await library.models()).models] == ["b"]


async def _until(changes: Any, is_it: Any) -> dict[str, Any]:
    async for change in changes:
        if change.name == CHANGED and is_it(change.body):
            body: dict[str, Any] = change.body
            return body
    raise AssertionError("the stream ended")


async def test_who_asks_for_fresh_models_gets_them(tmp_path: Path) -> None:
    library = library_of(tmp_path)
    assert (await library.models()).models == ()
    put(tmp_path / "models" / "a.gguf", model())
    assert (await library.models()).models == ()
    assert len((await library.models(max_age_s=0)).models) == 1


async def test_few_new_headers_are_read_at_once_and_many_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "LOOK_EVERY_S", 3600.0)
    library = library_of(tmp_path)
    async with asyncio.timeout(60), running(library):
        put(tmp_path / "models" / "a.gguf", model())
        (found,) = (await library.models(max_age_s=0)).models
        assert (found.is_read, found.parameters) == (True, 40)
        for number in range(model_scanner.FEW + 2):
            put(tmp_path / "models" / f"m{number}.gguf", model())
        assert (await library.models(max_age_s=0)).unread == model_scanner.FEW + 2
        while (await library.models()).unread:
            await asyncio.sleep(0.01)


async def test_a_memory_that_cannot_be_written_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(header_store, "_SETTLED_NS", 0)
    (tmp_path / "library.json").mkdir()
    put(tmp_path / "models" / "a.gguf", model())
    library = Library(scanner(tmp_path), EventBus())
    async with asyncio.timeout(60), running(library):
        while not (await library.models()).models or (await library.models()).unread:
            await asyncio.sleep(0.01)
        while "models.headers_not_kept" not in caplog.text:
            await asyncio.sleep(0.01)
        assert len((await library.models(max_age_s=0)).models) == 1


# -- names ---------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """One model in each place, each with another name."""
    cache = tmp_path / ".cache"
    files = {f"Small-{q}.gguf": model("Small", file_type=t, rows=t) for q, t in QUANTS.items()}
    hub_repo(cache / "huggingface" / "hub", REPO, {"aaa": files})
    llama_cpp_file(cache / "llama.cpp", "owner/Cached-GGUF", "Cached-Q8_0.gguf", model("Cached"))
    lm = tmp_path / ".lmstudio" / "models" / "owner" / "Studio-GGUF"
    put(lm / "Studio-Q6_K.gguf", model("Studio", file_type=18))
    ollama_model(tmp_path / ".ollama" / "models", "gemma3:latest", model("Gemma the Third"))
    ollama_model(tmp_path / ".ollama" / "models", "me/mine:q4", model("Mine"))
    for number in (1, 2):
        put(tmp_path / "models" / part_name("Big-Q4_0", number, 2), split(2, number))
    put(tmp_path / "models" / "own.gguf", model("A Name of its Own"))
    return tmp_path


QUANTS = {"Q2_K": 10, "Q4_K_M": 15, "Q8_0": 7}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (f"{REPO}:Q8_0", "Small-Q8_0.gguf"),
        (f"{REPO}:q2_k", "Small-Q2_K.gguf"),
        (f"{REPO}/Small-Q2_K.gguf", "Small-Q2_K.gguf"),
        (REPO, "Small-Q4_K_M.gguf"),  # as on the hub
        ("small-gguf", "Small-Q4_K_M.gguf"),
        ("Small-Q8_0", "Small-Q8_0.gguf"),
        ("owner/Cached-GGUF:Q8_0", "owner_Cached-GGUF_Cached-Q8_0.gguf"),
        ("owner_Cached-GGUF_Cached-Q8_0", "owner_Cached-GGUF_Cached-Q8_0.gguf"),
        ("owner/Studio-GGUF:Q6_K", "Studio-Q6_K.gguf"),
        ("studio", "Studio-Q6_K.gguf"),
        ("Big-Q4_0", "Big-Q4_0-00001-of-00002.gguf"),
        ("Big-Q4_0-00002-of-00002", "Big-Q4_0-00001-of-00002.gguf"),
        ("own", "own.gguf"),
        ("OWN.gguf", "own.gguf"),
        ("a name of its own", "own.gguf"),
    ],
)
def test_a_model_is_found_by_every_kind_of_name(home: Path, name: str, file: str) -> None:
    assert Path(library_of(home).find(name).path).name == file


@pytest.mark.parametrize("name", ["gemma3", "gemma3:latest", "Gemma3", "gemma the third"])
def test_a_model_of_ollama_is_found_by_its_names(home: Path, name: str) -> None:
    assert library_of(home).find(name).name == "gemma3:latest"


def test_a_model_is_found_by_any_path_of_it(home: Path, tmp_path: Path) -> None:
    library = library_of(home)
    first = home / "models" / part_name("Big-Q4_0", 1, 2)
    second = home / "models" / part_name("Big-Q4_0", 2, 2)
    assert library.find(str(second)).path == str(first)
    link = tmp_path / "link.gguf"
    link.symlink_to(home / "models" / "own.gguf")
    assert library.find(str(link)).path == str(home / "models" / "own.gguf")
    elsewhere = put(tmp_path / "elsewhere" / "x.gguf", model("Elsewhere"))
    assert library.find(str(elsewhere)).title == "Elsewhere"


def test_an_ambiguous_name_lists_the_choices(home: Path) -> None:
    put(home / "models" / "a" / "same.gguf", model("One"))
    put(home / "models" / "b" / "same.gguf", model("Two", file_type=7))
    with pytest.raises(ModelAmbiguous, match="same may be any of 2 models") as caught:
        library_of(home).find("same")
    assert "a/same.gguf (Q4_K_M" in str(caught.value)
    assert "b/same.gguf (Q8_0" in str(caught.value)


def test_two_own_files_of_one_name_are_never_taken_for_copies(home: Path) -> None:
    for folder in "ab":
        put(home / "models" / folder / "same.gguf", model("One"))
    with pytest.raises(ModelAmbiguous):
        library_of(home).find("same")


def test_copies_that_two_tools_keep_are_one_choice(home: Path) -> None:
    lm = home / ".lmstudio" / "models" / "owner" / "Small-GGUF"
    put(lm / "Small-Q8_0.gguf", model("Small", file_type=7, rows=7))
    assert library_of(home).find(f"{REPO}:Q8_0").source == "hub"


def test_a_whole_copy_is_preferred_to_a_broken_one(home: Path) -> None:
    lm = home / ".lmstudio" / "models" / "owner" / "Small-GGUF"
    whole = model("Small", file_type=7, rows=7)
    put(lm / "Small-Q8_0.gguf", whole)
    link = next((home / ".cache").rglob("Small-Q8_0.gguf"))
    link.resolve().write_bytes(whole[:-9])
    assert library_of(home).find(f"{REPO}:Q8_0").source == "lm studio"


def test_a_name_that_nothing_has_says_what_comes_near(home: Path) -> None:
    with pytest.raises(ModelMissing, match=r"gemma is not on this host; did you mean gemma3"):
        library_of(home).find("gemma")
    with pytest.raises(ModelMissing, match="'supervisor models' lists those that are"):
        library_of(home).find("zzzzzzzz")


def test_a_name_is_looked_for_again_once_a_model_came(home: Path) -> None:
    library = library_of(home)
    with pytest.raises(ModelMissing):
        library.find("brand-new")
    put(home / "models" / "brand-new.gguf", model())
    library._scanned_at_s -= 10
    assert library.find("brand-new").name == "brand-new"


# -- launching by name ---------------------------------------------------------------------------


def test_a_spec_with_a_name_becomes_one_with_a_path_that_answers_to_the_name(home: Path) -> None:
    library = library_of(home)
    spec = library.named(DeploymentSpec(model="gemma3"))
    assert "/blobs/sha256-" in spec.model
    assert spec.name == "gemma3-latest"
    assert spec.aliases == ("gemma3",)
    kept = DeploymentSpec(model="own", name="chosen", aliases=("a",))
    assert library.named(kept).name == "chosen"
    assert library.named(kept).aliases == ("a", "own")


@pytest.mark.parametrize(
    "text", [REPO, f"{REPO}:Q8_0", "nothing-such", "/no/such.gguf", "~/x.gguf"]
)
def test_references_and_what_is_not_here_stay_as_they_are(home: Path, text: str) -> None:
    library = library_of(home)
    spec = DeploymentSpec(model=text)
    assert library.named(spec) == spec
    assert library.path_of(text) == text


def test_a_reference_of_what_another_tool_keeps_is_read_from_there(home: Path) -> None:
    path = library_of(home).path_of("owner/Studio-GGUF:Q6_K")
    assert path.endswith(".lmstudio/models/owner/Studio-GGUF/Studio-Q6_K.gguf")


def test_reading_for_a_launch_takes_names_and_refuses_what_is_broken(home: Path) -> None:
    library = library_of(home)
    read = library.reading(read_model)
    assert read("own").facts.path == str(home / "models" / "own.gguf")
    broken = put(home / "models" / "broken.gguf", b"<html>an error</html>")
    with pytest.raises(ModelBroken, match="is a web page"):
        read(str(broken))
    with pytest.raises(ModelMissing, match="does not exist"):
        read(str(home / "models" / "gone.gguf"))
