"""How fast the page is: from an event to the pixels that show it, the first paint, and its bytes.

    uv run python bench/page.py
    uv run python bench/page.py --only paint
    uv run python bench/page.py --seconds 5

pixels  200 devices, each with a heartbeat every half second, on two pages: the list of all devices,
        and a deployment with 10 000 lines in its open log, to which lines are added
paint   first contentful paint of a new browser context, on loopback
bytes   of all files that the page loads, as they are sent

The main host is invented (``tests/lab/page_world.py``), the page and its headers are the real ones.
An event has arrived when the page's ``EventSource`` hands it out; it is shown at the beginning of
the frame after the one that changed the document. ``sent`` counts from the server's send instead,
so that waiting for a busy page is in it. One frame takes 16.7 ms.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser_page import FLAGS, find_chromium
from lab.page_scenes import LOG_LINES, NAME
from lab.page_steps import settled
from lab.page_world import PageServer, World, serving, worker_names
from playwright.async_api import Browser, Page, async_playwright

PARTS: Final = ("pixels", "paint", "bytes")
HEARTBEAT_S: Final = 0.5
TICK_S: Final = 0.02
CHANGES_PER_S: Final = 4
"""Of the deployment: tokens per second, and where their time goes."""
LINES_PER_S: Final = 20
PAINTS: Final = 15

GOALS: Final = {"pixels_p95_ms": 100, "paint_ms": 1000, "bytes": 150 * 1024}

_WATCH: Final = """
const Real = window.EventSource;
const waiting = [];
window.shown = [];
window.EventSource = class extends Real {
  constructor(...given) {
    super(...given);
    for (const type of ["device", "deployment", "lines"]) {
      super.addEventListener(type, ({ data }) => {
        const sent = /"sent_ms": ([\\d.]+)/.exec(data);
        if (sent) waiting.push({ type, at: performance.now(), sent: Number(sent[1]) });
      });
    }
  }
};
const seen = () => {
  const batch = waiting.splice(0);
  if (!batch.length) return;
  requestAnimationFrame(() => {
    const now = performance.now();
    for (const { type, at, sent } of batch) {
      window.shown.push([type, now - at, performance.timeOrigin + now - sent]);
    }
  });
};
const all = { subtree: true, childList: true, attributes: true, characterData: true };
new MutationObserver(seen).observe(document, all);
"""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def percentile(values: list[float], part: float) -> float:
    return round(sorted(values)[min(int(part * len(values)), len(values) - 1)], 1)


# -- what happens meanwhile --------------------------------------------------------------------


def heartbeats(world: World) -> Iterator[Callable[[], None]]:
    """Each device in turn, for ever; what it has free changes visibly each time."""
    number = 0
    while True:
        number += 1
        for device in world.scene.devices:
            yield lambda device=device, number=number: _heartbeat(world, device, number)  # type: ignore[misc]


def _heartbeat(world: World, device: dict[str, Any], number: int) -> None:
    facts = device["facts"]
    total = facts["memory_total_bytes"]
    free = total // 2 + (number * 137 % 40) * total // 100
    world.change_device(
        device["id"],
        silent_s=0.0,
        facts={**facts, "memory_available_bytes": free},
        sent_ms=time.time() * 1000,
    )


def change(world: World, number: int) -> None:
    """The deployment says how fast it is."""
    deployment = world.deployment(NAME)
    assert deployment is not None
    world.change_deployment(
        NAME,
        tokens_per_second=6 + number % 50 / 10,
        generated_tokens=1000 + number,
        token_time={**deployment["token_time"], "at": world.stamp(), "host_ms": 5 + number % 7},
        sent_ms=time.time() * 1000,
    )


async def events(world: World, seconds: float) -> int:
    """Send everything at its rate.

    Returns:
        How many heartbeats were sent.
    """
    beats, ticks = heartbeats(world), 0
    each_tick = len(world.scene.devices) * TICK_S / HEARTBEAT_S
    begun_s, sent, changes, lines = time.monotonic(), 0, 0, 0
    while (now_s := time.monotonic() - begun_s) < seconds:
        ticks += 1
        while sent < now_s / TICK_S * each_tick:
            next(beats)()
            sent += 1
        while changes < now_s * CHANGES_PER_S:
            changes += 1
            change(world, changes)
        while lines < now_s * LINES_PER_S:
            lines += 1
            world.log("llama-server", [f"{now_s:9.3f} I slot update_slots: id 0 | task {lines}"],
                      sent_ms=time.time() * 1000)  # fmt: skip
        await asyncio.sleep(max(0.0, ticks * TICK_S - now_s))
    return sent


# -- parts -------------------------------------------------------------------------------------


async def pixels(browser: Browser, server: PageServer, seconds: float) -> dict[str, Any]:
    """Both pages, while everything happens."""
    found: dict[str, Any] = {}
    for name, route, kinds, prepare in (
        ("devices", "#/devices", ("device",), None),
        ("deployment", f"#/deployments/{NAME}", ("deployment", "lines"), _open_logs),
    ):
        scene = server.world.show("many")
        deployment = server.world.deployment(NAME)
        assert deployment is not None
        processes = 2 + len(worker_names(deployment))
        scene.log_lines = LOG_LINES // processes
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        await page.add_init_script(_WATCH)
        await page.goto(f"{server.url}/{route}")
        await page.locator("main h2").first.wait_for()
        if prepare is not None:
            await prepare(page)
        await settled(page)
        await page.evaluate("window.shown.length = 0")
        sent = await events(server.world, seconds)
        await settled(page)
        found[name] = _summary(await page.evaluate("window.shown"), kinds, sent / seconds)
        say(f"pixels, {name}: {json.dumps(found[name])}")
        await page.close()
    return found


async def _open_logs(page: Page) -> None:
    await page.locator('[data-toggle="deployments/logs"] > summary').first.click()
    await page.get_by_text("0,000 lines").or_(page.get_by_text("9,9")).first.wait_for()


def _summary(
    shown: list[tuple[str, float, float]], kinds: tuple[str, ...], heartbeats_per_s: float
) -> dict[str, Any]:
    """Only ``kinds`` show on this page; others are in the document's changes by chance."""
    by_type: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for kind, since_arrival_ms, since_sent_ms in shown:
        by_type[kind].append((since_arrival_ms, since_sent_ms))
    rows: dict[str, Any] = {"heartbeats_per_s": round(heartbeats_per_s)}
    for kind in kinds:
        times = by_type[kind]
        assert times, f"no event of kind {kind} was shown"
        arrival, whole = ([pair[index] for pair in times] for index in (0, 1))
        rows[kind] = {
            "events": len(times),
            "p50_ms": percentile(arrival, 0.5),
            "p95_ms": percentile(arrival, 0.95),
            "sent_p50_ms": percentile(whole, 0.5),
            "sent_p95_ms": percentile(whole, 0.95),
        }
    return rows


async def paint(browser: Browser, server: PageServer) -> dict[str, Any]:
    """First contentful paint, each time with an empty cache; the first start warms the browser."""
    times_ms = []
    server.world.show("ready")
    for _ in range(PAINTS + 1):
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(server.url)
        await page.locator("main h2").first.wait_for()
        entry = await page.wait_for_function(
            "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        )
        times_ms.append(float(await entry.json_value()))
        await context.close()
    kept = times_ms[1:]
    return {
        "loads": len(kept),
        "p50_ms": round(statistics.median(kept), 1),
        "most_ms": round(max(kept), 1),
    }


async def loaded(page: Page) -> list[tuple[int, int]]:
    """Bytes of each file of the page: as it was sent, and as it is."""
    found: list[tuple[int, int]] = await page.evaluate(
        """performance.getEntries()
          .filter(({ entryType, name }) => entryType === "navigation"
            || (entryType === "resource" && new URL(name).pathname.startsWith("/assets/")))
          .map(({ encodedBodySize, decodedBodySize }) => [encodedBodySize, decodedBodySize])"""
    )
    return found


async def sizes(browser: Browser, server: PageServer) -> dict[str, Any]:
    """All files of the page; it loads them all at once."""
    page = await browser.new_page()
    await page.goto(server.url)
    await page.locator("main h2").first.wait_for()
    files = await loaded(page)
    await page.close()
    sent, whole = (sum(each) for each in zip(*files, strict=True))
    return {"files": len(files), "sent": sent, "unpacked": whole}


async def measure(parts: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """All parts in one browser."""
    found: dict[str, Any] = {"goals": GOALS}
    async with async_playwright() as playwright, serving(World.of("empty")) as server:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        if "bytes" in parts:
            found["bytes"] = await sizes(browser, server)
        if "paint" in parts:
            found["paint"] = await paint(browser, server)
        if "pixels" in parts:
            found["pixels"] = await pixels(browser, server, seconds)
        await browser.close()
    return found


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=10.0, help="of events, per page")
    arguments = parser.parse_args()
    parts = (arguments.only,) if arguments.only else PARTS
    print(json.dumps(asyncio.run(measure(parts, arguments.seconds)), indent=1))


if __name__ == "__main__":
    main()
