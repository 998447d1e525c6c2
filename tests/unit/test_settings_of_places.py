"""Settings of models as each tool keeps them: one set per model, by whatever name it is given."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from model_places_made import REPO, hub_repo, model, ollama_model, put, scanner, settled

from supervisor.adapters.store import Store
from supervisor.service.events import EventBus
from supervisor.service.library import Library
from supervisor.service.model_settings import ModelSettingsBook
from supervisor.service.tools import MainHost, Tools

FILE = "small-Q4_K_M.gguf"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "supervisor.db")
    yield store
    store.close()


def book(home: Path, store: Store) -> ModelSettingsBook:
    settled(home)
    library = Library(scanner(home), EventBus())
    asyncio.run(library.models())
    tools = SimpleNamespace(
        store=store,
        main_host=MainHost("h", "", "linux", 1, None, frozenset(), {}, home),
        names_of=library.names_of,
        projector_of=None,
        read_option_files=None,
    )
    return ModelSettingsBook(cast("Tools", tools))


@pytest.mark.parametrize(
    ("name", "registry", "key"),
    [
        ("llama3:latest", "registry.ollama.ai", "llama3:latest"),
        ("me/own:8b", "registry.ollama.ai", "me/own:8b"),
        ("owner/repo:Q4_K_M", "hf.co", "owner/repo:Q4_K_M"),
    ],
)
def test_models_of_ollama_have_settings(
    tmp_path: Path, store: Store, name: str, registry: str, key: str
) -> None:
    home = tmp_path / "home"
    blob = ollama_model(home / ".ollama" / "models", name, model(), registry=registry)
    kept = book(home, store)
    assert kept.put(str(blob), {"slots": 2}).model == key
    assert kept.put(name.removesuffix(":latest"), {"slots": 3}).model == key
    assert kept.get(str(blob)).values == {"slots": 3}
    assert [each.model for each in store.model_settings()] == [key]


def test_what_was_kept_before_a_file_was_pulled_counts_for_it(tmp_path: Path, store: Store) -> None:
    home = tmp_path / "home"
    home.mkdir()
    named = f"{REPO}/{FILE}"
    assert book(home, store).put(named, {"slots": 2}).model == named
    cache = home / ".cache" / "huggingface" / "hub"
    folder = hub_repo(cache, REPO, {"r1": {FILE: model()}}, main="r1")
    kept, path = book(home, store), str(folder / "snapshots" / "r1" / FILE)
    assert kept.get(path).values == {"slots": 2}
    assert kept.put(path, {"slots": 3}).model == f"{REPO}:Q4_K_M"
    assert [each.values for each in kept.all()] == [{"slots": 3}]


def test_all_copies_of_one_reference_have_the_same(tmp_path: Path, store: Store) -> None:
    home = tmp_path / "home"
    hub_repo(home / ".cache" / "huggingface" / "hub", REPO, {"r1": {FILE: model()}}, main="r1")
    copy = put(home / ".lmstudio" / "models" / REPO / FILE, model(rows=4))
    kept = book(home, store)
    kept.put(f"{REPO}:q4_k_m", {"slots": 2})
    assert kept.get(str(copy)).values == {"slots": 2}
    kept.forget(str(copy))
    assert kept.all() == []
