"""The table of the models of this host."""

from typing import Any, Final

import typer
from rich.markup import escape
from rich.text import Text

from supervisor.cli import output
from supervisor.core.units import gib
from supervisor.errors import ArchitectureUnsupported

_FROM_WIDTH: Final = {"arch": 112, "params": 72, "ctx": 72, "source": 112}
"""Narrower terminals are shown less."""

_NUMBERS: Final = ("params", "ctx", "tok/s")
_FITS: Final = {"yes": "green", "no": "yellow", "broken": "red"}
_MOST_FOLDED: Final = 500
_SHOWN_DETAILS: Final = 5


def print_models(found: list[dict[str, Any]], fits: dict[str, Any]) -> None:
    """Show models, at least one; a narrow terminal has no room for all columns.

    Args:
        found: As the API lists them.
        fits: What it says of their fit, by path, of those of which it was asked.
    """
    rows = [_cells(model, fits.get(model["path"])) for model in found]
    unasked = () if fits or any(model["problem"] for model in found) else ("fits", "tok/s")
    width = output.console.width
    shown = [n for n in rows[0] if width >= _FROM_WIDTH.get(n, 0) and n not in unasked]
    if len(rows) > _MOST_FOLDED:
        _print_lines(shown, [[row[name] for name in shown] for row in rows])
    else:
        _print_table(shown, rows)
    output.console.print(f"[dim]{_meaning(fits)}[/]")
    for model in found:
        if model["problem"]:
            output.console.print(f"[red]![/] {escape(model['problem'])}")
    for warning, names in _warnings(found).items():
        more = f" and {len(names) - _SHOWN_DETAILS} more" if len(names) > _SHOWN_DETAILS else ""
        said = f"{', '.join(names[:_SHOWN_DETAILS])}{more}: {warning}"
        output.console.print(f"[yellow]![/] {escape(said)}")
    unknown = (fit["detail"] for fit in fits.values() if fit["fits"] is None)
    for detail in list(dict.fromkeys(unknown))[:_SHOWN_DETAILS]:
        output.console.print(f"[yellow]?[/] {escape(detail)}")


def _warnings(found: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Each with the models that it is about."""
    made: dict[str, list[str]] = {}
    for model in found:
        if model["warning"]:
            made.setdefault(model["warning"], []).append(model["reference"] or model["name"])
    return made


def _print_table(shown: list[str], rows: list[dict[str, str]]) -> None:
    made = output.table("Models", "model")
    for name in shown[1:]:
        made.add_column(name, no_wrap=True, justify="right" if name in _NUMBERS else "left")
    for row in rows:
        styles = {"fits": _FITS.get(row["fits"], "")}
        styles["model"] = "red" if row["fits"] == "broken" else ""
        made.add_row(*(Text(row[name], styles.get(name, "")) for name in shown))
    output.console.print(made)


def _print_lines(shown: list[str], rows: list[list[str]]) -> None:
    """Thousands, which take a table seconds to fold and to colour."""
    lines = [shown, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(shown, line, widths, strict=True)
        typer.echo(
            "  ".join(c.rjust(w) if n in _NUMBERS else c.ljust(w) for n, c, w in cells).rstrip()
        )


def _cells(model: dict[str, Any], fit: dict[str, Any] | None) -> dict[str, str]:
    """By column, in order."""
    is_read = model["is_read"]
    kind = f" ({model['kind']})" if model["is_companion"] and not model["problem"] else ""
    parts = f" in {len(model['parts'])}" if len(model["parts"]) > 1 else ""
    fits, speed = _fit_cells(model, fit)
    return {
        "model": (model["reference"] or model["name"]) + kind,
        "arch": model["architecture"] or "?" if is_read else "…",
        "params": count(model["parameters"]) if is_read else "…",
        "quant": model["quantisation"] or "?",
        "size": gib(model["size_bytes"]) + parts,
        "ctx": _tokens(model["ctx_train_tokens"]),
        "fits": fits,
        "tok/s": speed,
        "source": model["source"],
    }


def _meaning(fits: dict[str, Any]) -> str:
    """What the columns mean that do not say it."""
    contexts = sorted({fit["ctx_tokens"] for fit in fits.values() if fit.get("ctx_tokens")})
    asked = f"{contexts[-1]:,}" if contexts else ""
    if len(contexts) > 1:
        asked = f"{asked} tokens of context, or all that it was trained for"
    elif contexts:
        asked = f"{asked} tokens of context"
    fit = f"; fits: on the devices that are there now, with {asked}" if asked else ""
    return f"ctx: context that it was trained for, k: 1024 tokens{fit}"


def _fit_cells(model: dict[str, Any], fit: dict[str, Any] | None) -> tuple[str, str]:
    if model["problem"]:
        is_whole = model["problem_code"] == ArchitectureUnsupported.code
        return "no" if is_whole else "broken", "-"
    if not fit or fit["fits"] is None:
        return "?", "-"
    if not fit["fits"]:
        return "no", "-"
    speed = fit["tokens_per_s"]
    digits = 1 if speed and speed < 100 else 0
    return "yes", f"{speed:.{digits}f}" if speed else "?"


def _tokens(count: int | None) -> str:
    """``128k``."""
    if not count:
        return "?"
    return f"{count:,}" if count % 1024 else f"{count // 1024}k"


def count(parameters: int | None) -> str:
    """``70.6 B``."""
    value, unit = float(parameters or 0), ""
    for larger in ("K", "M", "B", "T"):
        if value < 1000:
            break
        value, unit = value / 1000, f" {larger}"
    return f"{value:.3g}{unit}" if parameters else "?"
