"""Write the table of networks in docs/models.md: counted here and now, on the meta device.

    python scripts/models_table.py [--check]

Prints nothing where the page is as it should be. ``--check`` changes nothing and fails where it is not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from excite.cost import count_cost
from excite.models import MODELS, Architecture, create_model, list_models
from excite.models.cifar import CifarResNet

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- table: python scripts/models_table.py -->\n", "<!-- end of table -->\n"


def table() -> str:
    """The Markdown table, one row a network."""
    rows = [
        "| network | blocks | image | parameters | + SE | + ECA | GMACs | + SE | maps moved | + SE |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    names = [name for name in list_models() if name in MODELS]
    rows += [row(name) for name in sorted(names, key=lambda name: MODELS[name].family is CifarResNet)]
    return "\n".join(rows) + "\n"


def row(name: str) -> str:
    """Counts of one network, plain and with the papers' gates, for one image."""
    cifar = MODELS[name].family is CifarResNet
    size, classes = (32, 10) if cifar else (224, 1000)
    example = torch.empty(1, 3, size, size, device="meta")
    with torch.device("meta"):
        plain, se, eca = (
            count_cost(create_model(prefix + name, num_classes=classes), example) for prefix in ("", "se_", "eca_")
        )
    moved, added = plain.total.bytes_moved / 1e6, se.gates.bytes_moved / plain.total.bytes_moved
    cells = [
        f"`{name}`",
        blocks(MODELS[name]),
        f"{size} x {size}",
        f"{plain.total.parameters:,}",
        f"{se.gates.parameters:,}",
        f"{eca.gates.parameters:,}",
        f"{plain.total.macs / 1e9:.3f}",
        f"{se.gates.macs / plain.total.macs:.2%}",
        f"{moved:.1f} MB",
        f"{added:.0%}",
    ]
    return "| " + " | ".join(cells) + " |"


def blocks(architecture: Architecture) -> str:
    """Kind and number of the blocks, stage by stage."""
    layout = architecture.layout
    if architecture.family is CifarResNet:
        return f"basic, 3 x {layout['depth']}"
    kind = "basic" if layout["block"].expansion == 1 else "bottleneck"
    return f"{kind}, {', '.join(map(str, layout['depths']))}"


def main() -> int:
    """Put the table between its marks on the page, or check that it stands there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page would change")
    check = parser.parse_args().check
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    wanted = f"{before}{BEGIN}{table()}{END}{after}"
    if check and page != wanted:
        print(f"{PAGE} is not what scripts/models_table.py writes", file=sys.stderr)
        return 1
    if page != wanted:
        PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
