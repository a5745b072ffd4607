r"""How a zoo writes one family of networks: which of its tensors is which of ours, and what no shape tells.

A zoo's file is a literal table of these. A rule is a pair (pattern, template) over the dotted name of a module: the
pattern is a regular expression that must match all of it, and in the template ``{2}`` is the second group and
``{2-1}`` that number less one:

    (r"features\.stage(\d)\.unit(\d+)\.body\.conv(\d)\.bn", "layer{1}.{2-1}.bn{3}")

What follows the module's name (``weight``, ``running_mean``) is the same in every zoo of PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from excite.models.base import Classifier

__all__ = ["Layout", "Refusal", "Rules", "rename"]

Rules = tuple[tuple[str, str], ...]

# Buffers that thop adds to every module and checkpoints then carry.
_COUNTER = re.compile(r"(?:.*\.)?total_(?:ops|params)")

_FIELD = re.compile(r"\{(\d+)(?:([+-]\d+))?\}")


@dataclass(frozen=True)
class Layout:
    """One family of networks as one zoo writes it.

    Args:
        zoo: the zoo's name.
        family: our class of the networks.
        networks: the zoo's names of them, each with the name in ``MODELS`` of the same network.
        rules: its modules' names -> ours; the first that matches counts.
        options: the options of ``create_model`` that make our network compute what the zoo's does.
        head: our name of the classifier's last layer.
        needs: a pattern that the name of at least one tensor must match; "" for none. Tells apart what rules cannot.
        lacks: a pattern that the name of no tensor may match; "" for none.
        zeros: a pattern of our tensors that the zoo does not have, because they are zero there; "" for none.
        idle: patterns of its tensors that change nothing where ours has no place for them, with the reason.
        notes: what a user of these weights should know.
    """

    zoo: str
    family: type[Classifier]
    networks: Mapping[str, str]
    rules: Rules
    options: Mapping[str, Any] = field(default_factory=dict)
    head: str = "fc"
    needs: str = ""
    lacks: str = ""
    zeros: str = ""
    idle: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def our_key(self, key: str) -> str | None:
        """Our name of the zoo's tensor ``key``, or None where no rule is for it."""
        return None if _COUNTER.fullmatch(key) else rename(key, self.rules)

    def may_be(self, keys: Collection[str]) -> bool:
        """Whether tensors of these names have what it needs and not what it lacks."""
        return (not self.needs or _any(self.needs, keys)) and not (self.lacks and _any(self.lacks, keys))

    def why_idle(self, key: str) -> str | None:
        """Why leaving out the zoo's tensor ``key`` changes nothing, or None if it would."""
        if _COUNTER.fullmatch(key):
            return "left by a profiler (thop), which counts in them"
        return next((reason for pattern, reason in self.idle.items() if re.fullmatch(pattern, key)), None)

    def is_zero(self, key: str) -> bool:
        """Whether our tensor ``key`` is one that the zoo leaves out for being zero."""
        return bool(self.zeros) and re.fullmatch(self.zeros, key) is not None


@dataclass(frozen=True)
class Refusal:
    """Networks of a zoo that no network here computes the same as, though their tensors' names may look so.

    Args:
        zoo: the zoo's name.
        reason: what is different.
        names: a pattern of the zoo's names of them; "" where only their tensors tell.
        needs: patterns, each of which the name of some tensor must match; empty where only the name tells.
        lacks: a pattern that no tensor's name may match; "" for none.
        alike: whether names and shapes are those of a network here, so that only the zoo's name of it tells.
    """

    zoo: str
    reason: str
    names: str = ""
    needs: tuple[str, ...] = ()
    lacks: str = ""
    alike: bool = False

    def is_called(self, name: str) -> bool:
        """Whether ``name`` is the zoo's name of such a network."""
        return bool(self.names) and re.fullmatch(self.names, name) is not None

    def fits(self, keys: Collection[str]) -> bool:
        """Whether tensors of these names are such a network's."""
        found = [_any(pattern, keys) for pattern in self.needs]
        return bool(found) and all(found) and not (self.lacks and _any(self.lacks, keys))


def rename(key: str, rules: Rules) -> str | None:
    """``key`` with its module's name rewritten by the first rule that matches, or None."""
    module, _, tensor = key.rpartition(".")
    for pattern, template in rules:
        found = _compiled(pattern).fullmatch(module)
        if found:
            return f"{_filled(template, found)}.{tensor}"
    return None


def _any(pattern: str, keys: Collection[str]) -> bool:
    return any(_compiled(pattern).fullmatch(key) for key in keys)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _filled(template: str, found: re.Match[str]) -> str:
    def value(place: re.Match[str]) -> str:
        group, shift = found[int(place[1])], place[2]
        return str(int(group) + int(shift)) if shift else group

    return _FIELD.sub(value, template)
