"""A comparison in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from excite.experiment.comparison import Comparison
from excite.experiment.config import CompareConfig
from excite.experiment.report import accuracy_cell, count_cell, difference_cells, ratio_cell
from excite.experiment.verdict import percent
from excite.training.progress import is_first_process

__all__ = ["comparison_table", "show_comparison"]


def show_comparison(comparison: Comparison, config: CompareConfig | None = None) -> None:
    """Prints the table, the verdict with what to know about it, and where the page is.

    Args:
        comparison: what ``compare`` returned.
        config: what it was asked for; not needed.
    """
    if not is_first_process():
        return
    c = comparison
    console = Console(highlight=False)
    n = len({r.seed for r in c.runs})
    runs = f"{c.config['epochs']} epochs, {n} {'seed' if n == 1 else 'seeds'}, {c.data['val']} validation images"
    console.print()
    console.print(f"{c.config['model']} on {c.data['name']}: {runs}", markup=False, style="dim")
    console.print(comparison_table(c))
    said = []
    if c.plain.accuracy.low is not None:
        said.append(
            f"Below a number its {percent(c.level)} interval over seeds; against plain it leaves out 0 exactly where "
            "Holm's procedure over all gates decides. Needed: the smallest difference that would have counted."
        )
    if c.plain.timings:
        said.append("Latency and training step: times plain's.")
    console.print(" ".join(said), markup=False, style="dim")
    console.print()
    console.print(c.verdict, markup=False, style="bold")
    for line in (*c.caveats, *c.notes):
        console.print(f"- {line}", markup=False)
    if c.folder is not None:
        console.print()
        console.print(f"{c.folder / 'comparison.html'}", markup=False, soft_wrap=True)
        console.print(f"{c.folder / 'comparison.json'}", markup=False, soft_wrap=True)


def comparison_table(comparison: Comparison) -> Table:
    """One gate a row, within 80 columns: what the page's first table says, intervals on a second line."""
    c = comparison
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("gate", overflow="fold", min_width=6)
    table.add_column("accuracy\n%", no_wrap=True)
    table.add_column("against plain\npoints", no_wrap=True)
    table.add_column("needed\npoints", no_wrap=True, justify="right")
    table.add_column("finding\nby Holm", no_wrap=True)
    measured = any(g.timings for g in c.gates)
    table.add_column("params\n", no_wrap=True, justify="right")
    if measured:
        table.add_column("latency\nstep", no_wrap=True)
    for g in c.gates:
        difference, needed, finding = difference_cells(g)
        accuracy, size = accuracy_cell(g), count_cell(g.parameters, c.plain.parameters)
        latency, step = (ratio_cell(g.timing(what)).text for what in ("inference", "training step"))
        table.add_row(
            Text(g.label),
            _two_lines(accuracy.text, accuracy.detail),
            _two_lines(difference.text, difference.detail),
            needed.text,
            _two_lines(finding.text, finding.detail, {"good": "green", "bad": "red"}.get(finding.tone, "")),
            size.detail or size.text,
            *([Text(f"{_times(latency)}\n{_times(step)}")] if measured else []),
        )
    return table


def _times(ratio: str) -> str:
    return f"{float(ratio):.2f}x" if ratio else ""


def _two_lines(first: str, second: str, style: str = "") -> Text:
    return Text.assemble((first, style), "\n", (second.replace("no interval", ""), "dim"))
