"""Pictures small enough to train on within a test: a bright band whose place is the class, under noise."""

from __future__ import annotations

import torch
from torch import Tensor

from excite.data import DataSet
from excite.data.dataset import array_data_set

CLASSES = ("left", "middle", "right")


def small_data(train: int = 48, val: int = 24) -> DataSet:
    """A data set of ``train`` and ``val`` grey pictures of 8 x 8 pixels in three classes."""
    return array_data_set("bands", CLASSES, _pictures(train, seed=1), _pictures(val, seed=2))


def _pictures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % len(CLASSES)
    images = (torch.rand(n, 1, 8, 8, generator=generator) * 150).to(torch.uint8)
    for i, label in enumerate(labels.tolist()):
        images[i, 0, :, 3 * label : 3 * label + 2] += 80
    return images, labels
