"""One display over all runs."""

from __future__ import annotations

import sys

import pytest

from excite.experiment.progress import CompareBar, CompareLines, compare_progress

ROW = {"epoch": 1, "train_loss": 1.0, "val_loss": 0.9, "val_top1": 0.5, "val_top5": None, "seconds": 2.0}


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    progress = compare_progress(2)
    assert isinstance(progress, CompareLines)
    for gate in ("none", "se"):
        progress.start_run(f"net, gate {gate}, seed 0", 10)
        progress.advance(10)
        progress.epoch(ROW)
        progress.end_run()
    progress.say("done")
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run 1 of 2: net, gate none, seed 0"
    assert lines[2] == "run 2 of 2: net, gate se, seed 0"
    assert lines[1].startswith("  epoch   1  train loss 1.0000") and "50.00 %" in lines[1]
    assert lines[4] == "done"


def test_the_bar_counts_over_all_runs() -> None:
    bar = CompareBar(3)
    task = bar._rich.tasks[0]
    bar.start_run("first", 10)
    assert (task.total, task.completed) == (30, 0)
    bar.advance(7)
    bar.epoch(ROW)
    assert task.description == "1/3 first, 50.00 %"
    assert task.completed == 7
    bar.end_run()
    bar.start_run("second", 10)
    assert (task.completed, task.description) == (10, "2/3 second")
    bar.advance(6)  # what a continued run has behind it
    bar.advance(4)
    assert task.completed == 20
    bar.end_run()
    bar.start_run("third", 10)
    bar.end_run()
    assert task.finished
    bar.close()


def test_a_bar_only_where_there_is_something_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert isinstance(compare_progress(1), CompareBar)
    assert isinstance(compare_progress(0), CompareLines)
    monkeypatch.setenv("RANK", "1")
    assert not isinstance(compare_progress(1), CompareBar | CompareLines)
