"""Mistakes a user can make, said in one line with the way out."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["UserError", "unknown"]


class UserError(ValueError):
    """A mistake in what was asked for: names the value, the allowed range and the fix.

    The command line prints it as one line and exits with code 2; from Python it is a ``ValueError``.
    """


def unknown(kind: str, name: object, options: Iterable[str], *, hint: str = "") -> UserError:
    """The error for a name that is not one of ``options``, with the nearest ones.

    Args:
        kind: what was named, as a reader would say it ("gate", "model", "option of gate 'se'").
        name: the name that was given.
        options: the names that exist.
        hint: how to see all of them ("`excite gates` lists all").
    """
    known = sorted(options)
    near = get_close_matches(str(name), known, n=3, cutoff=0.5)
    if near:
        said = "did you mean " + " or ".join(f"{n!r}" for n in near) + "?"
    elif len(known) <= 12:
        said = "known: " + ", ".join(known) + "."
    else:
        said = f"{len(known)} are known."
    return UserError(f"unknown {kind} {name!r}: {said}" + (f" {hint}." if hint else ""))
