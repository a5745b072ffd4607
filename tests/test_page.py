"""The page builder: what it writes, and what a real browser makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from browser import WIDTHS, chromium, eventually, needs_chromium, opened
from excite.errors import UserError
from excite.page import Cell, Figure, Page, Table, figure_text, series_styles

NASTY = "<script>window.hacked = 1</script>\"'&<img src=x onerror=hacked=1>"


def example() -> Page:
    series = series_styles({"none": "plain", "a": NASTY, "b": "other"}, plain="none")
    page = Page(NASTY, lead=("First sentence.", NASTY), about=NASTY)
    section = page.section(NASTY, NASTY)
    section.points([NASTY]).facts({NASTY: NASTY, "none": None, "list": [1, 2], "yes": True})
    rows = [
        [Cell("ten", series=series["a"]), 10, Cell("", sort="")],
        [Cell("nine", series=series["b"]), 9, Cell("3 k", sort=3000)],
        [Cell(NASTY), 100, Cell("4 M", sort=4e6, tone="good", detail=NASTY)],
    ]
    section.table(Table(("name", ("number", "what it means"), "sized"), rows, NASTY))
    section.legend(series.values())
    section.figures(*(figure(series, key) for key in ("a", "b")))
    page.section("Folded").folded("more").figures(figure(series, "b"))
    return page


def figure(series: dict[str, Any], key: str) -> Figure:
    s = series[key]
    trace = {
        "x": [1, 2, 3], "y": [3, None, 1], "legendgroup": key, "name": figure_text(NASTY), "mode": "lines+markers",
        "line": {"color": s.color, "dash": s.dash}, "marker": {"color": f"{s.color}/0.5", "symbol": s.symbol},
    }  # fmt: skip
    note = {"x": 2, "y": 2, "text": figure_text(NASTY), "name": key, "showarrow": False}
    table = Table(("x", "y"), [(1, 3), (3, 1)])
    return Figure(NASTY, [trace], {"annotations": [note]}, NASTY, height=300, table=table)


# --- what is written -----------------------------------------------------------------------------------------------


def test_text_is_escaped_everywhere() -> None:
    html = example().html()
    body = re.sub(r"<script>.*?</script>\n?", "", html[html.index("<body>") :], flags=re.DOTALL)
    assert "window.hacked" in body
    assert "<script>window" not in body and "<img" not in body
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', body, flags=re.DOTALL)
    assert data is not None
    assert not set("<>&") & set(data[1])
    assert json.loads(data[1])[0]["data"][0]["name"] == figure_text(NASTY)


class Links(HTMLParser):
    """Every attribute of a page that can name something to load or to go to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"src", "href", "srcset", "action", "poster", "data", "background", "xlink:href"}
        self.found += [value or "" for name, value in attrs if name in names]


def test_the_page_holds_everything_itself() -> None:
    html = example().html()
    links = Links()
    links.feed(html)
    assert links.found == ["data:,"]  # the icon that a browser would otherwise ask a server for
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in html
    assert html.count("'sha256-") == 2


def test_plotly_is_left_out_where_nothing_is_drawn() -> None:
    page = Page("Words only")
    page.section("One").text("A sentence.")
    assert len(page.html()) < 30_000


def test_the_same_page_is_written_twice(tmp_path: Path) -> None:
    first, second = example().write(tmp_path / "a.html"), example().write(tmp_path / "sub" / "b.html")
    assert first.read_bytes() == second.read_bytes()


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="2 cells for 1 columns"):
        Table(("one",), [("a", "b")])
    page = Page("x")
    page.section().figures(Figure("f", [{"x": [float("nan")]}]))
    with pytest.raises(UserError, match="None for a gap"):
        page.html()


def test_series_differ_in_more_than_colour() -> None:
    styles = series_styles({str(i): str(i) for i in range(14)} | {"plain": "plain"}, plain="plain")
    assert styles["plain"].color == "@plain"
    assert len({(s.color, s.dash, s.symbol) for s in styles.values()}) == 15
    assert len({(s.dash, s.symbol) for s in list(styles.values())[:8]}) == 8


# --- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example().write(tmp_path_factory.mktemp("page") / "page.html")


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_opens_without_an_error_or_a_request(browser: Any, path: Path, width: int, scheme: str) -> None:
    with opened(browser, path, width=width, scheme=scheme) as page:
        assert page.title() == NASTY
        assert page.inner_text("h1") == NASTY
        assert page.evaluate("window.hacked") is None
        assert page.locator("figure:visible svg .scatterlayer .trace").count() == 2
        assert "window.hacked = 1</script>" in page.locator(".annotation-text").first.text_content()


@needs_chromium
@pytest.mark.slow
def test_no_button_sends_a_figure_anywhere(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        page.locator(".plot").first.hover()
        buttons = page.locator(".plot").first.locator(".modebar-btn")
        titles = [b.get_attribute("data-title") for b in buttons.all()]
        assert titles == ["Download plot", "Zoom", "Pan", "Reset axes"]
        with page.expect_download() as download:
            buttons.first.click()
        assert "<svg" in Path(download.value.path()).read_text(encoding="utf-8")


@needs_chromium
@pytest.mark.slow
def test_what_is_put_in_later_does_not_run(browser: Any, path: Path) -> None:
    """The policy holds even where escaping would fail. Its refusal is a complaint, so `opened` is not used."""
    page = browser.new_page()
    page.goto(path.as_uri())
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=hacked=1>')")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'hacked=1'}))")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    page.close()


@needs_chromium
@pytest.mark.slow
def test_tables_sort_by_value_from_the_keyboard(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        table = page.locator("section > .box table").first

        def column(i: int) -> list[str]:
            return [
                row.locator("th, td").nth(i).evaluate("e => e.dataset.sort") for row in table.locator("tbody tr").all()
            ]

        head = table.locator("thead th").nth(1)
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert column(1) == ["9", "10", "100"]
        assert head.get_attribute("aria-sort") == "ascending"
        page.keyboard.press("Enter")
        assert column(1) == ["100", "10", "9"]
        assert head.get_attribute("aria-sort") == "descending"
        last = table.locator("thead th").nth(2).locator("button")
        last.click()
        assert column(2) == ["3000", "4000000.0", ""]
        assert head.get_attribute("aria-sort") is None
        last.click()
        assert column(2) == ["4000000.0", "3000", ""]


@needs_chromium
@pytest.mark.slow
def test_a_legend_button_hides_a_series_with_its_annotations(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        button = page.locator(".legend button[data-series=a]")
        button.focus()
        page.keyboard.press("Space")
        eventually(page, "document.querySelectorAll('.plot')[0].querySelectorAll('.trace').length === 0")
        assert button.get_attribute("aria-pressed") == "false"
        assert page.locator(".plot").nth(0).locator(".annotation").count() == 0
        assert page.locator(".plot").nth(1).locator(".trace").count() == 1
        button.click()
        eventually(page, "document.querySelectorAll('.plot')[0].querySelectorAll('.trace').length === 1")


@needs_chromium
@pytest.mark.slow
def test_figures_follow_the_system_and_print_in_light(browser: Any, path: Path) -> None:
    with opened(browser, path, scheme="dark") as page:
        stroke = "getComputedStyle(document.querySelector('.plot .js-line')).stroke"
        paper = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(stroke), page.evaluate(paper)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        printed = page.evaluate(stroke), page.evaluate(paper)
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert (page.evaluate(stroke), page.evaluate(paper)) == dark
        page.emulate_media(color_scheme="light")
        eventually(page, f"{stroke} !== {json.dumps(dark[0])}")
        assert (page.evaluate(stroke), page.evaluate(paper)) == printed != dark
        assert page.pdf().startswith(b"%PDF")


@needs_chromium
@pytest.mark.slow
def test_a_folded_figure_is_drawn_once_it_is_open(browser: Any, path: Path) -> None:
    with opened(browser, path) as page:
        folded = page.locator("section > details")
        folded.locator("summary").first.click()
        folded.locator(".trace").first.wait_for(state="attached")
        assert folded.locator("svg.main-svg").first.bounding_box()["width"] > 300


@needs_chromium
@pytest.mark.slow
def test_a_wide_table_scrolls_in_its_box(browser: Any, tmp_path: Path) -> None:
    page = Page("Wide")
    page.section().table(Table([f"column {i}" for i in range(30)], [[f"cell {i}" for i in range(30)]], "many"))
    with opened(browser, page.write(tmp_path / "wide.html"), width=390) as shown:
        box = shown.locator(".box")
        assert box.evaluate("b => b.scrollWidth > b.clientWidth")
        box.evaluate("b => { b.scrollLeft = 400 }")
        assert shown.locator("tbody th").bounding_box()["x"] >= 0  # the first column stays in sight
