"""One tensor into the shape of another, where both are the same numbers in the same order."""

from __future__ import annotations

from torch import Tensor

__all__ = ["converted"]


def converted(tensor: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """``tensor`` with the given shape, or None where it is another tensor.

    A fully connected layer may be kept as a convolution and the other way round: [out, in, h, w] and [out, in * h * w]
    are the same numbers. So are [channels] and [1, channels], or [1, channels, 1, 1].
    """
    if tuple(tensor.shape) == shape:
        return tensor
    if tensor.numel() != _count(shape):
        return None
    if len(shape) == 1 and shape[0] in tensor.shape:
        return tensor.reshape(shape)
    two = min(tensor.dim(), len(shape)) == 2 and max(tensor.dim(), len(shape)) > 2
    return tensor.reshape(shape) if two and tensor.shape[0] == shape[0] else None


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
