"""The models view in a browser, in front of a real supervisor with real files."""

import asyncio
import shutil
from pathlib import Path
from typing import Final

import pytest
from browser_page import Watched, browser, open_page
from cluster import Cluster
from playwright.async_api import Browser, Page, expect

__all__ = ["browser"]

pytestmark = pytest.mark.browser

SOON_MS: Final = 60_000
"""A fit asks the engine, on a machine that may be busy."""


async def shows_folder(cluster: Cluster, browser: Browser, folder: Path) -> Watched:
    """The view, with the models of a folder and no others of this host."""
    home = cluster.folder / "home"
    home.mkdir()
    environment = {"HOME": str(home), "HF_HOME": str(home / "hf")}
    await cluster.supervisor(model_folders=folder, environment=environment)
    await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
    watched = await open_page(browser, f"{cluster.url}/#/models")
    await expect(watched.page.get_by_role("heading", name="Models", exact=True)).to_be_visible()
    return watched


def has_no_errors(watched: Watched) -> None:
    """Refusals are shown on the page; Chromium says each of them on its console, too."""
    assert [each for each in watched.errors if "Failed to load resource" not in each] == []


async def opens(page: Page, name: str) -> None:
    await page.get_by_role("button", name=f"Details of {name}", exact=True).click()


async def test_a_model_is_found_looked_into_set_and_removed(
    cluster: Cluster, browser: Browser, demo_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(demo_model, folder / "small.gguf")
    (folder / "cut.gguf").write_bytes(demo_model.read_bytes()[:-4096])
    watched = await shows_folder(cluster, browser, folder)
    page = watched.page
    row = page.get_by_role("listitem").filter(
        has=page.get_by_role("heading", name="small", exact=True)
    )
    await expect(row).to_contain_text("Fits with 8,192 tokens", timeout=SOON_MS)
    broken = page.get_by_role("region", name="Cannot be used")
    await expect(broken).to_contain_text("cut", timeout=SOON_MS)
    await expect(broken.get_by_role("button", name="Launch")).to_have_count(0)

    await opens(page, "small")
    await row.get_by_role("button", name="Look", exact=True).click()
    await expect(row).to_contain_text("one", timeout=SOON_MS)
    await row.get_by_label("Context, in tokens").fill("1024")
    await row.get_by_role("button", name="Keep these").click()
    await expect(row.get_by_role("button", name="Forget all")).to_be_visible()
    await row.get_by_role("button", name="Verify").click()
    await expect(row).to_contain_text("nothing tells what its bytes should be", timeout=SOON_MS)

    await row.get_by_role("button", name="Launch small").click()
    await expect(page.get_by_label("Context, in tokens")).to_have_value("1024", timeout=SOON_MS)
    await page.go_back()
    await row.get_by_role("button", name="Remove", exact=True).click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text(str(folder / "small.gguf"))
    await dialog.get_by_role("button", name="Remove", exact=True).click()
    await expect(row).to_have_count(0)
    assert not (folder / "small.gguf").exists()
    has_no_errors(watched)


async def test_a_model_that_appears_is_shown_by_itself(
    cluster: Cluster, browser: Browser, demo_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    watched = await shows_folder(cluster, browser, folder)
    empty = watched.page.get_by_text("No model was found on this host")
    await expect(empty).to_be_visible(timeout=SOON_MS)
    shutil.copy(demo_model, folder / "late.gguf")
    await expect(watched.page.get_by_role("heading", name="late")).to_be_visible(timeout=SOON_MS)
    has_no_errors(watched)
