"""From finished runs to what they say: one result a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from excite.errors import UserError
from excite.experiment.comparison import PLAIN, GateResult, Run
from excite.experiment.costs import GateCost
from excite.experiment.images import ImageLook, look_at_images
from excite.experiment.statistics import compare_to_plain, summarize

__all__ = ["analyze"]

Correct = Mapping[tuple[str, int], NDArray[np.bool_]]


def analyze(
    runs: Sequence[Run],
    gates: Sequence[str],
    *,
    correct: Correct | None = None,
    costs: Mapping[str, GateCost] | None = None,
    level: float = 0.95,
) -> tuple[GateResult, ...]:
    """One result a gate, in the order of ``gates``.

    Args:
        runs: finished runs; gates are compared with plain over the seeds both have.
        gates: canonical strings, "none" (plain) among them; gates without a run yet are left out.
        correct: per-image correctness [images] of the last epoch by (gate, seed).
        costs: what each gate costs.
        level: coverage of the intervals, and one minus the chance of any false decision.

    Raises:
        ValueError: no run of plain.
    """
    scores = {g: {r.seed: float(r.final["val_top1"]) for r in runs if r.gate == g} for g in gates}
    if not scores.get(PLAIN):
        raise UserError("no run of plain (gate 'none') to compare with")
    started = [g for g in gates if g != PLAIN and set(scores[g]) & set(scores[PLAIN])]
    differences = compare_to_plain(scores[PLAIN], {g: scores[g] for g in started}, level)
    results = []
    for g in [PLAIN, *started]:
        cost = (costs or {}).get(g)
        results.append(
            GateResult(
                gate=g,
                accuracy=summarize([scores[g][s] for s in sorted(scores[g])], level),
                difference=differences.get(g),
                images=None if g == PLAIN else _look(correct or {}, g, differences[g].seeds, level),
                parameters=cost.parameters if cost else None,
                macs=cost.macs if cost else None,
                timings=cost.timings if cost else (),
            )
        )
    return tuple(results)


def _look(correct: Correct, gate: str, seeds: Sequence[int], level: float) -> ImageLook | None:
    if any((g, s) not in correct for g in (gate, PLAIN) for s in seeds):
        return None
    rows = [np.stack([correct[g, s] for s in seeds]) for g in (gate, PLAIN)]
    return look_at_images(rows[0], rows[1], level) if rows[0].shape[1] > 1 else None
