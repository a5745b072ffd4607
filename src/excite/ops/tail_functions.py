"""How autograd is told about the fused tail: passes over maps, and [N, C] work between them.

A tail without a gate is one Function. With a gate, the gate's middle stands between two passes as ordinary PyTorch,
and autograd has to see it: ``Norm`` reads x first and, in backward, must write dx last, after ``AffineAct`` has g and
autograd the gate's gradients. Two of ``Norm``'s outputs, ``map_token`` and ``scale_token``, hold nothing: ``AffineAct``
takes them so that its backward can hand g and the scale back along autograd's own edges.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from excite.errors import UserError
from excite.ops import tail_norm, tail_passes

__all__ = ["AffineAct", "Norm", "PlainTail", "is_transformed"]


def _passes(impl: str, x: Tensor) -> tuple[Any, Any]:
    """Where an implementation's four passes are, and the norm's arithmetic."""
    if impl == "fused":
        return (tail_passes.NOW, tail_norm.NOW) if _unwatched(x) else (tail_passes, tail_norm)
    from excite.ops import tail_triton

    return tail_triton, tail_norm


def _unwatched(x: Tensor) -> bool:
    """Whether nobody traces what is called: ops may then be called as the functions that they are."""
    return type(x) is Tensor and not torch.compiler.is_compiling() and _get_current_dispatch_mode() is None


def is_transformed(*, modes: bool = True) -> bool:
    """Whether PyTorch works on calls rather than making them: torch.func, dual numbers, a trace; a dispatch mode.

    Args:
        modes: count dispatch modes, which see operations of ``torch.library`` whole.
    """
    return (
        (modes and _get_current_dispatch_mode() is not None)
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def _refuse_second_derivative() -> None:
    # Not once_differentiable: its error waits on an edge that a path through the [N, C] middle goes around.
    if torch.is_grad_enabled():
        raise UserError(
            "the fused tail has no second derivative: for create_graph=True give impl='reference', or detach_ the "
            "network if fuse_training_ made its tails"
        )


class PlainTail(torch.autograd.Function):
    """act(norm(x) + shortcut): all of a tail without a gate. Gives y, and the statistics mu and var."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: Tensor,
        shortcut: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        eps: float,
        act: str,
        impl: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        passes, norm = _passes(impl, x)
        m, v = passes.moments(x)
        mu, var, a, offset = norm.statistics(m, v, weight, bias, mean, variance, eps)
        scale = a.expand_as(m).contiguous()
        y = passes.affine_act(x, shortcut, m, scale, offset, act)
        _keep(ctx, x, y, shortcut, m, scale, offset, act, impl, mu, var, a)
        ctx.rest = (weight is not None, bias is not None, mean is None, eps)
        ctx.mark_non_differentiable(mu, var)
        return y, mu, var

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        _refuse_second_derivative()
        saved = ctx.saved_tensors
        (x, _, _, m, scale, _), (mu, var, a) = saved[:6], saved[6:]
        affine, shifted, by_batch, eps = ctx.rest
        passes, norm = _passes(ctx.impl, x)
        g, dshortcut, total, centred = _gradients(ctx, passes, dy, saved)
        dweight, dbias, constant, slope = norm.statistics_grad(
            m, mu, var, a, centred.sum(0), total, None, eps, by_batch, x.numel() // m.numel()
        )
        dx = passes.moments_grad(g, x, m, scale, constant, slope) if ctx.needs_input_grad[0] else None
        return dx, dshortcut, dweight if affine else None, dbias if shifted else None, None, None, None, None, None


class Norm(torch.autograd.Function):
    """x -> its statistics, the norm as a scale and a shift, and the two tokens; backward writes the whole dx.

    ``offset`` and z hold the same numbers. z is for the gate and moves with m; in the offset of a map centred at m, m
    cancels.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        eps: float,
        impl: str,
    ) -> tuple[Tensor, ...]:
        passes, norm = _passes(impl, x)
        m, v = passes.moments(x)
        mu, var, a, offset = norm.statistics(m, v, weight, bias, mean, variance, eps)
        ctx.save_for_backward(x, m, mu, var, a)
        ctx.impl, ctx.rest = impl, (weight is not None, bias is not None, mean is None, eps)
        ctx.mark_non_differentiable(m, mu, var)
        ctx.set_materialize_grads(False)
        return m, v, mu, var, a, offset, offset.clone(), x.new_zeros(()).expand_as(x), m.new_zeros(()).expand_as(m)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        _refuse_second_derivative()
        _, dv, _, _, da, doffset, dz_m, g, scale = grads
        x, m, mu, var, a = ctx.saved_tensors
        affine, shifted, by_batch, eps = ctx.rest
        assert doffset is not None and g is not None and scale is not None
        passes, norm = _passes(ctx.impl, x)
        dz = doffset if dz_m is None else doffset + dz_m
        positions = x.numel() // m.numel()
        dweight, dbias, constant, slope = norm.statistics_grad(m, mu, var, a, da, dz, dz_m, eps, by_batch, positions)
        dx = None
        if ctx.needs_input_grad[0]:
            slope = slope if dv is None else slope + dv * (2.0 / positions)
            dx = passes.moments_grad(g, x, m, scale, constant, slope)
        return dx, dweight if affine else None, dbias if shifted else None, None, None, None, None


class AffineAct(torch.autograd.Function):
    """y = act(scale * (x - centre) + offset + shortcut); g and scale leave backward through the tokens."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: Tensor,
        map_token: Tensor,
        scale_token: Tensor,
        shortcut: Tensor | None,
        centre: Tensor,
        scale: Tensor,
        offset: Tensor,
        act: str,
        impl: str,
    ) -> Tensor:
        passes, _ = _passes(impl, x)
        y: Tensor = passes.affine_act(x, shortcut, centre, scale, offset, act)
        _keep(ctx, x, y, shortcut, centre, scale, offset, act, impl)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        _refuse_second_derivative()
        saved = ctx.saved_tensors
        passes, _ = _passes(ctx.impl, saved[0])
        g, dshortcut, total, centred = _gradients(ctx, passes, dy, saved)
        scale = saved[4]
        return None, g, scale, dshortcut, None, centred, total, None, None


def _keep(
    ctx: Any,
    x: Tensor,
    y: Tensor,
    shortcut: Tensor | None,
    centre: Tensor,
    scale: Tensor,
    offset: Tensor,
    act: str,
    impl: str,
    *others: Tensor,
) -> None:
    """Save what ``_gradients`` reads, and others behind it.

    ReLU needs only y, which the next convolution keeps anyway; SiLU recomputes its sum from x and shortcut.
    """
    kept_y, kept_shortcut = (y if act == "relu" else None), (shortcut if act == "silu" else None)
    ctx.save_for_backward(x, kept_y, kept_shortcut, centre, scale, offset, *others)
    ctx.act, ctx.impl = act, impl
    ctx.dtypes = (x.dtype, None if shortcut is None else shortcut.dtype)


def _gradients(
    ctx: Any, passes: Any, dy: Tensor, saved: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """g in x's dtype and in the shortcut's, sum g and sum g * (x - centre); ``saved`` as ``_keep`` has it."""
    x, y, shortcut, centre, scale, offset = saved[:6]
    g, total, centred = passes.affine_act_grad(dy, y, x, shortcut, centre, scale, offset, ctx.act)
    if ctx.act == "none":
        g = dy
    x_dtype, shortcut_dtype = ctx.dtypes
    return g.to(x_dtype), None if shortcut_dtype is None else g.to(shortcut_dtype), total, centred
