"""Pairing holds through the real path: a gate that changes nothing reproduces plain's whole run, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from small_data import small_data
from torch import Tensor, nn

from excite.experiment import CompareConfig, compare
from excite.gates import GATES, Gate, GateConfig
from excite.training import RunResult


class Idle(Gate):
    """Draws random numbers when it is made, has parameters of its own, and always says s = 1."""

    def __init__(self, channels: int, config: GateConfig) -> None:
        super().__init__(channels, config)
        self.unused = nn.Linear(channels, 2 * channels)
        torch.rand(7)

    def excite(self, z: Tensor) -> Tensor:
        torch.rand(3)  # a forward that draws must not move anything either
        return torch.ones_like(z)


@dataclass(frozen=True)
class IdleConfig(GateConfig):
    name: ClassVar[str] = "idle"

    def build(self, channels: int) -> Gate:
        return Idle(channels, self)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> str:
    """The idle gate under a name, for as long as the test runs."""
    monkeypatch.setitem(GATES, "idle", IdleConfig)
    return "idle"


@pytest.mark.parametrize("impl", ["reference", "fused"])
def test_a_gate_that_does_nothing_is_plain_bit_for_bit(tmp_path: Path, idle: str, impl: str) -> None:
    config = CompareConfig(
        gates=f"none,{idle},se", seeds=2, epochs=2, batch_size=20, out=str(tmp_path / "out"), impl=impl, measure=False
    )
    comparison = compare(config, data=small_data())

    for seed in range(2):
        plain, same, gated = (RunResult.load(tmp_path / f"out/runs/{g}/seed-{seed}") for g in ("none", idle, "se"))
        assert same.parameters > plain.parameters
        assert len(plain.step_loss) == 2 * 3
        assert same.step_loss == plain.step_loss
        assert [{k: v for k, v in row.items() if k != "seconds"} for row in same.epochs] == [
            {k: v for k, v in row.items() if k != "seconds"} for row in plain.epochs
        ]
        assert torch.equal(same.correct(), plain.correct())
        assert gated.step_loss != plain.step_loss  # equality above is not that of a constant
    first, second = (RunResult.load(tmp_path / f"out/runs/none/seed-{seed}") for seed in range(2))
    assert first.step_loss != second.step_loss

    difference = next(g for g in comparison.gates if g.gate == idle).difference
    assert difference is not None
    assert difference.values == (0.0, 0.0)
    assert difference.decision == "untested"
    assert "same accuracy as plain" in comparison.verdict


def test_other_gates_do_not_change_a_gates_run(tmp_path: Path) -> None:
    """A run is the same whichever gates are compared beside it, and in whatever order."""
    for gates, out in (("none,se,eca", "a"), ("eca,se", "b")):
        compare(
            CompareConfig(gates=gates, seeds=1, epochs=1, batch_size=20, out=str(tmp_path / out), measure=False),
            data=small_data(),
        )
    for gate in ("none", "se", "eca"):
        one, other = (RunResult.load(tmp_path / out / "runs" / gate / "seed-0") for out in ("a", "b"))
        assert one.step_loss == other.step_loss
