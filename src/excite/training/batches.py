"""Batches as a network takes them: what training and evaluation share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from excite.data import Batch, DataSet, Loader, Split, make_loader, prepare
from excite.training.config import TrainConfig

__all__ = ["image_preparer", "reader_count", "train_or_val_loader"]


def image_preparer(data: DataSet, precision: str, channels_last: bool) -> Callable[..., Tensor]:
    """What turns a batch into images [B, C, H, W] as the network takes them; ``options`` are those of ``prepare``."""
    dtype = torch.float64 if precision == "64-true" else torch.float32
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def prepare_batch(batch: Batch, **options: Any) -> Tensor:
        images = prepare(batch.images, batch.indices, dataset=data, **options)
        return images.to(dtype=dtype, memory_format=layout)

    return prepare_batch


def reader_count(workers: int | None, split: Split) -> int:
    """Worker processes for a split: as asked for, else none for images in memory, one a core (at most 8) for files."""
    if workers is not None:
        return workers
    return 0 if split.in_memory else min(8, os.cpu_count() or 1)


def train_or_val_loader(
    data: DataSet, config: TrainConfig, train: bool, rank: int, ranks: int, pin_memory: bool
) -> Loader:
    """The loader of one rank for training or for validation under a config.

    Args:
        data: the set.
        config: the recipe and the seed.
        train: for training, else for validation.
        rank: this process.
        ranks: how many there are.
        pin_memory: give batches in page-locked memory, from which copies to a GPU are faster.
    """
    split = data.train if train else data.val
    return make_loader(
        split,
        data,
        # Validation needs no gradients: larger batches keep small networks busy.
        config.batch_size if train else 2 * config.batch_size,
        train=train,
        seed=config.seed,
        rank=rank,
        world_size=ranks,
        workers=reader_count(config.workers, split),
        augment=config.augment,
        pin_memory=pin_memory,
    )
