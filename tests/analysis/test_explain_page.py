"""The page of `explain` in a real browser: what it shows at first, and what clicks and keys change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from explained import IMAGES, KINDS, NAMES, NASTY, explained

from browser import chromium, eventually, needs_chromium, opened

pytestmark = [needs_chromium, pytest.mark.slow]

# Plots by their place on the page.
CURVES, HEAT, HISTOGRAM, OPENED = range(4)
OF_CLASS = KINDS.index("class")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return explained()[1]


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with opened(browser, explained()[0], width=1100) as page:
        yield page


def plotted(plot: int, what: str) -> str:
    """JavaScript for a part of a plot's traces."""
    return f"document.querySelectorAll('.plot')[{plot}].{what}"


def line_of(page: Any, key: str) -> list[float]:
    """The curve of a series, as plotly holds it."""
    traces = plotted(CURVES, f"data.filter(t => t.legendgroup === '{key}' && t.name && t.visible !== false)")
    return list(page.evaluate(f"{traces}.map(t => Array.from(t.y))[0] ?? []"))


def select(page: Any, name: str) -> Any:
    return page.locator(f"select[data-choice={name}]").first


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_the_page_opens_whole_and_runs_nothing_of_names(browser: Any, found: Any, width: int, scheme: str) -> None:
    with opened(browser, explained()[0], width=width, scheme=scheme) as page:
        assert page.evaluate("window.hacked") is None
        assert NASTY in page.inner_text("h1")
        assert page.inner_text(".lead").replace("−", "-") == " ".join(found["summary"])
        for plot in page.locator(".plot").all():
            assert plot.locator("svg.main-svg").first.bounding_box()["width"] <= width
        assert page.locator(".legend button").first.inner_text() == NASTY
        ticks = page.locator(".plot").nth(HEAT).locator(".ytick text").all_text_contents()
        most = 12 if width == 360 else 22
        assert sorted(ticks) == sorted(n if len(n) <= most else f"{n[: most - 1]}…" for n in NAMES)
        # The pictures are really there.
        widths = page.evaluate("[...document.querySelectorAll('.slot img')].map(i => i.naturalWidth)")
        assert len(widths) == 7 and set(widths) == {8}
        # Nothing of the strip is cut off.
        for button in page.locator(".strip button").all():
            box = button.bounding_box()
            assert 0 <= box["x"] and box["x"] + box["width"] <= width


def test_the_most_specific_gate_is_shown_at_first_with_its_numbers(page: Any, found: Any) -> None:
    assert select(page, "gate").input_value() == str(OF_CLASS)
    detail = found["details"][OF_CLASS]
    for row, key in enumerate([*(f"c{k}" for k in range(len(NAMES))), "all"]):
        expected = detail["mean"][row]
        order = sorted(range(8), key=lambda c: -detail["mean"][-1][c])
        assert line_of(page, key) == pytest.approx([expected[c] for c in order], abs=2e-4)


def test_a_click_on_the_strip_chooses_a_gate_everywhere(page: Any, found: Any) -> None:
    buttons = page.locator(".strip button")
    assert buttons.count() == len(KINDS)
    before = line_of(page, "all")
    buttons.nth(0).click()
    eventually(page, f"{plotted(HEAT, 'data.length')} === 1")
    assert buttons.nth(0).get_attribute("aria-pressed") == "true"
    assert buttons.nth(OF_CLASS).get_attribute("aria-pressed") == "false"
    assert {s.input_value() for s in page.locator("select[data-choice=gate]").all()} == {"0"}
    after = line_of(page, "all")
    assert after != before
    assert after == pytest.approx(sorted(found["details"][0]["mean"][-1], reverse=True), abs=2e-4)


def test_a_gate_is_chosen_from_the_keyboard(page: Any) -> None:
    select(page, "gate").focus()
    page.keyboard.press("ArrowUp")
    eventually(page, "document.querySelectorAll('.strip button')[1].getAttribute('aria-pressed') === 'true'")
    page.locator(".strip button").nth(0).focus()
    page.keyboard.press("Enter")
    eventually(page, "document.querySelector('select[data-choice=gate]').value === '0'")


def test_classes_are_shown_and_hidden(page: Any) -> None:
    assert line_of(page, "c1")
    button = page.locator(".legend button[data-series=c1]")
    button.focus()
    page.keyboard.press("Space")
    eventually(page, f"{plotted(CURVES, 'querySelectorAll(`.trace`).length')} === 8")
    assert line_of(page, "c1") == [] and line_of(page, "c2")
    button.click()
    eventually(page, f"{plotted(CURVES, 'querySelectorAll(`.trace`).length')} === 10")


def test_order_scale_and_deviation_change_the_curves(page: Any, found: Any) -> None:
    detail = found["details"][OF_CLASS]
    select(page, "order").select_option("number")
    eventually(page, f"{plotted(CURVES, 'layout.xaxis.title.text')} === 'channel'")
    assert line_of(page, "c0") == pytest.approx(detail["mean"][0], abs=2e-4)
    select(page, "band").select_option("hidden")
    eventually(page, f"{plotted(CURVES, 'querySelectorAll(`.trace`).length')} === 5")
    select(page, "scale").select_option("whole")
    eventually(page, f"JSON.stringify({plotted(CURVES, 'layout.yaxis.range')}) === '[0,1]'")
    select(page, "order").select_option("class")
    eventually(page, f"{plotted(HEAT, 'layout.xaxis.title.text')}.includes('class')")
    # Each class has its own channels, and they stand together.
    tops = [
        max(range(4), key=lambda k: detail["mean"][k][c]) for c in page.evaluate(plotted(HEAT, "data[0].customdata[0]"))
    ]
    assert tops == sorted(tops)


def test_the_heat_map_holds_differences_or_values(page: Any, found: Any) -> None:
    means = found["details"][OF_CLASS]["mean"]
    channels = page.evaluate(plotted(HEAT, "data[0].customdata[0]"))
    # Rows are drawn upwards: the last one is the first class.
    against = page.evaluate(plotted(HEAT, "data[0].z"))[-1]
    assert against == pytest.approx([means[0][c] - means[-1][c] for c in channels], abs=2e-4)
    select(page, "colour").select_option("value")
    eventually(page, f"{plotted(HEAT, 'data[0].zmid')} === undefined && {plotted(HEAT, 'data[0].z')}[3][0] > 0.3")
    assert page.evaluate(plotted(HEAT, "data[0].z"))[-1] == pytest.approx([means[0][c] for c in channels], abs=2e-4)


def test_what_stands_under_the_mouse_shows_names_as_they_are(page: Any) -> None:
    point = "[{curveNumber: 8, pointNumber: 3}]"
    page.evaluate(f"Plotly.Fx.hover({plotted(CURVES, 'valueOf()')}, {point})")
    shown = page.locator(".plot").nth(CURVES).locator(".hoverlayer text").all_text_contents()
    assert any(NAMES[3] in line for line in shown), shown


LONG = ("a class of many words " * 9, "L" * 200, "short", "M" * 200)


@pytest.mark.parametrize("width", [390, 1400])
def test_long_names_leave_room_and_are_whole_under_the_mouse(browser: Any, width: int) -> None:
    with opened(browser, explained(LONG)[0], width=width) as page:
        plot = page.locator(".plot").nth(HEAT)
        drawn = plot.locator(".nsewdrag")
        assert drawn.bounding_box()["width"] > 0.55 * plot.bounding_box()["width"]
        box = drawn.bounding_box()
        drawn.hover(position={"x": box["width"] / 2, "y": 0.375 * box["height"]})  # the second of four rows
        eventually(page, f"{plotted(HEAT, 'querySelector(`.hoverlayer text`)')} !== null")
        shown = "".join(plot.locator(".hoverlayer text").all_text_contents())
        assert LONG[1] in shown, shown
        button = page.locator(".legend button").nth(1)
        assert button.bounding_box()["height"] < 60 and button.locator("span").get_attribute("title") == LONG[1]
        for caption in page.locator(".tops figcaption").all():
            assert len(caption.inner_text()) < 100


def test_the_table_of_gates_uses_the_margins(browser: Any) -> None:
    for width, left in ((1400, 24), (1000, 24), (390, 16)):
        with opened(browser, explained()[0], width=width) as page:
            table = page.locator("section > .box").last
            box = table.bounding_box()
            assert (box["x"], box["width"]) == (left, width - 2 * left)
            assert page.evaluate("b => b.scrollWidth > b.clientWidth", table.element_handle()) == (width < 1400)
            first = page.locator("section > .box").first.bounding_box()
            assert first["x"] == (width - min(width, 1120)) / 2 + left, "few columns stay where the text is"


def test_images_are_chosen_by_class_and_by_mistake(page: Any, found: Any) -> None:
    images = {str(i["index"]): i for i in found["images"]}
    options = "[...document.querySelector('select[data-choice=image]').options].map(o => o.value)"
    assert len(page.evaluate(options)) == len(found["listed"]) == 60
    select(page, "of").select_option("wrong")
    eventually(page, f"{options}.length < 60")
    wrong = page.evaluate(options)
    assert wrong and all(images[i]["predicted"] != images[i]["label"] for i in wrong)
    assert "(wrong)" in page.inner_text("[data-slot=card]")
    select(page, "of").select_option("2")
    eventually(page, f"{options}.every(o => !{wrong}.map(String).includes(o)) || {options}.length > 0")
    of_two = page.evaluate(options)
    assert all(images[i]["label"] == 2 for i in of_two)
    chosen = of_two[-1]
    select(page, "image").select_option(chosen)
    eventually(page, f"document.querySelector('[data-slot=card]').innerText.includes('/{chosen}.png')")
    card = page.inner_text("[data-slot=card]")
    assert NAMES[2] in card and f"{images[chosen]['loss']:.3f}" in card
    triples = found["details"][OF_CLASS]["shifts"][chosen]
    assert page.evaluate(plotted(OPENED, "data[0].x")) == pytest.approx([t[2] for t in triples], abs=0.01)


def test_images_that_open_a_channel_follow_gate_and_channel(page: Any, found: Any) -> None:
    tops = found["details"][0]["tops"]
    page.locator(".strip button").nth(0).click()
    select(page, "channel").select_option(str(tops[1]["channel"]))
    slot = page.locator("[data-slot=tops]")
    eventually(page, f"document.querySelector('[data-slot=tops]').innerText.includes('channel {tops[1]['channel']} ')")
    said = [f.inner_text().split()[1] for f in slot.locator("figcaption").all()]
    assert [float(v) for v in said] == pytest.approx([s for _, s in tops[1]["images"]], abs=1e-3)
    assert slot.locator("img").count() == len(tops[1]["images"])


def test_the_numbers_of_a_live_figure_are_a_table_that_follows_and_sorts(page: Any, found: Any) -> None:
    details = page.locator("details[data-numbers]").nth(CURVES)
    details.locator("summary").click()
    details.locator("tbody tr").nth(7).wait_for()
    assert details.locator("tbody tr").count() == 8
    heads = details.locator("thead th").all_inner_texts()
    assert heads[0] == "channel" and heads[1] == NASTY and heads[-2:] == ["all images", "deviation"]
    page.locator(".strip button").nth(1).click()
    constant = found["details"][1]["mean"][-1]
    rows = "[...document.querySelector('details[data-numbers]').querySelectorAll('tbody tr')]"
    last = f"{rows}.map(r => r.children[9].dataset.sort)"
    eventually(page, f"Math.abs({last}[0] - {max(constant)}) < 1e-3")
    details.locator("thead th").nth(9).locator("button").click()
    values = [float(v) for v in page.evaluate(last)]
    assert values == sorted(values) == pytest.approx(sorted(constant), abs=1e-4)


def test_the_table_of_gates_sorts(page: Any, found: Any) -> None:
    table = page.locator("section > .box table").last
    heads = table.locator("thead th").all_inner_texts()
    column = next(i for i, head in enumerate(heads) if head.startswith("Specificity"))
    table.locator("thead th").nth(column).locator("button").click()
    names = [row.locator("th").inner_text().split()[0] for row in table.locator("tbody tr").all()]
    by_value = sorted(found["gates"], key=lambda g: g["specificity"]["value"])
    assert names == [g["block"] for g in by_value]


def test_what_replaces_a_gate_is_shown_and_hidden(page: Any) -> None:
    button = page.locator(".legend button[data-series=k-one]")
    assert button.get_attribute("aria-pressed") == "false"
    plots = page.locator(".plot").count()
    count = plotted(plots - 1, "querySelectorAll('.trace').length")
    assert page.evaluate(count) == 2
    button.click()
    eventually(page, f"{count} === 3")


def test_sizes_are_stated(found: Any) -> None:
    assert explained()[0].stat().st_size < 2_200_000
    assert found["data"]["images"] == IMAGES
