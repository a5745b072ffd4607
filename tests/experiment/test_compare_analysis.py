"""From runs to results."""

from __future__ import annotations

import numpy as np
import pytest

from excite.errors import UserError
from excite.experiment.analysis import analyze
from excite.experiment.comparison import Run


def run(gate: str, seed: int, top1: float) -> Run:
    return Run(gate, seed, f"runs/{gate}/seed-{seed}", [], {"val_top1": top1, "val_loss": 0.5, "val_top5": None}, 1.0)


def test_gates_without_a_pair_yet_are_left_out() -> None:
    runs = [run("none", 0, 0.8), run("se", 0, 0.82), run("none", 1, 0.7)]
    results = analyze(runs, ["none", "se", "eca"])
    assert [g.gate for g in results] == ["none", "se"]
    assert results[0].difference is None and results[0].label == "plain"
    assert results[1].difference.seeds == (0,)
    assert results[1].difference.values == pytest.approx((0.02,))
    assert results[1].images is None


def test_images_are_looked_at_over_the_seeds_that_are_paired() -> None:
    rng = np.random.default_rng(0)
    correct = {(g, s): rng.random(50) < 0.8 for g in ("none", "se") for s in (0, 1)}
    runs = [run(g, s, float(c.mean())) for (g, s), c in correct.items()]
    look = analyze(runs, ["none", "se"], correct=correct)[1].images
    assert (look.images, look.seeds) == (50, 2)
    assert look.mean == pytest.approx(np.mean([correct["se", s].mean() - correct["none", s].mean() for s in (0, 1)]))
    del correct["se", 1]
    assert analyze(runs, ["none", "se"], correct=correct)[1].images is None


def test_without_plain_there_is_no_comparison() -> None:
    with pytest.raises(UserError, match="no run of plain"):
        analyze([run("se", 0, 0.8)], ["none", "se"])
