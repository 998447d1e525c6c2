"""Nothing that axe-core finds wrong, in any view and state, light and dark, phone and desktop.

Nor an error in the console, a request to another origin, or a page wider than a phone of 360 px.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
from browser_page import browser
from lab.page_steps import settled
from lab.page_views import VIEWS, View, Visitor, visiting
from lab.page_world import FROZEN, World, serving
from playwright.async_api import Browser

__all__ = ["browser"]

pytestmark = pytest.mark.browser

DESKTOP: Final = (1280, 900)
PHONE: Final = {"width": 360, "height": 740}
AREAS: Final = tuple(dict.fromkeys(view.name.split("-")[0].rstrip("s") for view in VIEWS))
"""Each a test of its own, so that they can run side by side."""

RULES: Final = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
COLOURS: Final = ["color-contrast"]
"""What alone can differ between light and dark."""

AXE: Final = "runOnly => axe.run(document, { runOnly, resultTypes: ['violations'] })"


def axe_source() -> str:
    """axe-core as text. Evaluated by the debugger, it needs no permission of the page."""
    package = find_spec("axe_playwright_python")
    assert package is not None, "uv sync installs axe_playwright_python"
    assert package.origin is not None
    return Path(package.origin).with_name("axe.min.js").read_text()


@pytest.mark.parametrize("area", AREAS)
async def test_every_view_is_accessible_and_quiet(browser: Browser, area: str) -> None:
    source, wrong = axe_source(), []
    async with (
        serving(World.of("empty", lambda: FROZEN)) as server,
        visiting(browser, server, "light", DESKTOP) as visitor,
    ):
        for view in VIEWS:
            if view.name.split("-")[0].rstrip("s") == area:
                wrong += [f"{view.name}: {text}" for text in await _problems(visitor, view, source)]
    assert not wrong, "\n" + "\n".join(wrong)


async def _problems(visitor: Visitor, view: View, source: str) -> list[str]:
    """What is wrong with a view, one line each. Visited once, seen in both themes and sizes."""
    page = visitor.page
    await page.emulate_media(color_scheme="light")
    await page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
    await visitor.visit(view)
    await page.evaluate(source)
    said = [f"desktop, light: {each}" for each in await _violations(visitor, RULES)]
    await page.emulate_media(color_scheme="dark")
    await settled(page)
    said += [f"desktop, dark: {each}" for each in await _violations(visitor, COLOURS)]
    await page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    await settled(page)
    said += [f"phone, dark: {each}" for each in await _violations(visitor, RULES)]
    if (overflow_px := await visitor.overflow_px()) > 0:
        said.append(f"it is {overflow_px} px wider than a phone of {PHONE['width']} px")
    await page.emulate_media(color_scheme="light")
    await settled(page)
    said += [f"phone, light: {each}" for each in await _violations(visitor, COLOURS)]
    said += [f"console: {error}" for error in visitor.errors]
    said += [f"request to {url}" for url in visitor.strangers]
    return said


async def _violations(visitor: Visitor, rules: list[str]) -> list[str]:
    found = await visitor.page.evaluate(AXE, rules)
    return [_words(each) for each in found["violations"]]


def _words(violation: dict[str, Any]) -> str:
    nodes = violation["nodes"]
    first = nodes[0]
    why = " ".join(first["failureSummary"].split())[:220]
    return f"{violation['id']} ({len(nodes)} times): {first['html'][:160]} | {why}"
