"""The page in a real browser against a real supervisor with the real engine."""

import asyncio
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psutil
import pytest
from browser_page import Watched, browser, open_page
from cluster import Cluster, Program
from playwright.async_api import Browser, Locator, Page, expect

from agents.contract import EngineFacts
from supervisor.demo_model import SENTENCE, write_demo_model

__all__ = ["browser"]

pytestmark = pytest.mark.browser

LOAD_MS: Final = 40_000
SOON_MS: Final = 20_000
DESKTOP: Final = (1280, 900)
PHONE: Final = (390, 844)
NAME: Final = "test"

# -- a person at the page --------------------------------------------------------------------------


async def goes_to(page: Page, view: str) -> None:
    """By the navigation."""
    await page.get_by_role("navigation", name="Views").get_by_role("link", name=view).click()
    await expect(page.get_by_role("heading", level=2)).to_be_focused()


def card(page: Page) -> Locator:
    """The deployment of the test, on its page."""
    return page.get_by_role("article", name=NAME, exact=True)


async def fills_the_form(page: Page, model: Path, order: str, split: str) -> None:
    """As who knows exactly what he wants: the planner would put so small a model on one device."""
    await page.get_by_role("button", name="Path", exact=True).click()
    await page.get_by_label("Path of a .gguf file").fill(str(model))
    await page.get_by_label("Path of a .gguf file").press("Enter")
    await page.get_by_text("More", exact=True).click()
    await page.get_by_label("Name", exact=True).fill(NAME)
    await page.get_by_label("Devices in order").fill(order)
    await page.get_by_label("Layers on each").fill(split)
    await page.get_by_label("Context, in tokens").fill("512")


async def launches(page: Page, model: Path, order: str = "one, two", split: str = "4, 5") -> None:
    """Through the form, until the page of the deployment is there."""
    await goes_to(page, "Launch")
    await fills_the_form(page, model, order, split)
    button = page.get_by_role("button", name="Launch", exact=True)
    await expect(button).to_be_enabled(timeout=SOON_MS)
    await button.click()
    await expect(card(page)).to_be_visible(timeout=SOON_MS)


async def has_state(page: Page, state: str, within_ms: int = LOAD_MS) -> None:
    await expect(card(page).locator(".state").first).to_contain_text(state, timeout=within_ms)


async def is_shown_again(watched: Watched, state: str) -> None:
    """After a reload; the address leads back to the same view."""
    await watched.page.reload()
    await has_state(watched.page, state, SOON_MS)


def errors_of(watched: Watched) -> list[str]:
    """Without what Chromium itself says of each answer that is a refusal, which the page shows."""
    return [error for error in watched.errors if "Failed to load resource" not in error]


async def is_clean(watched: Watched, url: str) -> None:
    """Nothing on the console, no request elsewhere, nothing wider than the screen."""
    overflow = await watched.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0, f"the page is {overflow} px wider than the screen"
    assert errors_of(watched) == []
    assert all(request.startswith((url, "data:")) for request in watched.requests)


def pull_the_plug(program: Program) -> None:
    """The agent and its rpc-server end at once and say nothing."""
    os.killpg(program.process.pid, signal.SIGKILL)


@asynccontextmanager
async def pasted(line: str, folder: Path, engine: EngineFacts) -> AsyncIterator[None]:
    """A shell on a device, into which somebody pasted the page's line."""
    folder.mkdir()
    own = {"HOME": str(folder), "XDG_DATA_HOME": str(folder / "data")}
    env = {**os.environ, **own, "LLAMA_CPP_BIN": engine.folder}
    process = subprocess.Popen(["sh", "-c", line], cwd=folder, env=env, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        await asyncio.to_thread(process.wait, 15)


# -- from nothing to an answer ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_from_nothing_to_an_answer(
    cluster: Cluster,
    browser: Browser,
    demo_model: Path,
    engine: EngineFacts,
    size: tuple[int, int],
    tmp_path: Path,
) -> None:
    """A device joins by the page's own line, a model is launched with the button, and it chats."""
    await cluster.supervisor()
    watched = await open_page(browser, cluster.url, width=size[0], height=size[1])
    page = watched.page
    await page.get_by_role("button", name="Add a device").click()
    dialog = page.get_by_role("dialog", name="Add a device")
    await dialog.get_by_role("tab", name="Linux").click()
    await expect(dialog.get_by_role("img", name="QR code")).to_be_visible()
    line = await dialog.locator("#join-command").inner_text()
    await expect(dialog.get_by_role("status")).to_contain_text("Waiting for the device")
    async with pasted(f"{line} -- --name newcomer", tmp_path / "newcomer", engine):
        arrived = dialog.get_by_role("status")
        await expect(arrived).to_contain_text("newcomer has joined", timeout=SOON_MS)
        await expect(arrived).to_contain_text("ready", timeout=SOON_MS)
        await dialog.get_by_role("button", name="Close").click()
        await expect(page.get_by_role("article", name="newcomer")).to_contain_text("idle")

        await launches(page, demo_model, "newcomer", "")
        await has_state(page, "ready")
        await card(page).get_by_text("Exact commands").click()
        await expect(card(page)).to_contain_text("--tensor-split")
        await expect(card(page)).to_contain_text("ggml-rpc-server")
        await goes_to(page, "Chat")
        await page.get_by_role("textbox", name="Message").fill("What happened?")
        await page.get_by_role("button", name="Send").click()
        talk = page.get_by_role("region", name="Conversation")
        await expect(talk).to_contain_text(SENTENCE.split(".")[0], timeout=SOON_MS)
        await expect(talk).to_contain_text("tokens/s", timeout=SOON_MS)
        await goes_to(page, "Devices")
        await expect(page.get_by_role("article", name="newcomer")).to_contain_text(
            f"serving {NAME}"
        )
        await goes_to(page, "Deployments")
        await card(page).get_by_role("button", name="Stop", exact=True).click()
        await has_state(page, "stopped")
    await is_clean(watched, cluster.url)


async def test_the_plan_follows_what_is_wanted(
    pair: Cluster, browser: Browser, demo_model: Path
) -> None:
    """More context needs more memory at once, and a device that is not wanted holds nothing."""
    watched = await open_page(browser, f"{pair.url}/#/launch")
    page = watched.page
    await fills_the_form(page, demo_model, "", "")
    answer = page.locator(".launch-answer")
    await expect(answer).to_contain_text("tokens/s", timeout=SOON_MS)
    before = await answer.inner_text()
    slider = page.get_by_role("slider", name="Context")
    await slider.focus()
    await slider.press("End")
    await expect(page.get_by_label("Context, in tokens")).not_to_have_value("512")
    await expect(answer).not_to_have_text(before, timeout=SOON_MS)
    await page.get_by_role("checkbox", name="one").uncheck()
    await expect(answer).to_contain_text("two", timeout=SOON_MS)
    await page.get_by_role("checkbox", name="two").uncheck()
    await expect(page.get_by_role("button", name="Launch", exact=True)).to_be_disabled()
    await expect(answer.get_by_role("alert")).to_be_visible(timeout=SOON_MS)
    await answer.get_by_role("button", name="Use all devices").click()
    await expect(page.get_by_role("button", name="Launch", exact=True)).to_be_enabled(
        timeout=SOON_MS
    )
    assert errors_of(watched) == []


async def test_a_refused_launch_shows_its_one_sentence(pair: Cluster, browser: Browser) -> None:
    watched = await open_page(browser, f"{pair.url}/#/launch")
    await fills_the_form(watched.page, Path("/nowhere/x.gguf"), "", "")
    alert = watched.page.get_by_role("alert")
    await expect(alert).to_contain_text("/nowhere/x.gguf", timeout=SOON_MS)
    await expect(watched.page.get_by_role("button", name="Launch", exact=True)).to_be_disabled()


# -- while it loads, and when it breaks ------------------------------------------------------------

WATCH_BARS: Final = """() => {
  window.seen = new Set();
  window.watching = setInterval(() => {
    for (const bar of document.querySelectorAll("main progress")) seen.add(bar.value);
  }, 10);
}"""


async def test_the_bars_move_while_a_model_loads(
    pair: Cluster, browser: Browser, tmp_path: Path
) -> None:
    model = tmp_path / "large.gguf"
    write_demo_model(model, layers=16, embedding=1024, feed_forward=4096, recite=False)
    watched = await open_page(browser, pair.url)
    await watched.page.evaluate(WATCH_BARS)
    await launches(watched.page, model, split="8, 9")
    await has_state(watched.page, "starting", SOON_MS)
    await expect(
        card(watched.page).get_by_role("progressbar", name="Weights on one")
    ).to_be_visible()
    await is_shown_again(watched, "")
    await watched.page.evaluate(WATCH_BARS)
    await has_state(watched.page, "ready")
    values = await watched.page.evaluate("[...window.seen]")
    assert len([value for value in values if 0 < value < 100]) >= 2, values
    await is_clean(watched, pair.url)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_a_pulled_plug_is_named_and_mended_before_ones_eyes(
    cluster: Cluster, browser: Browser, demo_model: Path, size: tuple[int, int]
) -> None:
    await cluster.supervisor(heartbeat_s=0.5, late_after_s=1.5, stale_after_s=3, retry_first_s=4)
    one, two = await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
    watched = await open_page(browser, cluster.url, width=size[0], height=size[1])
    page = watched.page
    await launches(page, demo_model)
    await has_state(page, "ready")
    await is_shown_again(watched, "ready")
    pull_the_plug(two)
    story = card(page).get_by_role("region", name="What happened")
    await expect(story).to_contain_text("two", timeout=SOON_MS)
    await expect(story).to_contain_text("What happens now")
    await expect(story).to_contain_text("What to do")
    await expect(story.locator("pre").first).not_to_be_empty()
    await page.reload()
    await has_state(page, "ready")
    await expect(card(page).get_by_role("region", name="Plan")).not_to_contain_text("two")
    await goes_to(page, "Devices")
    await expect(page.get_by_role("article", name="two")).to_contain_text("lost", timeout=SOON_MS)
    # Nobody is left: it says so, counts down, and comes back by itself when a device does.
    pull_the_plug(one)
    await goes_to(page, "Deployments")
    await expect(story).to_contain_text("one", timeout=SOON_MS)
    await expect(card(page).locator(".state").first).to_contain_text(
        re.compile("backoff|failed|pending"), timeout=SOON_MS
    )
    await page.reload()
    await expect(story).to_be_visible(timeout=SOON_MS)
    await is_clean(watched, cluster.url)


async def test_what_failed_is_told_and_can_be_edited_and_removed(
    cluster: Cluster, browser: Browser, demo_model: Path
) -> None:
    await cluster.supervisor(retry_limit=1, retry_first_s=0.2)
    await cluster.agent("one")
    await cluster.launch(demo_model)
    await cluster.settled()
    watched = await open_page(browser, f"{cluster.url}/#/deployments/{NAME}")
    page = watched.page
    await card(page).get_by_role("button", name="Stop", exact=True).click()
    await has_state(page, "stopped")
    await is_shown_again(watched, "stopped")
    await card(page).get_by_role("link", name="Edit").click()
    await page.get_by_label("Context, in tokens").fill("1024")
    changes = page.get_by_role("region", name="Changes")
    await expect(changes).to_contain_text("512")
    await expect(changes).to_contain_text("1024")
    button = page.get_by_role("button", name="Relaunch with these changes")
    await expect(button).to_be_enabled(timeout=SOON_MS)
    await button.click()
    await has_state(page, "ready")
    await expect(card(page)).to_contain_text("context 1,024 tokens")

    await goes_to(page, "Records")
    boxes = page.get_by_role("checkbox", name=re.compile("Compare launch"))
    await expect(boxes).to_have_count(2, timeout=SOON_MS)
    for box in await boxes.all():
        await box.check()
    await page.get_by_role("link", name="Compare").click()
    await expect(page.get_by_role("main")).to_contain_text("1024", timeout=SOON_MS)
    await expect(page.get_by_role("main")).to_contain_text("512")

    await goes_to(page, "Deployments")
    await card(page).get_by_role("button", name="Stop", exact=True).click()
    await has_state(page, "stopped")
    await card(page).get_by_role("button", name="Remove").click()
    await page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    await expect(page.get_by_role("main")).to_contain_text("Nothing is deployed", timeout=SOON_MS)
    await is_clean(watched, cluster.url)


async def test_logs_of_every_process_come_live_and_can_be_filtered(
    pair: Cluster, browser: Browser, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    await pair.settled()
    watched = await open_page(browser, f"{pair.url}/#/deployments/{NAME}")
    page = watched.page
    await card(page).get_by_role("heading", name="Logs").click()
    log = page.get_by_role("region", name="Lines of the logs")
    await expect(log).to_contain_text("update_slots", timeout=SOON_MS)
    await page.get_by_role("button", name="llama-server", exact=True).click()
    for worker in ("one", "two"):
        await expect(log).to_contain_text(worker, timeout=SOON_MS)
    await expect(log).not_to_contain_text("llama-server")
    await page.get_by_role("button", name="llama-server", exact=True).click()
    await page.get_by_role("searchbox", name="Only lines").fill("listening on http")
    await expect(log).to_contain_text("listening on http", timeout=SOON_MS)
    await expect(log.locator("p")).to_have_count(1)
    await pair.complete(tokens=4)
    await page.get_by_role("searchbox", name="Only lines").fill("print_timing")
    await expect(log).to_contain_text("eval time", timeout=SOON_MS)
    await is_clean(watched, pair.url)


# -- devices ---------------------------------------------------------------------------------------


async def test_a_device_is_renamed_excluded_and_removed(pair: Cluster, browser: Browser) -> None:
    watched = await open_page(browser, pair.url)
    page = watched.page

    async def opened(name: str) -> Locator:
        device = page.get_by_role("article", name=name)
        await device.get_by_text("Details").click()
        return device

    device = await opened("two")
    await device.get_by_role("button", name="Exclude").click()
    await expect(device).to_contain_text("no plan uses it", timeout=SOON_MS)
    assert [d["excluded"] for d in (await pair.http.get("/api/devices")).json()].count(True) == 1
    await device.get_by_role("button", name="Include again").click()
    await expect(device).not_to_contain_text("no plan uses it", timeout=SOON_MS)
    await device.get_by_role("button", name="Rename").click()
    await device.get_by_label("New name").fill("second")
    await device.get_by_role("button", name="Save").click()
    device = page.get_by_role("article", name="second")
    await expect(device).to_be_visible(timeout=SOON_MS)
    await device.get_by_role("button", name="Remove").click()
    await page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    await expect(device).to_have_count(0, timeout=SOON_MS)
    await is_clean(watched, pair.url)


async def test_a_device_is_measured(pair: Cluster, browser: Browser) -> None:
    watched = await open_page(browser, pair.url)
    device = watched.page.get_by_role("article", name="one")
    await device.get_by_text("Details").click()
    await expect(device).to_contain_text("never")
    await device.get_by_role("button", name="Measure").click()
    await expect(device.get_by_role("progressbar")).to_be_visible(timeout=SOON_MS)
    await expect(device).not_to_contain_text("never", timeout=120_000)
    await expect(device).to_contain_text("Reads weights")


async def test_the_doctor_examines_one_device_and_everything(
    pair: Cluster, browser: Browser
) -> None:
    watched = await open_page(browser, pair.url)
    page = watched.page
    device = page.get_by_role("article", name="one")
    await device.get_by_text("Details").click()
    await device.get_by_role("button", name="Check this device").click()
    found = device.get_by_role("region", name="Found on one")
    await expect(found).to_contain_text("checks are ok", timeout=LOAD_MS)
    await expect(found).to_contain_text("Engine")
    await found.get_by_role("button", name="Close").click()
    await expect(found).to_have_count(0)

    await page.get_by_role("button", name="Check everything").click()
    everything = page.get_by_role("region", name="What was found")
    await expect(everything).to_contain_text("3 checked", timeout=LOAD_MS)
    for name in ("main host", "one", "two"):
        await expect(everything).to_contain_text(name)
    await is_clean(watched, pair.url)


async def test_engines_are_told_and_an_unknown_build_is_refused(
    pair: Cluster, browser: Browser
) -> None:
    watched = await open_page(browser, pair.url)
    page = watched.page
    await goes_to(page, "Settings")
    engines = page.get_by_role("region", name="Engines")
    await expect(engines).to_contain_text(re.compile("in use|None is kept yet"), timeout=SOON_MS)
    await expect(engines.get_by_role("alert")).to_have_count(0)
    refused = await pair.http.post("/api/engine-change", json={"build": "b1"})
    assert refused.status_code >= 400
    await is_clean(watched, pair.url)


async def test_all_is_reached_with_the_keyboard_alone(cluster: Cluster, browser: Browser) -> None:
    await cluster.supervisor()
    watched = await open_page(browser, cluster.url)
    page, keys = watched.page, watched.page.keyboard
    button = page.get_by_role("button", name="Add a device")
    await expect(button).to_be_visible()
    for _ in range(20):
        await keys.press("Tab")
        if await button.evaluate("element => element === document.activeElement"):
            break
    await expect(button).to_be_focused()
    await keys.press("Enter")
    dialog = page.get_by_role("dialog", name="Add a device")
    await expect(dialog).to_be_visible()
    tabs = dialog.get_by_role("tab")
    await tabs.first.focus()
    for name in ("macOS", "Linux", "Termux"):
        await keys.press("ArrowRight")
        await expect(dialog.get_by_role("tab", name=name)).to_be_focused()
        await expect(dialog.get_by_role("tab", name=name)).to_have_attribute(
            "aria-selected", "true"
        )
    await keys.press("Escape")
    await expect(dialog).to_have_count(0)
    await expect(button).to_be_focused()
    link = page.get_by_role("navigation", name="Views").get_by_role("link", name="Launch")
    await link.focus()
    await keys.press("Enter")
    await expect(page.get_by_role("heading", name="Launch", level=2)).to_be_focused()
    await expect(page).to_have_title(re.compile("Launch"))


# -- keys and other machines -----------------------------------------------------------------------


def own_address() -> str:
    """An address of this host that is none of loopback."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family.name == "AF_INET" and not address.address.startswith("127."):
                return str(address.address)
    pytest.skip("needs a network address beside loopback; none is configured, not permitted here")


async def test_from_elsewhere_one_signs_in_with_a_key(cluster: Cluster, browser: Browser) -> None:
    address = own_address()
    await cluster.supervisor(environment={"SUPERVISOR_HOST": address})
    await cluster.agent("one")
    port = cluster.url.rpartition(":")[2]
    url = f"http://{address}:{port}"
    watched = await open_page(browser, url)
    page = watched.page
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=SOON_MS)
    await page.get_by_label("Key").fill("sk-wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("not the key")
    key = (cluster.folder / "supervisor" / "api.key").read_text().strip()
    await page.get_by_label("Key").fill(key)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("article", name="one")).to_be_visible(timeout=SOON_MS)
    (cookie,) = await page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert key not in cookie["value"]
    await page.reload()
    await expect(page.get_by_role("article", name="one")).to_be_visible(timeout=SOON_MS)

    await goes_to(page, "Settings")
    await page.get_by_role("button", name="Make a key").click()
    await page.get_by_label("Name").fill("phone")
    await page.get_by_role("button", name=re.compile("^Make")).last.click()
    made = page.get_by_text(re.compile(r"^sk-\S{20,}$"))
    await expect(made).to_be_visible(timeout=SOON_MS)
    text = await made.inner_text()
    headers = {"Authorization": f"Bearer {text}"}
    assert (await cluster.http.get(f"{url}/v1/models", headers=headers)).status_code == 200
    await page.reload()
    await expect(page.get_by_role("main")).to_contain_text("phone", timeout=SOON_MS)
    await expect(page.get_by_role("main")).not_to_contain_text(text)

    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=SOON_MS)
    assert await page.context.cookies() == []
    assert errors_of(watched) == []


# -- the connection --------------------------------------------------------------------------------


async def test_a_lost_supervisor_is_said_and_found_again(
    cluster: Cluster, browser: Browser
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        join_port = probe.getsockname()[1]  # its agents look for it there
    first = await cluster.supervisor(join_port=join_port)
    port = int(cluster.url.rpartition(":")[2])
    await cluster.agent("one")
    watched = await open_page(browser, cluster.url)
    page = watched.page
    await expect(page.get_by_role("article", name="one")).to_be_visible()
    first.stop()
    await expect(page.get_by_text("Disconnected, last update")).to_be_visible(timeout=SOON_MS)
    await expect(page.get_by_role("article", name="one")).to_be_visible()
    await cluster.supervisor(port=port, join_port=join_port)
    await expect(page.get_by_text("Disconnected, last update")).to_have_count(0, timeout=SOON_MS)
    await expect(page.get_by_role("article", name="one")).to_contain_text("ready", timeout=SOON_MS)


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
            assert asset.headers["content-encoding"] == "gzip"


async def test_openapi_describes_every_route(cluster: Cluster) -> None:
    await cluster.supervisor()
    paths = (await cluster.http.get("/api/openapi.json")).json()["paths"]
    for path in ("/api/deployments", "/api/devices", "/api/launches/{launch_id}", "/api/events"):
        assert path in paths
