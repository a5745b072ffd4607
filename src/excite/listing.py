"""``excite models`` and ``excite gates``: what there is, by name."""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass
from fnmatch import fnmatchcase

from excite.errors import unknown
from excite.training.settings import Settings

__all__ = ["ListConfig", "list_gates", "list_models"]


@dataclass(frozen=True, kw_only=True)
class ListConfig(Settings):
    """List names.

    Args:
        pattern: only names that match it, as "se_*".
    """

    pattern: str = "*"


def list_models(config: ListConfig) -> None:
    """Prints the networks that `create_model` takes, one a line.

    Raises:
        ValueError: none matches the pattern.
    """
    from excite import models

    names = models.list_models(config.pattern)
    if not names:
        raise unknown("model", config.pattern, models.list_models(), hint="`excite models` lists all")
    print("\n".join(names))


def list_gates(config: ListConfig) -> None:
    """Prints the gates, each with its settings and their defaults.

    Raises:
        ValueError: none matches the pattern.
    """
    from excite.gates import GATES

    names = [name for name in GATES if fnmatchcase(name, config.pattern)]
    if not names:
        raise unknown("gate", config.pattern, GATES, hint="`excite gates` lists all")
    width = max(map(len, names))
    for name in names:
        kind = GATES[name]
        # The module says what the gate is; the config only that it configures it.
        about = (type(kind().build(64)).__doc__ or "").strip().partition("\n")[0]
        options = ", ".join(f"{f.name}={_plain(f.default)}" for f in dataclasses.fields(kind))
        print(f"{name:{width}}  {about}")
        if options:
            print(textwrap.fill(options, 100, initial_indent=" " * (width + 4), subsequent_indent=" " * (width + 4)))


def _plain(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
