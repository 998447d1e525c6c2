"""The page in a real browser against a real supervisor with the real engine."""

import re
from pathlib import Path
from typing import Any

import pytest
from browser_page import browser, open_page
from cluster import Cluster, eventually
from playwright.async_api import Browser, expect

__all__ = ["browser"]

pytestmark = pytest.mark.browser

LOAD_MS = 30_000


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (360, 740)])
async def test_a_model_is_launched_from_the_page(
    pair: Cluster, demo_model: Path, browser: Browser, width: int, height: int
) -> None:
    watched = await open_page(browser, pair.url, width=width, height=height)
    page = watched.page
    devices = page.locator("#device-list")
    await expect(devices).to_contain_text("one")
    await expect(devices).to_contain_text("two")
    await expect(page.locator("#deployment-list")).not_to_contain_text("ready")
    await page.fill("#model", str(demo_model))
    await page.fill("#ctx", "512")
    await page.click("#launch-button")
    card = page.locator("#deployment-recite")
    await expect(card).to_contain_text("ready", timeout=LOAD_MS, ignore_case=True)
    await expect(card).to_contain_text("first token")
    await card.locator("details[data-panel=commands] summary").click()
    await expect(card).to_contain_text("--tensor-split")
    await expect(card).to_contain_text("ggml-rpc-server")
    await card.locator("details[data-panel=logs] summary").click()
    await expect(card).to_contain_text("listening on", timeout=10_000)
    await expect(devices).to_contain_text("recite")
    await card.locator("[data-action=stop]").click()
    await expect(card).to_contain_text("stopped", timeout=15_000, ignore_case=True)
    overflow = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0, f"the page is {overflow} px wider than the screen"
    assert watched.errors == []
    assert all(url.startswith((pair.url, "data:")) for url in watched.requests)


async def test_a_refused_launch_shows_its_one_sentence(pair: Cluster, browser: Browser) -> None:
    watched = await open_page(browser, pair.url)
    await watched.page.fill("#model", "/nowhere/x.gguf")
    await watched.page.click("#launch-button")
    await expect(watched.page.locator("#launch-message")).to_contain_text("/nowhere/x.gguf")


async def test_a_device_that_joins_appears_by_itself(cluster: Cluster, browser: Browser) -> None:
    await cluster.supervisor()
    watched = await open_page(browser, cluster.url)
    await watched.page.click("[data-action=add-device]")
    await expect(watched.page.locator("#join")).to_contain_text("agent.pyz join")
    await watched.page.keyboard.press("Escape")
    await cluster.agent("newcomer")
    await expect(watched.page.locator("#device-list")).to_contain_text("newcomer")
    assert watched.errors == []


async def test_a_lost_supervisor_is_said_and_found_again(
    cluster: Cluster, browser: Browser
) -> None:
    first = await cluster.supervisor()
    port = int(cluster.url.rpartition(":")[2])
    watched = await open_page(browser, cluster.url)
    await expect(watched.page.locator("#banner")).to_be_empty()
    first.stop()
    await expect(watched.page.locator("#banner")).to_contain_text("disconnected", ignore_case=True)
    await cluster.supervisor(port=port)
    await expect(watched.page.locator("#banner")).to_be_empty(timeout=20_000)


async def test_the_security_headers_are_strict(cluster: Cluster) -> None:
    await cluster.supervisor()
    answer = await cluster.http.get("/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    for name in re.findall(r'(?:src|href)="(/assets/[^"]+)"', answer.text):
        asset = await cluster.http.get(name)
        assert asset.status_code == 200, name
        if name.endswith(".mjs"):
            assert asset.headers["content-type"].startswith("text/javascript")


async def test_openapi_describes_every_route(cluster: Cluster) -> None:
    await cluster.supervisor()

    async def document() -> dict[str, Any]:
        answer = await cluster.http.get("/api/openapi.json")
        found: dict[str, Any] = answer.json()
        return found

    paths = (await eventually(document, within_s=5, what="OpenAPI"))["paths"]
    for path in ("/api/deployments", "/api/devices", "/api/launches/{launch_id}", "/api/events"):
        assert path in paths
