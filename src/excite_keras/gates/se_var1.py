"""SE-Var1: the descriptor itself through a sigmoid; nothing is learned.

    s = sigma(z)

Source: ECA-Net (arXiv 1910.03151), Sec. 3.2.1, Table 2: the variant without parameters. No code was published for it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
from keras import ops

from excite_keras.gates.base import Gate

__all__ = ["SEVar1"]


@keras.saving.register_keras_serializable(package="excite")
class SEVar1(Gate):
    """The sigmoid of the channel mean as the channel scale (arXiv 1910.03151, Sec. 3.2.1).

    Args:
        kwargs: those of ``Gate``.
    """

    GATE: ClassVar[str] = "se_var1"
    NO_NEUTRAL_FORM: ClassVar[str] = "its scale is the sigmoid of the mean, with no weights that could start at zero"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__({}, **kwargs)

    def excite(self, z: Any) -> Any:
        """s [N, C] from z [N, C]."""
        return ops.sigmoid(z)
