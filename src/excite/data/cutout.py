"""Cutout: a square of every training picture blanked out, somewhere else in every epoch.

Source: Improved Regularization of Convolutional Neural Networks with Cutout (arXiv 1708.04552, Sec. 3.2) and the
authors' released code, whose squares have a side of 16 for CIFAR-10 and 8 for CIFAR-100.
"""

from __future__ import annotations

import torch
from torch import Tensor

from excite.data.counter import Stream, below, random_bits
from excite.errors import UserError

__all__ = ["cutout"]


def cutout(images: Tensor, indices: Tensor, *, size: int, seed: int, epoch: int) -> Tensor:
    """Each picture with one square set to 0, which is the set's mean colour once pictures are normalised.

    Any pixel is the square's centre equally often, so at the border part of it lies outside and less is blanked: the
    paper finds that necessary.

    Args:
        images: [B, C, H, W] on any device, normalised.
        indices: int64 [B], on the same device; with seed and epoch, they fix every draw.
        size: side of the square in pixels, from 1 to the picture's longer side. A square of an even side reaches one
            pixel further up and left of its centre than down and right.
        seed: any integer.
        epoch: any integer.

    Returns:
        [B, C, H, W] in the dtype of ``images``, which stay as they are.

    Raises:
        UserError: a size out of its range.
    """
    height, width = images.shape[2:]
    if not 1 <= size <= max(height, width):
        raise UserError(f"cutout={size}: the square's side, from 1 to the {max(height, width)} pixels of the pictures")
    rows, columns = (
        _covered(indices, length, size, stream=stream, seed=seed, epoch=epoch)
        for length, stream in ((height, Stream.CUT_Y), (width, Stream.CUT_X))
    )
    # Of a clone in place: masked_fill by itself loses the memory format.
    return images.clone().masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0)


def _covered(indices: Tensor, length: int, size: int, *, stream: Stream, seed: int, epoch: int) -> Tensor:
    """Which of ``length`` places lie in the square, bool [B, length]."""
    centre = below(random_bits(indices, stream=stream, seed=seed, epoch=epoch), length)[:, None]
    places = torch.arange(length, device=indices.device) - centre + size // 2
    return (places >= 0) & (places < size)
