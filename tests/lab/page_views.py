"""Every view of the page in every state that matters, for pictures and accessibility tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Literal

from playwright.async_api import Browser, ConsoleMessage, Page

from lab.page_home import LARGE, TOO_LARGE
from lab.page_routes import KEY
from lab.page_scenes import NAME
from lab.page_steps import (
    Step,
    asks_to_remove,
    clicks,
    fits_are_known,
    is_suggesting,
    opens_model,
    searches_models,
    sends_ahead,
    settled,
)
from lab.page_world import FROZEN, PageServer

Theme = Literal["light", "dark"]

THEMES: Final[tuple[Theme, ...]] = ("light", "dark")
SIZES: Final = {"desktop": (1280, 900), "phone": (390, 844)}
LOST_FOR: Final = timedelta(seconds=47)
FIRST_TOKEN: Final = timedelta(seconds=1.38)


@dataclass(frozen=True)
class View:
    """One picture: a scene, an address, and what is done there first."""

    name: str
    scene: str
    route: str
    step: Step | None = None
    whole: bool = False
    """A picture of all of it says more than one of the screen."""
    refusals: frozenset[int] = frozenset()
    """Statuses that are meant to come; the browser reports each as an error."""


# -- steps -------------------------------------------------------------------------------------


def picks(model: str) -> Step:
    """Pick a model of the main host, and wait for its plan or refusal."""

    async def step(page: Page, server: PageServer) -> None:
        await page.locator(f'[data-action="launch/pick"][data-model="{model}"]').first.click()
        await settled(page)
        await _is_planned(page, server)

    return step


async def _is_planned(page: Page, _: PageServer) -> None:
    """The plan is there, or why there is none; the page waits a moment before it asks."""
    await page.get_by_text("Planning…").first.wait_for(state="detached")
    await settled(page)


async def _searches(page: Page, _: PageServer) -> None:
    await page.locator('[data-action="launch/picker"][data-picker="hub"]').first.click()
    await page.locator('[data-input="launch/hub"]').first.fill("Qwen3")
    await page.wait_for_timeout(700)
    await settled(page)


async def _opens_commands(page: Page, _: PageServer) -> None:
    commands = page.locator('[data-toggle="deployments/commands"] > summary').first
    await commands.click()
    await settled(page)
    await commands.evaluate("summary => summary.scrollIntoView()")


async def _opens_logs(page: Page, _: PageServer) -> None:
    logs = page.locator('[data-toggle="deployments/logs"] > summary').first
    await logs.click()
    await page.locator(".log > p").first.wait_for()
    await settled(page)
    await logs.evaluate("summary => summary.scrollIntoView()")


async def _chats(page: Page, server: PageServer) -> None:
    server.world.answer_pace_s = 0.0
    server.world.first_token.clear()
    await page.locator("main textarea").first.fill("What is a tensor split?")
    async with page.expect_request("**/v1/chat/completions"):
        await page.locator('[data-submit="chat/send"] .primary').click()
    await page.clock.set_fixed_time(FROZEN + FIRST_TOKEN)
    server.world.first_token.set()
    await page.get_by_text("to repeat it by hand").first.wait_for()
    await settled(page)


async def _joins(page: Page, server: PageServer) -> None:
    """A device arrives while the dialog with the join line is open."""
    newcomer = server.world.device("tablet")
    assert newcomer is not None
    server.world.remove_device("tablet")
    await clicks('[data-action="devices/add"]')(page, server)
    await page.locator("dialog img, dialog svg").first.wait_for()
    server.world.add_device({**newcomer, "silent_s": 0.0})
    await settled(page)


async def _opens_networks(page: Page, server: PageServer) -> None:
    opens = '[data-toggle="devices/open"][data-id="a-mac-mini"] > summary'
    await clicks(opens, ".wires summary")(page, server)


async def _is_checking(page: Page, server: PageServer) -> None:
    """The doctor has been at work for a while."""
    server.world.goes_on.clear()
    await clicks('.view-head [data-action="devices/check"]')(page, server)
    await page.clock.set_fixed_time(FROZEN + timedelta(seconds=8))
    await page.get_by_text("8 s so far").wait_for()
    await settled(page)


async def _installs(page: Page, server: PageServer) -> None:
    """A release is half fetched."""
    server.world.goes_on.clear()
    await clicks('button[data-action="settings/install-engine"]')(page, server)
    await page.clock.set_fixed_time(FROZEN + timedelta(seconds=14))
    await page.get_by_text("14 s so far").wait_for()
    await _shows_engines(page)


async def _changes_engine(page: Page, server: PageServer) -> None:
    """Some devices have the new build."""
    server.world.goes_on.clear()
    await clicks('[data-action="settings/ask-use"]', '[data-action="settings/use-engine"]')(
        page, server
    )
    await page.clock.set_fixed_time(FROZEN + timedelta(seconds=21))
    await page.get_by_text("21 s so far").wait_for()
    await _shows_engines(page)


async def _fails_to_change(page: Page, server: PageServer) -> None:
    server.world.change_fails = True
    await clicks('[data-action="settings/ask-use"]', '[data-action="settings/use-engine"]')(
        page, server
    )
    await page.get_by_text("b10603 failed").wait_for()
    await _shows_engines(page)


async def _shows_engines(page: Page) -> None:
    await settled(page)
    await page.locator("#engines-title").evaluate("title => title.scrollIntoView()")


async def _makes_a_key(page: Page, server: PageServer) -> None:
    await clicks('[data-action="settings/dialog"][data-dialog="new"]')(page, server)
    await page.locator("#key-name").fill("kitchen-tablet")
    await page.keyboard.press("Enter")
    await page.locator("#key-text").wait_for()
    await settled(page)


async def _signs_in_wrongly(page: Page, _: PageServer) -> None:
    await page.locator("#key").fill(f"not {KEY}")
    await page.keyboard.press("Enter")
    await page.locator("[role=alert]").first.wait_for()
    await settled(page)


async def _loses_it(page: Page, server: PageServer) -> None:
    """The supervisor goes away; it comes back when another view is shown."""
    await page.route("**/api/**", lambda route: route.abort())
    server.world.close()
    await page.clock.set_fixed_time(FROZEN + LOST_FOR)
    await page.locator(".banner", has_text=f"{LOST_FOR.seconds} s").wait_for()
    await settled(page)


# -- the list ----------------------------------------------------------------------------------

ONE: Final = f"#/deployments/{NAME}"
LIST: Final = "#/deployments"
MODELS: Final = "#/models"
REFUSED: Final = frozenset({401})

VIEWS: Final = (
    View("devices-empty", "empty", "#/devices"),
    View("devices", "devices", "#/devices", whole=True),
    View("devices-states", "device-states", "#/devices", whole=True),
    View("devices-busy", "ready", "#/devices"),
    View("devices-loading", "loading", "#/devices"),
    View("devices-many", "many", "#/devices"),
    View("devices-details", "device-states", "#/devices",
         clicks('[data-toggle="devices/open"][data-id="a-old-phone"] > summary')),
    View("devices-care", "care", "#/devices", whole=True),
    View("devices-wires", "care", "#/devices", _opens_networks, whole=True),
    View("devices-checking", "care", "#/devices", _is_checking),
    View("devices-checked", "care", "#/devices", clicks('.view-head [data-action="devices/check"]'),
         whole=True),
    View("devices-checked-one", "care", "#/devices",
         clicks('[data-toggle="devices/open"][data-id="a-old-phone"] > summary',
                '.detail [data-action="devices/check"]'), whole=True),
    View("devices-remove", "devices", "#/devices",
         clicks('[data-toggle="devices/open"][data-id="a-pixel-8"] > summary',
                '[data-action="devices/remove"]')),
    View("devices-joined", "device-states", "#/devices", _joins),
    View("devices-add", "devices", "#/devices", clicks('[data-action="devices/add"]')),
    View("devices-disconnected", "ready", "#/devices", _loses_it),
    View("launch-empty", "empty", "#/launch"),
    View("launch", "devices", "#/launch"),
    View("launch-plan", "devices", "#/launch", picks(LARGE.path), whole=True),
    View("launch-no-fit", "no-fit", "#/launch", picks(TOO_LARGE.path), whole=True,
         refusals=frozenset({409})),
    View("launch-edit", "ready", f"#/launch/{NAME}", _is_planned),
    View("launch-hub", "devices", "#/launch", _searches),
    View("launch-hub-unreachable", "unreachable-hub", "#/launch", _searches,
         refusals=frozenset({409})),
    View("models-empty", "empty", MODELS),
    View("models", "models", MODELS, fits_are_known, whole=True),
    View("models-details", "models", MODELS, opens_model, whole=True),
    View("models-sending", "models", MODELS, sends_ahead, whole=True),
    View("models-remove", "models", MODELS, asks_to_remove),
    View("models-pulls", "pulls", MODELS, whole=True),
    View("models-get", "models", f"{MODELS}/get", whole=True),
    View("models-suggesting", "models", f"{MODELS}/get", is_suggesting),
    View("models-search", "models", f"{MODELS}/get", searches_models),
    View("models-repo", "pulls", f"{MODELS}/get/bartowski%2FQwen3-14B-GGUF", whole=True),
    View("models-hub-unreachable", "unreachable-hub", f"{MODELS}/get/bartowski%2FQwen3-14B-GGUF",
         refusals=frozenset({409})),
    View("deployments-empty", "devices", LIST),
    View("deployments", "ready", LIST),
    View("deployments-many", "many", LIST),
    View("deployment-loading", "loading", ONE, whole=True),
    View("deployment-fetching", "fetching", ONE, whole=True),
    View("deployment-waiting", "waiting", ONE),
    View("deployment-ready", "ready", ONE, whole=True),
    View("deployment-idle", "idle", ONE),
    View("deployment-slow", "slow", ONE),
    View("deployment-degraded", "degraded", ONE),
    View("deployment-backoff", "backoff", ONE, whole=True),
    View("deployment-failed", "failed", ONE),
    View("deployment-stopped", "stopped", ONE),
    View("deployment-stopping", "stopping", ONE),
    View("deployment-commands", "ready", ONE, _opens_commands),
    View("deployment-remove", "stopped", ONE, clicks('[data-action="deployments/ask-remove"]')),
    View("deployment-logs", "logs", ONE, _opens_logs),
    View("deployment-unknown", "ready", "#/deployments/nobody"),
    View("records-empty", "devices", "#/records"),
    View("records", "ready", "#/records"),
    View("record", "ready", "#/records/41"),
    View("record-failed", "ready", "#/records/38", whole=True),
    View("records-compared", "ready", "#/records/40/38", whole=True),
    View("chat-empty", "devices", "#/chat"),
    View("chat", "ready", "#/chat"),
    View("chat-answer", "ready", "#/chat", _chats),
    View("chat-waiting", "loading", "#/chat"),
    View("settings", "ready", "#/settings", whole=True),
    View("settings-engines", "care", "#/settings", whole=True),
    View("settings-engine-installing", "care", "#/settings", _installs),
    View("settings-engine-use", "care", "#/settings", clicks('[data-action="settings/ask-use"]')),
    View("settings-engine-changing", "care", "#/settings", _changes_engine),
    View("settings-engine-failed", "care", "#/settings", _fails_to_change),
    View("settings-key", "ready", "#/settings", _makes_a_key),
    View("sign-in", "signed-out", "#/devices", refusals=REFUSED),
    View("sign-in-wrong", "signed-out", "#/devices", _signs_in_wrongly, refusals=REFUSED),
)  # fmt: skip


# -- visiting ----------------------------------------------------------------------------------


@dataclass
class Visitor:
    """One page of one theme and size, that goes from view to view."""

    page: Page
    server: PageServer
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    """Requests to other origins."""
    _refusals: frozenset[int] = frozenset()

    async def visit(self, view: View) -> None:
        """Show a view as a new page does, and do its step. Forgets the errors of the last one."""
        self.errors.clear()
        self.strangers.clear()
        self._refusals = view.refusals
        await self.page.goto("about:blank")
        await self.page.unroute_all()
        await self.page.clock.set_fixed_time(FROZEN)
        self.server.world.show(view.scene)
        await self.page.goto(f"{self.server.url}/{view.route}")
        await self.page.locator("main h2").first.wait_for()
        await settled(self.page)
        if view.step is not None:
            await view.step(self.page, self.server)

    async def overflow_px(self) -> int:
        """How much wider than the screen the page is."""
        found: int = await self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return found

    def listen(self) -> None:
        """Note what must not happen."""
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._on_console)
        self.page.on("request", lambda request: self._on_request(request.url))

    def _on_console(self, message: ConsoleMessage) -> None:
        text = message.text
        is_meant = text.startswith("Failed to load resource") and (
            any(f"status of {status}" in text for status in self._refusals) or "ERR_FAILED" in text
        )
        if message.type in ("error", "warning") and not is_meant:
            self.errors.append(f"{message.type}: {text}")

    def _on_request(self, url: str) -> None:
        if not url.startswith((self.server.url, "data:", "blob:", "about:")):
            self.strangers.append(url)


@asynccontextmanager
async def visiting(
    browser: Browser, server: PageServer, theme: Theme, size: tuple[int, int]
) -> AsyncIterator[Visitor]:
    """A page whose clock stands still at the time of the frozen scenes."""
    width, height = size
    context = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=theme,
        reduced_motion="reduce",
        locale="en-GB",
        timezone_id="UTC",
        has_touch=width < 600,
    )
    page = await context.new_page()
    page.set_default_timeout(8000)
    await page.clock.set_fixed_time(FROZEN)
    visitor = Visitor(page, server)
    visitor.listen()
    try:
        yield visitor
    finally:
        await context.close()
