"""The channel scale of gates that are layers on the mean, in one compiled call: for inference, on CPUs.

    s = g(taps * (W2 act(W1 mean(x) + b1) + b2))

Each of W1, W2 and the taps stands where a gate has one: SE has two layers, ECA taps alone, and a squeeze that goes
ahead of a convolution puts its weight where W2 is. These are a few thousand multiplications; as operations of their own
they take several times as long, most of it on the way from one to the next.
"""

from __future__ import annotations

import ctypes
from typing import ClassVar

import torch
from torch import Tensor

from excite.ops.native import NATIVE_ACTS, library, rows_if_usable, sizes

__all__ = ["FUNCTIONS", "Layer", "ScaleOp"]

FUNCTIONS = {"sigmoid": 0, "hard_sigmoid": 1}
"""Gate functions g, with their numbers in cpp/scale.cpp."""

Layer = tuple[Tensor, Tensor | None]
"""Weight [outputs, inputs] and bias [outputs] of a fully connected layer."""


class _Told(ctypes.Structure):
    """``Gate`` of cpp/scale.cpp."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("w1", "b1", "w2", "b2", "taps")),
        *((name, ctypes.c_int64) for name in ("hidden", "channels", "count")),
        *((name, ctypes.c_int) for name in ("act", "function")),
        *((name, ctypes.c_float) for name in ("slope", "factor")),
    ]


class ScaleOp:
    """s [N, C] of a map [N, K, *S], as above.

    Tensors are float32, on the CPU and contiguous. Their values are read at each call, from where they lay when this
    was made: where a tensor is given other storage, another is to be made.

    Args:
        first: W1 and b1, or None.
        second: W2 and b2, or None.
        taps: [k], k odd: windows of neighbours with zeros beyond the ends, or None.
        act: behind the first layer: one of ``NATIVE_ACTS``.
        function: one of ``FUNCTIONS``.
        slope: of the hard sigmoid min(max(slope y + 1/2, 0), 1).
        factor: s is so many times g.

    Attributes:
        tensors: weight, bias, weight, bias, taps, of those that there are.
        usable: whether tensors are as above and fit each other, and a compiler was found.
    """

    def __init__(
        self,
        first: Layer | None = None,
        second: Layer | None = None,
        taps: Tensor | None = None,
        *,
        act: str = "none",
        function: str = "sigmoid",
        slope: float = 1 / 6,
        factor: float = 1.0,
    ) -> None:
        given = (*(first or (None, None)), *(second or (None, None)), taps)
        self.tensors = tuple(t for t in given if t is not None)
        loaded = library()
        layers = [layer for layer in (first, second) if layer is not None]
        self._inputs = layers[0][0].shape[1] if layers else 0  # 0: any
        chained = len(layers) < 2 or layers[1][0].shape[1] == len(layers[0][0])
        chained &= all(bias is None or bias.shape == (len(weight),) for weight, bias in layers)
        self.usable = loaded is not None and chained and all(map(_fits, self.tensors))
        hidden = 0 if first is None else len(first[0])
        self._channels = len(second[0]) if second is not None else hidden  # 0: the map's own
        self._told = _Told(
            *(None if t is None else t.data_ptr() for t in given), hidden, self._channels,
            0 if taps is None else len(taps), NATIVE_ACTS[act], FUNCTIONS[function], slope, factor,
        )  # fmt: skip
        self._pointer = ctypes.addressof(self._told)
        self._run = None if loaded is None else loaded.excite_scale

    def __call__(self, x: Tensor) -> Tensor | None:
        """s [N, C]; None where it cannot be done: this is not ``usable``, x is no float32 map on the CPU, or
        not as wide as the weights.

        Bytes moved: reads x and the weights once.
        """
        rows = rows_if_usable(x) if self.usable and x.dtype == torch.float32 else None
        if rows is None or self._run is None:
            return None
        n, channels = x.shape[:2]
        if self._inputs and self._inputs != channels:
            return None
        s = torch.empty((n, self._channels or channels), dtype=torch.float32, device=x.device)
        self._run(*sizes(x, rows), x.data_ptr(), s.data_ptr(), self._pointer)
        return s


def _fits(t: Tensor) -> bool:
    return t.dtype == torch.float32 and t.is_cpu and t.is_contiguous()
