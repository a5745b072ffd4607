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

__all__ = ["SEVar2", "SEVar2Config"]


@dataclass(frozen=True)
class SEVar2Config(GateConfig):
    """SE-Var2; it has no options."""

    name: ClassVar[str] = "se_var2"

    def build(self, channels: int) -> SEVar2:
        """The gate for maps with ``channels`` channels."""
        return SEVar2(channels)


class SEVar2(Gate):
    """Channel attention with one weight a channel (arXiv 1910.03151, Sec. 3.2.1).

    Args:
        channels: C.

    Shape:
        - input: [N, C, *S], S being 1 to 3 spatial axes
        - output: as the input

    Attributes:
        weight: [C].
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, SEVar2Config())
        self.weight = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: uniform within 1."""
        nn.init.uniform_(self.weight, -1.0, 1.0)

    def excite(self, z: Tensor) -> Tensor:
        """s [N, C] from z [N, C]."""
        return torch.sigmoid(z * self.weight)
