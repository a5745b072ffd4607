"""Local interaction across channels: the window of k channels around each, and how large k is."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from excite.errors import UserError

__all__ = ["DEFAULT_BETA", "DEFAULT_GAMMA", "adaptive_kernel_size", "check_kernel_options", "neighbours"]

DEFAULT_GAMMA = 2.0
DEFAULT_BETA = 1.0


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


def adaptive_kernel_size(channels: int, gamma: float = DEFAULT_GAMMA, beta: float = DEFAULT_BETA) -> int:
    """k = | log2(C) / gamma + beta / gamma | to the nearest odd number, the larger of two equally near (ECA paper,
    Eq. 12).

    64 channels give 3, 128 to 1024 give 5, 2048 give 7.
    """
    t = int(abs((math.log2(channels) + beta) / gamma))
    return t if t % 2 else t + 1


def check_kernel_options(gate: str, kernel_size: int | str | None, gamma: float, beta: float) -> None:
    """Refuse even or non-positive kernels, a gamma of 0, and a rule's constants where no rule is used.

    Raises:
        ValueError: names the gate, the option, its range and the fix.
    """
    if isinstance(kernel_size, int) and (kernel_size < 1 or kernel_size % 2 == 0):
        near = "1" if kernel_size < 2 else f"{kernel_size - 1} or {kernel_size + 1}"
        raise UserError(
            f"gate {gate!r}: kernel_size={kernel_size} must be odd and at least 1, "
            f"so that a channel stands in the middle of its neighbours; take {near}"
        )
    if gamma == 0:
        raise UserError(f"gate {gate!r}: gamma=0 must not be 0: k = |log2(C) + beta| / gamma (the paper has gamma=2)")
    if kernel_size is not None and (gamma, beta) != (DEFAULT_GAMMA, DEFAULT_BETA):
        raise UserError(
            f"gate {gate!r}: gamma={gamma} and beta={beta} shape the adaptive size and have no effect with "
            f"kernel_size={kernel_size!r}; leave out one or the other"
        )
