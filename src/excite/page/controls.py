"""What a reader chooses with: lists, and the strip of buttons that shows a choice's options with their measures.

A page's script draws by what was chosen, see ``Live``. Lists and strips of one name are one choice: each follows the
others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from excite.page.text import escape

__all__ = ["Choice", "Live", "Meter", "Option", "choice_html", "strip_html"]


@dataclass(frozen=True)
class Live:
    """What draws a page's live figures and fills its slots, by what a reader chose.

    Attributes:
        script: a file of ``excite/assets``. It sets ``globalThis.live`` to an object of three objects of functions of
            the choices (value by name): ``makers`` return figures, as plotly dicts with named colours; ``slots`` fill
            an element; ``options`` return what a list offers, pairs of value and label.
        data: JSON-able; the script finds it as the text of the element "data".
    """

    script: str
    data: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Choice:
    """A list to choose from.

    Attributes:
        name: of the choice; the script knows it by this.
        label: what a reader sees before it.
        options: label by value; empty where the page's script says what there is.
        first: what is chosen at first; "" is the first option.
    """

    name: str
    label: str
    options: Mapping[str, str] = field(default_factory=dict)
    first: str = ""


@dataclass(frozen=True)
class Meter:
    """A measure as a bar with its number.

    Attributes:
        label: what is measured, a word.
        text: the number as a reader sees it; "" where there is none.
        share: length of the bar, 0 to 1.
        color: a colour name of figures.
    """

    label: str
    text: str
    share: float
    color: str


@dataclass(frozen=True)
class Option:
    """A button of a strip.

    Attributes:
        value: what is chosen.
        label: what a reader sees.
        about: a second, smaller line.
        meters: its measures.
    """

    value: str
    label: str
    about: str = ""
    meters: Sequence[Meter] = ()


def choice_html(choice: Choice) -> str:
    """A list with its label."""
    options = "".join(
        f'<option value="{escape(v)}"{" selected" if v == choice.first else ""}>{escape(t)}</option>'
        for v, t in choice.options.items()
    )
    filled = "" if choice.options else " data-filled"
    return (
        f'<label class="choice"><span>{escape(choice.label)}</span>'
        f'<select data-choice="{escape(choice.name)}"{filled} autocomplete="off">{options}</select></label>'
    )


def strip_html(name: str, label: str, groups: Mapping[str, Sequence[Option]]) -> str:
    """Buttons in named groups, in reading order."""
    parts = []
    for title, options in groups.items():
        buttons = "".join(_button(name, option) for option in options)
        parts.append(
            f'<div role="group" aria-label="{escape(title)}"><h3>{escape(title)}</h3><div>{buttons}</div></div>'
        )
    return f'<div class="strip" role="group" aria-label="{escape(label)}">{"".join(parts)}</div>'


def _button(name: str, option: Option) -> str:
    about = f"<small>{escape(option.about)}</small>" if option.about else ""
    meters = "".join(
        f'<span class="meter" style="--share:{min(max(m.share, 0.0), 1.0):.3f};--color:var(--{m.color[1:]})">'
        f"<span>{escape(m.label)}</span> <b>{escape(m.text)}</b></span>"
        for m in option.meters
    )
    return (
        f'<button type="button" data-choice="{escape(name)}" value="{escape(option.value)}" aria-pressed="false">'
        f"<strong>{escape(option.label)}</strong>{about}{meters}</button>"
    )
