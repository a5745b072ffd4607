"""Pictures of a page for the README and the documentation, in light and in dark, at a fixed size.

    python scripts/picture.py runs/compare/comparison.html docs/pictures
    python scripts/picture.py experiments/cifar10/explain.html docs/pictures

Of a comparison compare-light.png and compare-dark.png: verdict, table and paired differences. Of an explanation
explain-light.png and explain-dark.png: the strip of gates and one gate's curves. Needs playwright and a Chromium (by
default Debian's).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

WIDTH = 1120
# By file name: how the pictures are called, and what has no place in them: what is there to be clicked, what is folded.
PAGES = {
    "comparison.html": (
        "compare",
        ".legend, details { display: none !important } main { padding: 28px 24px 8px !important }",
    ),
    "explain.html": (
        "explain",
        "details, section > p, figcaption { display: none !important } main { padding: 0 24px 8px !important }",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="comparison.html or explain.html")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    arguments = parser.parse_args()
    for path in take(arguments.page, arguments.out, arguments.chromium):
        print(path)


def take(page: Path, out: Path, chromium: str) -> list[Path]:
    """Takes both pictures and returns where they are."""
    from playwright.sync_api import sync_playwright

    if page.name not in PAGES:
        raise SystemExit(f"{page}: its name is none of {', '.join(PAGES)}")
    name, still = PAGES[page.name]
    out.mkdir(parents=True, exist_ok=True)
    taken = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            size = {"width": WIDTH, "height": 900}
            shown = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=1.5)
            shown.goto(page.resolve().as_uri())
            shown.wait_for_selector("html[data-ready]", state="attached")
            shown.add_style_tag(content=still)
            top, bottom = _extent(shown, name)
            path = out / f"{name}-{scheme}.png"
            clip = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top}
            shown.screenshot(path=path, full_page=True, clip=clip)
            shown.close()
            taken.append(path)
        browser.close()
    return taken


def _extent(shown: Any, name: str) -> tuple[float, float]:
    """Where a picture begins and ends on its page, in pixels."""
    figures = shown.locator("figure.wide")
    end = figures.nth(0 if name == "compare" else 1).bounding_box() or {"y": 800, "height": 0}
    start = {"y": 0}
    if name == "explain":
        start = shown.locator("section", has=shown.locator(".strip")).bounding_box() or start
    return start["y"], end["y"] + end["height"] + 12


if __name__ == "__main__":
    main()
