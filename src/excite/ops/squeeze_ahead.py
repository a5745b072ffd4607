"""Squeeze ahead: the channel means of a convolution's output, read from its input.

The mean over positions is linear, so it passes through a convolution and an affine norm. With h the convolution's
input and one tap t of the kernel at a time,

    z = a (sum_t W_t mean_o h[o * stride + t * dilation - padding] + conv_bias) + b

For a 1x1 convolution that is W mean(h): where h is four times narrower than the output, as before the last norm of
a bottleneck, the squeeze reads a quarter of the bytes. A k x k kernel needs one strided sum of h a tap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from excite.errors import UserError
from excite.ops.tail_passes import sum_dtype

__all__ = ["squeeze_ahead"]


def squeeze_ahead(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """``squeeze(scale * conv(h) + shift)`` without making the convolution's output.

    Args:
        h: the convolution's input [N, C_in, *S] with 1 to 3 spatial axes.
        weight: its kernel [C_out, C_in / groups, *K].
        bias: its bias [C_out], or None.
        scale: folded norm scale a = gamma / sqrt(running_var + eps) [C_out], or None for 1.
        shift: folded norm shift b = beta - running_mean * a [C_out], or None for 0.
        stride: of the convolution, one number or one an axis.
        padding: zeros on both ends of each axis; other padding modes do not commute with the mean.
        dilation: distance between the kernel's taps.
        groups: of the convolution.

    Returns:
        z [N, C_out], the mean over output positions, in h's dtype. Sums are taken in float32 (float64 for float64).

    Bytes moved: reads h once a kernel tap (once for 1x1), writes N * C_out values.

    Raises:
        ValueError: shapes that do not fit each other, or a convolution that gives no position.
    """
    axes = h.dim() - 2
    if not 1 <= axes <= 3 or weight.dim() != h.dim():
        raise UserError(f"squeeze_ahead needs h [N, C, *S] and weight [O, C/groups, *K] with as many axes; "
                        f"got {tuple(h.shape)} and {tuple(weight.shape)}")  # fmt: skip
    if groups < 1 or weight.shape[1] * groups != h.shape[1] or weight.shape[0] % groups:
        raise UserError(
            f"weight {tuple(weight.shape)} with groups={groups} does not fit the {h.shape[1]} channels of h"
        )
    dtype = sum_dtype(h.dtype)
    taps = _tap_means(h, weight, _each(stride, axes), _each(padding, axes), _each(dilation, axes), dtype)
    # [N, G, C/G, T] x [G, O/G, C/G, T] -> [N, G, O/G]
    n, per_group = h.shape[0], weight.shape[1]
    w = weight.to(dtype).reshape(groups, weight.shape[0] // groups, per_group, -1)
    z = torch.einsum("ngct,goct->ngo", taps.reshape(n, groups, per_group, taps.shape[-1]), w).flatten(1)
    if bias is not None:
        z = z + bias.to(dtype)
    if scale is not None:
        z = z * scale.to(dtype)
    if shift is not None:
        z = z + shift.to(dtype)
    return z.to(h.dtype)


def _each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes:
        raise UserError(f"{value!r}: give one number, or {axes} for {axes} spatial axes")
    return values


def _tap_means(
    h: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    dtype: torch.dtype,
) -> Tensor:
    """[N, C_in, T]: for each of the kernel's T taps, the mean over output positions of the input under that tap."""
    sizes, kernel = h.shape[2:], weight.shape[2:]
    outputs = [
        (size + 2 * p - d * (k - 1) - 1) // st + 1
        for size, k, st, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True)
    ]
    if min(outputs) < 1:
        raise UserError(f"a {tuple(kernel)} kernel gives no position on a map of {tuple(sizes)}")
    axes = list(range(2, h.dim()))
    columns = []
    for tap in itertools.product(*(range(k) for k in kernel)):
        # Positions outside the map hold padding zeros: cut them off instead of padding a copy of h.
        window = [
            _inside(t * d - p, st, out, size)
            for t, d, p, st, out, size in zip(tap, dilation, padding, stride, outputs, sizes, strict=True)
        ]
        columns.append(h[(slice(None), slice(None), *window)].sum(axes, dtype=dtype))
    return torch.stack(columns, dim=-1) / math.prod(outputs)


def _inside(first: int, stride: int, count: int, size: int) -> slice:
    """Those of the ``count`` positions first, first + stride, ... that lie in [0, size)."""
    skipped = max(0, -(first // stride)) if first < 0 else 0
    start = first + skipped * stride
    stop = min(first + (count - 1) * stride + 1, size)
    return slice(start, max(start, stop), stride)
