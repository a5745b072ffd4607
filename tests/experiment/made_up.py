"""A comparison with invented runs: what the report and the statistics are tried on without training."""

from __future__ import annotations

import math

import numpy as np

from excite.experiment.analysis import analyze
from excite.experiment.comparison import Comparison, Measured, Run
from excite.experiment.costs import GateCost
from excite.experiment.verdict import caveats, verdict

SIX = ("none", "se", "eca")
LONG = (
    "none",
    "se",
    "se(reduction=8,bias=false)",
    "se(reduced_channels=12,bias=false,scale=hard_sigmoid,descriptor=max)",
    "eca",
    "eca(kernel_size=released:resnet50)",
    "ese",
    "se_gc(groups=8)",
    "no_squeeze",
)


def make_comparison(
    gates: tuple[str, ...] = SIX,
    seeds: int = 3,
    *,
    effect: dict[str, float] | None = None,
    epochs: int = 5,
    images: int = 2000,
    classes: tuple[str, ...] = tuple(f"class {i}" for i in range(10)),
    measured: bool = True,
    noise: float = 0.003,
) -> Comparison:
    """Runs whose final accuracy is 0.88 + effect + noise; effects are 0 where not given."""
    rng = np.random.default_rng(7)
    effect = effect or {}
    order = list(gates)
    runs, correct = [], {}
    for seed in range(seeds):
        shared = rng.normal(0, 0.004)
        hard = rng.random(images)
        for gate in order:
            target = 0.88 + effect.get(gate, 0.0) + shared + rng.normal(0, noise)
            right = hard * 0.9 + rng.random(images) * 0.1 < target
            correct[gate, seed] = right
            rows = []
            for epoch in range(1, epochs + 1):
                left = math.exp(-3.2 * epoch / epochs)
                top1 = (
                    float(right.mean()) - 0.3 * (left - math.exp(-3.2)) + (rng.normal(0, 0.01) if epoch < epochs else 0)
                )
                rows.append(
                    {
                        "epoch": epoch, "train_loss": 0.33 + 0.9 * left + rng.normal(0, 0.006),
                        "val_loss": 0.36 + 0.7 * left + rng.normal(0, 0.02), "val_top1": top1,
                        "val_top5": 0.99 if len(classes) >= 5 else None, "learning_rate": 0.1 * left, "seconds": 14.2,
                    }
                )  # fmt: skip
            final = {k: rows[-1][k] for k in ("val_loss", "val_top1", "val_top5")}
            runs.append(Run(gate, seed, f"runs/{gate}/seed-{seed}", rows, final, 14.2 * epochs))
    costs = {g: _cost(i, g, measured) for i, g in enumerate(order)}
    results = analyze(runs, order, correct=correct, costs=costs)
    differences = {g.gate: g.difference for g in results if g.difference}
    looks = {g.gate: g.images for g in results if g.images}
    config = {
        "data": "fashion-mnist-mini", "model": "resnet20", "placement": "standard", "stages": None, "epochs": epochs,
        "batch_size": 128, "optimizer": "sgd", "lr": 0.1, "gates": ",".join(gates), "seeds": seeds,
        "out": "runs/compare", "level": 0.95,
    }  # fmt: skip
    return Comparison(
        verdict=verdict(differences),
        caveats=tuple(caveats(differences, looks)),
        notes=(),
        config=config,
        data={"name": "fashion-mnist-mini", "classes": list(classes), "train": 10000, "val": images, "image_size": 28},
        level=0.95,
        gates=results,
        runs=tuple(runs),
        complete=True,
        versions={"python": "3.11.2", "excite": "0.1.0", "torch": "2.15.0"},
        machine={"processor": "a processor", "cores": 2, "threads": 2, "system": "Linux x86_64", "device": "cpu"},
        created="2026-01-02T03:04:05+00:00",
    )


def _cost(i: int, gate: str, measured: bool) -> GateCost:
    timings = []
    for what, batch, ms in (("inference", 1, 1.35), ("training step", 128, 154.0)):
        ratio = 1.0 if gate == "none" else 1.21 - 0.02 * i
        spread = 0.0 if gate == "none" else 0.03
        numbers = (ms * ratio * 0.97, ms * ratio, ms * ratio * 1.04, ratio, ratio - spread, ratio + spread)
        timings.append(Measured(what, "cpu", batch, "32-true", *numbers, rounds=50))
    return GateCost(269_434 + 2373 * i, 30_890_240 + 133_728 * i, tuple(timings) if measured else ())
