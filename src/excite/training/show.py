"""Results on a terminal."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from excite.training.config import EvalConfig, TrainConfig
from excite.training.evaluation import EvalResult
from excite.training.progress import is_first_process
from excite.training.result import RunResult

__all__ = ["show_evaluation", "show_run"]

_LARGEST_MATRIX = 12


def show_run(result: RunResult, config: TrainConfig) -> None:
    """Prints what a finished run came to, and where it is."""
    if not is_first_process():
        return
    final = result.final
    top5 = "" if final["val_top5"] is None else f", top-5 {100 * final['val_top5']:.2f} %"
    assert final["val_top1"] is not None
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"top-1 [bold]{100 * final['val_top1']:.2f} %[/]{top5} on {result.data['val']} images of "
        f"{_plain(result.data['name'])} after {len(result.epochs)} epochs ({result.seconds:.0f} s)"
    )
    console.print(f"{Path(result.run_dir) / 'last.safetensors'}", markup=False)


def show_evaluation(result: EvalResult, config: EvalConfig) -> None:
    """Prints an evaluation: the whole, each class, and what is taken for what; or all of it as JSON."""
    if config.json:
        print(json.dumps(result.to_dict(), indent=1, allow_nan=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    top5 = "" if result.top5 is None else f"  top-5 {100 * result.top5:.2f} %"
    console.print(
        f"{result.checkpoint} on {result.images} images of {result.data} ({result.split})", markup=False, style="dim"
    )
    console.print(f"top-1 [bold]{100 * result.top1:.2f} %[/]{top5}  loss {result.loss:.4f}")
    console.print(_classes_table(result))
    if len(result.confusion) <= _LARGEST_MATRIX:
        console.print(_confusion_table(result))
    console.print(_pairs_table(result))


def _classes_table(result: EvalResult) -> Table:
    table = Table(box=None, header_style="dim")
    table.add_column("class")
    for column in ("images", "recall", "precision"):
        table.add_column(column, justify="right")
    for row in result.per_class:
        table.add_row(_plain(row["name"]), str(row["images"]), _percent(row["recall"]), _percent(row["precision"]))
    return table


def _confusion_table(result: EvalResult) -> Table:
    names = [row["name"] for row in result.per_class]
    table = Table(box=None, header_style="dim", title="rows: what it is; columns: what it was taken for")
    table.add_column("")
    for name in names:
        table.add_column(_plain(name), justify="right", overflow="fold", max_width=8)
    for i, name in enumerate(names):
        cells = [f"[bold]{n}[/]" if i == j else str(n) if n else "[dim]·[/]" for j, n in enumerate(result.confusion[i])]
        table.add_row(_plain(name), *cells)
    return table


def _pairs_table(result: EvalResult) -> Table:
    names = [row["name"] for row in result.per_class]
    pairs = [(n, i, j) for i, row in enumerate(result.confusion) for j, n in enumerate(row) if i != j and n]
    table = Table(box=None, header_style="dim", title="most often confused")
    for column in ("images", "of", "taken for"):
        table.add_column(column, justify="right" if column == "images" else "left")
    for n, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:5]:
        table.add_row(str(n), _plain(names[i]), _plain(names[j]))
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _plain(name: str) -> str:
    from rich.markup import escape

    return escape(name)
