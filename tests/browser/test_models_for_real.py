"""Models on the page, from the hub to a launch: a real supervisor, agents, engine and files.

All tests share one cluster, and go on where the one before ended. Only the hub is a stand-in, so
slow that what comes can be watched.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
from browser_page import Watched, chromium, open_page
from cluster import Cluster
from hub_stand_in import hub_stand_in
from playwright.async_api import Browser, Locator, Page, expect
from suggest_world import named, write_repository

from supervisor.demo_model import write_demo_model

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(170),
    pytest.mark.asyncio(loop_scope="module"),
]

REPO: Final = "owner/Story-GGUF"
LONG_MS: Final = 90_000
DRIP: Final = ("--drip-s", "0.02")
"""Some three megabytes a second."""
PHONE: Final = (360, 740)


@dataclass
class Home:
    """What a person sits in front of."""

    cluster: Cluster
    browser: Browser
    hub: Path
    """The hub's cache on this host."""

    async def at(self, address: str, *, width: int = 1280, height: int = 900) -> Watched:
        url = f"{self.cluster.url}/#/{address}"
        watched = await open_page(self.browser, url, width=width, height=height)
        await expect(watched.page.get_by_role("heading", name="Models", exact=True)).to_be_visible()
        return watched

    async def get(self, path: str) -> Any:
        return (await self.cluster.http.get(path)).json()


def write_hub(folder: Path) -> None:
    """A repository with two that fit and one that does not."""
    write_repository(folder / REPO, named("dense 70B"), ("F16",))
    for part in (folder / REPO).iterdir():
        part.rename(part.with_name(re.sub(r"^.*(?=-F16)", "Story", part.name)))
    write_demo_model(folder / REPO / "Story-Q4_K_M.gguf", layers=2)
    write_demo_model(folder / REPO / "Story-Q8_0.gguf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("home")
    (made / "models").mkdir()
    write_demo_model(made / "models" / "tale.gguf", seed=7)
    (made / "models" / "cut.gguf").write_bytes((made / "models" / "tale.gguf").read_bytes()[:-4096])
    write_hub(made / "hub")
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def home(folder: Path) -> AsyncIterator[Home]:
    cluster = Cluster(folder)
    environment = {
        "HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_TOKEN": "", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    with hub_stand_in(folder / "hub", *DRIP) as made:
        try:
            await cluster.supervisor(
                environment={**environment, "HF_ENDPOINT": made.endpoint},
                model_folders=folder / "models",
                spread_limit_mib_s=4,
            )
            await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
            async with chromium() as browser:
                yield Home(cluster, browser, folder / "hf" / "hub")
        finally:
            await cluster.close()


def item(within: Page | Locator, name: str) -> Locator:
    """The row of a model, a pull or a suggestion."""
    page = within if isinstance(within, Page) else within.page
    heading = page.get_by_role("heading", name=re.compile(rf"^{re.escape(name)}\b"))
    return within.get_by_role("listitem").filter(has=heading)


def button(row: Locator, name: str) -> Locator:
    return row.get_by_role("button", name=re.compile(rf"^{re.escape(name)}\b"))


@contextmanager
def is_calm(watched: Watched) -> Iterator[Page]:
    """No error but what Chromium says of each answer that is a refusal, which the page shows."""
    yield watched.page
    assert [each for each in watched.errors if "Failed to load resource" not in each] == []


async def part_of(bar: Locator) -> float:
    return float(await bar.get_attribute("value") or 0)


async def test_what_fits_best_is_got_and_can_be_paused_on_the_way(home: Home) -> None:
    other = await home.at("models", width=PHONE[0], height=PHONE[1])
    with is_calm(await home.at("models")) as page, is_calm(other) as phone:
        await page.get_by_role("link", name="Get one").click()
        await page.get_by_label("Search the hub").fill("story")
        await page.get_by_role("button", name=REPO).click()
        best, small, huge = (item(page, name) for name in ("Q8_0", "Q4_K_M", "F16"))
        await expect(best).to_contain_text("recommended", timeout=LONG_MS)
        await expect(best).to_contain_text("Fits with 8,192 tokens")
        await expect(small).to_contain_text("Fits with 8,192 tokens")
        await expect(huge).to_contain_text("Does not fit with 8,192 tokens")
        await expect(button(huge, "Launch")).to_have_count(0)

        await button(best, "Get it").click()
        pull = item(page.get_by_role("region", name="Pulls"), "Story Q8_0")
        bar = pull.get_by_role("progressbar", name="Story Q8_0")
        await expect(bar).to_have_attribute("value", re.compile("[1-9]"), timeout=LONG_MS)
        await expect(item(phone, "Story Q8_0")).to_contain_text("fetching")
        await button(item(phone, "Story Q8_0"), "Pause").click()
        await expect(pull).to_contain_text("paused")
        held = await part_of(bar)
        assert 0 < held < 100
        await button(pull, "Resume").click()
        await expect(pull).to_contain_text("fetching")
        assert await part_of(bar) >= held - 1, "what was there is there"
        await expect(pull).to_contain_text("done", timeout=LONG_MS)
        await expect(best).to_contain_text("on this host already")
        await expect(button(best, "Get it")).to_have_count(0)

        here = phone.get_by_role("region", name="On this host")
        await expect(item(here, "Story-Q8_0")).to_contain_text("Fits with", timeout=LONG_MS)
        await button(item(phone, "Story Q8_0"), "Dismiss").click()
        await expect(page.get_by_role("region", name="Pulls")).to_have_count(0)
    assert "signed=" not in home.cluster.programs[0].said(), "who has such an address has the file"


async def test_what_came_is_launched_from_the_list_and_kept_while_it_runs(home: Home) -> None:
    with is_calm(await home.at("models")) as page:
        row = item(page.get_by_role("region", name="On this host"), "Story-Q8_0")
        await button(row, "Launch").click()
        launch = page.get_by_role("button", name="Launch", exact=True)
        await expect(launch).to_be_enabled(timeout=LONG_MS)
        await launch.click()
        await expect(page.get_by_role("article")).to_contain_text("ready", timeout=LONG_MS)

        await page.goto(f"{home.cluster.url}/#/models")
        await expect(row).to_contain_text("Story-Q8_0 ready")
        await button(row, "Details").click()
        await row.get_by_role("button", name="Remove").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog.get_by_role("alert")).to_contain_text("in use by deployment")
        await expect(dialog.get_by_role("button", name="Remove")).to_have_count(0)
        await page.keyboard.press("Escape")

        (deployment,) = await home.get("/api/deployments")
        stopped = await home.cluster.http.post(f"/api/deployments/{deployment['id']}/stop")
        assert stopped.is_success, stopped.text
        await home.cluster.settled_as("stopped", name=deployment["id"])
        await row.get_by_role("button", name="Remove").click()
        await expect(dialog).to_contain_text("cannot be started without it")
        await dialog.get_by_role("button", name="Remove").click()
        await expect(row).to_have_count(0, timeout=LONG_MS)
        assert [path for path in home.hub.rglob("*") if path.stat().st_size > 1 << 20] == []


async def test_settings_of_a_model_are_taken_by_a_launch(home: Home) -> None:
    with is_calm(await home.at("models")) as page:
        row = item(page, "tale")
        await button(row, "Details").click()
        await row.get_by_label("Context, in tokens").fill("1024")
        await row.get_by_label("Slots").fill("2")
        await row.get_by_label("KV cache").select_option("q8_0")
        await row.get_by_role("button", name="Keep these").click()
        await expect(row.get_by_role("button", name="Forget all")).to_be_visible()
        made = await home.cluster.http.post(
            "/api/deployments", json={"model": "tale", "name": "kept"}
        )
        assert made.status_code == 201, made.text
        spec = made.json()["spec"]
        assert (spec["ctx_tokens"], spec["slots"], spec["kv_type"]) == (1024, 2, "q8_0")
        assert (await home.cluster.settled("kept"))["state"] == "ready"
        await home.cluster.http.post("/api/deployments/kept/stop")
        await home.cluster.settled_as("stopped", name="kept")

        await button(row, "Launch").click()
        for label, value in (
            ("Context, in tokens", "1024"),
            ("Slots", "2"),
            ("KV cache", "q8_0"),
        ):
            await expect(page.get_by_label(label, exact=True)).to_have_value(value)
        await page.go_back()
        await row.get_by_role("button", name="Forget all").click()
        await expect(row.get_by_role("button", name="Forget all")).to_have_count(0)


async def test_weights_are_sent_ahead_while_one_watches(home: Home) -> None:
    with is_calm(await home.at("models", width=PHONE[0], height=PHONE[1])) as page:
        row = item(page, "tale")
        await button(row, "Details").click()
        await row.get_by_role("button", name="Look", exact=True).click()
        bar = row.get_by_role("progressbar", name=re.compile("^Weights on"))
        await expect(bar.first).to_be_visible(timeout=LONG_MS)
        await row.get_by_role("button", name="Send ahead").click()
        await expect(row).to_contain_text(re.compile(r"MiB/s .* left"), timeout=LONG_MS)
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert await page.evaluate(wide) <= 0
        await expect(row).to_contain_text("The weights are there", timeout=LONG_MS)
        await expect(row).to_contain_text("all that it needs")
        held = await home.get("/api/models/holdings?model=tale")
        assert sum(each["needed_held_bytes"] for each in held) > 0
        assert all(each["needed_held_bytes"] == each["needed_bytes"] for each in held)


async def test_a_broken_file_is_shown_with_its_reason_and_remedy(home: Home) -> None:
    with is_calm(await home.at("models")) as page:
        row = item(page.get_by_role("region", name="Cannot be used"), "cut")
        await expect(row).to_contain_text(re.compile(r"truncated.*Download it again", re.DOTALL))
        await expect(button(row, "Launch")).to_have_count(0)
        await button(row, "Details").click()
        await row.get_by_role("button", name="Remove").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_role("button", name="Remove").click()
        await expect(row).to_have_count(0, timeout=LONG_MS)
