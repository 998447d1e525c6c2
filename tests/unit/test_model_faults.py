"""What is wrong with a model is named before anything starts, with the remedy."""

import threading
from pathlib import Path

import pytest
from made_gguf import LLAMA, STRING, gguf, pair, text, u32
from model_places_made import model, own_places, part_name, projector, put, scanner, split

from agents.contract import EngineFacts
from agents.errors import ProjectError
from supervisor.adapters.engine_architectures import EngineArchitectures
from supervisor.adapters.header_store import HeaderStore
from supervisor.adapters.model_scanner import ModelScanner
from supervisor.core.library import LibraryModel
from supervisor.errors import ArchitectureUnsupported, ModelBroken, ModelMissing
from supervisor.service.events import EventBus
from supervisor.service.library import Library

CERTAIN = b"\0".join([b"", b"llama", b"falcon", b"gpt2", b"qwen2", b"gemma2", b"phi3", b""])


def looked_at(home: Path) -> LibraryModel:
    (found,) = scanner(home).scan(threading.Event(), lambda _: None).models
    return found


def refusal(home: Path, path: Path) -> ProjectError:
    """What a launch of it ends with."""
    library = Library(scanner(home), EventBus())
    with pytest.raises(ProjectError) as caught:
        library.check(str(path))
    return caught.value


BROKEN = {
    "empty": (b"", "is empty", "download it again"),
    "zeros": (bytes(4096), "holds nothing but zeros", "download it again"),
    "zip": (b"PK\x03\x04" + bytes(99), "is a zip archive", "choose a GGUF file"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "is packed with gzip", "gunzip"),
    "web page": (b"\n<!DOCTYPE html><html>", "is a web page", "download it again"),
    "json": (b'{"error": "Entry not found"}', "is JSON text", "download it again"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
        "is a pointer of git-lfs",
        "git lfs pull",
    ),
    "safetensors": (
        (80).to_bytes(8, "little") + b'{"__metadata__":{}}' + bytes(99),
        "is a safetensors file",
        "choose a GGUF file",
    ),
    "old": (b"tjgg" + bytes(99), "is of the time before GGUF", "choose a GGUF file"),
    "noise": (b"\x07\x08\x09\x0a" * 9, "is not a GGUF file (starts with", "give a .gguf file"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(99), "big-endian", "little-endian"),
    "cut header": (model()[:100], "is truncated: its header continues", "download it again"),
    "no architecture": (
        gguf([u32("llama.block_count", 2)]),
        "has no general.architecture",
        "made for llama.cpp",
    ),
    "no blocks": (gguf([LLAMA[0]]), "has no llama.block_count", "give a language model"),
    "no tokenizer": (model(tokenizer=False), "has no tokenizer", "convert it again"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_its_remedy_and_refused(tmp_path: Path, case: str) -> None:
    content, problem, remedy = BROKEN[case]
    path = put(tmp_path / "models" / "a.gguf", content)
    found = looked_at(tmp_path)
    assert found.problem.startswith(f"{path} ")
    assert problem in found.problem
    assert found.problem.endswith(found.remedy)
    assert remedy in found.remedy
    assert found.problem_code == ModelBroken.code
    error = refusal(tmp_path, path)
    assert isinstance(error, ModelBroken)
    assert str(error) == found.problem


def test_a_truncated_file_says_where_it_should_end_and_where_it_does(tmp_path: Path) -> None:
    whole = model()
    path = put(tmp_path / "models" / "a.gguf", whole[:-10])
    found = looked_at(tmp_path)
    assert f"tensor 'b' ends at byte {len(whole)}, the file has {len(whole) - 10}" in found.problem
    assert isinstance(refusal(tmp_path, path), ModelBroken)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for number in (1, 3):
        put(folder / part_name("big", number, 4), split(4, number))
    found = looked_at(tmp_path)
    assert "has not all of its 4 parts" in found.problem
    assert f"{part_name('big', 2, 4)}, {part_name('big', 4, 4)} missing" in found.problem
    assert found.problem_code == ModelMissing.code
    assert isinstance(refusal(tmp_path, folder / part_name("big", 3, 4)), ModelMissing)


def test_a_model_whose_first_part_is_missing_is_listed_as_one_that_lacks_it(tmp_path: Path) -> None:
    put(tmp_path / "models" / part_name("big", 2, 2), split(2, 2))
    found = looked_at(tmp_path)
    assert f"{part_name('big', 1, 2)} missing" in found.problem


def test_a_wrong_number_of_parts_is_named(tmp_path: Path) -> None:
    for number in (1, 2):
        put(tmp_path / "models" / part_name("big", number, 2), split(2, number, says_count=3))
    assert "says that it has 3 parts, its name says 2" in looked_at(tmp_path).problem


def test_a_part_of_a_split_model_that_lost_its_name_is_named(tmp_path: Path) -> None:
    put(tmp_path / "models" / "big.gguf", split(3, 1))
    assert "says that it has 3 parts, its name says 1" in looked_at(tmp_path).problem


def test_parts_in_the_wrong_order_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for number, content in ((1, 1), (2, 3), (3, 2)):
        put(folder / part_name("big", number, 3), split(3, content))
    problem = looked_at(tmp_path).problem
    assert f"has a part {part_name('big', 2, 3)} that says that it is number 3" in problem


def test_parts_that_hold_other_tensors_than_the_model_are_named(tmp_path: Path) -> None:
    for number in (1, 2):
        put(tmp_path / "models" / part_name("big", number, 2), split(2, number, tensors=9))
    assert "has 4 tensors in its parts, 9 belong to it" in looked_at(tmp_path).problem


def test_a_broken_part_is_named_as_such(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    put(folder / part_name("big", 1, 2), split(2, 1))
    put(folder / part_name("big", 2, 2), split(2, 2)[:-5])
    assert f"its part {part_name('big', 2, 2)} is truncated" in looked_at(tmp_path).problem


def test_a_model_without_a_chat_template_is_warned_of_and_not_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "models" / "a.gguf", model(template=False))
    found = looked_at(tmp_path)
    assert "--chat-template-file" in found.warning
    assert (found.problem, found.problem_code) == ("", "")
    Library(scanner(tmp_path), EventBus()).check(str(path))


def test_an_embedding_model_needs_no_chat_template(tmp_path: Path) -> None:
    put(tmp_path / "models" / "a.gguf", model(architecture="bert", template=False))
    assert looked_at(tmp_path).warning == ""


COMPANIONS = {
    "projector": (projector(), "--mmproj"),
    "LoRA adapter": (
        gguf([*LLAMA, pair("adapter.type", STRING, text("lora"))]),
        "--lora",
    ),
    "importance matrix": (
        gguf([pair("general.type", STRING, text("imatrix"))]),
        "give the model itself",
    ),
    "vocabulary": (gguf(LLAMA, [], data_bytes=0), "give the model itself"),
}


@pytest.mark.parametrize("kind", COMPANIONS)
def test_what_lies_beside_models_is_named_as_such_and_not_launched(
    tmp_path: Path, kind: str
) -> None:
    content, remedy = COMPANIONS[kind]
    path = put(tmp_path / "models" / "a.gguf", content)
    found = looked_at(tmp_path)
    assert (found.kind, found.is_companion, found.problem) == (kind, True, "")
    error = str(refusal(tmp_path, path))
    assert f"is a{'n' if kind[0] in 'aeiou' else ''} {kind}" in error
    assert remedy in error


# -- the engine ----------------------------------------------------------------------------------


def test_the_real_engine_knows_its_architectures_and_no_others(engine: EngineFacts) -> None:
    known = EngineArchitectures()
    for name in ("llama", "qwen3", "gpt-oss", "deepseek2"):
        assert known.knows(engine.llama_server, name) is True
    assert known.knows(engine.llama_server, "from-the-future-9") is False


def test_an_engine_that_hides_its_names_makes_no_fault(tmp_path: Path) -> None:
    program = put(tmp_path / "llama-server", b"#!/bin/sh\n")
    known = EngineArchitectures()
    assert known.knows(str(program), "llama") is None
    assert known.knows(str(tmp_path / "nothing"), "llama") is None
    assert known.knows("", "llama") is None


def test_an_engine_that_was_replaced_is_asked_anew(tmp_path: Path) -> None:
    program = put(tmp_path / "bin" / "llama-server", b"a program")
    library = put(tmp_path / "bin" / "libllama.so", CERTAIN)
    known = EngineArchitectures()
    assert known.knows(str(program), "newest") is False
    library.write_bytes(CERTAIN + b"newest\0")
    assert known.knows(str(program), "newest") is True


def test_an_architecture_that_this_engine_does_not_know_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "models" / "a.gguf", model(architecture="newest"))
    program = put(tmp_path / "llama-server", CERTAIN)
    known = EngineArchitectures()
    made = ModelScanner(
        lambda: own_places(tmp_path),
        HeaderStore(tmp_path / "library.json"),
        lambda name: known.knows(str(program), name),
    )
    (found,) = made.scan(threading.Event(), lambda _: None).models
    assert found.problem_code == ArchitectureUnsupported.code
    with pytest.raises(ArchitectureUnsupported, match="architecture 'newest', which this build"):
        Library(made, EventBus()).check(str(path))
    program.write_bytes(CERTAIN + b"newest\0")
    (found,) = made.scan(threading.Event(), lambda _: None).models
    assert found.problem == ""
