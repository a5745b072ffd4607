"""One self-contained HTML page: text, sortable tables and figures, in one file that asks nothing of a network.

    page = Page("Title", lead="The sentence a reader should leave with.")
    section = page.section("Learning curves", "What is drawn here.")
    section.table(Table(("gate", "accuracy"), [("se", Cell("88.4", sort=0.884))]))
    section.figures(Figure("Accuracy", data=[{"x": [1, 2], "y": [3, 4]}], layout={}))
    page.write("report.html")

The page follows the system's light or dark theme, prints in light, fits a phone, and works from the keyboard. All
text is escaped here; a content security policy with the hashes of the page's own scripts keeps everything else from
running or loading.

Figures are plain plotly dicts (plotly.js is inlined from the package, MIT licence) whose colours may be named: under
any key that ends in "color", ``"@1"`` to ``"@7"``, ``"@plain"``, ``"@ink"``, ``"@muted"``, ``"@grid"``, ``"@line"`` and
``"@paper"`` become the theme's colour, and ``"@1/0.2"`` the same at 20 % opacity. A legend button shows and hides the
traces whose ``legendgroup``, and the shapes and annotations whose ``name``, is its series' key.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from excite.errors import UserError

__all__ = ["Cell", "Figure", "Page", "Row", "Section", "Series", "Table", "figure_text", "series_styles", "write_text"]

# Redundant with colour, so that no reader depends on it: one line style and one marker a series.
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
_COLORS = 7


@dataclass(frozen=True)
class Series:
    """One thing drawn in several figures, always with the same colour, line and marker.

    Attributes:
        key: what figures call it: traces with ``legendgroup=key`` are shown and hidden by its legend button.
        label: what a reader sees.
        color: a colour name for plotly dicts ("@plain", "@1" to "@7").
        dash: plotly line style.
        symbol: plotly marker.
    """

    key: str
    label: str
    color: str
    dash: str
    symbol: str


def series_styles(labels: Mapping[str, str], *, plain: str | None = None) -> dict[str, Series]:
    """A style for each series: colours from a palette that colour-blind readers can tell apart in both themes.

    Args:
        labels: label by key, in the order of the legend.
        plain: the key drawn in the neutral colour, as what the others are compared with.
    """
    styles, i = {}, 0
    for key, label in labels.items():
        if key == plain:
            styles[key] = Series(key, label, "@plain", "solid", "circle-open")
            continue
        # Past the palette's end a colour returns with another line and marker.
        turn = i // _COLORS
        dash = _DASHES[(i % _COLORS + turn) % len(_DASHES)] if turn else "solid"
        styles[key] = Series(key, label, f"@{i % _COLORS + 1}", dash, _SYMBOLS[i % len(_SYMBOLS)])
        i += 1
    return styles


def figure_text(text: str) -> str:
    """Text for a plotly dict, shown as it is: plotly reads a little HTML in its labels."""
    return html.escape(text, quote=False)


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what is shown.
        sort: what the column is sorted by; the text where None.
        detail: a second, smaller line.
        series: draws this series' swatch before the text.
        tone: "good", "bad" or "" (colours the text; the words must say it too).
    """

    text: str
    sort: float | str | None = None
    detail: str = ""
    series: Series | None = None
    tone: str = ""


Row = Sequence[Cell | str | float]
"""One row of a table: a str is a plain cell, a number is shown as given and sorted by value."""


@dataclass(frozen=True)
class Table:
    """A table whose columns a reader can sort; wider than the screen, it scrolls inside its own box.

    Attributes:
        columns: headings; a pair is a heading with a few words on what it means, shown under it.
        rows: one cell a column.
        caption: read out to screen readers and shown small above.
    """

    columns: Sequence[str | tuple[str, str]]
    rows: Sequence[Row]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise UserError(
                    f"row {row!r} has {len(row)} cells for {len(self.columns)} columns: give one cell a column"
                )


@dataclass(frozen=True)
class Figure:
    """A plotly figure with its words.

    Attributes:
        title: what is drawn, with the unit; shown above and read out in place of the picture.
        data: plotly traces.
        layout: plotly layout; margins, fonts and colours are the page's.
        caption: how to read it, one or two sentences.
        height: in pixels.
        table: the drawn numbers, folded below: the figure for who cannot see it.
        wide: takes the whole width; other figures stand side by side where there is room.
    """

    title: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any] = field(default_factory=dict)
    caption: str = ""
    height: int = 360
    table: Table | None = None
    wide: bool = False


class Section:
    """A part of the page: its content appears in the order it is added."""

    def __init__(self, page: Page, open_tag: str, close_tag: str) -> None:
        self._page, self._open, self._close = page, open_tag, close_tag
        self._parts: list[str | Section] = []

    def text(self, *paragraphs: str) -> Section:
        """Adds paragraphs."""
        self._parts.extend(f"<p>{_escape(p)}</p>" for p in paragraphs)
        return self

    def points(self, items: Iterable[str]) -> Section:
        """Adds a list; nothing where there are no items."""
        listed = "".join(f"<li>{_escape(i)}</li>" for i in items)
        if listed:
            self._parts.append(f"<ul>{listed}</ul>")
        return self

    def facts(self, facts: Mapping[str, object]) -> Section:
        """Adds names with their values, one a line."""
        rows = "".join(f"<div><dt>{_escape(k)}</dt><dd>{_escape(_shown(v))}</dd></div>" for k, v in facts.items())
        self._parts.append(f"<dl>{rows}</dl>")
        return self

    def table(self, table: Table) -> Section:
        """Adds a sortable table."""
        self._parts.append(_table(table))
        return self

    def legend(self, series: Iterable[Series]) -> Section:
        """Adds buttons that show and hide each series in all figures of the page."""
        buttons = "".join(
            f'<button type="button" aria-pressed="true" data-series="{_escape(s.key)}">'
            f"{_swatch(s)}<span>{_escape(s.label)}</span></button>"
            for s in series
        )
        label = "Show or hide in all figures"
        self._parts.append(f'<div class="legend" role="group" aria-label="{label}">{buttons}</div>')
        return self

    def figures(self, *figures: Figure) -> Section:
        """Adds figures, side by side where there is room."""
        drawn = "".join(self._page._figure(f) for f in figures)
        self._parts.append(f'<div class="figures">{drawn}</div>')
        return self

    def folded(self, summary: str) -> Section:
        """Adds a part that is closed until a reader opens it, and returns it."""
        part = Section(self._page, f"<details><summary>{_escape(summary)}</summary><div>", "</div></details>")
        self._parts.append(part)
        return part

    def html(self) -> str:
        """The section as HTML."""
        inner = "\n".join(p if isinstance(p, str) else p.html() for p in self._parts)
        return f"{self._open}\n{inner}\n{self._close}"


class Page:
    """Builds one page.

    Args:
        title: the page's heading and window title.
        lead: the sentence a reader should leave with, set large under the title; with several, the first stands out.
        about: a small line above the title (what made this, when).
    """

    def __init__(self, title: str, *, lead: str | Sequence[str] = (), about: str = "") -> None:
        self.title, self.about = title, about
        self.lead = (lead,) if isinstance(lead, str) else tuple(lead)
        self._sections: list[Section] = []
        self._figures: list[dict[str, Any]] = []

    def section(self, title: str = "", intro: str = "") -> Section:
        """Begins a section; without a title it continues the page's top."""
        number = len(self._sections)
        heading = f'<h2 id="s{number}">{_escape(title)}</h2>' if title else ""
        labelled = f' aria-labelledby="s{number}"' if title else ""
        section = Section(self, f"<section{labelled}>{heading}", "</section>")
        if intro:
            section.text(intro)
        self._sections.append(section)
        return section

    def html(self) -> str:
        """The whole page.

        Raises:
            ValueError: a figure holds a number that is not finite (JSON has none: give None for a gap).
        """
        scripts = [_asset("plotly-cartesian.min.js"), _asset("page.js")] if self._figures else [_asset("page.js")]
        policy = (
            "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
            f"script-src {' '.join(_hash(s) for s in scripts)}"
        )
        head = (
            '<meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
            '<link rel="icon" href="data:,">'
            f"<title>{_escape(self.title)}</title>\n<style>\n{_asset('page.css')}</style>"
        )
        about = f'<p class="about">{_escape(self.about)}</p>' if self.about else ""
        first, *rest = self.lead or ("",)
        lead = f'<p class="lead"><strong>{_escape(first)}</strong> {_escape(" ".join(rest))}</p>' if first else ""
        body = "\n".join(s.html() for s in self._sections)
        noscript = "<noscript><p>Figures and sorting need JavaScript; every number is in the tables.</p></noscript>"
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n<main>\n'
            f"<header>{about}<h1>{_escape(self.title)}</h1>{lead}</header>\n{noscript}\n{body}\n</main>\n"
            f'<script type="application/json" id="figures">{_json(self._figures)}</script>\n'
            + "\n".join(f"<script>{s}</script>" for s in scripts)
            + "\n</body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page, whole or not at all, and returns where it is."""
        return write_text(path, self.html())

    def _figure(self, figure: Figure) -> str:
        index = len(self._figures)
        self._figures.append({"data": list(figure.data), "layout": dict(figure.layout)})
        caption = f"<p>{_escape(figure.caption)}</p>" if figure.caption else ""
        numbers = ""
        if figure.table:
            numbers = f"<details><summary>The numbers drawn</summary><div>{_table(figure.table)}</div></details>"
        wide = ' class="wide"' if figure.wide else ""
        return (
            f'<figure{wide} aria-labelledby="f{index}"><h3 id="f{index}">{_escape(figure.title)}</h3>'
            f'<div class="plot" data-figure="{index}" style="height:{int(figure.height)}px" role="img" '
            f'aria-labelledby="f{index}"></div><figcaption>{caption}{numbers}</figcaption></figure>'
        )


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes a UTF-8 file whole or not at all (a file beside it, synced, then renamed), and returns where it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)  # mkstemp's files are for their owner alone
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    return path


def _table(table: Table) -> str:
    heads = []
    for column in table.columns:
        name, meaning = (column, "") if isinstance(column, str) else column
        small = f"<small>{_escape(meaning)}</small>" if meaning else ""
        heads.append(f'<th scope="col"><button type="button"><span>{_escape(name)}</span></button>{small}</th>')
    rows = "".join("<tr>" + "".join(_cell(c, i) for i, c in enumerate(row)) + "</tr>" for row in table.rows)
    caption = f"<caption>{_escape(table.caption)}</caption>" if table.caption else ""
    label = _escape(table.caption or "table")
    return (
        f'<div class="box" tabindex="0" role="region" aria-label="{label}"><table>{caption}'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(value: Cell | str | float, index: int) -> str:
    cell = value if isinstance(value, Cell) else Cell(str(value), sort=value)
    key = cell.text if cell.sort is None else cell.sort
    number = isinstance(key, int | float)
    kind = " ".join(k for k in ("number" if number else "", cell.tone) if k)
    attributes = f' data-sort="{_escape(str(key))}"' + (f' class="{_escape(kind)}"' if kind else "")
    detail = f"<small>{_escape(cell.detail)}</small>" if cell.detail else ""
    swatch = _swatch(cell.series) if cell.series else ""
    tag = "th" if index == 0 else "td"
    scope = ' scope="row"' if index == 0 else ""
    return f"<{tag}{scope}{attributes}>{swatch}{_breakable(cell.text)}{detail}</{tag}>"


def _breakable(text: str) -> str:
    """Escaped text that may wrap inside what reads as one word, such as a gate with its options."""
    return "<wbr>".join(_escape(part) for part in re.split(r"(?<=[,(=/:_])", text))


_MARKS = {
    "circle": '<circle cx="13" cy="6" r="3.8"/>',
    "circle-open": '<circle cx="13" cy="6" r="3.4" fill="var(--paper)" stroke="currentColor" stroke-width="2"/>',
    "square": '<path d="M9.5 2.5h7v7h-7z"/>',
    "diamond": '<path d="M13 1.2 17.8 6 13 10.8 8.2 6z"/>',
    "triangle-up": '<path d="M13 1.5 17.5 9.5h-9z"/>',
    "triangle-down": '<path d="M13 10.5 17.5 2.5h-9z"/>',
    "cross": '<path d="M11.4 1.5h3.2v2.9h2.9v3.2h-2.9v2.9h-3.2V7.6H8.5V4.4h2.9z"/>',
    "x": '<path d="m8.8 3.4 1.6-1.6L13 4.4l2.6-2.6 1.6 1.6L14.6 6l2.6 2.6-1.6 1.6L13 7.6l-2.6 2.6-1.6-1.6L11.4 6z"/>',
    "star": '<path d="m13 .8 1.5 3.4 3.7.4-2.8 2.5.8 3.6-3.2-1.9-3.2 1.9.8-3.6-2.8-2.5 3.7-.4z"/>',
}
_STROKES = {"dash": "5 3", "dot": "2 2", "dashdot": "5 2 2 2", "longdash": "9 3", "longdashdot": "9 2 2 2"}


def _swatch(series: Series) -> str:
    dash = f' stroke-dasharray="{_STROKES[series.dash]}"' if series.dash in _STROKES else ""
    line = f'<path d="M1 6H25" stroke="currentColor" stroke-width="2.2"{dash}/>'
    return (
        '<svg class="swatch" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true" '
        f'style="color:var(--{series.color[1:]})">{line}<g fill="currentColor">{_MARKS[series.symbol]}</g></svg>'
    )


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(v) for v in value) or "none"
    return str(value)


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _json(value: object) -> str:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except ValueError as error:
        raise UserError(f"a figure holds a value JSON cannot: {error}; give None for a gap") from None
    for character in "<>&\u2028\u2029":  # nothing in it may end the script element
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return resources.files("excite").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
