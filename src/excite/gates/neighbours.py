"""Local interaction across channels: the window of k channels around each."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["neighbours"]


def neighbours(z: Tensor, kernel_size: int) -> Tensor:
    """Each channel with its neighbours: out[n, c, j] = z[n, c + j - (k - 1) / 2], zero beyond either end.

    Args:
        z: descriptor [N, C].
        kernel_size: k, odd.

    Returns:
        [N, C, k], a view of the padded z.
    """
    margin = kernel_size // 2
    return F.pad(z, (margin, margin)).unfold(1, kernel_size, 1)
