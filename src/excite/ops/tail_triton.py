"""The four map-sized passes of the fused tail on a GPU: ``excite.ops.tail`` with ``impl="triton"``.

Same signatures and meaning as in ``tail_passes``, as ops of their own (``excite::triton_tail_*``). Each reads and
writes the maps it names once, the two that sum as well: a tile of the map is summed where it is read, and the tiles'
[N, C] results are put together by a second, small kernel. No atomics: sums have one order, given by the shape.

Maps may be contiguous or channels_last, of any size, in float16, bfloat16, float32 (sums in float32) or float64.
Anything else is copied into x's layout first; a map that is in neither layout, into a contiguous one.

Importing this module imports triton; nothing in ``excite`` does before ``impl="triton"`` is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor
from triton.runtime import JITFunction  # type: ignore[import-untyped]

from excite.errors import UserError
from excite.ops import tail_kernels as kernels
from excite.ops.tail_passes import sum_dtype

__all__ = [
    "INTERPRETED",
    "TILES",
    "Plan",
    "Tile",
    "affine_act",
    "affine_act_grad",
    "launch_affine_act",
    "launch_affine_act_grad",
    "launch_moments",
    "launch_moments_grad",
    "moments",
    "moments_grad",
    "plan_tiles",
]

INTERPRETED = not isinstance(kernels.moments_kernel, JITFunction)
"""Whether Triton runs its kernels in its interpreter, on CPU tensors."""


@dataclass(frozen=True)
class Tile:
    """How much of a map one program takes.

    Args:
        values: of the map, a power of two, at most; halved while that gives too few programs.
        warps: threads / 32 that share them.
    """

    values: int
    warps: int


# Fixed sizes and no autotuning: which tile sums are taken over decides how they round, and a choice by stopwatch may
# differ from run to run. Registers bound them: each value takes one for every map that the pass holds at a time.
# Moments holds one map and has no other way to keep the traffic of its partial results small, so it takes large tiles.
TILES: Mapping[str, Tile] = MappingProxyType(
    {
        "moments": Tile(16384, 8),
        "affine_act": Tile(4096, 4),
        "affine_act_grad": Tile(8192, 8),
        "moments_grad": Tile(4096, 4),
    }
)
# 4 programs for each of the 132 multiprocessors of an H100 or H200: fewer leave some idle.
_ENOUGH_PROGRAMS = 528
_SMALLEST_TILE = 1024
# A line of cache: the least of a channels_last row that is worth fetching from memory.
_LINE_BYTES = 128


@dataclass(frozen=True)
class Plan:
    """How a map is cut into tiles: ``samples`` x ``positions`` x ``channels``, as ``tail_kernels`` sees it.

    Args:
        samples: N for channels_last, 1 for a contiguous map.
        channels: C for channels_last, N * C for a contiguous map.
        positions: P, the product of the spatial axes.
        p_inner: positions lie side by side in memory (contiguous), not channels.
        block_p: positions in a tile, a power of two.
        block_c: channels in a tile, a power of two.
        warps: of each program.
    """

    samples: int
    channels: int
    positions: int
    p_inner: bool
    block_p: int
    block_c: int
    warps: int

    @property
    def tiles_p(self) -> int:
        """Tiles along the positions of one sample."""
        return triton.cdiv(self.positions, self.block_p)

    @property
    def tiles_c(self) -> int:
        """Tiles along the channels of one sample."""
        return triton.cdiv(self.channels, self.block_c)

    @property
    def programs(self) -> int:
        """Tiles in all."""
        return self.samples * self.tiles_p * self.tiles_c


def _positions_inner(x: Tensor) -> bool | None:
    """True for a contiguous map, False for channels_last, None for neither."""
    if x.is_contiguous():
        return True
    return False if x.movedim(1, -1).is_contiguous() else None


def _power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def plan_tiles(x: Tensor, tile: Tile) -> Plan:
    """The tiles for a contiguous or channels_last map [N, C, *S]; they depend on shape, layout and dtype alone."""
    n, c, *space = x.shape
    p, p_inner = prod(space), bool(_positions_inner(x))
    samples, channels = (1, n * c) if p_inner else (n, c)
    values = tile.values // 2 if x.dtype == torch.float64 else tile.values

    def cut(values: int) -> Plan:
        if p_inner:
            block_p = min(_power_of_2(p), values)
        else:
            line = min(_power_of_2(c), _LINE_BYTES // x.element_size())
            block_p = min(_power_of_2(p), max(values // line, 1))
            # Offsets within a tile have 32 bits.
            while block_p > 1 and block_p * c >= 2**31:
                block_p //= 2
        block_c = min(_power_of_2(channels), values // block_p)
        warps = max(1, min(tile.warps, block_p * block_c // 256))
        return Plan(samples, channels, p, p_inner, block_p, block_c, warps)

    plan = cut(values)
    while values > _SMALLEST_TILE and plan.programs < _ENOUGH_PROGRAMS:
        values //= 2
        plan = cut(values)
    return plan


def _launch(kernel: Any, plan: Plan, *args: Tensor | None, **flags: Any) -> None:
    inner, outer = (plan.positions, plan.channels) if plan.p_inner else (plan.channels, plan.positions)
    align = next(a for a in (8, 4, 2, 1) if inner % a == 0)
    first = next(a for a in args if a is not None)
    with _on_device_of(first):
        kernel[(plan.programs,)](
            *args,
            inner // align,
            outer,
            plan.tiles_p,
            plan.tiles_c,
            ALIGN=align,
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
    return x.contiguous() if _positions_inner(x) is None else x


def _laid_out_as(t: Tensor, like: Tensor) -> Tensor:
    """``t`` itself if its values lie in the order of ``like``'s, else a copy that does."""
    if like.is_contiguous() if t.is_contiguous() else _positions_inner(t) is _positions_inner(like):
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
    plan = plan_tiles(x, tile)
    if plan.tiles_p == 1:
        _launch(kernels.moments_kernel, plan, x, mean, variance, WHOLE=True)
        return mean, variance
    parts = mean.new_empty((2, plan.samples, plan.tiles_p, plan.channels)).unbind()
    _launch(kernels.moments_kernel, plan, x, *parts, WHOLE=False)
    most = _power_of_2(plan.tiles_p)
    block_k = min(most, 64)
    block_c = min(_power_of_2(plan.channels), 1024 // block_k)
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
        _launch(kernels.affine_act_kernel, plan_tiles(x, tile), x, shortcut, y, *rows, ACT=act)
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
        plan = plan_tiles(x, tile)
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
        _launch(kernels.moments_grad_kernel, plan_tiles(x, tile), _laid_out_as(g, x), x, dx, *rows)
    return _promised(dx, given)


@torch.library.custom_op("excite::triton_tail_moments", mutates_args=())
def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the positions of each map: two [N, C] tensors in ``sum_dtype``.

    Maps: reads x.
    """
    return launch_moments(x)


@moments.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.new_empty(x.shape[:2], dtype=sum_dtype(x.dtype))
    return mean, torch.empty_like(mean)


@torch.library.custom_op("excite::triton_tail_affine_act", mutates_args=())
def affine_act(x: Tensor, shortcut: Tensor | None, centre: Tensor, scale: Tensor, offset: Tensor, act: str) -> Tensor:
    """act(scale * (x - centre) + offset + shortcut) with [N, C] centre, scale and offset; act "relu", "silu", "none".

    Maps: reads x and shortcut, writes the result, laid out as x.
    """
    return launch_affine_act(x, shortcut, centre, scale, offset, act)


@affine_act.register_fake
def _(x: Tensor, shortcut: Tensor | None, centre: Tensor, scale: Tensor, offset: Tensor, act: str) -> Tensor:
    return torch.empty_like(x, dtype=x.dtype if shortcut is None else torch.promote_types(x.dtype, shortcut.dtype))


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


@affine_act_grad.register_fake
def _(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    shortcut: Tensor | None,
    centre: Tensor,
    scale: Tensor,
    offset: Tensor,
    act: str,
) -> tuple[Tensor, Tensor, Tensor]:
    g = dy.new_empty(0) if act == "none" else torch.empty_like(x, dtype=dy.dtype)
    return g, torch.empty_like(scale), torch.empty_like(scale)


@torch.library.custom_op("excite::triton_tail_moments_grad", mutates_args=())
def moments_grad(g: Tensor, x: Tensor, centre: Tensor, scale: Tensor, constant: Tensor, slope: Tensor) -> Tensor:
    """dx = scale * g + constant + slope * (x - centre), with [N, C] factors, in x's dtype and layout.

    Maps: reads x and g, writes dx.
    """
    return launch_moments_grad(g, x, centre, scale, constant, slope)


@moments_grad.register_fake
def _(g: Tensor, x: Tensor, centre: Tensor, scale: Tensor, constant: Tensor, slope: Tensor) -> Tensor:
    return torch.empty_like(x)
