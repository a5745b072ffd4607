"""SE-Var2: one weight a channel; no channel sees another.

    s = sigma(w * z)          w: C

Source: ECA-Net (arXiv 1910.03151), Sec. 3.2.1, Table 2. No code was published for it; the weights start uniform within
1, as in ``excite.gates.se_var2``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from excite_keras.gates.base import Gate
from excite_keras.gates.functions import gate_function, within

__all__ = ["SEVar2"]


@keras.saving.register_keras_serializable(package="excite")
class SEVar2(Gate):
    """Channel attention with one weight a channel (arXiv 1910.03151, Sec. 3.2.1).

    Args:
        neutral: twice the sigmoid, and the weights zero at first: a fresh gate leaves the map exactly as it is.
        kwargs: those of ``Gate``.

    Attributes:
        kernel: [C].
    """

    GATE: ClassVar[str] = "se_var2"

    def __init__(self, *, neutral: bool = False, **kwargs: Any) -> None:
        super().__init__({"neutral": neutral}, **kwargs)

    def make_weights(self, channels: int) -> None:
        """Make the weights."""
        self.kernel = self.add_gate_weight("kernel", (channels,), within(1.0, neutral=self.options.neutral))

    def excite(self, z: Any) -> Any:
        """s [N, C] from z [N, C]."""
        return gate_function(z * self.wide(self.kernel), "sigmoid", neutral=self.options.neutral)
