"""What is kept for a model: checked, merged under what the caller says, and told."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from supervisor.adapters.store import Store
from supervisor.core.entities import DeploymentSpec
from supervisor.core.model_settings import ModelSettings, checked, merged, remarks
from supervisor.errors import BadRequest, EngineOptionRefused, ModelMissing
from supervisor.service.model_settings import ModelSettingsBook, key_of
from supervisor.service.tools import MainHost, Tools

MODEL = "/m.gguf"


def kept(**values: Any) -> ModelSettings:
    return checked(MODEL, values)


def asked(**fields: Any) -> DeploymentSpec:
    return DeploymentSpec(model=MODEL, **fields)


def test_values_are_kept_as_json_and_only_those_given() -> None:
    settings = kept(ctx_tokens=8192, aliases=["a"], lora=[{"path": "/l"}], kv_type=None)
    assert settings.values == {
        "ctx_tokens": 8192, "aliases": ["a"], "lora": [{"path": "/l", "scale": 1.0}],
    }  # fmt: skip
    assert ModelSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"ctx_tokens": 1}, "ctx_tokens cannot be kept"),
        ({"contxt": 4096}, "contxt cannot be kept"),
        ({"\ud800é": 1}, "cannot be kept for a model"),
        ({"sampling": {"top_p": 2}}, "sampling.top_p cannot"),
        ({"name": "x"}, "name belongs to one deployment"),
        ({"model": "/y"}, "model belongs to one deployment"),
    ],
)
def test_what_no_spec_can_have_is_not_kept(values: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        kept(**values)


def test_kept_values_fill_what_the_caller_left_out() -> None:
    spec = merged(asked(slots=2), kept(ctx_tokens=8192, slots=4, kv_type="q8_0"))
    assert (spec.ctx_tokens, spec.slots, spec.kv_type) == (8192, 2, "q8_0")


def test_the_callers_default_value_wins_when_it_was_given() -> None:
    assert merged(asked(ctx_tokens=4096), kept(ctx_tokens=8192)).ctx_tokens == 4096
    assert merged(asked(mmproj=""), kept(mmproj="/p.gguf")).mmproj == ""


def test_null_and_empty_lists_are_not_given() -> None:
    spec = asked(kv_type=None, aliases=(), engine_options=[])
    spec = merged(spec, kept(kv_type="q8_0", aliases=["a"], engine_options=["--jinja"]))
    assert (spec.kv_type, spec.aliases, spec.engine_options) == ("q8_0", ("a",), ("--jinja",))


def test_of_a_group_only_what_was_said_is_kept() -> None:
    settings = kept(sampling={"top_k": 5, "seed": None}, rope={"scale": 2})
    assert settings.values == {"sampling": {"top_k": 5}, "rope": {"scale": 2.0}}
    assert len(remarks(merged(asked(), settings), settings)) == 2


def test_what_another_version_kept_is_named() -> None:
    settings = ModelSettings(model=MODEL, values={"flash": True})
    with pytest.raises(BadRequest, match=r"flash is kept for .* --unset"):
        merged(asked(), settings)


def test_what_contradicts_the_caller_is_not_taken() -> None:
    settings = kept(chat_template="gemma", devices=["a", "b"], split=[3, 4], pin_output="b")
    spec = merged(asked(chat_template_file="/t.jinja", devices=("c",)), settings)
    assert (spec.chat_template, spec.devices, spec.split, spec.pin_output) == (
        None, ("c",), (), None,
    )  # fmt: skip
    spec = merged(asked(split=(4, 3)), settings)
    assert (spec.chat_template, spec.devices, spec.split) == ("gemma", ("a", "b"), (4, 3))
    settings = kept(chat_template_file="/t.jinja", order=["a", "b"], split=[3, 4])
    spec = merged(asked(chat_template="gemma", order=("b", "a")), settings)
    assert (spec.chat_template_file, spec.order, spec.split) == (None, ("b", "a"), ())


def test_a_merged_spec_has_all_its_values_and_is_merged_no_more() -> None:
    spec = merged(asked(name="x"), kept(ctx_tokens=8192))
    stored = DeploymentSpec.model_validate_json(spec.model_dump_json())
    assert stored == spec
    assert merged(stored, kept(ctx_tokens=512)).ctx_tokens == 8192


def test_only_values_that_are_followed_are_told() -> None:
    settings = kept(
        ctx_tokens=16384, kv_type="q8_0", sampling={"top_k": 5}, on_demand=True, aliases=["a", "b"]
    )
    spec = merged(asked(kv_type="f16"), settings)
    assert remarks(spec, settings) == (
        "Context 16,384: your setting for this model.",
        "Sampling top_k 5: your setting for this model.",
        "On demand on: your setting for this model.",
        "Aliases a, b: your setting for this model.",
    )


def test_long_values_are_told_in_short() -> None:
    settings = kept(engine_options=[f"--grammar={'x' * 500}"])
    (told,) = remarks(merged(asked(), settings), settings)
    assert len(told) < 150


def test_a_file_has_one_key_however_it_is_named(tmp_path: Path) -> None:
    file, link = tmp_path / "m.gguf", tmp_path / "link.gguf"
    file.touch()
    link.symlink_to(file)
    assert key_of(str(link)) == key_of(f"{tmp_path}/./m.gguf") == key_of(str(file))
    assert key_of(" Owner/Repo:Q4_K_M ") == "Owner/Repo:Q4_K_M"
    assert key_of("~nobody-at-all/x") == "~nobody-at-all/x"


def test_the_store_keeps_replaces_and_forgets(tmp_path: Path) -> None:
    store = Store(tmp_path / "supervisor.db")
    try:
        store.save_model_settings(kept(ctx_tokens=512))
        store.save_model_settings(kept(ctx_tokens=8192))
        store.save_model_settings(checked("/a.gguf", {"slots": 2}))
        assert [s.model for s in store.model_settings()] == ["/a.gguf", MODEL]
        assert store.model_settings()[1].values == {"ctx_tokens": 8192}
        store.delete_model_settings("/a.gguf")
        store.delete_model_settings("/never")
        assert [s.model for s in store.model_settings()] == [MODEL]
    finally:
        store.close()


# -- by any name -----------------------------------------------------------------------------------


def book(tmp_path: Path, names: Mapping[str, tuple[str, ...]]) -> tuple[ModelSettingsBook, Store]:
    """Settings in a store of their own, and a library that knows these names."""
    store = Store(tmp_path / "supervisor.db")
    host = MainHost("h", "", "linux", 1, None, frozenset(), {}, tmp_path)
    tools = SimpleNamespace(
        store=store,
        main_host=host,
        names_of=lambda text: names.get(text, ()),
        projector_of=None,
        read_option_files=None,
    )
    return ModelSettingsBook(cast("Tools", tools)), store


REFERENCE = "Owner/Repo:Q4_K_M"


def test_a_model_has_one_set_of_settings_under_all_its_names(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    known = (str(file), REFERENCE)
    names = {str(file): known, "m": known, REFERENCE: known}
    kept, store = book(tmp_path, names)
    try:
        assert kept.put("m", {"ctx_tokens": 8192}).model == REFERENCE
        for name in (str(file), "m", REFERENCE):
            assert kept.get(name).values == {"ctx_tokens": 8192}
            assert kept.merged(DeploymentSpec(model=name)).ctx_tokens == 8192
        kept.put(REFERENCE, {"slots": 2})
        assert [s.values for s in kept.all()] == [{"slots": 2}]
        assert kept.remarks(kept.merged(DeploymentSpec(model="m"))) == (
            "Slots 2: your setting for this model.",
        )
        kept.forget("m")
        assert kept.all() == []
    finally:
        store.close()


def test_what_was_kept_for_a_reference_counts_once_it_is_fetched(tmp_path: Path) -> None:
    names: dict[str, tuple[str, ...]] = {}
    kept, store = book(tmp_path, names)
    try:
        kept.put("owner/repo:q4_k_m", {"slots": 2})
        assert kept.get(REFERENCE).values == {"slots": 2}
        file = tmp_path / "m.gguf"
        file.touch()
        names[str(file)] = (str(file), REFERENCE)
        assert kept.get(str(file)).values == {"slots": 2}
        kept.put(str(file), {})
        assert kept.all() == []
    finally:
        store.close()


def test_a_newer_version_of_a_file_has_the_settings_of_its_reference(tmp_path: Path) -> None:
    blobs = [tmp_path / "blob-1", tmp_path / "blob-2"]
    shown = tmp_path / "snapshot.gguf"
    names = {name: (str(shown), REFERENCE) for name in (str(shown), REFERENCE)}
    kept, store = book(tmp_path, names)
    try:
        for blob in blobs:
            blob.touch()
            shown.unlink(missing_ok=True)
            shown.symlink_to(blob)
            if blob is blobs[0]:
                kept.put(str(shown), {"slots": 2})
            for name in (str(shown), REFERENCE):
                assert kept.get(name).values == {"slots": 2}
    finally:
        store.close()


def test_a_name_of_ollama_has_settings(tmp_path: Path) -> None:
    """``NAME:TAG`` is no reference of the hub, and its blob no file of that name."""
    blob = tmp_path / "sha256-0"
    blob.touch()
    known = (str(blob), "llama3:latest")
    names = dict.fromkeys(("llama3", "llama3:latest", str(blob)), known)
    kept, store = book(tmp_path, names)
    try:
        for name in names:
            assert kept.put(name, {"slots": 2}).model == "llama3:latest"
        names.clear()
        assert kept.get("Llama3:latest").values == {"slots": 2}
        assert kept.put("llama3:latest", {"slots": 3}).values == {"slots": 3}
    finally:
        store.close()


def test_what_was_kept_under_another_name_moves_and_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    by_file = "Owner/Repo/m-Q4_K_M.gguf"
    kept, store = book(tmp_path, {str(file): (str(file), REFERENCE, by_file)})
    try:
        for before in (str(file), by_file, REFERENCE.lower()):
            store.save_model_settings(checked(before, {"slots": 2}))
            assert kept.get(str(file)).values == {"slots": 2}
            assert kept.put(str(file), {"slots": 3}).model == REFERENCE
            assert [s.model for s in kept.all()] == [REFERENCE]
            store.save_model_settings(checked(by_file, {"slots": 2}))
            kept.forget(str(file))
            assert kept.all() == []
    finally:
        store.close()


def test_paths_that_differ_in_capitals_are_two_models(tmp_path: Path) -> None:
    kept, store = book(tmp_path, {})
    try:
        for name in ("m.gguf", "M.gguf"):
            (tmp_path / name).touch()
        kept.put(str(tmp_path / "m.gguf"), {"slots": 2})
        assert kept.get(str(tmp_path / "M.gguf")).values == {}
    finally:
        store.close()


def test_settings_of_a_model_that_is_gone_can_be_changed_and_forgotten(tmp_path: Path) -> None:
    kept, store = book(tmp_path, {})
    file = tmp_path / "m.gguf"
    try:
        file.touch()
        kept.put(str(file), {"slots": 2})
        file.unlink()
        assert kept.put(str(file), {"slots": 3}).values == {"slots": 3}
        assert kept.put(str(file), {}).values == {}
        assert kept.all() == []
    finally:
        store.close()


def test_only_models_have_settings(tmp_path: Path) -> None:
    kept, store = book(tmp_path, {})
    try:
        with pytest.raises(ModelMissing, match="neither a model"):
            kept.put("/nowhere/m.gguf", {"slots": 2})
        with pytest.raises(ModelMissing, match="neither a model"):
            kept.put("0" * 4000, {"slots": 2})
        assert kept.get("0" * 4000).values == {}
        with pytest.raises(EngineOptionRefused):
            kept.put(REFERENCE, {"engine_options": ["--host=x"]})
        assert kept.all() == []
    finally:
        store.close()
