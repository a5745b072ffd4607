"""Write the table of docs/attach.md: gates in networks of other libraries, found, put in and taken out on this machine.

    python scripts/attach_table.py [--check]

Prints nothing where the page is as it should be. ``--check`` changes nothing and fails where it is not. The networks,
and what must be found in each, stand in tests/surgery/network_cases.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from page_writer import run

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "surgery"))
from network_cases import CASES, Case, Found, expected, tried  # noqa: E402

PAGE = ROOT / "docs" / "attach.md"
HEADS = ["network", "where", "joins", "sites", "refused, and why", "exact after attach", "exact after detach"]
RULE = ["---", "---", "---:", "---:", "---", "---", "---"]
EXACT = {True: "yes", False: "**no**", None: ""}


def row(case: Case, found: Found) -> str:
    """What was found in one network, as a line of the table."""
    name = {"own": case.name, "smp": f"segmentation_models_pytorch {case.name}"}.get(case.library)
    refused = f"{found.refused}: {case.told}" if found.refused else ""
    cells = [
        name or f"`{case.library}:{case.name}`",
        f"`{case.where}`",
        str(found.joins),
        str(found.sites),
        refused,
        EXACT[found.exact_attached],
        EXACT[found.exact_detached],
    ]
    return f"| {' | '.join(cells)} |\n"


def table(find: Callable[[Case], Found]) -> str:
    """The whole table, with what ``find`` finds in each network."""
    lines = [f"| {' | '.join(cells)} |\n" for cells in (HEADS, RULE)]
    return "".join([*lines, *(row(case, find(case)) for case in CASES)])


def written(page: str, find: Callable[[Case], Found] = tried) -> str:
    """The page with its table anew."""
    marked = r"(<!-- networks -->\n).*?(<!-- end -->)"
    return re.sub(marked, lambda match: match[1] + table(find) + match[2], page, flags=re.DOTALL)


def main() -> int:
    """Put the table between its marks on the page, or check that it stands there."""
    return run(__doc__, PAGE, written)


__all__ = ["CASES", "Case", "Found", "expected", "row", "table", "tried", "written"]

if __name__ == "__main__":
    sys.exit(main())
