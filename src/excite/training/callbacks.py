"""What runs beside training: files and progress after every epoch, and a moving average of the weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

from excite.training.files import append_rows, read_state, write_rows, write_state
from excite.training.folder import RunFolder
from excite.training.module import Task
from excite.training.progress import Progress

__all__ = ["MovingAverage", "Recorder", "StateFiles"]

COLUMNS = ("epoch", "train_loss", "val_loss", "val_top1", "val_top5", "learning_rate", "seconds")
STEP_COLUMNS = ("epoch", "step", "loss")
#: Drawing is slower than a small network's step: the display moves on at most this often.
DRAW_SECONDS = 0.1


class Recorder(Callback):
    """Reports progress and, after every epoch, writes the run's files. Stands before `MovingAverage` in the list of
    callbacks, so that what it saves is what was validated.

    Args:
        folder: where to.
        progress: whom to tell.
        label: what the run is called there.
        save: writes a portable checkpoint: called with a path and the epoch's row.
    """

    def __init__(
        self, folder: RunFolder, progress: Progress, label: str, save: Callable[[Path, dict[str, Any]], None]
    ) -> None:
        self.folder, self.progress, self.label, self.save = folder, progress, label, save
        self._undrawn = 0
        self._drawn_at = 0.0
        self._open = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the progress display and the CSV files, with what a resumed run has behind it."""
        assert isinstance(pl_module, Task) and isinstance(trainer.num_training_batches, int)
        self._open = True
        self.progress.start_run(self.label, pl_module.config.epochs * trainer.num_training_batches)
        if pl_module.step_loss:
            self.progress.advance(len(pl_module.step_loss))
        if trainer.is_global_zero:
            write_rows(self.folder.steps, STEP_COLUMNS, _step_rows(pl_module.step_loss, trainer.num_training_batches))

    def on_train_batch_end(self, *_: Any) -> None:
        """Moves the progress on, now and then."""
        self._undrawn += 1
        if (now := time.monotonic()) - self._drawn_at > DRAW_SECONDS:
            self._draw(now)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Scores the epoch and saves the weights that were validated."""
        assert isinstance(pl_module, Task)
        row = pl_module.finish_epoch()
        if trainer.is_global_zero:
            if row["val_top1"] > max((r["val_top1"] for r in pl_module.rows[:-1]), default=-1.0):
                self.save(self.folder.best, row)
            self.save(self.folder.last, row)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the CSV files and the state that resuming needs; says how the epoch went."""
        assert isinstance(pl_module, Task) and isinstance(trainer.num_training_batches, int)
        if trainer.is_global_zero:
            write_rows(self.folder.metrics, COLUMNS, [[r[c] for c in COLUMNS] for r in pl_module.rows])
            steps = trainer.num_training_batches
            append_rows(self.folder.steps, _step_rows(pl_module.step_loss, steps)[-steps:])
        trainer.save_checkpoint(self.folder.state)
        self._draw(time.monotonic())
        self.progress.epoch(pl_module.rows[-1])

    def close(self) -> None:
        """Ends the progress display, if training got as far as to start it."""
        if self._open:
            self._open = False
            self.progress.end_run()

    def _draw(self, now: float) -> None:
        self.progress.advance(self._undrawn)
        self._undrawn, self._drawn_at = 0, now


class StateFiles(TorchCheckpointIO):
    """Lightning's checkpoints as `excite.training.files` keeps them: whole, checked, and the previous one kept.

    Args:
        previous: where the file that a new one replaces goes.
    """

    def __init__(self, previous: Path) -> None:
        super().__init__()
        self.previous = previous

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Writes the state atomically."""
        write_state(Path(path), checkpoint, self.previous)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads it without executing code."""
        return read_state(Path(path))


class MovingAverage(WeightAveraging):
    """Exponential moving average of weights and running statistics, in place during validation and after training.

    The decay of update t is ``min(decay, (1 + t) / (10 + t))``: without it the average of a short run would be mostly
    its first weights.

    Args:
        decay: weight of the past, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=_averager(decay))


def _averager(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    @torch.no_grad()
    def update(averages: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        t = int(updates)
        share = 1 - min(decay, (1 + t) / (10 + t))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, current, share)
        else:
            torch._foreach_copy_(averages, current)

    return update


def _step_rows(losses: list[float], steps_per_epoch: int) -> list[tuple[int, int, float]]:
    return [(i // steps_per_epoch + 1, i % steps_per_epoch + 1, loss) for i, loss in enumerate(losses)]
