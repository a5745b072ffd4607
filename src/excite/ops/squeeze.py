"""Squeeze: one number a channel for what the whole map holds (SE paper, Eq. 2, and its max-pool ablation)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from excite.errors import UserError, unknown

__all__ = ["DESCRIPTORS", "squeeze"]

DESCRIPTORS = ("mean", "max", "std", "l2")


def squeeze(u: Tensor, descriptors: Sequence[str] = ("mean",)) -> Tensor:
    """Channel descriptors of a feature map.

    Args:
        u: feature map [N, C, *S] with 1 to 3 spatial axes, any floating dtype, contiguous or channels_last.
        descriptors: one or more of

            - ``"mean"``: z_c = mean over positions of u_c (SE paper, Eq. 2);
            - ``"max"``: the largest u_c (SE paper, Table 11);
            - ``"std"``: the biased standard deviation over positions;
            - ``"l2"``: the Euclidean norm over positions (Gated Channel Transformation).

    Returns:
        z [N, C] for one descriptor, [N, K, C] for K > 1, in u's dtype. Sums of half-precision maps are
        taken in float32.

    Bytes moved: reads u once a descriptor (std: twice), writes N * K * C values.

    Raises:
        ValueError: no or an unknown descriptor, a map without spatial axes, or one with no positions.
    """
    if not 3 <= u.dim() <= 5:
        raise UserError(f"squeeze takes a map [N, C, *S] with 1 to 3 spatial axes; got shape {tuple(u.shape)}")
    if 0 in u.shape[2:]:
        raise UserError(f"squeeze of a map without positions is undefined; got shape {tuple(u.shape)}")
    if not descriptors or isinstance(descriptors, str):
        raise UserError(f"descriptors={descriptors!r}: give a tuple of one or more of {DESCRIPTORS}")
    z = [_describe(u, d) for d in descriptors]
    return z[0] if len(z) == 1 else torch.stack(z, dim=1)


def _describe(u: Tensor, descriptor: str) -> Tensor:
    axes = list(range(2, u.dim()))
    if descriptor == "mean":
        # torch's half-precision sums accumulate in float32 on CPU and CUDA alike. Not adaptive_avg_pool2d:
        # it is slow in channels_last and has returned NaN under autocast.
        return u.mean(axes)
    if descriptor == "max":
        return u.amax(axes)
    wide = u if u.dtype == torch.float64 else u.float()
    if descriptor == "std":
        # sqrt has no derivative at 0, which a constant channel reaches: clamp keeps that gradient 0, not NaN.
        tiny = torch.finfo(wide.dtype).tiny
        variance = (wide - wide.mean(axes, keepdim=True)).square().mean(axes)
        return variance.clamp_min(tiny).sqrt().to(u.dtype)
    if descriptor == "l2":
        return torch.linalg.vector_norm(wide, dim=axes).to(u.dtype)
    raise unknown("descriptor", descriptor, DESCRIPTORS)
