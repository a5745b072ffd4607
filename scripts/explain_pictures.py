"""Pictures of an explanation for the documentation: the strip of gates and one gate's curves, in light and in dark.

    python scripts/explain_pictures.py experiments/cifar10/explain.html docs/pictures

writes explain-light.png and explain-dark.png. Needs playwright and a Chromium (by default Debian's).
"""

from __future__ import annotations

import argparse
from pathlib import Path

WIDTH = 1120
# What is folded has no place in a picture.
STILL = "details, section > p, figcaption { display: none !important } main { padding: 0 24px 8px !important }"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="the page that `excite explain` wrote")
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
            start = shown.locator("section", has=shown.locator(".strip")).bounding_box() or {"y": 0}
            end = shown.locator("figure.wide").nth(1).bounding_box() or {"y": 900, "height": 0}
            height = end["y"] + end["height"] + 12 - start["y"]
            path = out / f"explain-{scheme}.png"
            shown.screenshot(
                path=path, full_page=True, clip={"x": 0, "y": start["y"], "width": WIDTH, "height": height}
            )
            shown.close()
            taken.append(path)
        browser.close()
    return taken


if __name__ == "__main__":
    main()
