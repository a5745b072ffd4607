"""The four map-sized passes of the fused tail, as ops of their own in ``torch.library``.

Everything else in a tail is [N, C] work. Each pass takes and gives plain tensors, has a fake version, and names the
maps it reads and writes; a faster kernel only has to give these four. On a CPU compiled code does (``tail_native``),
each in one walk over memory; below is what does everything else. ``x`` [N, C, *S] is the input of the norm,
``centre`` [N, C] its mean over positions, P = prod(S).

    moments           reads x                  gives m, v [N, C]
    affine_act        reads x, shortcut        writes y  = act(scale * (x - centre) + offset + shortcut)
    affine_act_grad   reads x, dy, y           writes g  = dy * act'(.),  gives sum g, sum g * (x - centre) [N, C]
    moments_grad      reads x, g               writes dx = scale * g + constant + slope * (x - centre)

Sums are centred and taken in float32 (float64 for float64 maps): sums of large numbers are never subtracted.
``g`` is the gradient of the shortcut, so writing it in the third pass costs nothing that a plain network does not pay.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from excite.ops import tail_native

__all__ = ["NOW", "affine_act", "affine_act_grad", "moments", "moments_grad", "sum_dtype"]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over maps of ``dtype`` are taken: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _spread(per_channel: Tensor, like: Tensor) -> Tensor:
    """[N, C] as [N, C, 1, ...], to broadcast over the positions of ``like``."""
    return per_channel.reshape(*per_channel.shape, *(1,) * (like.dim() - 2))


def _laid_out_as(y: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """``y`` in ``dtype`` with exactly the strides the fake version promises: those of ``like``."""
    out = torch.empty_like(like, dtype=dtype)
    return y.to(dtype) if y.stride() == out.stride() else out.copy_(y)


def _positions(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def moments_now(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the positions of each map: two [N, C] tensors in ``sum_dtype``.

    Maps: reads x.
    """
    if (done := tail_native.moments(x)) is not None:
        return done
    wide = x.to(sum_dtype(x.dtype))
    mean = wide.mean(_positions(x))
    variance = (wide - _spread(mean, x)).square_().mean(_positions(x))
    return mean, variance


moments = torch.library.custom_op("excite::tail_moments", moments_now, mutates_args=())


@moments.register_fake
def fake_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """What ``moments`` gives, without its values."""
    mean = x.new_empty(x.shape[:2], dtype=sum_dtype(x.dtype))
    return mean, torch.empty_like(mean)


def _preactivation(x: Tensor, shortcut: Tensor | None, centre: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """scale * (x - centre) + offset + shortcut, in ``sum_dtype``; always a fresh tensor."""
    y = (x.to(scale.dtype) - _spread(centre, x)).mul_(_spread(scale, x)).add_(_spread(offset, x))
    return y if shortcut is None else y.add_(shortcut)


def _result_dtype(x: Tensor, shortcut: Tensor | None) -> torch.dtype:
    return x.dtype if shortcut is None else torch.promote_types(x.dtype, shortcut.dtype)


def affine_act_now(
    x: Tensor, shortcut: Tensor | None, centre: Tensor, scale: Tensor, offset: Tensor, act: str
) -> Tensor:
    """act(scale * (x - centre) + offset + shortcut) with [N, C] centre, scale and offset; act "relu", "silu", "none".

    Maps: reads x and shortcut, writes the result, laid out as x.
    """
    if (done := tail_native.affine_act(x, shortcut, centre, scale, offset, act)) is not None:
        return done
    y = _preactivation(x, shortcut, centre, scale, offset)
    if act == "relu":
        y = y.relu_()
    elif act == "silu":
        y = torch.nn.functional.silu(y, inplace=True)
    return _laid_out_as(y, x, _result_dtype(x, shortcut))


affine_act = torch.library.custom_op("excite::tail_affine_act", affine_act_now, mutates_args=())


@affine_act.register_fake
def fake_affine_act(
    x: Tensor, shortcut: Tensor | None, centre: Tensor, scale: Tensor, offset: Tensor, act: str
) -> Tensor:
    """What ``affine_act`` gives, without its values."""
    return torch.empty_like(x, dtype=_result_dtype(x, shortcut))


def affine_act_grad_now(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    shortcut: Tensor | None,
    centre: Tensor,
    scale: Tensor,
    offset: Tensor,
    act: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of ``affine_act`` up to the map's own gradient.

    Returns g = dy * act'(.) laid out as x (an empty tensor for act "none", where g is dy itself), sum g [N, C] and
    sum g * (x - centre) [N, C].

    Maps: reads x and dy, and y (relu) or shortcut (silu, whose sum is recomputed); writes g unless act is "none".
    """
    if (done := tail_native.affine_act_grad(dy, y, x, shortcut, centre, scale, offset, act)) is not None:
        return done
    if act == "relu":
        assert y is not None
        g = torch.where(y > 0, dy, 0)
    elif act == "silu":
        h = _preactivation(x, shortcut, centre, scale, offset)
        sig = torch.sigmoid(h)
        g = dy * (sig * (1 + h * (1 - sig)))
    else:
        g = dy
    wide = g.to(scale.dtype)
    total = wide.sum(_positions(x))
    centred = (x.to(scale.dtype) - _spread(centre, x)).mul_(wide).sum(_positions(x))
    written = g.new_empty(0) if act == "none" else _laid_out_as(g, x, dy.dtype)
    return written, total, centred


affine_act_grad = torch.library.custom_op("excite::tail_affine_act_grad", affine_act_grad_now, mutates_args=())


@affine_act_grad.register_fake
def fake_affine_act_grad(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    shortcut: Tensor | None,
    centre: Tensor,
    scale: Tensor,
    offset: Tensor,
    act: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``affine_act_grad`` gives, without its values."""
    g = dy.new_empty(0) if act == "none" else torch.empty_like(x, dtype=dy.dtype)
    return g, torch.empty_like(scale), torch.empty_like(scale)


def moments_grad_now(g: Tensor, x: Tensor, centre: Tensor, scale: Tensor, constant: Tensor, slope: Tensor) -> Tensor:
    """dx = scale * g + constant + slope * (x - centre), with [N, C] factors, in x's dtype and layout.

    Maps: reads x and g, writes dx.
    """
    if (done := tail_native.moments_grad(g, x, centre, scale, constant, slope)) is not None:
        return done
    dx = (x.to(scale.dtype) - _spread(centre, x)).mul_(_spread(slope, x)).add_(_spread(constant, x))
    return _laid_out_as(dx.addcmul_(g.to(scale.dtype), _spread(scale, x)), x, x.dtype)


moments_grad = torch.library.custom_op("excite::tail_moments_grad", moments_grad_now, mutates_args=())


@moments_grad.register_fake
def fake_moments_grad(g: Tensor, x: Tensor, centre: Tensor, scale: Tensor, constant: Tensor, slope: Tensor) -> Tensor:
    """What ``moments_grad`` gives, without its values."""
    return torch.empty_like(x)


# The same four as plain functions, for whoever knows that nothing watches the dispatcher: an op of its own costs more
# than the arithmetic of a small map.
NOW = SimpleNamespace(
    moments=moments_now, affine_act=affine_act_now, affine_act_grad=affine_act_grad_now, moments_grad=moments_grad_now
)
