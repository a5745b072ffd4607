"""How many channels k the local gates look at: the paper's rule, the released sizes, and what is no size."""

from __future__ import annotations

import math
from typing import Literal

from excite.errors import UserError

__all__ = [
    "DEFAULT_BETA",
    "DEFAULT_GAMMA",
    "RELEASED_KERNEL_SIZES",
    "KernelSize",
    "adaptive_kernel_size",
    "check_kernel_options",
    "kernel_size_for",
]

DEFAULT_GAMMA = 2.0
DEFAULT_BETA = 1.0

KernelSize = (
    int
    | Literal[
        "adaptive",
        "released:resnet18",
        "released:resnet34",
        "released:resnet50",
        "released:resnet101",
        "released:resnet152",
        "released:mobilenetv2",
    ]
    | None
)

# k by the channels of a block's output, as the names of the released weight files and the training code give them.
RELEASED_KERNEL_SIZES: dict[str, dict[int, int]] = {
    "released:resnet18": {64: 3, 128: 5, 256: 7, 512: 7},
    "released:resnet34": {64: 3, 128: 3, 256: 5, 512: 7},
    "released:resnet50": {256: 3, 512: 5, 1024: 5, 2048: 7},
    "released:resnet101": {256: 3, 512: 3, 1024: 5, 2048: 7},
    "released:resnet152": {256: 3, 512: 3, 1024: 5, 2048: 7},
    # The training code's rule is k = 1 below 96 channels and 3 from there; these are the widths it was trained at.
    "released:mobilenetv2": {16: 1, 24: 1, 32: 1, 64: 1, 96: 3, 160: 3, 320: 3},
}


def adaptive_kernel_size(channels: int, gamma: float = DEFAULT_GAMMA, beta: float = DEFAULT_BETA) -> int:
    """k = | log2(C) / gamma + beta / gamma | to the nearest odd number, the larger of two equally near (ECA paper,
    Eq. 12).

    64 channels give 3, 128 to 1024 give 5, 2048 give 7.
    """
    t = int(abs((math.log2(channels) + beta) / gamma))
    return t if t % 2 else t + 1


def kernel_size_for(
    channels: int, kernel_size: KernelSize, gamma: float = DEFAULT_GAMMA, beta: float = DEFAULT_BETA
) -> int:
    """k for maps with ``channels`` channels.

    Args:
        channels: C.
        kernel_size: k itself, the name of a network for its released sizes, or None or "adaptive" for the rule.
        gamma: of the rule.
        beta: of the rule.

    Raises:
        ValueError: the released sizes of a network are asked for at a width it does not have.
    """
    if kernel_size is None or kernel_size == "adaptive":
        return adaptive_kernel_size(channels, gamma, beta)
    if isinstance(kernel_size, int):
        return kernel_size
    sizes = RELEASED_KERNEL_SIZES[kernel_size]
    if channels not in sizes:
        raise UserError(
            f"gate 'eca': {kernel_size!r} has sizes for {', '.join(map(str, sizes))} channels, "
            f"not for {channels}; give kernel_size=adaptive or an odd number"
        )
    return sizes[channels]


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
