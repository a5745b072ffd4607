"""Which pictures make up which batch: fixed by (seed, epoch) alone, whatever the ranks and workers."""

from __future__ import annotations

import torch
from torch import Tensor

from excite.data.counter import permutation

__all__ = ["global_batch_sizes", "train_batches", "val_batches"]


def global_batch_sizes(n: int, batch_size: int, *, world_size: int = 1) -> list[int]:
    """Pictures in each training batch, all ranks together.

    All but the last hold ``batch_size * world_size``. A rest that would leave a rank with a single picture, of which
    batch norm can make no statistics on 1 x 1 maps, joins the batch before it; a smaller set than there are ranks
    gives no batch at all, since every rank must take the same number of steps.

    Args:
        n: number of pictures.
        batch_size: pictures in a batch of one rank.
        world_size: number of ranks.
    """
    whole = batch_size * world_size
    sizes = [whole] * (n // whole)
    rest = n % whole
    if sizes and 0 < rest < 2 * world_size <= whole:
        sizes[-1] += rest
    elif rest >= world_size:
        sizes.append(rest)
    return sizes


def train_batches(
    n: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[Tensor]:
    """The batches one rank trains on in one epoch.

    A permutation of 0 to n - 1 is cut into global batches (``global_batch_sizes``); rank r takes every
    ``world_size``-th of each, from the r-th on, so that ranks differ by at most one picture.

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
    sizes = global_batch_sizes(n, batch_size, world_size=world_size)
    return [whole[rank::world_size] for whole in torch.split(order[: sum(sizes)], sizes)] if sizes else []


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
