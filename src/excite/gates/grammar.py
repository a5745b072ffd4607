"""How a gate's config is written as text, and how its values are checked: plain functions over annotations.

    gate   := name | name "(" option { "," option } ")"
    option := name "=" value
    value  := none | true | false | integer | number | word | "quoted text"

A word needs no quotes: a letter or underscore, then letters, digits and ``_ . : + -``. Which of the kinds of value an
option takes is read from its annotation alone, so a config declares each option once. Annotations are unions of
``int``, ``float``, ``bool``, ``str``, ``None`` and ``Literal`` strings.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from excite.errors import UserError, unknown

__all__ = ["check_options", "read_call", "read_options", "split_top_level", "write_call"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.:+-]*")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_CONSTANTS: dict[str, bool | None] = {"none": None, "true": True, "false": False}
# Bare text that would be read as something else than a string.
_RESERVED = frozenset(_CONSTANTS) | {"nan", "inf", "infinity"}


# --- text -> parts -------------------------------------------------------------------------------------------------


def split_top_level(text: str, separator: str = ",") -> list[str]:
    """The parts of ``text`` between separators that stand outside parentheses and quotes, stripped.

    Raises:
        ValueError: a parenthesis or a quote without its partner.
    """
    parts, start, depth = [], 0, 0
    for at, character in _unquoted(text):
        if character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth < 0:
                raise UserError(f"{text!r}: the ')' at character {at + 1} closes nothing")
        elif character == separator and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    if depth:
        raise UserError(f"{text!r}: {depth} '(' without its ')'")
    return [*parts, text[start:].strip()]


def _unquoted(text: str) -> Iterator[tuple[int, str]]:
    at = 0
    while at < len(text):
        if text[at] == '"':
            at += len(_quoted(text, at))
        else:
            yield at, text[at]
            at += 1


def _quoted(text: str, start: int) -> str:
    """The quoted text that begins at ``start``, quotes and escapes included."""
    found = re.compile(r'"(?:[^"\\]|\\.)*"').match(text, start)
    if found is None:
        raise UserError(f"{text!r}: the quote at character {start + 1} is not closed")
    return found.group()


def read_call(text: str) -> tuple[str, dict[str, str]]:
    """``"se(reduction=8,bias=false)"`` as ``("se", {"reduction": "8", "bias": "false"})``: values are still text.

    Raises:
        ValueError: the text is no ``name`` or ``name(option=value,...)``, or gives an option twice.
    """
    said = text.strip()
    name, opened, rest = said.partition("(")
    name = name.strip()
    if not _NAME.fullmatch(name) or (opened and not rest.endswith(")")):
        raise UserError(f"cannot read gate {text!r}: write it as name or name(option=value,...)")
    inside = rest[:-1].strip()
    split_top_level(said)  # parentheses and quotes must pair before the options are looked at
    options: dict[str, str] = {}
    for part in split_top_level(inside) if inside else []:
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not _NAME.fullmatch(key) or not value:
            raise UserError(f"cannot read {part!r} in gate {text!r}: options are written name=value")
        if key in options:
            raise UserError(f"gate {text!r} gives {key!r} twice")
        options[key] = value
    return name, options


# --- parts -> values -----------------------------------------------------------------------------------------------


def read_options(cls: type[Any], title: str, options: dict[str, str]) -> dict[str, Any]:
    """Values of the dataclass ``cls`` from their text, each read by its field's annotation.

    Args:
        cls: a dataclass.
        title: what it is, for the error ("gate 'se'").
        options: field names with their values as text.

    Raises:
        ValueError: an unknown option (with the nearest names) or a value its field does not take.
    """
    kinds = _kinds(cls)
    values = {}
    for name, text in options.items():
        if name not in kinds:
            if not kinds:
                raise UserError(f"{title} has no options; {name!r} was given")
            raise unknown(f"option of {title}:", name, kinds)
        values[name] = _check(title, name, _read(text, kinds[name]), kinds[name])
    return values


def _read(text: str, kinds: tuple[Any, ...]) -> object:
    """The value that ``text`` stands for; text nothing else fits stays text, for ``_check`` to judge."""
    if text.startswith('"'):
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise UserError(f"cannot read {text}: quoted text ends at its closing quote") from None
    if text in _CONSTANTS and (text == "none" or bool in kinds):
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text) and (int in kinds or float in kinds):
        return int(text)
    if float in kinds:
        try:
            return float(text)
        except ValueError:
            pass
    return text


def check_options(instance: Any, title: str) -> None:
    """Hold every field of a dataclass instance to its annotation; an integer where a number is asked becomes a float.

    Raises:
        ValueError: a value of another type, not finite, or not among its field's choices (with the nearest).
    """
    for name, kinds in _kinds(type(instance)).items():
        given = getattr(instance, name)
        checked = _check(title, name, given, kinds)
        if type(checked) is not type(given):
            object.__setattr__(instance, name, checked)  # frozen, and still being made


def _check(title: str, name: str, value: object, kinds: tuple[Any, ...]) -> object:
    if isinstance(value, bool) or value is None:
        if type(value) in kinds:
            return value
    elif isinstance(value, int):
        if int in kinds:
            return value
        if float in kinds:
            return float(value)
    elif isinstance(value, float):
        if float in kinds and math.isfinite(value):
            return value
    elif isinstance(value, str):
        choices = [c for c in kinds if isinstance(c, str)]
        if str in kinds or value in choices:
            return value
        if choices and _WORD.fullmatch(value):
            raise unknown(
                f"{name} of {title}:", value, choices + [_say(k) for k in kinds if k in (type(None), int, float)]
            )
    raise UserError(f"{title}: {name}={value!r} is not {_listed([_say(k) for k in kinds])}")


def _kinds(cls: type[Any]) -> dict[str, tuple[Any, ...]]:
    """Field names of a dataclass with what each takes: types, and strings for ``Literal`` choices."""
    fields = [f.name for f in dataclasses.fields(cls)]
    hints = get_type_hints(cls) if fields else {}
    return {name: tuple(_flatten(hints[name], cls, name)) for name in fields}


def _flatten(hint: Any, cls: type[Any], name: str) -> Iterator[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        for member in get_args(hint):
            yield from _flatten(member, cls, name)
    elif get_origin(hint) is Literal and all(isinstance(choice, str) for choice in get_args(hint)):
        yield from get_args(hint)
    elif hint in (int, float, bool, str, type(None)):
        yield hint
    else:
        raise TypeError(
            f"{cls.__name__}.{name} is annotated {hint!r}: "
            "options are int, float, bool, str, None, Literal strings, or unions of these"
        )


def _say(kind: Any) -> str:
    words = {int: "an integer", float: "a finite number", bool: "true or false", str: "text", type(None): "none"}
    return kind if isinstance(kind, str) else words[kind]


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


# --- values -> text ------------------------------------------------------------------------------------------------


def write_call(name: str, instance: Any) -> str:
    """``name(option=value,...)`` with the options of a dataclass that differ from their defaults, in field order."""
    changed = [
        f"{f.name}={_write(value)}"
        for f in dataclasses.fields(instance)
        if (value := getattr(instance, f.name)) != f.default
        or isinstance(value, bool) != isinstance(f.default, bool)  # False == 0
    ]
    return f"{name}({','.join(changed)})" if changed else name


def _write(value: object) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and (not _WORD.fullmatch(value) or value.lower() in _RESERVED):
        return json.dumps(value)
    return str(value)
