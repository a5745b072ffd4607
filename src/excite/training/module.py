"""The LightningModule: one training step, one validation step, and an epoch's row of figures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from excite.data import Batch, DataSet, Loader, global_batch_sizes
from excite.errors import UserError
from excite.training.batches import image_preparer, train_or_val_loader
from excite.training.config import TrainConfig
from excite.training.optimizers import make_optimizer
from excite.training.result import describe_data, versions
from excite.training.schedules import learning_rate
from excite.training.scores import Tally
from excite.training.seeds import seed_step

__all__ = ["Task"]


class Task(pl.LightningModule):
    """Trains a classifier under a recipe and scores it on the validation split after every epoch.

    Nothing is logged step by step: losses stay on the device until the epoch ends, so that no step waits for one.

    Args:
        network: images [B, C, H, W] to logits [B, classes]; trained in place.
        config: the recipe and the seed.
        data: what to train and to score on.

    Attributes:
        rows: one dict an epoch that is over: epoch (from 1), train_loss, val_loss, val_top1, val_top5 (None with fewer
            than five classes), learning_rate (of its last step), seconds.
        step_loss: the loss of every training batch so far, in order, averaged over ranks.
        outcome: of the last validation, image by image: "correct", bool [n_val], and "predicted", int64 [n_val].
        data_description: what tells the data from other data.
    """

    def __init__(self, network: nn.Module, config: TrainConfig, data: DataSet) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer validation images than ranks
        self.rows: list[dict[str, Any]] = []
        self.step_loss: list[float] = []
        self.outcome: dict[str, Tensor] = {}
        self.data_description = describe_data(data)
        self._tally = Tally(len(data.val), len(data.classes))
        self._losses: list[Tensor] = []
        self._counts: list[int] = []
        self._started = 0.0
        # Held by closures: a moving average of the weights deep-copies this module, and the data is not to be copied.
        self._prepare = image_preparer(data, config.precision, config.channels_last)
        self._make_loader = self._loader_maker(data)

    def train_dataloader(self) -> _EpochLoader:
        """Batches of this rank, in the order of whatever epoch is running when they are asked for."""
        trainer = self.trainer
        return _EpochLoader(self._make_loader(True), lambda: trainer.current_epoch)

    def val_dataloader(self) -> Loader:
        """Validation images of this rank."""
        return self._make_loader(False)

    def configure_optimizers(self) -> Optimizer:
        """The recipe's optimizer; `training_step` sets its learning rate."""
        return make_optimizer(self.network, self.config)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        config, trainer = self.config, self.trainer
        epoch = trainer.current_epoch
        seed_step(config.seed, epoch, batch_idx, trainer.global_rank, batch.images.device)
        rate = self._learning_rate(trainer.global_step)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = rate
        images = self._prepare(
            batch, train=True, seed=config.seed, epoch=epoch, augment=config.augment, cutout=config.cutout
        )
        logits = self.network(images)
        if not isinstance(logits, Tensor):
            raise UserError(
                f"{self.config.model} gives a {type(logits).__name__} in training, not logits [N, classes]: "
                "switch its auxiliary heads off, as --options.aux_logits false"
            )
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss = cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing)
        self._losses.append(loss.detach())
        self._counts.append(len(batch.labels))
        return loss * self._weight(batch_idx, len(batch.labels)) if trainer.world_size > 1 else loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Scores one batch."""
        logits = self.network(self._prepare(batch, train=False, seed=0, epoch=0))
        self._tally.add(batch.indices, logits, batch.labels)

    def on_train_epoch_start(self) -> None:
        """Starts the epoch's clock and its list of losses."""
        self._losses, self._counts = [], []
        self._started = time.perf_counter()

    def on_validation_start(self) -> None:
        """Makes running statistics the same on every rank: their mean over ranks, each having seen other images."""
        self._average_buffers()

    def on_validation_epoch_start(self) -> None:
        """As before validation, for the averaged weights that are in place by now where there are any."""
        if self.config.ema is not None:
            self._average_buffers()

    def finish_epoch(self) -> dict[str, Any]:
        """The row of the epoch whose validation has just ended; also grows `rows` and `step_loss`, sets `outcome`.

        Raises:
            ValueError: a loss is not finite: training has diverged.
        """
        losses = self._reduced_losses()
        self._check_finite(losses)
        scores = self._tally.finish(self.device)
        row: dict[str, Any] = {"epoch": self.current_epoch + 1, "train_loss": math.fsum(losses) / len(losses)}
        row |= {"val_top5": None} | scores.row()
        if not math.isfinite(row["val_loss"]):
            raise self._diverged(f"the validation loss is {row['val_loss']} after epoch {self.current_epoch + 1}")
        self.step_loss += losses
        self.outcome = {"correct": scores.top1, "predicted": scores.predicted}
        row["learning_rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = time.perf_counter() - self._started
        self.rows.append(row)
        return row

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the figures so far, so that a resumed run's curves are whole."""
        figures = {"rows": self.rows, "step_loss": self.step_loss, "outcome": self.outcome}
        checkpoint["excite"] = figures | {"data": self.data_description, "versions": versions()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the figures so far back."""
        figures = checkpoint["excite"]
        self.rows, self.step_loss, self.outcome = figures["rows"], figures["step_loss"], figures["outcome"]

    def _loader_maker(self, data: DataSet) -> Callable[[bool], Loader]:
        def make(train: bool) -> Loader:
            trainer = self.trainer
            pinned = trainer.strategy.root_device.type == "cuda"
            return train_or_val_loader(data, self.config, train, trainer.global_rank, trainer.world_size, pinned)

        return make

    def _weight(self, batch_idx: int, count: int) -> float:
        """What makes the ranks' mean of their losses the mean over images, where their last batches are unequal."""
        n, world_size = self.data_description["train"], self.trainer.world_size
        return count * world_size / global_batch_sizes(n, self.config.batch_size, world_size=world_size)[batch_idx]

    def _learning_rate(self, step: int) -> float:
        steps = math.ceil(self.trainer.num_training_batches / self.config.accumulate)
        return learning_rate(self.config, step, steps)

    def _reduced_losses(self) -> list[float]:
        losses = torch.stack(self._losses)
        if self.trainer.world_size > 1:
            counts = torch.tensor(self._counts, device=losses.device, dtype=torch.float64)
            sums = torch.stack([losses.double() * counts, counts])
            distributed.all_reduce(sums)
            losses = sums[0] / sums[1]
        return losses.tolist()

    def _check_finite(self, losses: list[float]) -> None:
        bad = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None:
            raise self._diverged(f"the loss is {losses[bad]} at epoch {self.current_epoch + 1}, step {bad + 1}")

    def _diverged(self, what: str) -> UserError:
        advice = f"give a smaller lr (now {self.config.lr:g}), a longer warm-up or clip_norm=1"
        return UserError(f"training diverged: {what}; {advice}")

    def _average_buffers(self) -> None:
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                if buffer.is_floating_point():
                    distributed.all_reduce(buffer)
                    buffer /= self.trainer.world_size


class _EpochLoader:
    """A loader that is told the epoch when its first batch is asked for, not when Lightning makes the iterator.

    Lightning makes the first iterator before a resumed run's epoch counter is settled.
    """

    def __init__(self, loader: Loader, epoch: Callable[[], int]) -> None:
        self._loader, self._epoch = loader, epoch

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        self._loader.set_epoch(self._epoch())
        yield from self._loader
