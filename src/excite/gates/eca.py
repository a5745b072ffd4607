"""Efficient Channel Attention: one small filter, shared by all channels, slides over the descriptor.

    s_i = sigma( sum_j w_j z_{i + j - (k - 1) / 2} ),   j = 0 .. k - 1,   z beyond the ends being 0

Source: ECA-Net (arXiv 1910.03151), Sec. 3.2.2 and Eq. 9 for the gate, Sec. 3.2.3 and Eq. 12 for k. No bias, no hidden
layer.

Where published code and paper part:

- The size k. The paper derives it from C (``kernel_size=None`` or ``"adaptive"``). The released code has no such
  rule: it takes one size a stage by hand, and the released weights were trained with sizes that differ by network,
  not only by C: 512 channels have k = 7 in ResNet-18, 5 in ResNet-50 and 3 in ResNet-101. So there is no "released"
  size without the network it was released for: ``"released:resnet50"`` and so on. Within one network C does decide,
  and a width that network does not have is an error.
- timm's module never goes under k = 3; the formula gives 1 for fewer than 8 channels, and so does this gate.
- Initialisation is that of ``torch.nn.Conv1d``, as in the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from excite.gates.base import Gate, GateConfig
from excite.gates.functions import gate_function, zero_parameters
from excite.gates.kernel_sizes import (
    DEFAULT_BETA,
    DEFAULT_GAMMA,
    RELEASED_KERNEL_SIZES,
    KernelSize,
    check_kernel_options,
    kernel_size_for,
)
from excite.gates.neighbours import neighbours

__all__ = ["ECA", "RELEASED_KERNEL_SIZES", "ECAConfig", "KernelSize"]


@dataclass(frozen=True)
class ECAConfig(GateConfig):
    """Efficient Channel Attention without its channel count; the options are those of ``ECA``."""

    name: ClassVar[str] = "eca"

    kernel_size: KernelSize = None
    gamma: float = DEFAULT_GAMMA
    beta: float = DEFAULT_BETA
    neutral: bool = False

    def __post_init__(self) -> None:
        if self.kernel_size == "adaptive":  # the same gate by its other name
            object.__setattr__(self, "kernel_size", None)
        super().__post_init__()
        check_kernel_options(self.name, self.kernel_size, self.gamma, self.beta)

    def kernel_size_for(self, channels: int) -> int:
        """k for maps with ``channels`` channels.

        Raises:
            ValueError: the released sizes of a network are asked for at a width it does not have.
        """
        return kernel_size_for(channels, self.kernel_size, self.gamma, self.beta)

    def build(self, channels: int) -> ECA:
        """The gate for maps with ``channels`` channels."""
        return ECA(channels, **self.options())


class ECA(Gate):
    """Efficient Channel Attention (arXiv 1910.03151, Eq. 9).

    Args:
        channels: C.
        kernel_size: k, an odd number; ``None`` or "adaptive" for the paper's rule; "released:NETWORK" for the sizes
            that the authors' weights for that network have (resnet18, 34, 50, 101, 152, mobilenetv2).
        gamma: of the rule k = | (log2(C) + beta) / gamma | to the nearest odd number (Eq. 12).
        beta: of the same rule.
        neutral: twice the sigmoid, and the filter zero at first: a fresh gate leaves the map exactly as it is.

    Shape:
        - input: [N, C, *S], S being 1 to 3 spatial axes
        - output: as the input

    Attributes:
        conv: holds the filter, [1, 1, k]: k parameters in all.
        kernel_size: k.

    Raises:
        ValueError: an even k; ``gamma`` or ``beta`` beside a size that does not use them; a width the named network
            has not.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: KernelSize = None,
        *,
        gamma: float = DEFAULT_GAMMA,
        beta: float = DEFAULT_BETA,
        neutral: bool = False,
    ) -> None:
        config = ECAConfig(kernel_size, gamma, beta, neutral)
        super().__init__(channels, config)
        self.kernel_size = config.kernel_size_for(channels)
        self.conv = nn.Conv1d(1, 1, self.kernel_size, padding=self.kernel_size // 2, bias=False)
        self.neutral = config.neutral
        if neutral:
            zero_parameters(self.conv)

    def excite(self, z: Tensor) -> Tensor:
        """s [N, C] from z [N, C]."""
        # The convolution as windows times the filter. A one-channel conv1d has a slow backward on CPUs (one core,
        # torch 2.15, both directions: [128, 64] 231 us against 117, [256, 512] 15 ms against 1.3).
        filter_ = self.conv.weight.flatten()
        # Windows side by side are one product, 338 us for 588; and an exported graph then takes batches of 1 too.
        x = torch.matmul(neighbours(z, self.kernel_size).contiguous(), filter_)
        return gate_function(x, "sigmoid", neutral=self.neutral)
