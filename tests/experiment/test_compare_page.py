"""The page of a comparison, in a real browser, with few and many runs; and the table in a terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import LONG, make_comparison
from rich.console import Console

from browser import WIDTHS, chromium, needs_chromium, opened
from excite.experiment import Comparison
from excite.experiment.report import comparison_page, meanings
from excite.experiment.show import comparison_table, show_comparison

COMPARISONS: dict[str, Comparison] = {
    "nine runs": make_comparison(effect={"se": 0.012}),
    "decided": make_comparison(effect={"se": 0.03, "eca": -0.03}, noise=0.001),
    "one seed": make_comparison(seeds=1),
    "eight gates": make_comparison(LONG, effect={"ese": 0.011}, epochs=40),
    "two classes": make_comparison(("none", "se"), classes=("cat", "<script>dog</script>"), images=60, measured=False),
    "one epoch": make_comparison(("none", "se"), epochs=1, seeds=2),
    "same as plain": make_comparison(("none", "se"), noise=0.0, images=10),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARISONS)
def test_the_page_opens_on_a_desktop_and_a_phone(browser: Any, tmp_path: Path, name: str) -> None:
    comparison = COMPARISONS[name]
    path = comparison_page(comparison).write(tmp_path / "comparison.html")
    for width in WIDTHS.values():
        with opened(browser, path, width=width) as page:
            assert page.inner_text(".lead").replace("−", "-") == comparison.verdict
            rows = page.locator("table").first.locator("tbody tr")
            assert rows.count() == len(comparison.gates)
            # The verdict is what a reader sees first, the table next.
            assert page.locator(".lead").bounding_box()["y"] < page.locator("table").first.bounding_box()["y"] < 700
            for plot in page.locator(".plot").all():
                assert plot.locator(".trace").count() >= len(comparison.gates) - 1
                assert plot.locator("svg.main-svg").first.bounding_box()["width"] <= width
            for details in page.locator("section > details").all():
                details.locator("summary").first.click()


def test_the_terminal_table_fits_80_columns_and_loses_nothing() -> None:
    for name, comparison in COMPARISONS.items():
        out = io.StringIO()
        Console(file=out, width=80, highlight=False).print(comparison_table(comparison))
        text = out.getvalue()
        assert max(map(len, text.splitlines())) <= 80, name
        assert "…" not in text, name
        for g in comparison.gates:
            assert f"{100 * g.accuracy.mean:.2f}" in text, name
            if g.difference is not None and g.difference.critical is not None:
                assert f"{100 * g.difference.critical:.2f}" in text, name
                assert f"{100 * g.difference.holm_interval[0]:+.2f} to" in text, name
            if latency := g.timing("inference"):
                assert f"{latency.ratio:.2f}x" in text, name
        joined = re.sub(r"\s", "", "".join(line[:8] for line in text.splitlines()))
        assert all(g.label in joined for g in comparison.gates if len(g.label) <= 8), name


def test_what_is_printed_says_the_verdict_and_its_caveats(capsys: pytest.CaptureFixture[str]) -> None:
    comparison = COMPARISONS["nine runs"]
    show_comparison(comparison)
    printed = " ".join(capsys.readouterr().out.split())
    assert comparison.verdict in printed
    assert all(line in printed for line in comparison.caveats)
    assert "\x1b" not in printed


def test_each_number_is_explained() -> None:
    text = " ".join(meanings(COMPARISONS["nine runs"]))
    for word in ("Accuracy", "Against plain", "Needed", "Holm", "p:", "validation images", "Latency"):
        assert word in text
    assert "Latency" not in " ".join(meanings(COMPARISONS["two classes"]))
