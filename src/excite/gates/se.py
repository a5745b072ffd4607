"""Squeeze-and-Excitation: two fully connected layers with a bottleneck between them.

    s = sigma(W2 delta(W1 z + b1) + b2)          W1: R x C,  W2: C x R

Source: Squeeze-and-Excitation Networks (arXiv 1709.01507), Eq. 2-4; delta is ReLU, sigma the sigmoid, R = C / r with
r = 16.

Where published code and paper part:

- Biases. The paper's ablations (Sec. 6) go without and its parameter formula (Sec. 4) counts none; the authors'
  released Caffe networks have both. ``bias`` says which; the default follows the released networks.
- The width R. The authors' files hold C // r. It is 0 for C < r, so here it is never under
  ``min_reduced_channels``. Other zoos round C / r to multiples of 8, with or without a guard against rounding down
  far: ``round_to`` and ``round_limit``. EfficientNet and RegNet count R from the block's input: give it as
  ``reduced_channels``.
- Hard sigmoids. relu6(x + 3) / 6 in MobileNetV3, 0.2 x + 0.5 in Keras 2 and Paddle's fluid: ``hard_sigmoid_slope``.
- Initialisation is that of ``torch.nn.Linear``; the paper names none for these layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from excite.gates.base import Gate, GateConfig
from excite.gates.functions import (
    ACTIVATIONS,
    PIECEWISE_SLOPE,
    ActivationName,
    GateFunctionName,
    check_slope,
    gate_function,
    zero_parameters,
)
from excite.gates.reduction import Reduction

__all__ = ["SE", "SEConfig"]


@dataclass(frozen=True)
class SEConfig(GateConfig):
    """Squeeze-and-Excitation without its channel count; the options are those of ``SE``."""

    name: ClassVar[str] = "se"

    reduction: int = 16
    reduced_channels: int | None = None
    round_to: int | None = None
    round_limit: float = 0.0
    min_reduced_channels: int | None = None
    bias: bool = True
    activation: ActivationName = "relu"
    gate_function: GateFunctionName = "sigmoid"
    hard_sigmoid_slope: float = PIECEWISE_SLOPE
    descriptor: Literal["mean", "max"] = "mean"
    neutral: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.width.check(self.name)
        check_slope(self.name, self.gate_function, self.hard_sigmoid_slope)

    @property
    def width(self) -> Reduction:
        """The rule that gives the hidden width."""
        return Reduction(
            self.reduction, self.reduced_channels, self.round_to, self.round_limit, self.min_reduced_channels
        )

    def build(self, channels: int) -> SE:
        """The gate for maps with ``channels`` channels."""
        return SE(channels, **self.options())


class SE(Gate):
    """Squeeze-and-Excitation (arXiv 1709.01507, Eq. 2-4).

    Args:
        channels: C.
        reduction: r; the hidden width is C // r unless the next four say otherwise.
        reduced_channels: the hidden width itself, in place of ``reduction``.
        round_to: take the multiple of this nearest to C / r, halves up, and at least one multiple, instead of C // r.
        round_limit: with ``round_to``, go one multiple up when rounding fell under this share of C / r (0.9 in
            MobileNetV3).
        min_reduced_channels: the least hidden width; ``round_to`` if that is given, else 1.
        bias: whether the two layers have biases.
        activation: between the layers: "relu", "silu", "gelu" or "hard_swish".
        gate_function: "sigmoid", "hard_sigmoid", "tanh" or "relu"; all but the second are in the paper's ablation
            (Sec. 6.3).
        hard_sigmoid_slope: 1/6 is relu6(x + 3) / 6; 0.2 the older min(max(0.2 x + 0.5, 0), 1).
        descriptor: "mean" (Eq. 2) or "max" (the ablation of Sec. 6.2).
        neutral: the gate function in its neutral form (2 sigma(x), 1 + tanh(x), relu(1 + x)) and ``fc2`` zero at first:
            a fresh gate leaves the map exactly as it is.

    Shape:
        - input: [N, C, *S], S being 1 to 3 spatial axes
        - output: as the input

    Attributes:
        fc1, fc2: ``nn.Linear`` from C to ``reduced_channels`` and back: 2 C R parameters, and R + C more with biases.
        reduced_channels: the hidden width R.

    Raises:
        ValueError: an option out of range, or one that another option makes void.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        reduced_channels: int | None = None,
        round_to: int | None = None,
        round_limit: float = 0.0,
        min_reduced_channels: int | None = None,
        bias: bool = True,
        activation: ActivationName = "relu",
        gate_function: GateFunctionName = "sigmoid",
        hard_sigmoid_slope: float = PIECEWISE_SLOPE,
        descriptor: Literal["mean", "max"] = "mean",
        neutral: bool = False,
    ) -> None:
        config = SEConfig(
            reduction,
            reduced_channels,
            round_to,
            round_limit,
            min_reduced_channels,
            bias,
            activation,
            gate_function,
            hard_sigmoid_slope,
            descriptor,
            neutral,
        )
        super().__init__(channels, config)
        self.descriptors = (config.descriptor,)
        self.reduced_channels = config.width.of(channels)
        self.activation = config.activation
        self.gate_function = config.gate_function
        self.hard_sigmoid_slope = config.hard_sigmoid_slope
        self.fc1 = nn.Linear(channels, self.reduced_channels, bias=bias)
        self.fc2 = nn.Linear(self.reduced_channels, channels, bias=bias)
        self.neutral = config.neutral
        if neutral:
            zero_parameters(self.fc2)

    def excite(self, z: Tensor) -> Tensor:
        """s [N, C] from z [N, C]: Eq. 3."""
        return self.from_hidden(self.fc1(z))

    def from_hidden(self, hidden: Tensor) -> Tensor:
        """s [N, C] from W1 z + b1 [N, R], however it was had."""
        hidden = ACTIVATIONS[self.activation](hidden)
        return gate_function(self.fc2(hidden), self.gate_function, self.hard_sigmoid_slope, neutral=self.neutral)
