"""A model's header is read once, and again as soon as one of its files is another."""

import os
from pathlib import Path

import pytest
from made_gguf import LLAMA, STRING, TENSORS, gguf, pair, text, u16

from supervisor.adapters import models
from supervisor.adapters.models import read_model
from supervisor.errors import ModelBroken, ModelMissing


def named(name: str) -> bytes:
    return gguf([*LLAMA, pair("general.name", STRING, text(name))])


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled as soon as they are written."""
    monkeypatch.setattr(models, "_SETTLED_NS", -(10**9))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(named("one"))
    return path


def test_an_unchanged_file_is_read_once(path: Path) -> None:
    first = read_model(str(path))
    assert first.facts.name == "one"
    assert read_model(str(path)) is first


def test_another_file_in_its_place_is_read(path: Path) -> None:
    before = path.stat()
    read_model(str(path))
    other = path.with_name("other")
    other.write_bytes(named("two"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert path.stat().st_size == before.st_size
    assert read_model(str(path)).facts.name == "two"


def test_a_file_that_is_gone_or_broken_is_not_remembered(path: Path) -> None:
    read_model(str(path))
    path.write_bytes(b"GGUX")
    with pytest.raises(ModelBroken):
        read_model(str(path))
    path.unlink()
    with pytest.raises(ModelMissing):
        read_model(str(path))


def test_every_part_counts(tmp_path: Path) -> None:
    split = [u16("split.count", 2), pair("split.tensors.count", 5, (2).to_bytes(4, "little"))]
    parts = [tmp_path / f"model-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, part in enumerate(parts):
        name, shape, type_id, _ = TENSORS[number]
        keys = [*(LLAMA if number == 0 else LLAMA[:1]), u16("split.no", number), *split]
        part.write_bytes(gguf(keys, [(name, shape, type_id, 0)]))
    first = read_model(str(parts[0]))
    assert read_model(str(parts[0])) is first
    os.utime(parts[1])
    assert read_model(str(parts[0])) is not first
    parts[1].unlink()
    with pytest.raises(ModelMissing, match="00002-of-00002"):
        read_model(str(parts[0]))


def test_what_was_written_just_now_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_SETTLED_NS", 10**12)
    first = read_model(str(path))
    path.write_bytes(named("two"))  # perhaps within one tick of the file system's clock
    assert read_model(str(path)).facts.name == "two"
    assert first.facts.name == "one"


def test_few_models_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_KEPT_MODELS", 2)
    paths = [tmp_path / f"{number}.gguf" for number in range(3)]
    for path in paths:
        path.write_bytes(named(path.stem))
    found = [read_model(str(path)) for path in paths]
    assert read_model(str(paths[2])) is found[2]
    assert read_model(str(paths[0])) is not found[0]


def test_the_home_of_nobody_is_no_place_for_a_model() -> None:
    with pytest.raises(ModelMissing, match="nobody-at-all"):
        read_model("~nobody-at-all/model.gguf")
