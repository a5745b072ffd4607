"""SE-Var3: one full matrix; every channel sees every other, without a bottleneck.

    s = sigma(z W)          W: C x C

Source: ECA-Net (arXiv 1910.03151), Sec. 3.2.1, Table 2 (a full W). No code was published for it: no bias, as in the
paper's parameter count of C^2.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
from keras import ops

from excite_keras.gates.base import Gate
from excite_keras.gates.functions import gate_function, within

__all__ = ["SEVar3"]


@keras.saving.register_keras_serializable(package="excite")
class SEVar3(Gate):
    """Channel attention with one fully connected layer (arXiv 1910.03151, Sec. 3.2.1).

    Args:
        neutral: twice the sigmoid, and W zero at first: a fresh gate leaves the map exactly as it is.
        kwargs: those of ``Gate``.

    Attributes:
        fc_kernel: [C, C], as ``Dense`` has it.
    """

    GATE: ClassVar[str] = "se_var3"

    def __init__(self, *, neutral: bool = False, **kwargs: Any) -> None:
        super().__init__({"neutral": neutral}, **kwargs)

    def make_weights(self, channels: int) -> None:
        """Make the matrix."""
        start = within(channels**-0.5, neutral=self.options.neutral)
        self.fc_kernel = self.add_gate_weight("fc_kernel", (channels, channels), start)

    def excite(self, z: Any) -> Any:
        """s [N, C] from z [N, C]."""
        return gate_function(ops.matmul(z, self.wide(self.fc_kernel)), "sigmoid", neutral=self.options.neutral)
