"""Write the tables of docs/interop.md from the newest rows in benchmarks/results/interop.jsonl.

    python scripts/interop_table.py [--check]

Prints nothing where the page is as it should be. ``--check`` changes nothing and fails where it is not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from page_writer import filled, run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "interop.md"
RESULTS = ROOT / "benchmarks" / "results" / "interop.jsonl"


def newest(benchmark: str) -> list[dict[str, Any]]:
    """The last row of each network, state and tool, in the order in which they were first measured."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["benchmark"] == benchmark:
            rows[row["network"], row["state"], row["tool"]] = row
    return list(rows.values())


def exported() -> str:
    """Files of ``excite.export``, one a line."""
    return table(newest("interop"))


def keras() -> str:
    """Networks in Keras, one a line."""
    return table(newest("interop_keras"))


def table(rows: list[dict[str, Any]]) -> str:
    """One line a row, and where they were measured."""
    lines = [
        "| tool | version | network | compared | largest difference | time, batch 1 | batch 8 |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [
            row["tool"],
            row["version"],
            f"{named(row['network'])}, {state(row['state'])}",
            f"{row['batches']} batches of 1 to 3, at {', '.join(row['sizes'])}",
            f"{row['difference']:.1e}",
            *(ratio(row["ratio"][str(n)]) for n in (1, 8)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{where(rows)}.\n"


def state(name: str) -> str:
    """What was done to a network: functions as code."""
    return f"`{name}`" if "_" in name else name


def named(network: str) -> str:
    """A network's name as code; what was done to it as words."""
    name, comma, rest = network.partition(",")
    plain, plus, gate = name.partition(" + ")
    return f"`{plain}`" + (f" with `{gate}` attached" if plus else "") + comma + rest


def ratio(spread: dict[str, float]) -> str:
    """A ratio with its spread."""
    return f"{spread['p50']:.2f} ({spread['p20']:.2f}-{spread['p80']:.2f})"


def where(rows: list[dict[str, Any]]) -> str:
    """The machine, the versions and the days of the rows."""
    machine, days = rows[0]["machine"], sorted({row["when"][:10] for row in rows})
    torch = machine["torch"].partition("+")[0]
    period = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    threads = "1 thread" if rows[0]["threads"] == 1 else f"{rows[0]['threads']} threads"
    return (
        f"{machine['device_name']}, {threads}, torch {torch}, {period}; "
        "median ratio (20th to 80th percentile) to PyTorch's time for the network as built"
    )


def written(page: str) -> str:
    """The page with every table as the rows have it."""
    return filled(page, {"exported": exported, "keras": keras})


def main() -> int:
    """Put the tables between their marks on the page, or check that they stand there."""
    return run(__doc__, PAGE, written)


if __name__ == "__main__":
    sys.exit(main())
