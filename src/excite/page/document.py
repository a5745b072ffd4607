"""The page itself: sections, figures, and the file that they become."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from excite.files import write_atomic
from excite.page.controls import Choice, Live, Option, choice_html, strip_html
from excite.page.series import Series, swatch
from excite.page.tables import Table, table_html
from excite.page.text import escape, json_text

__all__ = ["Figure", "Page", "Section"]


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
        maker: the maker of the page's script that draws it, by what a reader chose, see ``Live``; its numbers are
            folded below without a table here.
    """

    title: str
    data: Sequence[Mapping[str, Any]] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    caption: str = ""
    height: int = 360
    table: Table | None = None
    wide: bool = False
    maker: str = ""


class Section:
    """A part of the page: its content appears in the order it is added."""

    def __init__(self, page: Page, open_tag: str, close_tag: str) -> None:
        self._page, self._open, self._close = page, open_tag, close_tag
        self._parts: list[str | Section] = []

    def text(self, *paragraphs: str) -> Section:
        """Adds paragraphs."""
        self._parts.extend(f"<p>{escape(p)}</p>" for p in paragraphs)
        return self

    def points(self, items: Iterable[str]) -> Section:
        """Adds a list; nothing where there are no items."""
        listed = "".join(f"<li>{escape(i)}</li>" for i in items)
        if listed:
            self._parts.append(f"<ul>{listed}</ul>")
        return self

    def facts(self, facts: Mapping[str, object]) -> Section:
        """Adds names with their values, one a line."""
        rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(_shown(v))}</dd></div>" for k, v in facts.items())
        self._parts.append(f"<dl>{rows}</dl>")
        return self

    def table(self, table: Table) -> Section:
        """Adds a sortable table."""
        self._parts.append(table_html(table))
        return self

    def legend(self, series: Iterable[Series], *, shown: Container[str] | None = None) -> Section:
        """Adds buttons that show and hide each series in all figures of the page; at first ``shown``, or all."""
        buttons = "".join(
            f'<button type="button" aria-pressed="{"true" if shown is None or s.key in shown else "false"}" '
            f'data-series="{escape(s.key)}">{swatch(s)}'
            f'<span title="{escape(s.label)}">{escape(s.label)}</span></button>'
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

    def choices(self, *choices: Choice) -> Section:
        """Adds lists to choose from, for the page's script."""
        self._parts.append(f'<div class="choices">{"".join(map(choice_html, choices))}</div>')
        return self

    def strip(self, name: str, label: str, groups: Mapping[str, Sequence[Option]]) -> Section:
        """Adds buttons in named groups that make the choice of this name; ``label`` is read out."""
        self._parts.append(strip_html(name, label, groups))
        return self

    def slot(self, name: str) -> Section:
        """Adds what the page's script fills."""
        self._parts.append(f'<div class="slot" data-slot="{escape(name)}" aria-live="polite"></div>')
        return self

    def folded(self, summary: str) -> Section:
        """Adds a part that is closed until a reader opens it, and returns it."""
        part = Section(self._page, f"<details><summary>{escape(summary)}</summary><div>", "</div></details>")
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
        live: the script of figures and slots that depend on what a reader chooses.
    """

    def __init__(
        self, title: str, *, lead: str | Sequence[str] = (), about: str = "", live: Live | None = None
    ) -> None:
        self.title, self.about, self.live = title, about, live
        self.lead = (lead,) if isinstance(lead, str) else tuple(lead)
        self._sections: list[Section] = []
        self._figures: list[dict[str, Any]] = []

    def section(self, title: str = "", intro: str = "") -> Section:
        """Begins a section; without a title it continues the page's top."""
        number = len(self._sections)
        heading = f'<h2 id="s{number}">{escape(title)}</h2>' if title else ""
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
        names = [*(["plotly-cartesian.min.js"] if self._figures else []), *([self.live.script] if self.live else [])]
        scripts = [_asset(name) for name in (*names, "page.js")]
        data = ""
        if self.live:
            data = f'<script type="application/json" id="data">{json_text(self.live.data)}</script>\n'
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
            f"<title>{escape(self.title)}</title>\n<style>\n{_asset('page.css')}</style>"
        )
        about = f'<p class="about">{escape(self.about)}</p>' if self.about else ""
        first, *rest = self.lead or ("",)
        lead = f'<p class="lead"><strong>{escape(first)}</strong> {escape(" ".join(rest))}</p>' if first else ""
        body = "\n".join(s.html() for s in self._sections)
        noscript = "<noscript><p>Figures and sorting need JavaScript; every number is in the tables.</p></noscript>"
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n<main>\n'
            f"<header>{about}<h1>{escape(self.title)}</h1>{lead}</header>\n{noscript}\n{body}\n</main>\n"
            f'<script type="application/json" id="figures">{json_text(self._figures)}</script>\n{data}'
            + "\n".join(f"<script>{s}</script>" for s in scripts)
            + "\n</body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page, whole or not at all, and returns where it is."""
        return write_atomic(path, self.html())

    def _figure(self, figure: Figure) -> str:
        index = len(self._figures)
        self._figures.append({"data": list(figure.data), "layout": dict(figure.layout)})
        if figure.maker:
            self._figures[-1]["maker"] = figure.maker
        caption = f"<p>{escape(figure.caption)}</p>" if figure.caption else ""
        numbers = ""
        if figure.table or figure.maker:
            # A live figure's numbers are written when they are asked for.
            table = table_html(figure.table) if figure.table else ""
            kind = f' data-numbers="{index}"' if figure.maker else ""
            numbers = f"<details{kind}><summary>The numbers drawn</summary><div>{table}</div></details>"
        wide = ' class="wide"' if figure.wide else ""
        return (
            f'<figure{wide} aria-labelledby="f{index}"><h3 id="f{index}">{escape(figure.title)}</h3>'
            f'<div class="plot" data-figure="{index}" style="height:{int(figure.height)}px" role="img" '
            f'aria-labelledby="f{index}"></div><figcaption>{caption}{numbers}</figcaption></figure>'
        )


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(v) for v in value) or "none"
    return str(value)


def _asset(name: str) -> str:
    return resources.files("excite").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
