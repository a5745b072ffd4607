"""ECA-NS: as ECA, but every channel has its own weights over its neighbours (NS: not shared).

    s_i = sigma( sum_j w_ij z_{i + j - (k - 1) / 2} ),   j = 0 .. k - 1,   z beyond the ends being 0

Source: ECA-Net (arXiv 1910.03151), Sec. 3.2.2, Eq. 7, Table 2. Where released code and paper part:
``excite.gates.eca_ns``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import keras

from excite.gates.kernel_sizes import DEFAULT_BETA, DEFAULT_GAMMA, check_kernel_options, kernel_size_for
from excite_keras.gates.base import Gate
from excite_keras.gates.functions import gate_function, within
from excite_keras.gates.neighbours import neighbours

__all__ = ["ECANS"]


@keras.saving.register_keras_serializable(package="excite")
class ECANS(Gate):
    """Channel attention over neighbouring channels with weights of each channel's own (arXiv 1910.03151, Eq. 7).

    Args:
        kernel_size: k, an odd number; ``None`` or "adaptive" for the rule of ``EfficientChannelAttention``.
        gamma: of that rule, k = | (log2(C) + beta) / gamma | to the nearest odd number.
        beta: of the same rule.
        neutral: twice the sigmoid, and the weights zero at first: a fresh gate leaves the map exactly as it is.
        kwargs: those of ``Gate``.

    Attributes:
        kernel: [C, k]; row c over channels c - (k - 1) / 2 to c + (k - 1) / 2.

    Raises:
        ValueError: an even k; ``gamma`` or ``beta`` beside an explicit k.
    """

    GATE: ClassVar[str] = "eca_ns"

    def __init__(
        self,
        kernel_size: int | Literal["adaptive"] | None = None,
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
        """Make the weights."""
        options = self.options
        k = kernel_size_for(channels, options.kernel_size, options.gamma, options.beta)
        self.kernel = self.add_gate_weight("kernel", (channels, k), within(k**-0.5, neutral=options.neutral))

    def excite(self, z: Any) -> Any:
        """s [N, C] from z [N, C]."""
        kernel = self.wide(self.kernel)
        k = self.kernel.shape[1]
        x = sum(kernel[:, j] * window for j, window in enumerate(neighbours(z, k)))
        return gate_function(x, "sigmoid", neutral=self.options.neutral)
