"""Local interaction across channels: the neighbours of every channel, one shift after the other."""

from __future__ import annotations

from typing import Any

from keras import ops

__all__ = ["neighbours"]


def neighbours(z: Any, kernel_size: int) -> list[Any]:
    """Each channel's neighbours: out[j][n, c] = z[n, c + j - (k - 1) / 2], zero beyond either end.

    Args:
        z: descriptor [N, C], C being known.
        kernel_size: k, odd.

    Returns:
        k tensors [N, C].
    """
    margin, channels = kernel_size // 2, z.shape[1]
    padded = ops.pad(z, ((0, 0), (margin, margin)))
    return [padded[:, j : j + channels] for j in range(kernel_size)]
