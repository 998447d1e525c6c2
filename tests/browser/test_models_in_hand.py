"""How the models view is in the hand, in front of an invented main host: keys, names, crowds."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Final

import pytest
from browser_page import browser
from lab.page_home import SMALL
from lab.page_models import as_found
from lab.page_views import MODELS, SIZES, Visitor, visiting
from lab.page_world import FROZEN, World, serving
from playwright.async_api import Browser, Page, Request, expect

__all__ = ["browser"]

pytestmark = pytest.mark.browser

PHONE: Final = (360, 740)
REPO: Final = f"{MODELS}/get/bartowski%2FQwen3-14B-GGUF"
WIDER_PX: Final = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
NAMES: Final = (
    "<img src=x onerror=alert(1)>",
    "\N{ARABIC LETTER MEEM}\N{ARABIC LETTER REH}\N{ARABIC LETTER HAH}",
    "a\N{RIGHT-TO-LEFT OVERRIDE}fugg.exe",
    "\N{LLAMA}-7b",
    "L" + "o" * 230 + "ng",
)


@pytest.fixture
async def visitor(browser: Browser) -> AsyncIterator[Visitor]:
    async with (
        serving(World.of("models", lambda: FROZEN)) as server,
        visiting(browser, server, "light", SIZES["desktop"]) as made,
    ):
        yield made


async def shows(visitor: Visitor, address: str, scene: str = "models") -> Page:
    visitor.server.world.show(scene)
    await visitor.page.goto(f"{visitor.server.url}/{address}")
    await visitor.page.get_by_role("heading", name="Models", exact=True).wait_for()
    return visitor.page


def asked(page: Page, path: str) -> list[Request]:
    """Requests for a path from now on."""
    found: list[Request] = []
    page.on("request", lambda each: found.append(each) if path in each.url else None)
    return found


async def test_who_types_on_while_a_repository_is_open_types_all_of_it(visitor: Visitor) -> None:
    page = await shows(visitor, REPO)
    field = page.get_by_label("Search the hub")
    await field.focus()
    await page.keyboard.type("gemma 3 4b", delay=20)
    await expect(field).to_have_value("gemma 3 4b")
    await expect(field).to_be_focused()
    await expect(page.get_by_role("region", name="Found on the hub")).to_be_visible()
    await page.go_back()
    await expect(page.get_by_role("region", name="Suggestions")).to_be_visible()
    assert visitor.errors == []


async def test_a_pull_is_paused_and_removed_with_the_keyboard(visitor: Visitor) -> None:
    page = await shows(visitor, MODELS, "pulls")
    row = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="Qwen3-14B Q5"))
    await row.get_by_role("button", name="Pause").press("Enter")
    await expect(row.get_by_role("button", name="Resume")).to_be_focused()
    await row.get_by_role("button", name="Remove").press("Enter")
    await expect(row.get_by_role("button", name="Keep it")).to_be_focused()
    assert not [each for each in visitor.server.world.asked if each[0] == "DELETE"]
    await row.get_by_role("button", name="Yes, remove it").press("Enter")
    await expect(row).to_have_count(0)


async def test_two_models_are_worked_on_at_once_and_the_page_stays_usable(
    visitor: Visitor,
) -> None:
    """Each work holds one of the few connections that a browser has to a host."""
    page = await shows(visitor, MODELS)
    visitor.server.world.goes_on.clear()
    usable = page.get_by_role("region", name="On this host")
    for number in range(3):
        row = usable.get_by_role("listitem").nth(number)
        await row.get_by_role("button", name="Details").click()
        await row.get_by_role("button", name="Verify").click()
        last = row.get_by_role("alert") if number == 2 else row.get_by_role("button", name="Stop")
        await expect(last).to_be_visible()
    await expect(usable.get_by_text("Each byte is read and compared.")).to_have_count(2)
    visitor.server.world.goes_on.set()
    await expect(usable.get_by_text("Each byte is read and compared.")).to_have_count(0)
    row = usable.get_by_role("listitem").nth(2)
    await row.get_by_role("button", name="Verify").click()
    await expect(row).to_contain_text("Each byte is as it was published.")


async def test_who_leaves_the_view_ends_what_it_asked(visitor: Visitor) -> None:
    page = await shows(visitor, MODELS)
    visitor.server.world.goes_on.clear()
    await page.goto(f"{visitor.server.url}/{REPO}")
    await page.get_by_role("progressbar", name="Looked at").wait_for()
    async with page.expect_event("requestfailed", lambda each: "/suggest?" in each.url):
        await page.get_by_role("link", name="Chat").first.click()
    visitor.server.world.goes_on.set()
    await page.go_back()
    await expect(page.get_by_role("region", name="Suggestions")).to_be_visible()


async def test_suggestions_follow_the_devices_and_stay_meanwhile(visitor: Visitor) -> None:
    page = await shows(visitor, REPO)
    shown = page.get_by_role("region", name="Suggestions")
    await expect(shown).to_be_visible()
    visitor.server.world.goes_on.clear()
    async with page.expect_request(lambda each: "/suggest?" in each.url):
        visitor.server.world.remove_device("pixel-8")
    await expect(shown).to_be_visible()


async def test_the_fastest_are_sought_below_the_screen_too(visitor: Visitor) -> None:
    await visitor.page.set_viewport_size({"width": 1280, "height": 400})
    visitor.server.world.show("models")
    found = as_found(SMALL, datetime.now(UTC), 1)
    many = [found.model_copy(update={"path": f"/m/{n}.gguf", "name": f"{n}.gguf",
                                     "size_bytes": (99 - n) << 28}) for n in range(40)]  # fmt: skip
    visitor.server.world.scene.library = many
    questions = asked(visitor.page, "/fit?")
    await visitor.page.goto(f"{visitor.server.url}/{MODELS}")
    await visitor.page.get_by_label("Order").select_option("speed")
    first = visitor.page.get_by_role("listitem").first
    await expect(first.get_by_role("heading", name="39", exact=True)).to_be_visible()
    assert len({each.url for each in questions}) == len(many)


async def test_names_are_text_and_have_room_on_a_phone(visitor: Visitor) -> None:
    page = visitor.page
    await page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    visitor.server.world.show("models")
    found = as_found(SMALL, datetime.now(UTC), 1)
    visitor.server.world.scene.library = [
        found.model_copy(update={"path": f"/m/{name}.gguf", "name": f"{name}.gguf", "title": name})
        for name in NAMES
    ]
    await page.goto(f"{visitor.server.url}/{MODELS}")
    for name in NAMES:
        await page.get_by_role("button", name=f"Details of {name}", exact=True).click()
        await page.get_by_text("Settings of this model").wait_for()
        await expect(page.get_by_role("heading", name=name, exact=True)).to_have_text(name)
        assert await page.evaluate(WIDER_PX) <= 0, name
    assert await page.locator("main img").count() == 0
    assert (dialogs, visitor.errors, visitor.strangers) == ([], [], [])
