"""Write the table of docs/slim.md: what `excite slim` took out of trained networks, from the reports in experiments/.

    python scripts/slim_table.py [--check]

Reads every experiments/*/slim*.json, each the slim.json of one run of the verb. Prints nothing where the page is as it
should be. ``--check`` changes nothing and fails where it is not.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from page_writer import filled, run
from performance_page import newest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "slim.md"
HEADS = [
    "trained on",
    "network",
    "gates",
    "folded, left as a product, kept",
    "accuracy before → after, %",
    "proven: falls by at most, points",
    "parameters",
    "MACs",
    "time of one image",
]
RULE = ["---", "---", "---", "---:", "---:", "---:", "---:", "---:", "---:"]
NONE_YET = "No report stands in experiments/ yet.\n"


def row(report: dict[str, Any]) -> str:
    """One report, as a line of the table."""
    network, proof, latency = report["network"], report["proof"], report["latency"]
    outcomes = Counter(gate["outcome"] for gate in report["gates"])
    accuracy, proven = "", "nothing was taken out"
    if proof is not None:
        accuracy = f"{100 * proof['before']:.2f} → {100 * proof['after']:.2f}"
        least = "" if proof["proven"] else f", not the {report['max_drop']:g} allowed"
        proven = f"{100 * proof['bound']:.2f} ({proof['images']:,} images){least}"
    ratio = latency and latency["ratio"]
    cells = [
        report["data"],
        f"`{network['name']}`",
        f"`{network['gate']}`",
        ", ".join(str(outcomes[outcome]) for outcome in ("folded", "multiply", "kept")),
        accuracy,
        proven,
        _change(report["parameters"]),
        _change(report["macs"]),
        f"x {ratio['p50']:.2f} ({ratio['p20']:.2f} to {ratio['p80']:.2f})" if ratio else "",
    ]
    return f"| {' | '.join(cells)} |\n"


def table(found: list[dict[str, Any]]) -> str:
    """The whole table; a sentence where there is none to show."""
    if not found:
        return NONE_YET
    lines = [f"| {' | '.join(cells)} |\n" for cells in (HEADS, RULE)]
    return "".join([*lines, *map(row, found)])


def reports() -> list[dict[str, Any]]:
    """The reports that stand in experiments/."""
    paths = sorted((ROOT / "experiments").glob("*/slim*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def written(page: str) -> str:
    """The page with its table anew."""
    return filled(page, {"slimmed": lambda: table(reports()), "folded": folded})


def folded() -> str:
    """How long SE-ResNet-50 takes with its gates folded, from benchmarks/folded.py."""
    (row,) = newest("folded")
    ratios = [f"{r['p50']:.2f} ({r['p20']:.2f} to {r['p80']:.2f})" for r in row["ratio"].values()]
    return (
        f"One image takes {ratios[0]} of the plain network's time; the plain network beside itself, in the same run, "
        f"{ratios[1]}.\n"
    )


def _change(numbers: dict[str, int]) -> str:
    before, after = numbers["before"], numbers["after"]
    return f"{100 * (after - before) / before:+.2f} %"


def main() -> int:
    """Put the table between its marks on the page, or check that it stands there."""
    return run(__doc__, PAGE, written)


__all__ = ["reports", "row", "table", "written"]

if __name__ == "__main__":
    raise SystemExit(main())
