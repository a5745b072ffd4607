"""`evaluate`: a trained network on a split of a data set, as a whole and class by class."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from excite.checkpoint import read_checkpoint
from excite.data import DataSet, make_loader
from excite.errors import UserError
from excite.training.batches import image_preparer, reader_count
from excite.training.config import EvalConfig
from excite.training.scores import Scores, Tally
from excite.training.trained import checkpoint_file, data_as_trained, pick_device

__all__ = ["EvalResult", "evaluate"]


@dataclass
class EvalResult:
    """How a trained network does on a split.

    Args:
        checkpoint: the file that was evaluated.
        data: name of the data set.
        split: "val" or "train".
        images: how many.
        top1: share of images classified rightly.
        top5: share whose class is among the five likeliest; None with fewer than five classes.
        loss: mean cross-entropy.
        per_class: a dict a class: name, images, correct, recall (share of its images found; None without images),
            precision (share of what was called it that is it; None if nothing was).
        confusion: confusion[i][j] images of class i were taken for class j.
        skipped: "path: reason" of every picture of the set that cannot be read.
    """

    checkpoint: str
    data: str
    split: str
    images: int
    top1: float
    top5: float | None
    loss: float
    per_class: list[dict[str, Any]]
    confusion: list[list[int]]
    skipped: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


def evaluate(config: EvalConfig, *, data: DataSet | None = None) -> EvalResult:
    """Evaluates a checkpoint that training wrote.

    Images are prepared as the checkpoint says (size, mean, deviation), whatever the statistics of the data set.

    Args:
        config: the checkpoint, the data and how to run.
        data: use this set instead of loading ``config.data``.

    Raises:
        ValueError: a missing or damaged checkpoint, unreadable data, or data whose classes or channels are not the
            network's.
    """
    path = checkpoint_file(config.checkpoint)
    checkpoint = read_checkpoint(path)
    device = _device(config)
    data = data_as_trained(
        checkpoint, data or config.data, download=config.download, bad_image_limit=config.bad_image_limit
    )
    scores = _score(checkpoint.load(trust=config.trust), data, config, device)
    split = data.train if config.split == "train" else data.val
    row = scores.row()
    confusion = _confusion(split.labels, scores.predicted, len(data.classes))
    return EvalResult(
        checkpoint=str(path),
        data=data.name,
        split=config.split,
        images=len(split),
        top1=row["val_top1"],
        top5=row.get("val_top5"),
        loss=row["val_loss"],
        per_class=_per_class(data.classes, confusion),
        confusion=confusion.tolist(),
        skipped=list(data.unreadable),
    )


def _device(config: EvalConfig) -> torch.device:
    device = pick_device(config.accelerator)
    if config.precision == "16-mixed" and device.type == "cpu":
        raise UserError("precision='16-mixed' needs a GPU: on a CPU give bf16-mixed or 32-true")
    return device


@torch.inference_mode()
def _score(network: nn.Module, data: DataSet, config: EvalConfig, device: torch.device) -> Scores:
    split = data.train if config.split == "train" else data.val
    workers = reader_count(config.workers, split)
    pinned = device.type == "cuda"
    loader = make_loader(
        split, data, config.batch_size, train=False, seed=0, workers=workers, augment=False, pin_memory=pinned
    )
    prepare = image_preparer(data, config.precision, config.channels_last)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    network = network.eval().to(device).to(memory_format=layout)
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.precision)
    context = torch.autocast(device.type, mixed) if mixed is not None else contextlib.nullcontext()
    if config.precision == "64-true":
        network.double()
    tally = Tally(len(split), len(data.classes))
    with context:
        for batch in loader:
            batch = type(batch)(*(part.to(device, non_blocking=True) for part in batch))
            logits = network(prepare(batch, train=False, seed=0, epoch=0))
            tally.add(batch.indices, logits, batch.labels)
    scores = tally.finish(device)
    if not math.isfinite(scores.losses.sum().item()):
        raise UserError(f"{config.checkpoint} gives logits that are not finite on {data.name}")
    return scores


def _confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _per_class(classes: tuple[str, ...], confusion: Tensor) -> list[dict[str, Any]]:
    there, called, correct = confusion.sum(1).tolist(), confusion.sum(0).tolist(), confusion.diagonal().tolist()
    return [
        {
            "name": name,
            "images": there[i],
            "correct": correct[i],
            "recall": correct[i] / there[i] if there[i] else None,
            "precision": correct[i] / called[i] if called[i] else None,
        }
        for i, name in enumerate(classes)
    ]
