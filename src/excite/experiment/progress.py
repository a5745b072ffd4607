"""How far a comparison is: one bar with the time left over all runs, or a line an epoch where there is no terminal."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from excite.training.progress import Lines, Progress, Silent, describe_row, is_first_process

__all__ = ["CompareBar", "CompareLines", "CompareProgress", "compare_progress"]


class CompareProgress(Progress, Protocol):
    """What a comparison reports to: single runs, and lines of its own."""

    def say(self, line: str) -> None:
        """Something a reader should see now."""

    def close(self) -> None:
        """The comparison is over, or has failed."""


class CompareLines(Lines):
    """One line an epoch on stdout, and a heading with its number for every run.

    Args:
        runs: how many runs are to be trained.
    """

    def __init__(self, runs: int) -> None:
        self._runs, self._run = runs, 0

    def start_run(self, label: str, total_steps: int) -> None:
        """Prints which run of how many begins."""
        self._run += 1
        print(f"run {self._run} of {self._runs}: {label}", flush=True)

    def epoch(self, row: dict[str, Any]) -> None:
        """Prints the epoch's figures."""
        print(f"  {describe_row(row)}", flush=True)

    def say(self, line: str) -> None:
        """Prints the line."""
        print(line, flush=True)

    def close(self) -> None:
        """Nothing."""


class CompareBar:
    """One bar over all runs with the time left, and a line above it for every run that is over.

    Args:
        runs: how many runs are to be trained.
    """

    def __init__(self, runs: int) -> None:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._rich = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            transient=True,
            expand=True,
            # Validation and the start of a run take no steps: a long look back keeps the time left steady.
            speed_estimate_period=180.0,
        )
        self._task = self._rich.add_task("", total=None)
        self._runs, self._run = runs, 0
        self._steps = self._done = 0
        self._label = ""

    def start_run(self, label: str, total_steps: int) -> None:
        """Names the run; all runs take as many steps as this one."""
        self._run += 1
        self._steps, self._label = total_steps, label
        self._rich.update(self._task, total=total_steps * self._runs, description=self._described())
        if self._run == 1:  # what comes before has no steps to show
            self._rich.reset(self._task)
            self._rich.start()

    def advance(self, steps: int) -> None:
        """Moves the bar."""
        self._done += steps
        self._rich.update(self._task, completed=self._done)

    def epoch(self, row: dict[str, Any]) -> None:
        """Shows the run's accuracy so far beside its name."""
        self._rich.update(self._task, description=f"{self._described()}, {100 * row['val_top1']:.2f} %")

    def end_run(self) -> None:
        """Puts the bar where the run's end is."""
        self._done = self._run * self._steps
        self._rich.update(self._task, completed=self._done)

    def say(self, line: str) -> None:
        """Prints the line above the bar."""
        self._rich.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        """Takes the bar away; the lines stay."""
        self._rich.stop()

    def _described(self) -> str:
        return f"{self._run}/{self._runs} {self._label}"


class _Nothing(Silent):
    """What processes other than the first show."""

    def say(self, line: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def compare_progress(runs: int) -> CompareProgress:
    """A bar where stdout is a terminal, else lines; nothing in processes other than the first."""
    if not is_first_process():
        return _Nothing()
    return CompareBar(runs) if sys.stdout.isatty() and runs else CompareLines(runs)
