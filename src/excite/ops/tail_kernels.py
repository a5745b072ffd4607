"""Triton kernels of the fused tail's four passes; ``tail_triton`` launches them.

All work on one picture of a map: samples x positions x channels, cut into tiles [BLOCK_P, BLOCK_C] of one sample, one
tile a program. In channels_last the channels lie side by side in memory; a contiguous map is the same picture with one
sample of N*C channels whose positions lie side by side (``P_INNER``). ``inner`` is the length of that side in units of
``ALIGN``, ``outer`` the length of the other.

A tile is read once and stays in registers: its mean and the squares around that mean come from the same values, so
nothing large is ever subtracted, and no loop runs whose order could change a sum.
"""

# A kernel's arguments are pointers and numbers of Triton's: there are no types to write down.
# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

__all__ = ["affine_act_grad_kernel", "affine_act_kernel", "combine_kernel", "moments_grad_kernel", "moments_kernel"]

# Lengths are left unspecialised: ALIGN already says what divides them, and each specialisation is a compilation.
_LENGTHS = ["inner", "outer", "tiles_p", "tiles_c"]


@triton.jit
def _tile(
    inner,
    outer,
    tiles_p,
    tiles_c,
    ALIGN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    P_INNER: tl.constexpr,
    BACKWARDS: tl.constexpr,
):
    """Where this program works.

    Gives the offset of the tile's first value and those of all its values from there, how many positions and channels
    it has, and the offsets of its first channel in an [N, C] tensor and in an [N, tiles_p, C] one.

    ``BACKWARDS`` takes the tiles from the last one on: what the pass before read last is what the cache still holds.
    """
    program = tl.program_id(0)
    if BACKWARDS:
        program = tl.num_programs(0) - 1 - program
    # Neighbouring programs work on neighbouring memory. The product shows the compiler what divides a row's length,
    # which is what lets it load 16 bytes at a time.
    if P_INNER:
        positions, channels = inner * ALIGN, outer
        tile_p, rest = program % tiles_p, program // tiles_p
        tile_c, sample = rest % tiles_c, rest // tiles_c
    else:
        positions, channels = outer, inner * ALIGN
        tile_c, rest = program % tiles_c, program // tiles_c
        tile_p, sample = rest % tiles_p, rest // tiles_p
    # Offsets into the whole map are 64 bits wide, those within a tile 32.
    tile_p, tile_c, sample = tile_p.to(tl.int64), tile_c.to(tl.int64), sample.to(tl.int64)
    first_p, first_c = tile_p * BLOCK_P, tile_c * BLOCK_C
    p, c = tl.arange(0, BLOCK_P)[:, None], tl.arange(0, BLOCK_C)[None, :]
    if P_INNER:
        first = first_c * positions + first_p
        within = c * positions + p
    else:
        first = (sample * positions + first_p) * channels + first_c
        within = p * channels + c
    has_p = tl.minimum(positions - first_p, BLOCK_P).to(tl.int32)
    has_c = tl.minimum(channels - first_c, BLOCK_C).to(tl.int32)
    row = sample * channels + first_c
    part = (sample * tiles_p + tile_p) * channels + first_c
    return first, within, has_p, has_c, row, part


@triton.jit
def _mask(has_p, has_c, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    return (tl.arange(0, BLOCK_P) < has_p)[:, None] & (tl.arange(0, BLOCK_C) < has_c)[None, :]


@triton.jit
def _row(pointer, row, has_c, BLOCK_C: tl.constexpr):
    """[1, BLOCK_C] values of an [N, C] tensor."""
    c = tl.arange(0, BLOCK_C)
    return tl.load(pointer + row + c, mask=c < has_c, other=0.0)[None, :]


@triton.jit(do_not_specialize=_LENGTHS)
def moments_kernel(
    x,
    mean,
    squares,
    inner,
    outer,
    tiles_p,
    tiles_c,
    ALIGN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    P_INNER: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Mean of each channel of the tile, and its squares around that mean: their sum, or their mean if ``WHOLE``."""
    first, within, has_p, has_c, row, part = _tile(
        inner, outer, tiles_p, tiles_c, ALIGN, BLOCK_P, BLOCK_C, P_INNER, False
    )
    mask = _mask(has_p, has_c, BLOCK_P, BLOCK_C)
    wide = mean.dtype.element_ty
    values = tl.load(x + first + within, mask=mask, other=0.0).to(wide)
    count = has_p.to(wide)
    m = tl.sum(values, axis=0) / count
    d = tl.where(mask, values - m[None, :], 0.0)
    q = tl.sum(d * d, axis=0)
    if WHOLE:
        q = q / count
    c = tl.arange(0, BLOCK_C)
    tl.store(mean + part + c, m, mask=c < has_c)
    tl.store(squares + part + c, q, mask=c < has_c)


@triton.jit(do_not_specialize=["channels", "positions", "parts", "tiles_c"])
def combine_kernel(
    part_mean,
    part_squares,
    mean,
    variance,
    channels,
    positions,
    parts,
    tiles_c,
    PER_PART: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and variance of [N, C] from those of parts of ``PER_PART`` positions each, the last one perhaps fewer.

    Chan, Golub & LeVeque (1979): squares around the common mean are the parts' own plus those of the parts' means.
    ``MOST_PARTS`` is ``parts`` or more: a bound known when compiling is what loops need in every version's interpreter.
    """
    program = tl.program_id(0)
    tile_c, sample = (program % tiles_c).to(tl.int64), (program // tiles_c).to(tl.int64)
    first_c = tile_c * BLOCK_C
    c = tl.arange(0, BLOCK_C)
    has_c = tl.minimum(channels - first_c, BLOCK_C).to(tl.int32)
    wide = mean.dtype.element_ty
    m = tl.zeros([BLOCK_C], wide)
    q = tl.zeros([BLOCK_C], wide)
    count = tl.sum(tl.zeros([BLOCK_K], wide), axis=0)
    for first_k in range(0, MOST_PARTS, BLOCK_K):
        k = first_k + tl.arange(0, BLOCK_K).to(tl.int64)
        weight = tl.minimum(tl.maximum(positions - k * PER_PART, 0), PER_PART).to(wide)
        mask = (k < parts)[:, None] & (c < has_c)[None, :]
        where = ((sample * parts + k) * channels + first_c)[:, None] + c[None, :]
        means = tl.load(part_mean + where, mask=mask, other=0.0)
        within = tl.load(part_squares + where, mask=mask, other=0.0)
        total = count + tl.sum(weight, axis=0)
        shift = tl.sum(weight[:, None] * (means - m[None, :]), axis=0) / total
        m += shift
        d = means - m[None, :]
        q += tl.sum(within + weight[:, None] * d * d, axis=0) + count * shift * shift
        count = total
    row = sample * channels + first_c
    tl.store(mean + row + c, m, mask=c < has_c)
    tl.store(variance + row + c, q / count, mask=c < has_c)


@triton.jit
def _preactivation(
    values, shortcut, at, mask, centre, scale, offset, row, has_c, BLOCK_C: tl.constexpr
):  # scale * (x - centre) + offset + shortcut
    h = (values - _row(centre, row, has_c, BLOCK_C)) * _row(scale, row, has_c, BLOCK_C)
    h += _row(offset, row, has_c, BLOCK_C)
    if shortcut is not None:
        h += tl.load(shortcut + at, mask=mask, other=0.0).to(h.dtype)
    return h


@triton.jit(do_not_specialize=_LENGTHS)
def affine_act_kernel(
    x,
    shortcut,
    y,
    centre,
    scale,
    offset,
    inner,
    outer,
    tiles_p,
    tiles_c,
    ALIGN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    P_INNER: tl.constexpr,
    ACT: tl.constexpr,
):
    """y = act(scale * (x - centre) + offset + shortcut)."""
    first, within, has_p, has_c, row, _ = _tile(inner, outer, tiles_p, tiles_c, ALIGN, BLOCK_P, BLOCK_C, P_INNER, True)
    mask = _mask(has_p, has_c, BLOCK_P, BLOCK_C)
    at = first + within
    values = tl.load(x + at, mask=mask, other=0.0).to(centre.dtype.element_ty)
    h = _preactivation(values, shortcut, at, mask, centre, scale, offset, row, has_c, BLOCK_C)
    if ACT == "relu":
        # Not a maximum: NaN must stay NaN.
        h = tl.where(h <= 0, 0.0, h)
    elif ACT == "silu":
        h = h * tl.sigmoid(h)
    tl.store(y + at, h.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_LENGTHS)
def affine_act_grad_kernel(
    dy,
    y,
    x,
    shortcut,
    g,
    total,
    centred,
    centre,
    scale,
    offset,
    inner,
    outer,
    tiles_p,
    tiles_c,
    ALIGN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    P_INNER: tl.constexpr,
    ACT: tl.constexpr,
):
    """g = dy * act'(.), and over the tile's positions the sums of g and of g * (x - centre)."""
    first, within, has_p, has_c, row, part = _tile(
        inner, outer, tiles_p, tiles_c, ALIGN, BLOCK_P, BLOCK_C, P_INNER, False
    )
    mask = _mask(has_p, has_c, BLOCK_P, BLOCK_C)
    at = first + within
    wide = centre.dtype.element_ty
    values = tl.load(x + at, mask=mask, other=0.0).to(wide)
    grad = tl.load(dy + at, mask=mask, other=0.0).to(wide)
    if ACT == "relu":
        # y rather than a bit mask written in the forward: y is kept by the next layer anyway, a mask would cost memory
        # that a plain network does not use, and packing bits a shuffle among threads.
        kept = tl.load(y + at, mask=mask, other=0.0).to(wide)
        grad = tl.where(kept <= 0, 0.0, grad)
    elif ACT == "silu":
        h = _preactivation(values, shortcut, at, mask, centre, scale, offset, row, has_c, BLOCK_C)
        sig = tl.sigmoid(h)
        # Outside the mask h is the activation of 0, which may be infinite where the map's own values are not.
        grad = tl.where(mask, grad * (sig * (1 + h * (1 - sig))), 0.0)
    if ACT != "none":
        tl.store(g + at, grad.to(g.dtype.element_ty), mask=mask)
    c = tl.arange(0, BLOCK_C)
    tl.store(total + part + c, tl.sum(grad, axis=0), mask=c < has_c)
    product = grad * (values - _row(centre, row, has_c, BLOCK_C))
    tl.store(centred + part + c, tl.sum(product, axis=0), mask=c < has_c)


@triton.jit(do_not_specialize=_LENGTHS)
def moments_grad_kernel(
    g,
    x,
    dx,
    centre,
    scale,
    constant,
    slope,
    inner,
    outer,
    tiles_p,
    tiles_c,
    ALIGN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    P_INNER: tl.constexpr,
):
    """dx = scale * g + constant + slope * (x - centre)."""
    first, within, has_p, has_c, row, _ = _tile(inner, outer, tiles_p, tiles_c, ALIGN, BLOCK_P, BLOCK_C, P_INNER, True)
    mask = _mask(has_p, has_c, BLOCK_P, BLOCK_C)
    at = first + within
    wide = centre.dtype.element_ty
    values = tl.load(x + at, mask=mask, other=0.0).to(wide)
    grad = tl.load(g + at, mask=mask, other=0.0).to(wide)
    d = (values - _row(centre, row, has_c, BLOCK_C)) * _row(slope, row, has_c, BLOCK_C)
    d += _row(constant, row, has_c, BLOCK_C)
    d += grad * _row(scale, row, has_c, BLOCK_C)
    tl.store(dx + at, d.to(dx.dtype.element_ty), mask=mask)
