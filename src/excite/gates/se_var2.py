"""SE-Var2: one weight a channel, and no channel sees another.

    s = sigma(w * z)          w: C, elementwise

Source: ECA-Net (arXiv 1910.03151), Sec. 3.2.1, Table 2 (a diagonal W). No code was published for it: the weights
start uniform within 1, as the equivalent grouped 1x1 convolution of ``torch.nn`` would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from excite.gates.base import Gate, GateConfig
from excite.gates.functions import gate_function

__all__ = ["SEVar2", "SEVar2Config"]


@dataclass(frozen=True)
class SEVar2Config(GateConfig):
    """SE-Var2 without its channel count; the options are those of ``SEVar2``."""

    name: ClassVar[str] = "se_var2"

    neutral: bool = False

    def build(self, channels: int) -> SEVar2:
        """The gate for maps with ``channels`` channels."""
        return SEVar2(channels, **self.options())


class SEVar2(Gate):
    """Channel attention with one weight a channel (arXiv 1910.03151, Sec. 3.2.1).

    Args:
        channels: C.
        neutral: twice the sigmoid, and the weights zero at first: a fresh gate leaves the map exactly as it is.

    Shape:
        - input: [N, C, *S], S being 1 to 3 spatial axes
        - output: as the input

    Attributes:
        weight: [C].
    """

    def __init__(self, channels: int, *, neutral: bool = False) -> None:
        super().__init__(channels, SEVar2Config(neutral))
        self.neutral = neutral
        self.weight = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: uniform within 1; zero for a neutral gate."""
        bound = 0.0 if self.neutral else 1.0
        nn.init.uniform_(self.weight, -bound, bound)

    def excite(self, z: Tensor) -> Tensor:
        """s [N, C] from z [N, C]."""
        return gate_function(z * self.weight, "sigmoid", neutral=self.neutral)
