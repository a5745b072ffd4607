"""Write the tables of docs/performance.md from the newest rows in benchmarks/results.

    python scripts/performance_page.py [--check]

Prints nothing where the page is as it should be. ``--check`` changes nothing and fails where it is not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from page_writer import filled, run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"


def newest(benchmark: str) -> list[dict[str, Any]]:
    """The rows of the last run of a benchmark, in its order."""
    rows = [json.loads(line) for path in sorted(RESULTS.glob("*.jsonl")) for line in path.read_text().splitlines()]
    rows = [{"when": row.get("time", ""), **row} for row in rows if row.get("benchmark") == benchmark]
    last = max((row["when"] for row in rows), default="")
    return [row for row in rows if row["when"] == last]


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, figures flush right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [heads, rule, *rows])


def where(rows: list[dict[str, Any]]) -> str:
    """The machine, the versions and the day of a run."""
    machine, row = rows[0]["machine"], rows[0]
    parts = [f"{machine['device_name']}, {row.get('threads', machine['threads'])} threads"]
    parts.append(f"torch {machine['torch'].partition('+')[0]}")
    if "timm" in row:
        parts.append(f"timm {row['timm']}")
    return f"{', '.join(parts)}, {row['when'][:10]}; median ratio (20th to 80th percentile)"


def ratios(rows: list[dict[str, Any]], by: str) -> str:
    """One line a ratio, a column a batch size or whatever ``by`` is."""
    columns = sorted({row[by] for row in rows})
    lines: dict[tuple[str, str], dict[Any, dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["network"], row["what"]), {})[row[by]] = row
    body = []
    for (network, what), found in lines.items():
        cells = []
        for column in columns:
            row = found.get(column)
            if row is None:
                cells += ["", ""]
                continue
            r = row["ratio"]
            cells.append(f"{r['p50']:.2f} ({r['p20']:.2f}-{r['p80']:.2f})")
            cells.append(
                "" if row["goal"] is None else f"{row['goal']:.2f}{'' if r['p50'] <= row['goal'] else ' missed'}"
            )
        body.append([f"`{network}`: {what}", *cells])
    heads = [head for c in columns for head in (f"batch {c}", "goal")]
    return table(["", *heads], body) + f"\n{where(rows)}.\n"


# What the ratio of two training steps is to be at most.
TRAINING_GOALS = {("excite se_resnet50", "timm resnet50"): 1.00, ("excite se_resnet50", "excite resnet50"): 1.02}


def training() -> str:
    """Training steps: ratios of times, and of the memory that a step takes at its peak."""
    rows, body = newest("tail_training"), []
    for row in rows:
        r, goal = row["ratio"], TRAINING_GOALS.get((row["what"], row["over"]))
        told = "" if goal is None else f"{goal:.2f}{'' if r['p50'] <= goal else ' missed'}"
        cells = [f"{r['p50']:.2f} ({r['p20']:.2f}-{r['p80']:.2f})", told, f"{row['peak_memory_ratio']:.2f}"]
        body.append([f"{row['what']} over {row['over']}", *cells])
    about = f"batch {rows[0]['batch']} of {rows[0]['size']} pixels, {where(rows)}"
    return table(["", "time", "goal", "peak memory"], body) + f"\n{about}.\n"


def ways(question: str) -> str:
    """Ways to have a gate beside a convolution: milliseconds."""
    (row,) = newest(question)
    shapes = list(row["ms"])
    names = list(row["ms"][shapes[0]])
    digits = 3 if min(min(found.values()) for found in row["ms"].values()) < 0.1 else 2
    body = [[name, *(f"{row['ms'][shape][name]:.{digits}f}" for shape in shapes)] for name in names]
    images = "one image" if row["batch_size"] == 1 else f"{row['batch_size']} images"
    about = f"milliseconds, {images}; {where([row]).partition(';')[0]}"
    return table(["", *shapes], body) + f"\n{about}.\n"


TABLES: dict[str, Callable[[], str]] = {
    "inference": lambda: ratios(newest("inference"), "batch_size"),
    "training": training,
    "ways": partial(ways, "gated_conv"),
    "projections": partial(ways, "gated_input"),
    "scales": partial(ways, "gate_scale"),
    "squeezes": partial(ways, "squeeze_kxk"),
}


def written(page: str) -> str:
    """The page with every table as the rows have it."""
    return filled(page, TABLES)


def main() -> int:
    """Put the tables between their marks on the page, or check that they stand there."""
    return run(__doc__, PAGE, written)


if __name__ == "__main__":
    sys.exit(main())
