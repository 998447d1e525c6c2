"""What is done on the page before it is looked at: shared steps, and those of models."""

from collections.abc import Awaitable, Callable
from typing import Final

from playwright.async_api import Page

from lab.page_world import PageServer

Step = Callable[[Page, PageServer], Awaitable[None]]

SETTLED_MS: Final = 120
"""Nothing changed for so long; the page ticks once a second."""

_SETTLED: Final = """ms => new Promise(done => {
  const end = () => { observer.disconnect(); clearTimeout(last); done(); };
  let timer = setTimeout(end, ms);
  const again = () => { clearTimeout(timer); timer = setTimeout(end, ms); };
  const observer = new MutationObserver(again);
  const all = { subtree: true, childList: true, attributes: true, characterData: true };
  observer.observe(document, all);
  const last = setTimeout(end, 20 * ms);
})"""


async def settled(page: Page) -> None:
    """Wait until nothing changes any more."""
    await page.evaluate(_SETTLED, SETTLED_MS)


def clicks(*selectors: str) -> Step:
    """Click one after the other."""

    async def step(page: Page, _: PageServer) -> None:
        for selector in selectors:
            await page.locator(selector).first.click()
            await settled(page)

    return step


# -- of models ---------------------------------------------------------------------------------


async def searches_models(page: Page, _: PageServer) -> None:
    await page.locator('[data-input="models/hub"]').first.fill("Qwen3")
    await page.locator('[data-action="models/repo"]').first.wait_for()
    await settled(page)


async def fits_are_known(page: Page, _: PageServer) -> None:
    """Those in sight, which are asked for one after the other."""
    await page.locator(".usable .model-fit .state").first.wait_for()
    await settled(page)


async def opens_model(page: Page, server: PageServer) -> None:
    await fits_are_known(page, server)
    await clicks(".usable .model:nth-child(2) [data-action='models/open']")(page, server)
    await page.get_by_text("Settings of this model").wait_for()
    await clicks('[data-action="models/look"]')(page, server)
    await page.locator('[data-action="models/look"]').wait_for(state="detached")
    await settled(page)


async def sends_ahead(page: Page, server: PageServer) -> None:
    """Half of what devices lack is there."""
    await opens_model(page, server)
    server.world.goes_on.clear()
    await page.locator('[data-action="models/push"]').click()
    await page.locator('[data-action="models/stop"]').wait_for()
    await settled(page)


async def asks_to_remove(page: Page, server: PageServer) -> None:
    await fits_are_known(page, server)
    row = page.locator(".model", has_text="Llama-3.3-70B").first
    await row.locator("[data-action='models/open']").click()
    await row.locator("[data-action='models/ask-remove']").click()
    await page.locator("dialog .danger").wait_for()
    await settled(page)


async def is_suggesting(page: Page, server: PageServer) -> None:
    server.world.goes_on.clear()
    await clicks('[data-action="models/task"][data-task="chat"]')(page, server)
    await page.locator(".models-waits progress").wait_for()
    await settled(page)
