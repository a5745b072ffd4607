"""Writes the README's table from the comparison that stands in experiments/, between its two marks.

With ``--check`` it only says whether the table is up to date: exit code 1 where it is not.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from excite.experiment import GateResult, read_comparison

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "experiments" / "fashion-mnist-mini" / "comparison.json"
README = ROOT / "README.md"
MARKS = "<!-- table: scripts/readme_table.py -->\n", "<!-- end of table -->\n"
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


def main() -> int:
    text = README.read_text()
    pattern = re.compile(re.escape(MARKS[0]) + ".*?" + re.escape(MARKS[1]), re.DOTALL)
    assert len(pattern.findall(text)) == 1, "the README lost its marks"
    new = pattern.sub(lambda _: f"{MARKS[0]}{table()}{MARKS[1]}", text)
    if "--check" in sys.argv[1:]:
        return int(new != text)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
