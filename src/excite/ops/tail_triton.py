"""The four map-sized passes of the fused tail on a GPU: ``excite.ops.tail`` with ``impl="triton"``.

Same signatures and meaning as in ``tail_passes``, as ops of their own (``excite::triton_tail_*``). Each reads and
writes the maps it names once, the two that sum as well: a tile of the map is summed where it is read, and the tiles'
[N, C] results are put together by a second, small kernel. No atomics: sums have one order, given by the shape.

Maps may be contiguous or channels_last, of any size, in float16, bfloat16, float32 (sums in float32) or float64.
Anything else is copied into x's layout first; a map that is in neither layout, into a contiguous one.

Importing this module imports triton; nothing in ``excite`` does before ``impl="triton"`` is used.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor
from triton.runtime import JITFunction  # type: ignore[import-untyped]

from excite.errors import UserError
from excite.ops import tail_kernels as kernels
from excite.ops import tail_passes
from excite.ops.tail_passes import sum_dtype
from excite.ops.tail_tiles import TILES, Plan, Tile, cut_up, positions_inner, power_of_2

__all__ = [
    "INTERPRETED",
    "affine_act",
    "affine_act_grad",
    "launch_affine_act",
    "launch_affine_act_grad",
    "launch_moments",
    "launch_moments_grad",
    "moments",
    "moments_grad",
]

INTERPRETED = not isinstance(kernels.moments_kernel, JITFunction)
"""Whether Triton runs its kernels in its interpreter, on CPU tensors."""


def _launch(kernel: Any, plan: Plan, *args: Tensor | None, **flags: Any) -> None:
    inner, outer = (plan.positions, plan.channels) if plan.p_inner else (plan.channels, plan.positions)
    first = next(a for a in args if a is not None)
    with _on_device_of(first):
        kernel[(plan.programs,)](
            *args,
            inner // plan.align,
            outer,
            plan.tiles_p,
            plan.tiles_c,
            ALIGN=plan.align,
            BLOCK_P=plan.block_p,
            BLOCK_C=plan.block_c,
            P_INNER=plan.p_inner,
            num_warps=plan.warps,
            # Said, so that no default of Triton's decides about rounding: its own changes between versions.
            enable_fp_fusion=True,
            **flags,
        )


def _on_device_of(x: Tensor) -> Any:
    if x.is_cuda:
        return torch.cuda.device(x.device)
    if INTERPRETED and x.device.type == "cpu":
        return nullcontext()
    raise UserError(f"impl='triton' takes tensors on a GPU; got one on {x.device}: move it, or give impl='auto'")


def _in_a_layout(x: Tensor) -> Tensor:
    return x.contiguous() if positions_inner(x) is None else x


def _laid_out_as(t: Tensor, like: Tensor) -> Tensor:
    """``t`` itself if its values lie in the order of ``like``'s, else a copy that does."""
    if like.is_contiguous() if t.is_contiguous() else positions_inner(t) is positions_inner(like):
        return t
    return torch.empty_like(like, dtype=t.dtype).copy_(t)


def _promised(result: Tensor, like: Tensor) -> Tensor:
    """``result`` with the strides that the fake version promises: those of ``like``, the map that was given."""
    out = torch.empty_like(like, dtype=result.dtype)
    return result if result.stride() == out.stride() else out.copy_(result)


def launch_moments(x: Tensor, tile: Tile = TILES["moments"]) -> tuple[Tensor, Tensor]:
    """``moments`` with tiles of a given size."""
    x = _in_a_layout(x)
    mean = x.new_empty(x.shape[:2], dtype=sum_dtype(x.dtype))
    variance = torch.empty_like(mean)
    if x.numel() == 0:
        return mean.fill_(torch.nan), variance.fill_(torch.nan)
    plan = cut_up(x, tile)
    if plan.tiles_p == 1:
        _launch(kernels.moments_kernel, plan, x, mean, variance, WHOLE=True)
        return mean, variance
    parts = mean.new_empty((2, plan.samples, plan.tiles_p, plan.channels)).unbind()
    _launch(kernels.moments_kernel, plan, x, *parts, WHOLE=False)
    most = power_of_2(plan.tiles_p)
    block_k = min(most, 64)
    block_c = min(power_of_2(plan.channels), 1024 // block_k)
    tiles_c = triton.cdiv(plan.channels, block_c)
    with _on_device_of(x):
        kernels.combine_kernel[(plan.samples * tiles_c,)](
            *parts,
            mean,
            variance,
            plan.channels,
            plan.positions,
            plan.tiles_p,
            tiles_c,
            PER_PART=plan.block_p,
            MOST_PARTS=most,
            BLOCK_K=block_k,
            BLOCK_C=block_c,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return mean, variance


def launch_affine_act(
    x: Tensor,
    shortcut: Tensor | None,
    centre: Tensor,
    scale: Tensor,
    offset: Tensor,
    act: str,
    tile: Tile = TILES["affine_act"],
) -> Tensor:
    """``affine_act`` with tiles of a given size."""
    given, x = x, _in_a_layout(x)
    dtype = x.dtype if shortcut is None else torch.promote_types(x.dtype, shortcut.dtype)
    y = torch.empty_like(x, dtype=dtype)
    if x.numel():
        rows = (t.contiguous() for t in (centre, scale, offset))
        shortcut = None if shortcut is None else _laid_out_as(shortcut, x)
        _launch(kernels.affine_act_kernel, cut_up(x, tile), x, shortcut, y, *rows, ACT=act)
    return _promised(y, given)


def launch_affine_act_grad(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    shortcut: Tensor | None,
    centre: Tensor,
    scale: Tensor,
    offset: Tensor,
    act: str,
    tile: Tile = TILES["affine_act_grad"],
) -> tuple[Tensor, Tensor, Tensor]:
    """``affine_act_grad`` with tiles of a given size."""
    given, x = x, _in_a_layout(x)
    g = None if act == "none" else torch.empty_like(x, dtype=dy.dtype)
    if x.numel():
        plan = cut_up(x, tile)
        kept_y = None if y is None or act != "relu" else _laid_out_as(y, x)
        kept_shortcut = None if shortcut is None or act != "silu" else _laid_out_as(shortcut, x)
        rows = (t.contiguous() for t in (centre, scale, offset))
        sums = [centre.new_empty((plan.samples, plan.tiles_p, plan.channels)) for _ in range(2)]
        maps = (_laid_out_as(dy, x), kept_y, x, kept_shortcut, g)
        _launch(kernels.affine_act_grad_kernel, plan, *maps, *sums, *rows, ACT=act)
        total, centred = (t.sum(1).view(x.shape[:2]) if plan.tiles_p > 1 else t.view(x.shape[:2]) for t in sums)
    else:
        total, centred = (centre.new_zeros(x.shape[:2]) for _ in range(2))
    return dy.new_empty(0) if g is None else _promised(g, given), total, centred


def launch_moments_grad(
    g: Tensor,
    x: Tensor,
    centre: Tensor,
    scale: Tensor,
    constant: Tensor,
    slope: Tensor,
    tile: Tile = TILES["moments_grad"],
) -> Tensor:
    """``moments_grad`` with tiles of a given size."""
    given, x = x, _in_a_layout(x)
    dx = torch.empty_like(x)
    if x.numel():
        rows = (t.contiguous() for t in (centre, scale, constant, slope))
        _launch(kernels.moments_grad_kernel, cut_up(x, tile), _laid_out_as(g, x), x, dx, *rows)
    return _promised(dx, given)


@torch.library.custom_op("excite::triton_tail_moments", mutates_args=())
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the positions of each map: two [N, C] tensors in ``sum_dtype``.

    Maps: reads x.
    """
    return launch_moments(x)


moments.register_fake(tail_passes.fake_moments)


@torch.library.custom_op("excite::triton_tail_affine_act", mutates_args=())
def affine_act(x: Tensor, shortcut: Tensor | None, centre: Tensor, scale: Tensor, offset: Tensor, act: str) -> Tensor:
    """act(scale * (x - centre) + offset + shortcut) with [N, C] centre, scale and offset; act "relu", "silu", "none".

    Maps: reads x and shortcut, writes the result, laid out as x.
    """
    return launch_affine_act(x, shortcut, centre, scale, offset, act)


affine_act.register_fake(tail_passes.fake_affine_act)


@torch.library.custom_op("excite::triton_tail_affine_act_grad", mutates_args=())
def affine_act_grad(
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
    return launch_affine_act_grad(dy, y, x, shortcut, centre, scale, offset, act)


affine_act_grad.register_fake(tail_passes.fake_affine_act_grad)


@torch.library.custom_op("excite::triton_tail_moments_grad", mutates_args=())
def moments_grad(g: Tensor, x: Tensor, centre: Tensor, scale: Tensor, constant: Tensor, slope: Tensor) -> Tensor:
    """dx = scale * g + constant + slope * (x - centre), with [N, C] factors, in x's dtype and layout.

    Maps: reads x and g, writes dx.
    """
    return launch_moments_grad(g, x, centre, scale, constant, slope)


moments_grad.register_fake(tail_passes.fake_moments_grad)
