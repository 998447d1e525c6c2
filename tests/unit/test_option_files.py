"""Files that options name, and the projector that lies beside a model."""

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from made_gguf import STRING, gguf, pair, text
from some_help import HELP, KNOWN

from supervisor.adapters.option_files import MAX_TEXT_BYTES, OptionFileReader, read_files
from supervisor.core.engine_help import EngineHelp, parse_help
from supervisor.core.engine_options import OptionFile, engine_words
from supervisor.core.entities import DeploymentSpec
from supervisor.core.option_memory import IMAGE_WORKSPACE_BYTES, FileFacts
from supervisor.errors import OptionFileUnusable
from supervisor.service.model_options import launch_options
from supervisor.service.tools import Tools

# -- files -----------------------------------------------------------------------------------------


def template(path: Path, content: str | bytes) -> OptionFile:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return OptionFile("--chat-template-file", str(path), "template")


def adapter(path: Path, architecture: str = "llama", kind: str = "lora") -> Path:
    pairs = [
        pair("general.architecture", STRING, text(architecture)),
        pair("general.type", STRING, text("adapter")),
        pair("adapter.type", STRING, text(kind)),
    ]
    tensors = [("blk.1.attn_q.weight.lora_a", (4, 2), 0, 0), ("output.weight.lora_b", (8,), 0, 32)]
    path.write_bytes(gguf(pairs, tensors, data_bytes=64))
    return path


@pytest.mark.parametrize(
    "content",
    [
        "{{ messages }}",
        "plain text",
        "{% raw %}{{ {% {# {% endraw %}",
        "{# {{ #}{% if x == '%}' %}{{ \"}}\" }}{% endif %}",
        "{{ {'a': {'b': 1}} }}",
    ],
)
def test_templates_are_read(tmp_path: Path, content: str) -> None:
    file = template(tmp_path / "t.jinja", content)
    assert read_files([file], "llama").sizes == ((file, len(content)),)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a\nb {% if x ", "{% in line 2"),
        ("{{ messages }", "{{ in line 1"),
        ("{# never", "{# in line 1"),
        ("{% raw %} {{", "{% in line 1"),
        ("", "is empty"),
        (" \n", "is empty"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"a\x00b", "no text in UTF-8"),
        ("x" * (MAX_TEXT_BYTES + 1), "larger than 1024 KiB"),
    ],
)
def test_templates_that_cannot_be_are_refused(
    tmp_path: Path, content: str | bytes, told: str
) -> None:
    with pytest.raises(OptionFileUnusable) as caught:
        read_files([template(tmp_path / "t.jinja", content)], "llama")
    assert told in str(caught.value)
    assert "--chat-template-file" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("t.gbnf", "no full path"),
        ("/nowhere/t.gbnf", "is not on the main host"),
        ("/dev/zero", "does not end in .gbnf or .txt"),
        ("/", "does not end in"),
        ("/a\0b.txt", "cannot be read"),
    ],
)
def test_paths_that_are_no_files_are_refused(path: str, told: str) -> None:
    with pytest.raises(OptionFileUnusable, match=told):
        read_files([OptionFile("--grammar-file", path, "text")], "llama")


def test_no_other_file_of_the_main_host_can_be_read(tmp_path: Path) -> None:
    """Who may launch could have its text from ``/apply-template``."""
    (tmp_path / "api.key").write_text("sk-secret")
    (tmp_path / "harmless.jinja").symlink_to(tmp_path / "api.key")
    for name in ("api.key", "harmless.jinja"):
        file = OptionFile("--chat-template-file", str(tmp_path / name), "template")
        with pytest.raises(OptionFileUnusable, match="does not end in") as caught:
            read_files([file], "llama")
        assert "secret" not in str(caught.value)


def test_a_folder_or_pipe_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    os.mkfifo(tmp_path / "b.txt")
    for name in ("a.txt", "b.txt"):
        with pytest.raises(OptionFileUnusable, match="is not a file"):
            read_files([OptionFile("--grammar-file", str(tmp_path / name), "text")], "")


def test_an_adapter_is_weighed_by_layer(tmp_path: Path) -> None:
    file = OptionFile("--lora", str(adapter(tmp_path / "a.gguf")), "LoRA adapter")
    memory = read_files([file, file], "llama").memory
    assert memory.layers == {1: 64}
    assert (memory.output_bytes, memory.input_bytes, memory.host_bytes) == (64, 0, 0)


def test_an_adapter_has_to_be_one_and_for_this_model(tmp_path: Path) -> None:
    path = str(adapter(tmp_path / "a.gguf", "gemma3"))
    file = OptionFile("--lora", path, "LoRA adapter")
    with pytest.raises(OptionFileUnusable, match="an adapter for 'gemma3', and the model is llama"):
        read_files([file], "llama")
    assert read_files([file], "").sizes, "the model is not known yet"
    (tmp_path / "m.gguf").write_bytes(gguf())
    model = OptionFile("--lora", str(tmp_path / "m.gguf"), "LoRA adapter")
    with pytest.raises(OptionFileUnusable, match="not a LoRA adapter"):
        read_files([model], "llama")
    (tmp_path / "n.gguf").write_bytes(b"no gguf at all")
    with pytest.raises(OptionFileUnusable, match="--lora: "):
        read_files([OptionFile("--lora", str(tmp_path / "n.gguf"), "LoRA adapter")], "llama")


def test_a_projector_is_weighed_on_the_main_host(tmp_path: Path) -> None:
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(gguf([pair("general.architecture", STRING, text("clip"))]))
    file = OptionFile("--mmproj", str(path), "projector")
    facts = read_files([file], "llama")
    assert facts.memory.host_bytes == path.stat().st_size + IMAGE_WORKSPACE_BYTES
    (tmp_path / "m.gguf").write_bytes(gguf())
    with pytest.raises(OptionFileUnusable, match="not a projector"):
        read_files([OptionFile("--mmproj", str(tmp_path / "m.gguf"), "projector")], "llama")


def test_a_schema_file_is_json(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object"}')
    made = engine_words(DeploymentSpec(model="/m", engine_options=(f"-jf={path}",)), KNOWN)
    assert made.files == (OptionFile("-jf", str(path), "JSON"),)
    assert read_files(made.files, "").sizes
    path.write_text("{")
    with pytest.raises(OptionFileUnusable, match="is not JSON"):
        read_files(made.files, "")


def test_a_disk_that_does_not_answer_keeps_nobody_waiting(tmp_path: Path) -> None:
    asked, answer, ended = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)

    def read(files: Sequence[OptionFile], architecture: str) -> FileFacts:
        if "away" in files[0].path:
            asked.release()
            assert answer.wait(30)
        ended.release()
        return read_files(files, architecture)

    reader = OptionFileReader(read, 0.05)
    away = template(tmp_path / "away.jinja", "{{ messages }}")
    here = template(tmp_path / "here.jinja", "{{ messages }}")
    for _ in range(3):
        with pytest.raises(OptionFileUnusable, match=r"away.jinja.* no answer within 0.05 s"):
            reader([away], "")
    assert asked.acquire(timeout=30)
    assert not asked.acquire(blocking=False), "one thread waits, however many ask"
    assert OptionFileReader(read, 30)([here], "").sizes
    assert ended.acquire(timeout=30)
    answer.set()
    for _ in range(600):  # the thread is about to end
        with contextlib.suppress(OptionFileUnusable):
            assert reader([away], "").sizes
            break
        time.sleep(0.05)
    else:
        raise AssertionError("it is not read again")
    with pytest.raises(OptionFileUnusable, match="is not on the main host"):
        OptionFileReader(read, 30)([OptionFile("-jf", "/nowhere.json", "JSON")], "")


# -- the projector beside the model ----------------------------------------------------------------


def tools_with(beside: str, known: EngineHelp = KNOWN) -> Tools:
    host = SimpleNamespace(help=known)
    found = SimpleNamespace(
        main_host=host, projector_of=lambda _: beside, read_option_files=read_files
    )
    return cast("Tools", found)


def projector(path: Path, architecture: str = "clip") -> str:
    path.write_bytes(gguf([pair("general.architecture", STRING, text(architecture))]))
    return str(path)


def test_the_projector_beside_the_model_is_used_and_told(tmp_path: Path) -> None:
    beside = projector(tmp_path / "mmproj-f16.gguf")
    made = launch_options(DeploymentSpec(model="/m"), "llama", tools_with(beside))
    assert made.words == ("--mmproj", beside, "--no-mmproj-offload")
    assert made.memory.host_bytes > IMAGE_WORKSPACE_BYTES
    (told,) = made.remarks
    assert "mmproj-f16.gguf, which lies beside the model, stays on the main host" in told


def test_the_projector_beside_the_model_is_left_where_it_is_not_wanted(tmp_path: Path) -> None:
    beside = projector(tmp_path / "mmproj.gguf")
    off = DeploymentSpec(model="/m", mmproj="")
    assert launch_options(off, "llama", tools_with(beside)).words == ()
    other = DeploymentSpec(model="/m", mmproj=projector(tmp_path / "other.gguf"))
    words = launch_options(other, "llama", tools_with(beside)).words
    assert words[:2] == ("--mmproj", str(tmp_path / "other.gguf"))
    old = parse_help("-t,    --threads N     threads (default: -1)")
    assert launch_options(DeploymentSpec(model="/m"), "llama", tools_with(beside, old)).words == ()


def test_what_lies_beside_the_model_is_no_reason_to_refuse_it(tmp_path: Path) -> None:
    for beside in (projector(tmp_path / "mmproj.gguf", "llama"), str(tmp_path / "gone.gguf"), ""):
        tools = tools_with(beside)
        assert launch_options(DeploymentSpec(model="/m"), "llama", tools).words == ()
        if beside:
            with pytest.raises(OptionFileUnusable):
                launch_options(DeploymentSpec(model="/m", mmproj=beside), "llama", tools)


def test_a_context_that_the_engine_will_cut_is_told() -> None:
    for spec, told in (
        (DeploymentSpec(model="/m", ctx_tokens=8192), 1),
        (DeploymentSpec(model="/m", ctx_tokens=8192, slots=2), 0),
        (DeploymentSpec(model="/m", ctx_tokens=8192, engine_options=("--rope-scale=2",)), 0),
    ):
        remarks = launch_options(spec, "llama", tools_with(""), 4096).remarks
        assert sum("was trained for 4,096 tokens" in remark for remark in remarks) == told


def test_other_options_are_named_without_their_values() -> None:
    spec = DeploymentSpec(
        model="/m", engine_options=("--grammar=root ::= x", "--top-k=5", "--jinja")
    )
    known = parse_help(HELP + "--grammar GRAMMAR                       BNF-like grammar\n")
    (told,) = launch_options(spec, "llama", tools_with("", known)).remarks
    assert told == "llama-server is also given --grammar, --top-k and --jinja, as you asked."
