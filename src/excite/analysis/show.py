"""An explanation in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from excite.analysis.config import ExplainConfig
from excite.analysis.explanation import Explanation, GateSummary
from excite.page import counted
from excite.training.progress import is_first_process

__all__ = ["show_explanation"]


def show_explanation(e: Explanation, config: ExplainConfig | None = None) -> None:
    """Prints a line a gate, what the numbers support, and where the page is.

    Args:
        e: what ``explain_checkpoint`` returned.
        config: what it was asked for; not needed.
    """
    if not is_first_process():
        return
    console = Console(highlight=False)
    accuracy = "" if e.accuracy is None else f", accuracy {100 * e.accuracy:.2f} %"
    where = f"{counted(e.data['images'], 'image')} of {e.data.get('name', 'the loader')}"
    console.print()
    console.print(f"{e.network['name']}, gates {e.gates[0].gate}: {where}{accuracy}", markup=False, style="dim")
    console.print(_table(e))
    console.print(
        "specificity: share of the variance of s that goes with the class (* told from chance); varies: deviation of s "
        "over images; constant: channels that hardly vary; loss, points: what the gate's mean in its place changes (* "
        "told from nothing).",
        style="dim",
    )
    console.print()
    console.print(" ".join(e.summary), markup=False, style="bold")
    words = {"yes": "holds", "no": "does not hold", "undecided": "undecided"}
    for f in e.findings:
        console.print(f"- {f.name[0].upper()}{f.name[1:]}: {words[f.holds]} ({f.why}).", markup=False)
    for line in e.notes:
        console.print(f"- {line}", markup=False)
    if e.folder is not None:
        console.print()
        console.print(f"{e.folder / 'explain.html'}", markup=False, soft_wrap=True)
        console.print(f"{e.folder / 'explain.json'}", markup=False, soft_wrap=True)


def _table(e: Explanation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("gate", overflow="fold", min_width=8)
    knocked = any(g.knock_outs for g in e.gates)
    for column in ("specificity", "varies", "saturated", "constant", *(("loss", "points") if knocked else ())):
        table.add_column(column, no_wrap=True, justify="right")
    for g in e.gates:
        table.add_row(Text(g.block), *_cells(g), *(_worth(g) if knocked else ()))
    return table


def _cells(g: GateSummary) -> list[str]:
    told = g.p_holm is not None and g.p_holm <= 0.05
    specificity = "" if g.specificity is None else f"{g.specificity.value:.3f}{'*' if told else ' '}"
    saturated = f"{100 * (g.near_low + g.near_high):.1f} %"
    return [specificity, f"{g.sd:.3f}", saturated, f"{g.near_constant}/{g.channels}"]


def _worth(g: GateSummary) -> list[str]:
    k = g.knock_out("mean")
    if k is None:
        return ["", ""]
    return [f"{k.loss.value:+.4f}{'*' if k.loss_p <= 0.05 else ' '}", f"{100 * k.accuracy.value:+.2f}"]
