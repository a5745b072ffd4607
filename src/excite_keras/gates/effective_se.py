"""Effective SE: one full layer in place of the two, so that no channel passes a bottleneck.

    s = sigma(z W + b)          W: C x C

Source: CenterMask (arXiv 1911.06667), Sec. 3.3 (eSE, in VoVNetV2). The paper writes sigma as the sigmoid; the released
networks have the hard sigmoid relu6(x + 3) / 6, and so has this gate by default.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
from keras import ops

from excite.gates.function_names import PIECEWISE_SLOPE, GateFunctionName, check_slope
from excite_keras.gates.base import Gate
from excite_keras.gates.functions import gate_function, within

__all__ = ["EffectiveSqueezeExcite"]


@keras.saving.register_keras_serializable(package="excite")
class EffectiveSqueezeExcite(Gate):
    """Effective Squeeze-and-Excitation (arXiv 1911.06667, Sec. 3.3).

    Args:
        gate_function: "hard_sigmoid" as released, "sigmoid" as the paper writes it, "tanh" or "relu".
        hard_sigmoid_slope: 1/6 is relu6(x + 3) / 6; 0.2 the older min(max(0.2 x + 0.5, 0), 1).
        neutral: the gate function in its neutral form and W, b zero at first: a fresh gate leaves the map exactly as
            it is.
        kwargs: those of ``Gate``.

    Attributes:
        fc_kernel, fc_bias: [C, C], as ``Dense`` has it, and [C].

    Raises:
        ValueError: a slope that is not positive, or that the gate function does not use.
    """

    GATE: ClassVar[str] = "ese"

    def __init__(
        self,
        *,
        gate_function: GateFunctionName = "hard_sigmoid",
        hard_sigmoid_slope: float = PIECEWISE_SLOPE,
        neutral: bool = False,
        **kwargs: Any,
    ) -> None:
        options = {"gate_function": gate_function, "hard_sigmoid_slope": hard_sigmoid_slope, "neutral": neutral}
        super().__init__(options, **kwargs)
        check_slope(self.GATE, gate_function, hard_sigmoid_slope)

    def make_weights(self, channels: int) -> None:
        """Make the layer."""
        start = within(channels**-0.5, neutral=self.options.neutral)
        self.fc_kernel = self.add_gate_weight("fc_kernel", (channels, channels), start)
        self.fc_bias = self.add_gate_weight("fc_bias", (channels,), start)

    def excite(self, z: Any) -> Any:
        """s [N, C] from z [N, C]."""
        x = ops.matmul(z, self.wide(self.fc_kernel)) + self.wide(self.fc_bias)
        options = self.options
        return gate_function(x, options.gate_function, options.hard_sigmoid_slope, neutral=options.neutral)
