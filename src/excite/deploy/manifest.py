"""What an exported file says of itself: classes, preprocessing, the network and what it takes, as text by key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from excite.errors import UserError

__all__ = ["Manifest"]

# Key by which a file of ours is known, and the version of what the others hold.
_MARK = "excite"
_FORMAT = "1"


@dataclass(frozen=True)
class Manifest:
    """The text beside an exported network.

    Args:
        classes: names of the classes, by output.
        preprocessing: how an image becomes an input, as ``DataSet.preprocessing()`` says it; None if it was not said.
        network: what it is, as ``NetworkSpec.to_dict`` says it; None if it was not said.
        input: the name, the shape and the sizes of the images.
        made_with: versions and settings that made the file.
    """

    classes: tuple[str, ...] = ()
    preprocessing: dict[str, Any] | None = None
    network: dict[str, Any] | None = None
    input: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, Any] = field(default_factory=dict)

    def entries(self) -> dict[str, str]:
        """Everything as JSON in ASCII, by key; what is None has none.

        Raises:
            ValueError: something is not JSON-able.
        """
        entries = {_MARK: _FORMAT}
        for key, value in vars(self).items():
            if value is None:
                continue
            try:
                entries[key] = json.dumps(value)
            except TypeError as error:
                raise UserError(f"{key} of an exported file must be JSON-able: {error}") from None
        return entries

    @classmethod
    def read(cls, entries: Mapping[str, str], path: Path) -> Manifest:
        """What ``entries`` wrote.

        Raises:
            ValueError: the file was not exported by excite, by a later version, or is damaged.
        """
        if _MARK not in entries:
            raise UserError(
                f"{path} does not say how images are prepared: it has no {_MARK!r} entry. Files that `excite export` "
                "wrote have one"
            )
        if entries[_MARK] != _FORMAT:
            raise UserError(f"{path} has format {entries[_MARK]}; this version of excite reads format {_FORMAT}")
        try:
            held = {key: json.loads(entries[key]) for key in cls.__dataclass_fields__ if key in entries}
            return cls(**{**held, "classes": tuple(held.get("classes", ()))})
        except (json.JSONDecodeError, TypeError) as error:
            raise UserError(f"{path}: what it says of itself is damaged ({error})") from None
