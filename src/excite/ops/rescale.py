"""Rescale: each channel of the map times its scale (SE paper, Eq. 4)."""

from __future__ import annotations

from torch import Tensor

from excite.errors import UserError

__all__ = ["rescale"]


def rescale(u: Tensor, s: Tensor) -> Tensor:
    """The recalibrated map y[n, c, ...] = s[n, c] * u[n, c, ...].

    Args:
        u: feature map [N, C, *S] with 1 to 3 spatial axes.
        s: channel scale [N, C]; cast to u's dtype.

    Returns:
        y [N, C, *S] in u's dtype and memory format.

    Bytes moved: reads u and s once, writes y once.

    Raises:
        ValueError: s is not [N, C] for u's N and C.
    """
    if s.shape != u.shape[:2]:
        raise UserError(f"rescale needs s of shape {tuple(u.shape[:2])} for u {tuple(u.shape)}; got {tuple(s.shape)}")
    return u * s.to(u.dtype).reshape(*s.shape, *(1,) * (u.dim() - 2))
