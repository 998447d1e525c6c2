"""What keeps the page smooth and cannot flake: few bytes, few elements, and nothing left out.

How fast it is, bench/page.py measures.
"""

from collections.abc import AsyncIterator

import pytest
from browser_page import browser
from lab.page_scenes import LOG_LINES, NAME
from lab.page_views import SIZES, VIEWS, Visitor, visiting
from lab.page_world import FROZEN, World, serving
from playwright.async_api import Browser, Response

__all__ = ["browser"]

pytestmark = [pytest.mark.browser, pytest.mark.alone]

MOST_BYTES = 150 * 1024
MOST_ROWS = 300
VIEW_NAMES = {view.name: view for view in VIEWS}


@pytest.fixture
async def visitor(browser: Browser) -> AsyncIterator[Visitor]:
    async with (
        serving(World.of("empty", lambda: FROZEN)) as server,
        visiting(browser, server, "light", SIZES["desktop"]) as made,
    ):
        yield made


async def test_all_files_of_the_page_are_less_than_150_kib(visitor: Visitor) -> None:
    """In all views together, as they are sent, and none of them twice."""
    sizes: dict[str, int] = {}

    async def note(response: Response) -> None:
        path = response.url.removeprefix(visitor.server.url)
        if path == "/" or path.startswith(("/#", "/assets/")):
            sent = (await response.request.sizes())["responseBodySize"]
            sizes[path] = max(sent, sizes.get(path, 0))  # 0: it had not changed

    visitor.page.on("response", note)
    for name in ("devices", "models", "launch", "deployments", "chat", "records", "settings"):
        await visitor.visit(VIEW_NAMES[name])
    assert len(sizes) > 10, sizes
    assert all(sizes.values()), sizes
    total = sum(sizes.values())
    assert total < MOST_BYTES, f"{total} bytes: {sorted(sizes.items(), key=lambda each: -each[1])}"


async def test_ten_thousand_log_lines_are_few_elements(visitor: Visitor) -> None:
    await visitor.visit(VIEW_NAMES["deployment-logs"])
    rows = visitor.page.locator(".log > p")
    assert 10 < await rows.count() < MOST_ROWS
    visitor.server.world.log("llama-server", [f"the last line {'x' * 300}"])
    await rows.get_by_text("the last line").wait_for()
    assert await rows.count() < MOST_ROWS
    count = await visitor.page.evaluate("document.querySelectorAll('*').length")
    assert count < 2000, f"the whole page has {count} elements"
    said = await visitor.page.locator(".logs").inner_text()
    assert f"{LOG_LINES + 1:,} lines" in said


async def test_scrolled_back_the_log_shows_other_lines(visitor: Visitor) -> None:
    await visitor.visit(VIEW_NAMES["deployment-logs"])
    log = visitor.page.locator(".log")
    last = await log.locator("> p").last.inner_text()
    await log.evaluate("log => { log.scrollTop = log.scrollHeight / 2 }")
    await visitor.page.wait_for_function(
        "last => document.querySelector('.log > p:last-of-type')?.innerText !== last", arg=last
    )
    assert await log.locator("> p").count() < MOST_ROWS
    assert await log.evaluate("log => log.scrollTop") > 0


async def test_two_hundred_devices_all_have_their_row(visitor: Visitor) -> None:
    await visitor.visit(VIEW_NAMES["devices-many"])
    names = [device["name"] for device in visitor.server.world.scene.devices]
    assert len(names) == 200
    text = await visitor.page.locator("main").text_content() or ""  # painted yet or not
    assert [name for name in names if name not in text] == []
    visitor.server.world.change_device(names[150], state="lost", reason="it is gone for a test")
    await visitor.page.get_by_text("it is gone for a test").first.wait_for(state="attached")
    visitor.server.world.remove_device(names[7])
    await (
        visitor.page.locator("main")
        .get_by_text(names[7], exact=True)
        .first.wait_for(state="detached")
    )


async def test_events_by_the_hundred_end_in_the_last_word(visitor: Visitor) -> None:
    """However fast they come, what is shown at last is what was said last."""
    await visitor.visit(VIEW_NAMES["deployment-ready"])
    for number in range(500):
        visitor.server.world.change_deployment(NAME, generated_tokens=1_000_000 + number)
    await visitor.page.get_by_text("1,000,499").first.wait_for()
    assert visitor.errors == []
