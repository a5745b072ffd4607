"""How far a run is: the protocol that runs report to, a bar for terminals and lines for everything else."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["Bar", "Lines", "Progress", "Silent", "default_progress", "describe_row", "is_first_process", "say"]

log = logging.getLogger("excite.training")


class Progress(Protocol):
    """What a run reports to. Several runs may report to one object, one after another."""

    def start_run(self, label: str, total_steps: int) -> None:
        """A run begins; a resumed one calls ``advance`` with what it has behind it next."""

    def advance(self, steps: int) -> None:
        """More training batches are done."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch and its validation are over; ``row`` is as in `RunResult.epochs`."""

    def end_run(self) -> None:
        """The run is over, or has failed; called once for every ``start_run``."""


class Silent:
    """Shows nothing."""

    def start_run(self, label: str, total_steps: int) -> None:
        """Nothing."""

    def advance(self, steps: int) -> None:
        """Nothing."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def end_run(self) -> None:
        """Nothing."""


class Lines(Silent):
    """One line an epoch on stdout: for logs and pipes."""

    def start_run(self, label: str, total_steps: int) -> None:
        """Prints what runs."""
        print(label, flush=True)

    def epoch(self, row: dict[str, Any]) -> None:
        """Prints the epoch's figures."""
        print(describe_row(row), flush=True)


class Bar:
    """A bar with the time left, and a line above it for every epoch that is over."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
        ]
        times = [TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False)]
        self._rich = RichProgress(*columns, *times, transient=True)
        self._task = self._rich.add_task("", total=None, visible=False)

    def start_run(self, label: str, total_steps: int) -> None:
        """Starts the bar."""
        self._rich.reset(self._task, description=label, total=total_steps, visible=True)
        self._rich.start()

    def advance(self, steps: int) -> None:
        """Moves the bar."""
        self._rich.advance(self._task, steps)

    def epoch(self, row: dict[str, Any]) -> None:
        """Prints the epoch's figures above the bar."""
        self._rich.console.print(describe_row(row), highlight=False)

    def end_run(self) -> None:
        """Takes the bar away; the lines stay."""
        self._rich.stop()


def default_progress() -> Progress:
    """A bar where stdout is a terminal, else a line an epoch."""
    return Bar() if sys.stdout.isatty() else Lines()


def is_first_process() -> bool:
    """Whether this is the only process of a run, or the one that prints and writes for all (rank 0 of the launcher)."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    places = ("SLURM_PROCID", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK")
    return all(os.environ.get(place, "0") == "0" for place in places)


def say(message: str, *values: object) -> None:
    """Gives the user a notice, once for all ranks, through logging: on stderr unless that is set up otherwise."""
    if is_first_process():
        log.warning(message, *values)


def describe_row(row: Mapping[str, Any]) -> str:
    """An epoch's figures on one line."""
    top5 = "" if row["val_top5"] is None else f"  top-5 {100 * row['val_top5']:5.2f} %"
    return (
        f"epoch {row['epoch']:3d}  train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"top-1 {100 * row['val_top1']:5.2f} %{top5}  {row['seconds']:.1f} s"
    )
