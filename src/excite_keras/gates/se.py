"""Squeeze-and-Excitation: two fully connected layers with a bottleneck between them.

    s = sigma(delta(z W1 + b1) W2 + b2)          W1: C x R,  W2: R x C

Source: Squeeze-and-Excitation Networks (arXiv 1709.01507), Eq. 2-4. Where published code and paper part, and what each
option is for: ``excite.gates.se``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import keras
from keras import ops

from excite.gates.function_names import PIECEWISE_SLOPE, ActivationName, GateFunctionName, check_slope
from excite.gates.reduction import Reduction
from excite_keras.gates.base import Gate
from excite_keras.gates.functions import ACTIVATIONS, gate_function, within

__all__ = ["SqueezeExcite"]


@keras.saving.register_keras_serializable(package="excite")
class SqueezeExcite(Gate):
    """Squeeze-and-Excitation (arXiv 1709.01507, Eq. 2-4).

    Args:
        reduction: r; the hidden width is C // r unless the next four say otherwise.
        reduced_channels: the hidden width itself, in place of ``reduction``.
        round_to: take the multiple of this nearest to C / r, halves up, and at least one multiple, instead of C // r.
        round_limit: with ``round_to``, go one multiple up when rounding fell under this share of C / r.
        min_reduced_channels: the least hidden width; ``round_to`` if that is given, else 1.
        bias: whether the two layers have biases.
        activation: between the layers: "relu", "silu", "gelu" or "hard_swish".
        gate_function: "sigmoid", "hard_sigmoid", "tanh" or "relu".
        hard_sigmoid_slope: 1/6 is relu6(x + 3) / 6, Keras 3's; 0.2 the older min(max(0.2 x + 0.5, 0), 1), Keras 2's.
        descriptor: "mean" (Eq. 2) or "max" (the ablation of Sec. 6.2).
        neutral: the gate function in its neutral form (2 sigma(x), 1 + tanh(x), relu(1 + x)) and W2, b2 zero at first:
            a fresh gate leaves the map exactly as it is.
        kwargs: those of ``Gate``.

    Attributes:
        fc1_kernel, fc2_kernel: [C, R] and [R, C], as ``Dense`` has them.
        fc1_bias, fc2_bias: [R] and [C], or None.

    Raises:
        ValueError: an option out of range, or one that another option makes void.
    """

    GATE: ClassVar[str] = "se"

    def __init__(
        self,
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
        **kwargs: Any,
    ) -> None:
        options = {
            "reduction": reduction,
            "reduced_channels": reduced_channels,
            "round_to": round_to,
            "round_limit": round_limit,
            "min_reduced_channels": min_reduced_channels,
            "bias": bias,
            "activation": activation,
            "gate_function": gate_function,
            "hard_sigmoid_slope": hard_sigmoid_slope,
            "descriptor": descriptor,
            "neutral": neutral,
        }
        super().__init__(options, **kwargs)
        self._width().check(self.GATE)
        check_slope(self.GATE, gate_function, hard_sigmoid_slope)

    @property
    def descriptor(self) -> str:
        """What is taken of each channel: "mean" or "max"."""
        return str(self.options.descriptor)

    def make_weights(self, channels: int) -> None:
        """Make the two layers."""
        reduced, neutral = self._width().of(channels), self.options.neutral
        first, last = within(channels**-0.5), within(reduced**-0.5, neutral=neutral)
        bias = self.options.bias
        self.fc1_kernel = self.add_gate_weight("fc1_kernel", (channels, reduced), first)
        self.fc1_bias = self.add_gate_weight("fc1_bias", (reduced,), first) if bias else None
        self.fc2_kernel = self.add_gate_weight("fc2_kernel", (reduced, channels), last)
        self.fc2_bias = self.add_gate_weight("fc2_bias", (channels,), last) if bias else None

    def excite(self, z: Any) -> Any:
        """s [N, C] from z [N, C]: Eq. 3."""
        hidden = ACTIVATIONS[self.options.activation](self._layer(z, self.fc1_kernel, self.fc1_bias))
        x = self._layer(hidden, self.fc2_kernel, self.fc2_bias)
        options = self.options
        return gate_function(x, options.gate_function, options.hard_sigmoid_slope, neutral=options.neutral)

    def _width(self) -> Reduction:
        names = ("reduction", "reduced_channels", "round_to", "round_limit", "min_reduced_channels")
        return Reduction(*(getattr(self.options, name) for name in names))

    def _layer(self, x: Any, kernel: Any, bias: Any) -> Any:
        product = ops.matmul(x, self.wide(kernel))
        return product if bias is None else product + self.wide(bias)
