"""A 1x1 convolution that rescales, adds the shortcut and activates before it writes: for inference, on CPUs.

    y = act(s[n, c] * (W x + b) + shortcut)

The gate's scale s must be known beforehand, which it is where the squeeze goes ahead of the convolution
(``squeeze_ahead``). The wide map is then written once and never read: a gate costs no pass at all.
"""

from __future__ import annotations

import ctypes
import functools
import math

import torch
from torch import Tensor

from excite.ops.native import library

__all__ = ["ACTS", "in_panels", "pointwise"]

ACTS = {"none": (0, 0.0, 0.0), "relu": (1, 0.0, math.inf), "hardswish": (3, 0.0, 0.0)}
"""What it activates by, with the numbers it is told: also "clamp" with its least and most."""


@functools.cache
def _panel() -> int:
    loaded = library()
    assert loaded is not None
    loaded.excite_pointwise_panel.argtypes, loaded.excite_pointwise_panel.restype = [], ctypes.c_int
    return int(loaded.excite_pointwise_panel())


def in_panels(weight: Tensor) -> Tensor | None:
    """A weight [C_out, C_in] in the order that ``pointwise`` reads it in; None where nothing could be compiled."""
    if library() is None:
        return None
    c_out, c_in = weight.shape
    panels = -(-c_out // _panel())
    filled = torch.zeros(panels * _panel(), c_in)
    filled[:c_out] = weight.detach()
    return filled.reshape(panels, _panel(), c_in).transpose(1, 2).contiguous()


def pointwise(
    x: Tensor,
    panels: Tensor,
    bias: Tensor,
    *,
    taken: Tensor | None = None,
    scale: Tensor | None = None,
    shortcut: Tensor | None = None,
    act: tuple[int, float, float] = ACTS["none"],
    in_place: bool = False,
) -> Tensor | None:
    """y as above, in one walk over the maps; None, with nothing touched, for maps that it does not take.

    Args:
        x: map [N, C_in, H, W], float32, channels_last, on the CPU.
        panels: the weight, from ``in_panels``.
        bias: [C_out], float32.
        taken: t [N, C_in], or None for 1.
        scale: s [N, C_out], or None for 1.
        shortcut: [N, C_out, H, W] like x, or None.
        act: its number and, for a clamp, least and most; see ``ACTS``.
        in_place: write over ``shortcut``.

    Returns:
        y [N, C_out, H, W], channels_last; ``shortcut`` itself if ``in_place``.

    Bytes moved: reads x and shortcut once, writes y once.
    """
    loaded = library()
    n, c_in, h, w = x.shape
    c_out = bias.shape[0]
    if loaded is None or x.dtype != torch.float32 or not x.is_contiguous(memory_format=torch.channels_last):
        return None
    if shortcut is not None and (
        shortcut.shape != (n, c_out, h, w)
        or shortcut.dtype != torch.float32
        or not shortcut.is_contiguous(memory_format=torch.channels_last)
    ):
        return None
    if in_place and shortcut is not None:
        y = shortcut
    else:
        y = torch.empty((n, c_out, h, w), dtype=torch.float32, device=x.device, memory_format=torch.channels_last)
    taken, scale = (None if t is None else t.to(torch.float32).contiguous() for t in (taken, scale))
    loaded.excite_pointwise(
        0, 1, torch.get_num_threads(), n, c_out, h * w, x.data_ptr(), panels.data_ptr(), bias.data_ptr(),
        *(None if t is None else t.data_ptr() for t in (taken, scale, shortcut)), y.data_ptr(), c_in, *act,
    )  # fmt: skip
    if y is shortcut and not y.is_inference():
        torch.autograd.graph.increment_version(y)
    return y
