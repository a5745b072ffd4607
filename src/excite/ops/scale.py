"""The channel scale of gates that are layers on the mean, in one compiled call: for inference, on CPUs.

    s = g(taps * (W2 act(W1 mean(x) + b1) + b2))

Each of W1, W2 and the taps stands where a gate has one: SE has two layers, ECA taps alone, and a squeeze that goes
ahead of a convolution puts its weight where W2 is. These are a few thousand multiplications; as operations of their own
they take several times as long, most of it on the way from one to the next.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from excite.ops.native import NATIVE_ACTS, library, rows_if_usable, sizes

__all__ = ["FUNCTIONS", "Layer", "ScaleOp"]

FUNCTIONS = {"sigmoid": 0, "hard_sigmoid": 1}
"""Gate functions g, with their numbers in cpp/scale.cpp."""

Layer = tuple[Tensor, Tensor | None]
"""Weight [outputs, inputs] and bias [outputs] of a fully connected layer."""


class ScaleOp(NamedTuple):
    """s [N, C] of a map [N, K, *S], as above.

    Args:
        first: W1 and b1, or None.
        second: W2 and b2, or None.
        taps: [k], k odd: windows of neighbours with zeros beyond the ends, or None.
        act: behind the first layer: one of ``NATIVE_ACTS``.
        function: one of ``FUNCTIONS``.
        slope: of the hard sigmoid min(max(slope y + 1/2, 0), 1).
        factor: s is so many times g.

    Tensors that are not float32, on the CPU and contiguous are not taken.
    """

    first: Layer | None = None
    second: Layer | None = None
    taps: Tensor | None = None
    act: str = "none"
    function: str = "sigmoid"
    slope: float = 1 / 6
    factor: float = 1.0

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Weight, bias, weight, bias, taps."""
        return (*(self.first or (None, None)), *(self.second or (None, None)), self.taps)

    def __call__(self, x: Tensor) -> Tensor | None:
        """s [N, C]; None where it cannot be done: something is not float32 on the CPU, or nothing was compiled.

        Bytes moved: reads x and the weights once.
        """
        rows = rows_if_usable(x) if x.dtype == torch.float32 else None
        given = self.tensors
        if rows is None or not all(map(_usable, given)) or (loaded := library()) is None:
            return None
        channels = x.shape[1]
        hidden = 0
        if self.first is not None:
            hidden = channels = self.first[0].shape[0]
        if self.second is not None:
            channels = self.second[0].shape[0]
        s = torch.empty((x.shape[0], channels))
        loaded.excite_scale(
            *sizes(x, rows), x.data_ptr(), *(None if t is None else t.data_ptr() for t in given), s.data_ptr(),
            hidden, channels, 0 if self.taps is None else self.taps.shape[0], NATIVE_ACTS[self.act],
            FUNCTIONS[self.function], self.slope, self.factor,
        )  # fmt: skip
        return s


def _usable(t: Tensor | None) -> bool:
    return t is None or (t.dtype == torch.float32 and t.is_cpu and t.is_contiguous())
