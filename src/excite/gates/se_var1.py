"""SE-Var1: the descriptor itself through a sigmoid; nothing is learned.

    s = sigma(z)

Source: ECA-Net (arXiv 1910.03151), Sec. 3.2.1, Table 2: the variant without parameters. No code was published for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from excite.gates.base import Gate, GateConfig

__all__ = ["SEVar1", "SEVar1Config"]


@dataclass(frozen=True)
class SEVar1Config(GateConfig):
    """SE-Var1; it has no options."""

    name: ClassVar[str] = "se_var1"
    NO_NEUTRAL_FORM: ClassVar[str] = "its scale is the sigmoid of the mean, with no weights that could start at zero"

    def build(self, channels: int) -> SEVar1:
        """The gate for maps with ``channels`` channels."""
        return SEVar1(channels)


class SEVar1(Gate):
    """The sigmoid of the channel mean as the channel scale (arXiv 1910.03151, Sec. 3.2.1).

    Args:
        channels: C.

    Shape:
        - input: [N, C, *S], S being 1 to 3 spatial axes
        - output: as the input
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, SEVar1Config())

    def excite(self, z: Tensor) -> Tensor:
        """s [N, C] from z [N, C]."""
        return torch.sigmoid(z)
