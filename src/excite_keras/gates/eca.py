"""Efficient Channel Attention: one small filter, shared by all channels, slides over the descriptor.

    s_i = sigma( sum_j w_j z_{i + j - (k - 1) / 2} ),   j = 0 .. k - 1,   z beyond the ends being 0

Source: ECA-Net (arXiv 1910.03151), Sec. 3.2.2 and Eq. 9 for the gate, Sec. 3.2.3 and Eq. 12 for k. Where released code
and paper part: ``excite.gates.eca``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from excite.gates.kernel_sizes import DEFAULT_BETA, DEFAULT_GAMMA, KernelSize, check_kernel_options, kernel_size_for
from excite_keras.gates.base import Gate
from excite_keras.gates.functions import gate_function, within
from excite_keras.gates.neighbours import neighbours

__all__ = ["EfficientChannelAttention"]


@keras.saving.register_keras_serializable(package="excite")
class EfficientChannelAttention(Gate):
    """Efficient Channel Attention (arXiv 1910.03151, Eq. 9).

    Args:
        kernel_size: k, an odd number; ``None`` or "adaptive" for the paper's rule; "released:NETWORK" for the sizes
            that the authors' weights for that network have (resnet18, 34, 50, 101, 152, mobilenetv2).
        gamma: of the rule k = | (log2(C) + beta) / gamma | to the nearest odd number (Eq. 12).
        beta: of the same rule.
        neutral: twice the sigmoid, and the filter zero at first: a fresh gate leaves the map exactly as it is.
        kwargs: those of ``Gate``.

    Attributes:
        kernel: the filter, [k, 1, 1], as ``Conv1D`` has it.

    Raises:
        ValueError: an even k; ``gamma`` or ``beta`` beside a size that does not use them; a width the named network
            has not.
    """

    GATE: ClassVar[str] = "eca"

    def __init__(
        self,
        kernel_size: KernelSize = None,
        *,
        gamma: float = DEFAULT_GAMMA,
        beta: float = DEFAULT_BETA,
        neutral: bool = False,
        **kwargs: Any,
    ) -> None:
        kernel_size = None if kernel_size == "adaptive" else kernel_size  # the same gate by its other name
        super().__init__({"kernel_size": kernel_size, "gamma": gamma, "beta": beta, "neutral": neutral}, **kwargs)
        check_kernel_options(self.GATE, kernel_size, gamma, beta)

    def make_weights(self, channels: int) -> None:
        """Make the filter."""
        options = self.options
        k = kernel_size_for(channels, options.kernel_size, options.gamma, options.beta)
        self.kernel = self.add_gate_weight("kernel", (k, 1, 1), within(k**-0.5, neutral=options.neutral))

    def excite(self, z: Any) -> Any:
        """s [N, C] from z [N, C]."""
        kernel = self.wide(self.kernel)
        k = self.kernel.shape[0]
        x = sum(kernel[j, 0, 0] * window for j, window in enumerate(neighbours(z, k)))
        return gate_function(x, "sigmoid", neutral=self.options.neutral)
