"""ECA-NS: as ECA, but every channel has its own weights over its neighbours (NS: not shared).

    s_i = sigma( sum_j w_ij z_{i + j - (k - 1) / 2} ),   j = 0 .. k - 1,   z beyond the ends being 0

Source: ECA-Net (arXiv 1910.03151), Sec. 3.2.2, Eq. 7, Table 2. No bias, k weights a channel.

Where published code and paper part: the released module asks for k, the paper's rule for it (Eq. 12) is written for
ECA; here the rule is the default for both. The weights are kept as [C, k]; the released module's [C, 1, k] is the
same numbers. They start as that module's grouped convolution does: uniform within 1 / sqrt(k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from excite.gates.base import Gate, GateConfig
from excite.gates.functions import gate_function
from excite.gates.kernel_sizes import DEFAULT_BETA, DEFAULT_GAMMA, check_kernel_options, kernel_size_for
from excite.gates.neighbours import neighbours

__all__ = ["ECANS", "ECANSConfig"]


@dataclass(frozen=True)
class ECANSConfig(GateConfig):
    """ECA-NS without its channel count; the options are those of ``ECANS``."""

    name: ClassVar[str] = "eca_ns"

    kernel_size: int | Literal["adaptive"] | None = None
    gamma: float = DEFAULT_GAMMA
    beta: float = DEFAULT_BETA
    neutral: bool = False

    def __post_init__(self) -> None:
        if self.kernel_size == "adaptive":  # the same gate by its other name
            object.__setattr__(self, "kernel_size", None)
        super().__post_init__()
        check_kernel_options(self.name, self.kernel_size, self.gamma, self.beta)

    def build(self, channels: int) -> ECANS:
        """The gate for maps with ``channels`` channels."""
        return ECANS(channels, **self.options())


class ECANS(Gate):
    """Channel attention over neighbouring channels with weights of each channel's own (arXiv 1910.03151, Eq. 7).

    Args:
        channels: C.
        kernel_size: k, an odd number; ``None`` or "adaptive" for the rule of ``ECA``.
        gamma: of that rule, k = | (log2(C) + beta) / gamma | to the nearest odd number.
        beta: of the same rule.
        neutral: twice the sigmoid, and the weights zero at first: a fresh gate leaves the map exactly as it is.

    Shape:
        - input: [N, C, *S], S being 1 to 3 spatial axes
        - output: as the input

    Attributes:
        weight: [C, k]; row c over channels c - (k - 1) / 2 to c + (k - 1) / 2.
        kernel_size: k.

    Raises:
        ValueError: an even k; ``gamma`` or ``beta`` beside an explicit k.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Literal["adaptive"] | None = None,
        *,
        gamma: float = DEFAULT_GAMMA,
        beta: float = DEFAULT_BETA,
        neutral: bool = False,
    ) -> None:
        config = ECANSConfig(kernel_size, gamma, beta, neutral)
        super().__init__(channels, config)
        self.kernel_size = kernel_size_for(channels, config.kernel_size, config.gamma, config.beta)
        self.neutral = config.neutral
        self.weight = nn.Parameter(torch.empty(channels, self.kernel_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: uniform within 1 / sqrt(k); zero for a neutral gate."""
        bound = 0.0 if self.neutral else self.kernel_size**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def excite(self, z: Tensor) -> Tensor:
        """s [N, C] from z [N, C]."""
        x = (neighbours(z, self.kernel_size) * self.weight).sum(-1)
        return gate_function(x, "sigmoid", neutral=self.neutral)
