"""SE-Var3: one full matrix; every channel sees every other, without a bottleneck.

    s = sigma(W z)          W: C x C

Source: ECA-Net (arXiv 1910.03151), Sec. 3.2.1, Table 2 (a full W). No code was published for it: no bias, as in the
paper's parameter count of C^2; initialisation is that of ``torch.nn.Linear``. Effective SE is the same with a bias
and a hard sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from excite.gates.base import Gate, GateConfig
from excite.gates.functions import gate_function, zero_parameters

__all__ = ["SEVar3", "SEVar3Config"]


@dataclass(frozen=True)
class SEVar3Config(GateConfig):
    """SE-Var3 without its channel count; the options are those of ``SEVar3``."""

    name: ClassVar[str] = "se_var3"

    neutral: bool = False

    def build(self, channels: int) -> SEVar3:
        """The gate for maps with ``channels`` channels."""
        return SEVar3(channels, **self.options())


class SEVar3(Gate):
    """Channel attention with one fully connected layer (arXiv 1910.03151, Sec. 3.2.1).

    Args:
        channels: C.
        neutral: twice the sigmoid, and ``fc`` zero at first: a fresh gate leaves the map exactly as it is.

    Shape:
        - input: [N, C, *S], S being 1 to 3 spatial axes
        - output: as the input

    Attributes:
        fc: ``nn.Linear`` from C to C without bias: C^2 parameters.
    """

    def __init__(self, channels: int, *, neutral: bool = False) -> None:
        super().__init__(channels, SEVar3Config(neutral))
        self.neutral = neutral
        self.fc = nn.Linear(channels, channels, bias=False)
        if neutral:
            zero_parameters(self.fc)

    def excite(self, z: Tensor) -> Tensor:
        """s [N, C] from z [N, C]."""
        return gate_function(self.fc(z), "sigmoid", neutral=self.neutral)
