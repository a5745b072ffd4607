"""Write the table of networks in docs/models.md: counted here and now, on the meta device.

    python scripts/models_table.py [--check]

Prints nothing where the page is as it should be. ``--check`` changes nothing and fails where it is not.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
from page_writer import run

from excite.cost import count_cost
from excite.models import MODELS, create_model, list_models
from excite.models.base import Classifier, gate_modules, gate_parameters

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- table: python scripts/models_table.py -->\n", "<!-- end of table -->\n"

GATES = ("none", "se", "eca")
SMALL = 100  # images of fewer pixels a side are CIFAR's, of 10 classes


def table() -> str:
    """The Markdown table, one row a network."""
    rows = [
        "| network | gates | image | parameters | + SE | + ECA | GMACs | + SE | maps moved | + SE |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    names = [name for name in list_models() if name in MODELS]
    rows += [row(name) for name in sorted(names, key=lambda name: MODELS[name].image_size < SMALL)]
    return "\n".join(rows) + "\n"


def row(name: str) -> str:
    """Counts of one network, plain and with the papers' gates, for one image."""
    size = MODELS[name].image_size
    example = torch.empty(1, 3, size, size, device="meta")
    with torch.device("meta"):
        models = [create_model(name, gate=gate, num_classes=10 if size < SMALL else 1000) for gate in GATES]
    plain, se = (count_cost(model, example) for model in models[:2])
    moved, added = plain.total.bytes_moved / 1e6, se.gates.bytes_moved / plain.total.bytes_moved
    cells = [
        f"`{name}`",
        gates(models[1]),
        f"{size} x {size}",
        f"{plain.total.parameters:,}",
        f"{se.gates.parameters:,}",
        f"{sum(p.numel() for p in gate_parameters(models[2])):,}",
        f"{plain.total.macs / 1e9:.3f}",
        f"{se.gates.macs / plain.total.macs:.2%}",
        f"{moved:.1f} MB",
        f"{added:.0%}",
    ]
    return "| " + " | ".join(cells) + " |"


def gates(model: Classifier) -> str:
    """Number of the gates, stage by stage."""
    return ", ".join(str(n) for n in Counter(model.stage_of(name) for name in gate_modules(model)).values())


def written(page: str) -> str:
    """The page with the table as it is now."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def main() -> int:
    """Put the table between its marks on the page, or check that it stands there."""
    return run(__doc__, PAGE, written)


if __name__ == "__main__":
    sys.exit(main())
