"""Text as HTML and JSON take it."""

from __future__ import annotations

import html
import json
import re

from excite.errors import UserError

__all__ = ["counted", "escape", "figure_text", "json_text", "typeset"]


def counted(n: int, one: str, many: str = "") -> str:
    """A number of things: "1 image", "2,000 images"; ``many`` where it is not ``one`` with an s."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def escape(text: str) -> str:
    """Text for HTML, attributes included."""
    return html.escape(text, quote=True)


def figure_text(text: str) -> str:
    """Text for a plotly dict, shown as it is: plotly reads a little HTML in its labels."""
    return html.escape(text, quote=False)


def typeset(text: str) -> str:
    """Numbers with a minus sign instead of a hyphen, which a terminal may lack."""
    return re.sub(r"(^|(?<=[ (]))-(?=\d)", "−", text)


def json_text(value: object) -> str:
    """A value as JSON for a script element.

    Raises:
        ValueError: a number that is not finite.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except ValueError as error:
        raise UserError(f"a figure holds a value JSON cannot: {error}; give None for a gap") from None
    for character in "<>&\u2028\u2029":  # nothing in it may end the script element
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
