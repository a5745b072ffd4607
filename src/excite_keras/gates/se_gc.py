"""SE-GC: a block-diagonal matrix; every channel sees those of its group.

    s = sigma(W z)          W: C x C in G blocks of (C / G) x (C / G) on the diagonal

Source: ECA-Net (arXiv 1910.03151), Sec. 3.2.2, Table 2: G = 16 (SE-GC1), C / 16 (SE-GC2) and C / 8 (SE-GC3). The first
is ``groups=16``, the others ``group_size=16`` and ``group_size=8``. No code was published for it: no bias, as in the
paper's parameter count of C^2 / G.
"""

from __future__ import annotations

from typing import Any, ClassVar

import keras
from keras import ops

from excite.gates.group_count import DEFAULT_GROUPS, check_groups, groups_for
from excite_keras.gates.base import Gate
from excite_keras.gates.functions import gate_function, within

__all__ = ["SEGC"]


@keras.saving.register_keras_serializable(package="excite")
class SEGC(Gate):
    """Channel attention within groups of channels (arXiv 1910.03151, Sec. 3.2.2).

    Args:
        groups: G, a divisor of C.
        group_size: C / G, in place of ``groups``.
        neutral: twice the sigmoid, and the weights zero at first: a fresh gate leaves the map exactly as it is.
        kwargs: those of ``Gate``.

    Attributes:
        kernel: [C, C / G]; row c over the channels of c's group.

    Raises:
        ValueError: G does not divide C, with the nearest divisors; both options given.
    """

    GATE: ClassVar[str] = "se_gc"

    def __init__(
        self, groups: int = DEFAULT_GROUPS, *, group_size: int | None = None, neutral: bool = False, **kwargs: Any
    ) -> None:
        super().__init__({"groups": groups, "group_size": group_size, "neutral": neutral}, **kwargs)
        check_groups(groups, group_size)

    def make_weights(self, channels: int) -> None:
        """Make the blocks."""
        size = channels // groups_for(channels, self.options.groups, self.options.group_size)
        self.kernel = self.add_gate_weight("kernel", (channels, size), within(size**-0.5, neutral=self.options.neutral))

    def excite(self, z: Any) -> Any:
        """s [N, C] from z [N, C]."""
        channels, size = self.kernel.shape
        blocks = ops.reshape(self.wide(self.kernel), (channels // size, size, size))
        grouped = ops.reshape(z, (-1, channels // size, size))
        x = ops.reshape(ops.einsum("ngi,goi->ngo", grouped, blocks), (-1, channels))
        return gate_function(x, "sigmoid", neutral=self.options.neutral)
