"""Tables that a reader can sort."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from excite.errors import UserError
from excite.page.series import Series, swatch
from excite.page.text import escape

__all__ = ["Cell", "Row", "Table", "table_html"]


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
        wraps: cells hold sentences, on several lines.
    """

    columns: Sequence[str | tuple[str, str]]
    rows: Sequence[Row]
    caption: str = ""
    wraps: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise UserError(
                    f"row {row!r} has {len(row)} cells for {len(self.columns)} columns: give one cell a column"
                )


def table_html(table: Table) -> str:
    """A table as HTML, in a box of its own."""
    heads = []
    for column in table.columns:
        name, meaning = (column, "") if isinstance(column, str) else column
        small = f"<small>{escape(meaning)}</small>" if meaning else ""
        heads.append(f'<th scope="col"><button type="button"><span>{escape(name)}</span></button>{small}</th>')
    rows = "".join("<tr>" + "".join(_cell(c, i) for i, c in enumerate(row)) + "</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    label = escape(table.caption or "table")
    kind = ' class="wraps"' if table.wraps else ""
    return (
        f'<div class="box" tabindex="0" role="region" aria-label="{label}"><table{kind}>{caption}'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(value: Cell | str | float, index: int) -> str:
    cell = value if isinstance(value, Cell) else Cell(str(value), sort=value)
    key = cell.text if cell.sort is None else cell.sort
    number = isinstance(key, int | float)
    kind = " ".join(k for k in ("number" if number else "", cell.tone) if k)
    attributes = f' data-sort="{escape(str(key))}"' + (f' class="{escape(kind)}"' if kind else "")
    detail = f"<small>{_breakable(cell.detail)}</small>" if cell.detail else ""
    mark = swatch(cell.series) if cell.series else ""
    tag = "th" if index == 0 else "td"
    scope = ' scope="row"' if index == 0 else ""
    return f"<{tag}{scope}{attributes}>{mark}{_breakable(cell.text)}{detail}</{tag}>"


def _breakable(text: str) -> str:
    """Escaped text that may wrap inside what reads as one word, such as a gate with its options."""
    return "<wbr>".join(escape(part) for part in re.split(r"(?<=[,(=/:_])", text))
