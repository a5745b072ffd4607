"""Effective SE: one full layer in place of the two, so that no channel passes a bottleneck.

    s = sigma(W z + b)          W: C x C

Source: CenterMask (arXiv 1911.06667), Sec. 3.3 (eSE, in VoVNetV2).

Where published code and paper part: the paper writes sigma as the sigmoid; the released VoVNet networks have the hard
sigmoid relu6(x + 3) / 6, and so has this gate unless ``gate_function="sigmoid"``. Initialisation is that of
``torch.nn.Linear``; the released code draws it with the convolutions of its backbone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from excite.gates.base import Gate, GateConfig
from excite.gates.functions import PIECEWISE_SLOPE, GateFunctionName, check_slope, gate_function, zero_parameters

__all__ = ["EffectiveSE", "EffectiveSEConfig"]


@dataclass(frozen=True)
class EffectiveSEConfig(GateConfig):
    """Effective SE without its channel count; the options are those of ``EffectiveSE``."""

    name: ClassVar[str] = "ese"

    gate_function: GateFunctionName = "hard_sigmoid"
    hard_sigmoid_slope: float = PIECEWISE_SLOPE
    neutral: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_slope(self.name, self.gate_function, self.hard_sigmoid_slope)

    def build(self, channels: int) -> EffectiveSE:
        """The gate for maps with ``channels`` channels."""
        return EffectiveSE(channels, **self.options())


class EffectiveSE(Gate):
    """Effective Squeeze-and-Excitation (arXiv 1911.06667, Sec. 3.3).

    Args:
        channels: C.
        gate_function: "hard_sigmoid" as released, "sigmoid" as the paper writes it, "tanh" or "relu".
        hard_sigmoid_slope: 1/6 is relu6(x + 3) / 6; 0.2 the older min(max(0.2 x + 0.5, 0), 1).
        neutral: the gate function in its neutral form (2 sigma(x), 1 + tanh(x), relu(1 + x)) and ``fc`` zero at first:
            a fresh gate leaves the map exactly as it is.

    Shape:
        - input: [N, C, *S], S being 1 to 3 spatial axes
        - output: as the input

    Attributes:
        fc: ``nn.Linear`` from C to C: C^2 + C parameters.

    Raises:
        ValueError: a slope that is not positive, or that the gate function does not use.
    """

    def __init__(
        self,
        channels: int,
        *,
        gate_function: GateFunctionName = "hard_sigmoid",
        hard_sigmoid_slope: float = PIECEWISE_SLOPE,
        neutral: bool = False,
    ) -> None:
        config = EffectiveSEConfig(gate_function, hard_sigmoid_slope, neutral)
        super().__init__(channels, config)
        self.gate_function = config.gate_function
        self.hard_sigmoid_slope = config.hard_sigmoid_slope
        self.fc = nn.Linear(channels, channels)
        self.neutral = config.neutral
        if neutral:
            zero_parameters(self.fc)

    def excite(self, z: Tensor) -> Tensor:
        """s [N, C] from z [N, C]."""
        return gate_function(self.fc(z), self.gate_function, self.hard_sigmoid_slope, neutral=self.neutral)
