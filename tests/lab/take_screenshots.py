"""Makes the pictures of ``docs/screenshots``: every view and state, light and dark, two sizes.

    uv run python tests/lab/take_screenshots.py
    uv run python tests/lab/take_screenshots.py --png --folder /tmp/pictures deployment-backoff chat

from an invented main host (``page_world``) at a fixed time, so that two runs show the same.
"""

import argparse
import asyncio
import base64
import sys
from itertools import product
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser_page import FLAGS, find_chromium
from playwright.async_api import Page, async_playwright

from lab.page_steps import settled
from lab.page_views import SIZES, THEMES, VIEWS, Theme, View, Visitor, visiting
from lab.page_world import FROZEN, World, serving

FOLDER: Final = Path(__file__).parents[2] / "docs" / "screenshots"
QUALITY: Final = 48
MOST_PX: Final = 2200
"""Height of a picture of a whole page, so that it stays small."""

_CONVERT: Final = """async ([png, quality]) => {
  const bytes = Uint8Array.from(atob(png), letter => letter.charCodeAt(0));
  const picture = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  canvas.getContext("2d").drawImage(picture, 0, 0);
  const blob = await canvas.convertToBlob({ type: "image/webp", quality });
  const reader = new FileReader();
  await new Promise(done => { reader.onload = done; reader.readAsDataURL(blob); });
  return reader.result.split(",")[1];
}"""

INTRODUCTION: Final = """# Screenshots

Every view of the page in every state that matters, made by

    uv run python tests/lab/take_screenshots.py

from the real page and an invented main host at a fixed time. The list of views is in
`tests/lab/page_views.py`.
"""


def file_name(view: View, size: str, theme: Theme, kind: str = "webp") -> str:
    return f"{view.name}.{size}.{theme}.{kind}"


async def take(visitor: Visitor, view: View) -> bytes:
    """One picture, as PNG."""
    await visitor.visit(view)
    page = visitor.page
    if not view.whole:
        return await page.screenshot(animations="disabled")
    # A higher window, not a longer picture: what fills the window's height does so here, too.
    before = page.viewport_size or {"width": 1280, "height": 900}
    height = await page.evaluate("document.documentElement.scrollHeight")
    await page.set_viewport_size({"width": before["width"], "height": min(height, MOST_PX)})
    await settled(page)
    taken = await page.screenshot(animations="disabled")
    await page.set_viewport_size(before)
    return taken


async def as_webp(png: bytes, converter: Page) -> bytes:
    """The browser can, and a WebP of text has half the bytes of a JPEG."""
    text = await converter.evaluate(_CONVERT, [base64.b64encode(png).decode(), QUALITY / 100])
    return base64.b64decode(text)


async def take_all(views: list[View], folder: Path, kind: str) -> list[str]:
    """All pictures of some views; what could not be reached is said, and goes without.

    Args:
        views: Which.
        folder: Where to.
        kind: ``webp`` or ``png``.

    Returns:
        What went wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wrong = []
    async with (
        async_playwright() as playwright,
        serving(World.of("empty", lambda: FROZEN)) as server,
    ):
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        converter = await browser.new_page()
        for (size, pixels), theme in product(SIZES.items(), THEMES):
            async with visiting(browser, server, theme, pixels) as visitor:
                for view in views:
                    try:
                        png = await take(visitor, view)
                        data = await as_webp(png, converter) if kind == "webp" else png
                        (folder / file_name(view, size, theme, kind)).write_bytes(data)
                    except Exception as exc:
                        wrong.append(f"{view.name} {size} {theme}: {str(exc).splitlines()[0]}")
                    wrong += [f"{view.name} {size} {theme}: {each}" for each in visitor.errors]
        await browser.close()
    return wrong


def index() -> str:
    """The text of ``docs/screenshots/README.md``."""
    head = "| view | " + " | ".join(f"{s}, {t}" for s, t in product(SIZES, THEMES)) + " |"
    rows = [head, "|" + "---|" * (1 + len(SIZES) * len(THEMES))]
    for view in VIEWS:
        cells = [
            f'<a href="{name}"><img src="{name}" width="{200 if s == "desktop" else 100}" '
            f'alt="{view.name}, {s}, {t}"></a>'
            for s, t in product(SIZES, THEMES)
            for name in [file_name(view, s, t)]
        ]
        rows.append(f"| `{view.name}` | " + " | ".join(cells) + " |")
    return f"{INTRODUCTION}\n" + "\n".join(rows) + "\n"


def remove_others(folder: Path) -> None:
    """Pictures of views that are no longer in the list."""
    wanted = {file_name(view, *kind) for view in VIEWS for kind in product(SIZES, THEMES)}
    for path in folder.glob("*.webp"):
        if path.name not in wanted:
            path.unlink()


def main() -> None:
    """Take the pictures, and write the index."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("views", nargs="*", help="names of views; none: all")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--png", action="store_true", help="larger files, for any viewer")
    arguments = parser.parse_args()
    views = [view for view in VIEWS if not arguments.views or view.name in arguments.views]
    kind = "png" if arguments.png else "webp"
    wrong = asyncio.run(take_all(views, arguments.folder, kind))
    if not arguments.png:
        remove_others(arguments.folder)
        (arguments.folder / "README.md").write_text(index())
    size = sum(path.stat().st_size for path in arguments.folder.glob(f"*.{kind}"))
    print(f"{len(views)} views, {size / 1e6:.1f} MB in {arguments.folder}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
