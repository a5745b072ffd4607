"""Frozen dataclasses as settings: types checked and converted, YAML in and out, mistakes in one line."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from excite.errors import UserError, unknown

__all__ = ["Settings", "read_yaml"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of every verb's config: a frozen, keyword-only dataclass that checks itself.

    Fields may be ``bool``, ``int``, ``float``, ``str``, ``Literal``, ``tuple[T, ...]``, ``dict`` and unions of them
    with ``None``. Values are converted where nothing is lost (an ``int`` for a ``float``, a list for a tuple, a path
    for a ``str``), and a wrong type is a ``UserError``. Subclasses check ranges in ``__post_init__``, after this one's.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = convert(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)

    @classmethod
    def converted(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Some of the fields' values, by name, as their types; ranges are left to the whole.

        Raises:
            ValueError: an unknown name (with the nearest ones), or a value of the wrong type.
        """
        hints = typing.get_type_hints(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise unknown("setting", name, names)
        return {name: convert(name, value, hints[name]) for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Settings from a mapping of field names to values.

        Raises:
            ValueError: an unknown name (with the nearest ones), or a value of the wrong type or out of range.
        """
        return cls(**cls.converted(values))

    def to_dict(self) -> dict[str, Any]:
        """Field names to plain values (tuples become lists), ready for JSON or YAML."""
        plain = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain}

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Self:
        """Settings from a YAML file; fields it does not name keep their defaults.

        Raises:
            ValueError: the file is missing, is no YAML mapping, or holds an unknown name or a bad value.
        """
        values = read_yaml(path)
        try:
            return cls.from_dict(values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    def to_yaml(self) -> str:
        """The text of a YAML file that ``from_yaml`` (or ``--config``) reads back."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def require(
        self,
        name: str,
        *,
        at_least: float | None = None,
        above: float | None = None,
        at_most: float | None = None,
        below: float | None = None,
    ) -> None:
        """Checks that a number (or every number of a tuple) lies in a range; ``None`` passes.

        Raises:
            ValueError: it does not; the message gives the value and the range.
        """
        value = getattr(self, name)
        bounds = [
            (at_least, "at least", operator.ge),
            (above, "more than", operator.gt),
            (at_most, "at most", operator.le),
            (below, "less than", operator.lt),
        ]
        given = [(bound, words, holds) for bound, words, holds in bounds if bound is not None]
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not all(holds(number, bound) for bound, _, holds in given):
                wanted = " and ".join(f"{words} {bound:g}" for bound, words, _ in given)
                raise UserError(f"{name}={number}: give {wanted}")


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file (an empty file is an empty mapping).

    Raises:
        ValueError: the file cannot be read, is not YAML, or is not a mapping of names to values.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"cannot read the config file {str(path)!r}: {reason}") from None
    except yaml.YAMLError as error:
        where = f" at line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        raise UserError(f"{path} is not YAML{where}: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"{path} must hold lines of `name: value`; it holds a {type(values).__name__}")
    return values


def convert(name: str, value: Any, hint: Any) -> Any:
    """``value`` as the annotated type, where that loses nothing.

    Raises:
        ValueError: it is of another type; the message says which is wanted.
    """
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for kind in kinds:
        done, result = _try(value, kind)
        if done:
            return result
    if typing.get_origin(kinds[0]) is Literal and isinstance(value, str):
        raise unknown(name, value, typing.get_args(kinds[0]))
    raise UserError(f"{name}={value!r}: give {' or '.join(map(_describe, kinds))}")


def _try(value: Any, kind: Any) -> tuple[bool, Any]:
    if kind is None or kind is types.NoneType:
        return value is None, None
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind), value
    if typing.get_origin(kind) is tuple:
        return _try_tuple(value, typing.get_args(kind)[0])
    if kind is str:
        return isinstance(value, str | os.PathLike), os.fspath(value) if isinstance(value, os.PathLike) else value
    if kind is float:
        return _try_float(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if kind is bool:
        return isinstance(value, bool), value
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value), value


def _try_tuple(value: Any, item: Any) -> tuple[bool, Any]:
    if not isinstance(value, list | tuple):
        return False, None
    results = [_try(v, item) for v in value]
    return all(done for done, _ in results), tuple(result for _, result in results)


def _try_float(value: Any) -> tuple[bool, Any]:
    if isinstance(value, str):
        # YAML 1.1 reads 1e-4, which has no dot, as text.
        try:
            value = float(value)
        except ValueError:
            return False, None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False, None
    return True, float(value)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return f"a list of {_describe(typing.get_args(kind)[0]).removeprefix('a ').removeprefix('an ')}s"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", types.NoneType: "null"}
    return names.get(kind, "names with values, as {name: value}")
