"""Pictures of a comparison for a README: the top of its page, in light and in dark, at a fixed size.

    python scripts/picture.py runs/compare/comparison.html docs/pictures

writes compare-light.png and compare-dark.png: verdict, table and paired differences as the page shows them. Needs
playwright and a Chromium (by default Debian's).
"""

from __future__ import annotations

import argparse
from pathlib import Path

WIDTH = 1120
# What is there to be clicked has no place in a picture.
STILL = ".legend, details { display: none !important } main { padding: 28px 24px 8px !important }"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="the page that `excite compare` wrote")
    parser.add_argument("out", type=Path, help="folder for the pictures")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    arguments = parser.parse_args()
    for path in take(arguments.page, arguments.out, arguments.chromium):
        print(path)


def take(page: Path, out: Path, chromium: str) -> list[Path]:
    """Takes both pictures and returns where they are."""
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    taken = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            size = {"width": WIDTH, "height": 900}
            shown = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=1.5)
            shown.goto(page.resolve().as_uri())
            shown.wait_for_selector("html[data-ready]", state="attached")
            shown.add_style_tag(content=STILL)
            end = shown.locator("figure.wide").first.bounding_box() or {"y": 700, "height": 0}
            path = out / f"compare-{scheme}.png"
            height = end["y"] + end["height"] + 12
            shown.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
            shown.close()
            taken.append(path)
        browser.close()
    return taken


if __name__ == "__main__":
    main()
