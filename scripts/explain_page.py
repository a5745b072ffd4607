"""Writes what holds of the paper's observations for the networks in experiments/ into docs/explain.md.

    python scripts/explain_page.py [--check]

reads experiments/*/explain.json, which `excite explain` writes; see experiments/README.md for how. With ``--check`` it
only says whether the page is up to date: exit code 1 where it is not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import page_writer

from excite.analysis.summary import NEARLY_ALL

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "explain.md"
OBSERVATIONS = {
    "early gates are class-agnostic": "early agnostic",
    "late gates are class-specific": "late specific",
    "specificity rises with depth": "rises with depth",
    "the last gate is nearly constant": "last nearly constant",
}
WORDS = {"yes": "holds", "no": "does not hold", "undecided": "undecided"}


def written(page: str) -> str:
    """The page with what stands in experiments/."""
    found = [json.loads(path.read_text()) for path in sorted((ROOT / "experiments").glob("*/explain.json"))]
    return page_writer.filled(page, {"observations": lambda: observations(found)})


def observations(found: list[dict[str, Any]]) -> str:
    """A table of what holds where, and the sentences with the numbers."""
    if not found:
        return ""
    columns = [
        "network, data",
        "images",
        *OBSERVATIONS.values(),
        "most specific",
        "nearly constant",
        "shown to be of use",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *map(row, found), ""]
    for e in found:
        lines.append(f"- {name(e)}: {' '.join(e['summary'])}")
        lines += [f"    - {f['name']}: {WORDS[f['holds']]} ({f['why']})" for f in e["findings"]]
    return "\n".join(lines) + "\n"


def row(e: dict[str, Any]) -> str:
    """One network's line."""
    holds = {f["name"]: WORDS[f["holds"]] for f in e["findings"]}
    top = max(e["gates"], key=lambda g: g["specificity"]["value"])
    replaced = [k for g in e["gates"] for k in g["knock_outs"] if k["mode"] == "mean"]
    useful = sum(k["loss_p"] <= 0.05 and k["loss"]["value"] > 0 for k in replaced)
    constant = sum(g["near_constant"] >= NEARLY_ALL * g["channels"] for g in e["gates"])
    cells = [
        name(e),
        f"{e['data']['images']:,}",
        *(holds[o] for o in OBSERVATIONS),
        f"{top['block']}, {top['specificity']['value']:.2f}",
        f"{constant} of {len(e['gates'])} gates",
        f"{useful} of {len(replaced)} gates",
    ]
    return f"| {' | '.join(cells)} |"


def name(e: dict[str, Any]) -> str:
    """Network, gate and data."""
    return f"`{e['network']['name']}` with `{e['network']['gate']}`, {e['data']['name']}"


if __name__ == "__main__":
    sys.exit(page_writer.run(__doc__, PAGE, written))
