"""A comparison's folder: what recipe it holds, which runs in it are over, and where each lies."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from excite.errors import UserError
from excite.experiment.comparison import Measured, Run
from excite.experiment.costs import GateCost
from excite.files import write_atomic
from excite.training.result import RunResult

__all__ = ["CompareFolder"]


class CompareFolder:
    """The folder of one comparison: one recipe on one data set with one set of versions.

    It holds config.yaml (the last settings asked for), identity.json (what all runs in it share), costs.json, a folder
    for every run under runs/, and the result: comparison.json and comparison.html.

    Args:
        path: the folder; made by ``claim``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.identity = path / "identity.json"
        self.costs = path / "costs.json"
        self.result = path / "comparison.json"
        self.page = path / "comparison.html"

    def check(self, identity: Mapping[str, Any]) -> None:
        """Checks that the folder is free, or holds runs that these can be compared with.

        Args:
            identity: what all runs share: groups (recipe, data, versions, device) of names with JSON-able values.

        Raises:
            ValueError: it holds something else, or runs that differ in anything of this; says in what.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"out={str(self.path)!r} is a file: name a folder")
        # A file with a dot in front is one that was being written: by another rank, or when the process was killed.
        if not self.path.exists() or all(file.name.startswith(".") for file in self.path.iterdir()):
            return
        if not self.identity.exists():
            raise UserError(f"{self.path} is not empty and holds no comparison: name another folder with --out")
        try:
            held = json.loads(self.identity.read_text(encoding="utf-8"))
            changed = [
                f"{name} ({_shown(held[group].get(name))} there, {_shown(value)} now)"
                for group, values in identity.items()
                for name, value in values.items()
                if held[group].get(name) != value
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.identity} is damaged: name another folder with --out") from None
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UserError(
                f"{self.path} holds runs that differ from these in {', '.join(changed[:3])}{more}: they cannot be "
                "compared; name another folder with --out, or leave --out away for one of its own"
            )

    def claim(self, identity: Mapping[str, Any], config_yaml: str) -> None:
        """Makes the folder and writes what is known before training."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomic(self.identity, json.dumps(identity, indent=1) + "\n")
            write_atomic(self.config, config_yaml)
        except OSError as error:
            raise UserError(f"cannot write in {self.path}: {error.strerror}; name another folder with --out") from None

    def run_folder(self, gate: str, seed: int) -> Path:
        """Where a run lies: "se(reduction=8)" with seed 0 is runs/se-reduction=8/seed-0.

        Args:
            gate: the gate's canonical string.
            seed: the run's seed.
        """
        name, opened, options = gate.partition("(")
        words = re.sub(r"[^\w.=,+-]", "_", options.removesuffix(")"))
        readable = f"{name}-{words}" if opened else name
        if len(readable) > 80 or (opened and f"{name}({words})" != gate):
            readable = f"{readable[:80]}-{hashlib.sha256(gate.encode()).hexdigest()[:8]}"
        return self.path / "runs" / readable / f"seed-{seed}"

    def finished(self, gate: str, seed: int) -> RunResult | None:
        """The result of a run that is over."""
        folder = self.run_folder(gate, seed)
        return RunResult.load(folder) if (folder / "result.json").exists() else None

    def as_run(self, gate: str, seed: int, result: RunResult) -> Run:
        """A run's figures as they stand in the comparison."""
        where = self.run_folder(gate, seed).relative_to(self.path).as_posix()
        return Run(gate, seed, where, result.epochs, dict(result.final), result.seconds)

    def correct(self, gate: str, seed: int) -> NDArray[np.bool_]:
        """Whether each validation image was classified rightly after the last epoch, [images]."""
        result = self.finished(gate, seed)
        assert result is not None
        return result.correct().numpy()

    def read_costs(self, gates: list[str], machine: Mapping[str, Any]) -> dict[str, GateCost] | None:
        """Costs measured before for these gates on this machine; None where they must be measured."""
        try:
            held = json.loads(self.costs.read_text(encoding="utf-8"))
            if held["machine"] != machine or any(gate not in held["gates"] for gate in gates):
                return None
            return {
                gate: GateCost(**held["gates"][gate] | {"timings": _timings(held["gates"][gate])}) for gate in gates
            }
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write_costs(self, costs: Mapping[str, GateCost], machine: Mapping[str, Any]) -> None:
        """Keeps costs for when the comparison continues."""
        gates = {
            gate: {"parameters": c.parameters, "macs": c.macs, "timings": [vars(t) for t in c.timings]}
            for gate, c in costs.items()
        }
        write_atomic(self.costs, json.dumps({"machine": machine, "gates": gates}, indent=1) + "\n")


def _timings(cost: Mapping[str, Any]) -> tuple[Measured, ...]:
    return tuple(Measured(**t) for t in cost["timings"])


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
