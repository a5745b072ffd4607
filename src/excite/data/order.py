"""Which pictures make up which batch: fixed by (seed, epoch) alone, whatever the ranks and workers."""

from __future__ import annotations

import torch
from torch import Tensor

from excite.data.counter import permutation

__all__ = ["train_batches", "val_batches"]


def train_batches(
    n: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[Tensor]:
    """The batches one rank trains on in one epoch.

    A permutation of 0 to n - 1 is cut into global batches of ``batch_size * world_size``; rank r takes every
    ``world_size``-th of each, from the r-th on. The last, smaller one is shared in the same way, so that ranks differ
    by at most one picture; when it has fewer pictures than there are ranks it is left out, so that every rank takes the
    same number of steps.

    Args:
        n: number of pictures.
        batch_size: pictures in a batch of one rank.
        seed: with ``epoch``, fixes the order.
        epoch: counts from 0.
        rank: 0 to ``world_size - 1``.
        world_size: number of ranks.

    Returns:
        int64 index tensors, one a batch.
    """
    order = permutation(n, seed=seed, epoch=epoch)
    return [
        whole[rank::world_size] for whole in torch.split(order, batch_size * world_size) if len(whole) >= world_size
    ]


def val_batches(n: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[Tensor]:
    """The batches one rank validates on: every ``world_size``-th picture from ``rank`` on, none twice, none left out.

    Ranks can differ by one picture, hence by one batch; none is filled up, since a picture counted twice would bias
    the result.

    Args:
        n: number of pictures.
        batch_size: pictures in a batch of one rank.
        rank: 0 to ``world_size - 1``.
        world_size: number of ranks.

    Returns:
        int64 index tensors, one a batch; none for a rank without pictures.
    """
    own = torch.arange(rank, n, world_size) if rank < n else torch.arange(0)
    return list(torch.split(own, batch_size)) if len(own) else []
