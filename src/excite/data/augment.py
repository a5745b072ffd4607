"""From a batch of uint8 pictures to what a network sees: shifted, flipped, normalised, on the device they are on."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from excite.data.counter import Stream, below, coin, random_bits
from excite.data.cutout import cutout as cut_out
from excite.data.dataset import DataSet
from excite.errors import UserError

__all__ = ["normalise", "prepare", "shift_and_flip"]


def prepare(
    images: Tensor,
    indices: Tensor,
    *,
    dataset: DataSet,
    train: bool,
    seed: int,
    epoch: int,
    augment: bool = True,
    cutout: int | None = None,
) -> Tensor:
    """A batch as a network takes it.

    Training pictures are augmented: those of sets in memory are padded by an eighth with black, cut back at random
    and flipped left to right by chance (He et al., arXiv 1512.03385, Sec. 4.2); those of folders, cut by the loader
    already, are flipped. Then mean and deviation are taken out, and ``cutout`` blanks a square of every training
    picture. Every draw is a function of (seed, epoch, index) alone.

    Args:
        images: uint8 [B, C, S, S], as a loader gives them, on any device.
        indices: int64 [B], each picture's place in its split, on the same device.
        dataset: the set they are from.
        train: whether they are training pictures; others are only normalised.
        seed: the run's seed.
        epoch: counts from 0.
        augment: False only normalises.
        cutout: side of the blanked square in pixels, see ``excite.data.cutout``; None blanks nothing.

    Returns:
        float32 [B, C, S, S] on the device of ``images``.

    Raises:
        UserError: ``images`` is not uint8 [B, C, S, S] with the set's channels and size, or ``cutout`` is larger.
    """
    expected = (len(indices), dataset.in_channels, dataset.image_size, dataset.image_size)
    if images.dtype != torch.uint8 or tuple(images.shape) != expected:
        raise UserError(
            f"prepare takes uint8 pictures {expected} of {dataset.name}; got {images.dtype} {tuple(images.shape)}"
        )
    if train and augment:
        shift = (dataset.image_size + 4) // 8 if dataset.train.in_memory else 0
        images = shift_and_flip(images, indices, shift=shift, seed=seed, epoch=epoch)
    prepared = normalise(images, dataset.mean, dataset.std)
    if train and augment and cutout is not None:
        prepared = cut_out(prepared, indices, size=cutout, seed=seed, epoch=epoch)
    return prepared


def shift_and_flip(images: Tensor, indices: Tensor, *, shift: int, seed: int, epoch: int) -> Tensor:
    """Each picture moved by up to ``shift`` pixels up or down and left or right, and flipped left to right by chance.

    The same as padding with zeros on all sides by ``shift``, cutting a window of the old size, then flipping it.

    Args:
        images: uint8 [B, C, H, W].
        indices: int64 [B]; with seed and epoch, they fix every draw.
        shift: pixels; 0 only flips.
        seed: any integer.
        epoch: any integer.

    Returns:
        uint8 [B, C, H, W].
    """
    height, width = images.shape[2:]
    flip = coin(random_bits(indices, stream=Stream.FLIP, seed=seed, epoch=epoch))
    columns = torch.arange(width, device=images.device).expand(len(images), width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    if shift == 0:
        return images.gather(3, columns[:, None, None, :].expand(images.shape))
    top, left = (
        below(random_bits(indices, stream=stream, seed=seed, epoch=epoch), 2 * shift + 1)[:, None]
        for stream in (Stream.SHIFT_Y, Stream.SHIFT_X)
    )
    rows = torch.arange(height, device=images.device) + top
    # One gather over the flattened, padded picture: four times as fast as advanced indexing in two axes.
    places = rows[:, :, None] * (width + 2 * shift) + (columns + left)[:, None, :]
    padded = pad(images, (shift, shift, shift, shift)).flatten(2)
    return padded.gather(2, places.flatten(1)[:, None, :].expand(-1, images.shape[1], -1)).view(images.shape)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """``(images / 255 - mean) / std``: uint8 [B, C, H, W] to float32, channel by channel, on the device they are on."""
    scale, offset = _affine(mean, std, images.device)
    # Two roundings, never one: a fused multiply-add would depend on how a batch is cut.
    return images.to(torch.float32).mul_(scale).add_(offset)


@lru_cache(maxsize=32)
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept for later calls, so they must not be inference tensors even when the first call validates.
    with torch.inference_mode(False):
        centre, spread = torch.tensor([mean, std], dtype=torch.float64).view(2, 1, -1, 1, 1)
        scale, offset = 1 / (255 * spread), -centre / spread
        return scale.float().to(device), offset.float().to(device)
