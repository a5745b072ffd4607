"""A real browser for pages: what it asked for, what it complained about, and what it shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
WIDTHS = {"desktop": 1280, "phone": 390}

needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")

_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(_QUIET))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """A page of ours, drawn. Afterwards: it asked for nothing but itself, and neither failed nor complained."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=width < 500, is_mobile=width < 500
    )
    page = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    context.on("request", lambda r: requests.append(r.url))
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    try:
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached", timeout=30_000)
        yield page
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page is too wide"
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
        assert complaints == []
    finally:
        context.close()


def eventually(page: Any, expression: str) -> None:
    """Waits until an expression is true on the page; playwright's own wait needs eval, which our pages forbid."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"never true: {expression}")
