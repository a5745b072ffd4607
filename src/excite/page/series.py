"""What is drawn in several figures: its colour, line and marker, and its swatch beside words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Series", "series_styles", "swatch"]

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


def swatch(series: Series) -> str:
    """A line and a marker as on the figures, as SVG."""
    dash = f' stroke-dasharray="{_STROKES[series.dash]}"' if series.dash in _STROKES else ""
    line = f'<path d="M1 6H25" stroke="currentColor" stroke-width="2.2"{dash}/>'
    return (
        '<svg class="swatch" viewBox="0 0 26 12" width="26" height="12" aria-hidden="true" '
        f'style="color:var(--{series.color[1:]})">{line}<g fill="currentColor">{_MARKS[series.symbol]}</g></svg>'
    )
