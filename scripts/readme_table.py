"""Write the README's tables: of the comparison that stands in experiments/, and of speeds in benchmarks/results.

    python scripts/readme_table.py [--check]

Prints nothing where the page is as it should be. ``--check`` changes nothing and fails where it is not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from page_writer import filled, run
from performance_page import newest, where

from excite.experiment import GateResult, read_comparison

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "experiments" / "fashion-mnist-mini" / "comparison.json"
README = ROOT / "README.md"

# What is shown of the rows of benchmarks/inference.py, in the README's words.
SPEEDS = {
    "timm SE over timm plain": "timm's SE-ResNet-50 over timm's ResNet-50",
    "ours fused, SE, over timm plain": "ours, fused, over timm's ResNet-50",
    "ours fused, SE over plain": "ours, fused, over our ResNet-50, fused",
    "timm's SE fused over timm plain": "timm's SE-ResNet-50, fused by excite, over timm's ResNet-50",
}
COLUMNS = ("gate", "accuracy, %", "against plain, points", "finding", "parameters", "latency", "training step")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def table() -> str:
    """The table and the verdict, as Markdown."""
    comparison = read_comparison(RESULT)
    rows = "".join(row(result) for result in comparison.gates)
    machine = comparison.machine
    where = f"{machine['device_name']}, {machine['threads']} threads, torch {machine['torch']}"
    measured = f"Measured on {where}; latency of one image and training step as multiples of plain's."
    return f"{HEAD}{rows}\n> {comparison.verdict}\n\n{measured}\n"


def row(result: GateResult) -> str:
    """One gate's line."""
    accuracy, difference = result.accuracy, result.difference
    half = "" if accuracy.high is None else f" ± {100 * (accuracy.high - accuracy.mean):.2f}"
    name = "plain" if result.gate == "none" else f"`{result.gate}`"
    against, finding = "", ""
    if difference is not None:
        interval = difference.holm_interval
        spread = "" if interval is None else f" ({100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})"
        against, finding = f"{100 * difference.mean:+.2f}{spread}", difference.decision
    times = {t.what: f"{t.ratio:.2f}x" for t in result.timings if t.device == "cpu"}
    costs = f"{result.parameters:,} | {times.get('inference', '')} | {times.get('training step', '')}"
    return f"| {name} | {100 * accuracy.mean:.2f}{half} | {against} | {finding} | {costs} |\n"


def speeds() -> str:
    """What SE costs ResNet-50 at inference and in training, as ratios of times."""
    rows = newest("inference")
    found = {(row["network"], row["what"], row["batch_size"]): row["ratio"]["p50"] for row in rows}
    sizes = sorted({row["batch_size"] for row in rows})
    lines = [[said, *(f"{found['resnet50', what, n]:.2f}" for n in sizes), ""] for what, said in SPEEDS.items()]
    steps = {(row["what"], row["over"]): row["ratio"]["p50"] for row in newest("tail_training")}
    for line, names in (
        (0, ("timm seresnet50", "timm resnet50")),
        (1, ("excite se_resnet50", "timm resnet50")),
        (2, ("excite se_resnet50", "excite resnet50")),
    ):
        lines[line][-1] = f"{steps[names]:.2f}"
    head = ["time, as a multiple", *(f"batch {n}" for n in sizes), "training step (not fused)"]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] + ["---:"] * (len(head) - 1), *lines])
    return f"{table}\n{where(rows).partition(';')[0]}; medians, measured in turns.\n"


if __name__ == "__main__":
    sys.exit(run(__doc__, README, lambda page: filled(page, {"comparison": table, "speed": speeds})))
