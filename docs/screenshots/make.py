"""Makes the screenshots of this folder from a real supervisor with two real workers.

uv run python docs/screenshots/make.py
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from playwright.async_api import async_playwright

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests"))

from browser_page import FLAGS, find_chromium
from cluster import Cluster

from supervisor.demo_model import write_demo_model

HERE = Path(__file__).parent
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="screenshots-") as folder:
        cluster = Cluster(Path(folder))
        try:
            await cluster.supervisor()
            await cluster.agent("mac-mini")
            await cluster.agent("old-laptop")
            model = Path(folder) / "demo.gguf"
            write_demo_model(model)
            await cluster.launch(model, name="demo", ctx_tokens=2048)
            await cluster.settled("demo")
            await cluster.http.post(
                "/v1/completions", json={"model": "demo", "prompt": "Hi", "max_tokens": 64}
            )
            await asyncio.sleep(6)  # until the next reading of the engine's speed
            await shoot(cluster.url)
        finally:
            await cluster.close()


async def shoot(url: str) -> None:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        for size, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                page = await browser.new_page(
                    viewport={"width": width, "height": height},
                    color_scheme="dark" if scheme == "dark" else "light",
                )
                await page.goto(url)
                await page.locator("#deployment-demo").wait_for()
                await page.locator("#deployment-demo summary").first.click()
                await page.wait_for_timeout(500)
                await page.screenshot(path=HERE / f"{size}-{scheme}.png", full_page=True)
        await browser.close()


asyncio.run(main())
