"""What `excite compare` can be told. Light: nothing here loads torch before gates are read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excite.errors import UserError
from excite.files import expanded
from excite.training.config import FREE, Recipe, TrainConfig

if TYPE_CHECKING:
    from excite.gates import GateConfig

__all__ = ["CompareConfig", "read_gates"]


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Recipe):
    """Train a network with each of several gates, on equal terms, and say what the differences are worth.

    Args:
        gates: the gates to compare, as "se,eca" or "se,se(reduction=8)"; none is the plain network, which is always
            among them.
        seeds: how many times each is trained, with seeds 0, 1, ...; at least 3 to be told from chance.
        level: coverage of the intervals; 1 - level is the chance of any false finding over all gates.
        measure: time inference and training steps too (some seconds a gate).
        out: the comparison's folder; null is runs/ and a name made of network, data and a digest of the recipe.
    """

    gates: str = "none,se,eca"
    seeds: int = 3
    level: float = 0.95
    measure: bool = True
    out: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("seeds", at_least=1)
        self.require("level", at_least=0.5, below=1)

    def recipe(self) -> dict[str, Any]:
        """The settings that every run shares and that change its numbers, JSON-able."""
        shared = {f.name for f in fields(Recipe)} - set(FREE)
        return {name: value for name, value in self.to_dict().items() if name in shared}

    def folder(self) -> Path:
        """Where the comparison lies."""
        if self.out is not None:
            return expanded(self.out)
        digest = hashlib.sha256(json.dumps(self.recipe(), sort_keys=True).encode()).hexdigest()[:8]
        words = re.sub(r"[^\w.=-]+", "-", f"compare-{self.model}-{self.data}")
        return Path("runs") / f"{words[:100]}-{digest}"

    def train_config(self, gate: str, seed: int, out: Path) -> TrainConfig:
        """The settings of one run.

        Args:
            gate: canonical string of its gate.
            seed: its seed.
            out: its folder.
        """
        shared = {f.name: getattr(self, f.name) for f in fields(Recipe)}
        return TrainConfig(**shared, gate=gate, seed=seed, out=str(out), resume=True)


def read_gates(gates: str | Sequence[str | GateConfig | None]) -> tuple[dict[str, GateConfig | None], list[str]]:
    """The gates to compare by their canonical string, plain ("none") first, and what there is to say about them.

    Args:
        gates: a list as text ("none,se(reduction=8),eca"), or gates as ``parse_gate`` takes them.

    Raises:
        ValueError: an unknown gate or option, a gate named twice (also in other words), or no gate but plain.
    """
    from excite.gates import parse_gate, split_gates

    named: dict[str, object] = {}
    parsed: dict[str, GateConfig | None] = {"none": None}
    for given in split_gates(gates) if isinstance(gates, str) else gates:
        config = parse_gate(given)
        canonical = str(config) if config is not None else "none"
        if canonical in named:
            first = named[canonical]
            same = (
                f"{str(first)!r} and {str(given)!r} are the same gate"
                if str(first) != str(given)
                else f"{str(given)!r} twice"
            )
            raise UserError(f"gates={_written(gates)!r} has {same}: name each once")
        named[canonical] = given
        parsed[canonical] = config
    if len(parsed) == 1:
        raise UserError(f"gates={_written(gates)!r} has nothing to compare with plain: name a gate, as in 'none,se'")
    notes = (
        [] if "none" in named else ["Plain (none) was not among the gates and was added: gates are compared with it."]
    )
    return parsed, notes


def _written(gates: str | Sequence[str | GateConfig | None]) -> str:
    return gates if isinstance(gates, str) else ",".join("none" if g is None else str(g) for g in gates)
