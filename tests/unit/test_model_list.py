"""The list of models reads well in a narrow terminal and is whole in a wide one."""

import io
from typing import Any

import pytest
from rich.console import Console

from supervisor.cli import model_list, output
from supervisor.cli.model_list import print_models
from supervisor.core.library import LibraryModel
from supervisor.errors import ArchitectureUnsupported, ModelBroken

BIG = "owner/A-Model-With-A-Long-Name-235B-Instruct-GGUF:UD-Q4_K_XL"


def listed(name: str, **more: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "path": f"/models/{name}.gguf",
        "name": name,
        "source": "folder",
        "architecture": "qwen3moe",
        "parameters": 30_500_000_000,
        "quantisation": "Q4_K_M",
        "size_bytes": 17 << 30,
        "ctx_train_tokens": 131_072,
        "parts": (f"/models/{name}.gguf",),
    }
    return LibraryModel(**usual | more).model_dump(mode="json")


MODELS = [
    listed("big", reference=BIG, quantisation="UD-Q4_K_XL", parts=("a", "b", "c"), source="hub"),
    listed(
        "page", problem="/models/page.gguf is a web page; fetch it", problem_code=ModelBroken.code,
        parameters=None, architecture="", quantisation="", ctx_train_tokens=None,
    ),
    listed("new", problem="too new", problem_code=ArchitectureUnsupported.code),
    listed("unread", is_read=False),
    listed("[red]odd[/]", source="lm studio"),
]  # fmt: skip
FITS = {
    "/models/big.gguf": {"fits": True, "tokens_per_s": 12.34, "ctx_tokens": 8192},
    "/models/[red]odd[/].gguf": {"fits": False, "tokens_per_s": None, "ctx_tokens": 8192},
}


def shown(
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    models: list[dict[str, Any]] = MODELS,
    fits: dict[str, Any] = FITS,
) -> list[str]:
    text = io.StringIO()
    console = Console(file=text, width=width, highlight=False, soft_wrap=True)
    monkeypatch.setattr(output, "console", console)
    print_models(models, fits)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_a_wide_terminal_shows_all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, 120)
    assert lines[1].split() == [
        *("model", "arch", "params", "quant", "size", "ctx", "fits", "tok/s", "source"),
    ]
    big = " ".join(lines[2].split())
    assert big.endswith("qwen3moe 30.5 B UD-Q4_K_XL 17.0 GiB in 3 128k yes 12.3 hub")
    assert max(map(len, lines[:6])) <= 120
    assert any("with 8,192 tokens of context" in line for line in lines)


def test_a_narrow_terminal_breaks_nothing_but_names(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, 80)
    assert lines[1].split() == ["model", "params", "quant", "size", "ctx", "fits", "tok/s"]
    table = lines[: next(at for at, line in enumerate(lines) if line.startswith("ctx:"))]
    assert max(map(len, table)) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in table[2:] if len(line.split()) > 1}
    assert rows["page"] == ["?", "?", "17.0", "GiB", "?", "broken", "-"]
    assert rows["new"][-2:] == ["no", "-"]
    assert rows["unread"][0] == "…"
    assert rows["[red]odd[/]"][-2:] == ["no", "-"]
    assert "".join(line.split()[0] for line in table[2:5]).startswith(BIG[:50])
    assert "! /models/page.gguf is a web page; fetch it" in lines


def test_columns_that_nobody_asked_for_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, 80, [listed("a")], {})
    assert "fits" not in "".join(lines)
    lines = shown(monkeypatch, 60, [listed("a")], {})
    assert lines[1].split() == ["model", "quant", "size"]


def test_why_a_fit_is_unknown_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [listed("a"), listed("b")]
    fits = {m["path"]: {"fits": None, "detail": "no device is ready"} for m in models}
    assert shown(monkeypatch, 80, models, fits).count("? no device is ready") == 1


def test_a_warning_is_told_once_for_all_that_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [listed(name, warning="it has no chat template") for name in "abcdefg"]
    lines = shown(monkeypatch, 80, models, {})
    assert lines[-1] == "! a, b, c, d, e and 2 more: it has no chat template"


def test_thousands_are_listed_in_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_list, "_MOST_FOLDED", 2)
    shown(monkeypatch, 80)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(MODELS)
    assert lines[1].startswith(f"{BIG}  30.5 B  UD-Q4_K_XL  17.0 GiB in 3  128k  yes")
