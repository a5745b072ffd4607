"""The tail's four passes as compiled code (``cpp/``): the same functions as in ``tail_passes``, or None.

None means that these tensors are not for compiled code (another device or dtype, strides of neither memory format,
operands of several dtypes) or that this machine has none; ``tail_passes`` then does it in PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from excite.ops import native
from excite.ops.native import NATIVE_ACTS, library, rows_if_usable, sizes

__all__ = ["affine_act", "affine_act_grad", "moments", "moments_grad", "statistics", "statistics_grad"]


def _same(like: Tensor, rows: bool, *others: Tensor | None) -> list[Tensor | None] | None:
    """The other maps laid out as ``like``, copied where they are not (an expanded gradient); None for mixed dtypes."""
    ready: list[Tensor | None] = []
    for t in others:
        if t is not None and (t.dtype != like.dtype or t.device != like.device):
            return None
        if t is not None and t.stride() != like.stride() and native.is_rows(t) is not rows:
            t = torch.empty_like(like).copy_(t)
        ready.append(t)
    return ready


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _sums(x: Tensor, count: int) -> tuple[Tensor, ...]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return tuple(torch.empty(x.shape[:2], dtype=dtype) for _ in range(count))


def _fit(x: Tensor, *coefficients: Tensor) -> list[Tensor]:
    """[N, C] factors as the compiled passes read them: dense."""
    return [t.contiguous() for t in coefficients]


def moments(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and biased variance [N, C]; see ``tail_passes.moments``."""
    rows = rows_if_usable(x)
    if rows is None or (loaded := library()) is None:
        return None
    mean, variance = _sums(x, 2)
    loaded.excite_moments(*sizes(x, rows), x.data_ptr(), mean.data_ptr(), variance.data_ptr())
    return mean, variance


def affine_act(
    x: Tensor, shortcut: Tensor | None, centre: Tensor, scale: Tensor, offset: Tensor, act: str
) -> Tensor | None:
    """act(scale * (x - centre) + offset + shortcut); see ``tail_passes.affine_act``."""
    rows = rows_if_usable(x)
    if rows is None or (maps := _same(x, rows, shortcut)) is None or (loaded := library()) is None:
        return None
    centre, scale, offset = _fit(x, centre, scale, offset)
    y = torch.empty_like(x)
    loaded.excite_affine_act(
        *sizes(x, rows), x.data_ptr(), _pointer(maps[0]), centre.data_ptr(), scale.data_ptr(), offset.data_ptr(),
        y.data_ptr(), NATIVE_ACTS[act],
    )  # fmt: skip
    return y


def affine_act_grad(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    shortcut: Tensor | None,
    centre: Tensor,
    scale: Tensor,
    offset: Tensor,
    act: str,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """g, sum g and sum g * (x - centre); see ``tail_passes.affine_act_grad``."""
    rows = rows_if_usable(x)
    read = (dy, y if act == "relu" else None, shortcut if act == "silu" else None)
    if rows is None or (maps := _same(x, rows, *read)) is None or (loaded := library()) is None:
        return None
    dense, y, shortcut = maps
    assert dense is not None
    centre, scale, offset = _fit(x, centre, scale, offset)
    total, centred = _sums(x, 2)
    g = dy.new_empty(0) if act == "none" else torch.empty_like(x)
    loaded.excite_affine_act_grad(
        *sizes(x, rows), dense.data_ptr(), _pointer(y), x.data_ptr(), _pointer(shortcut), centre.data_ptr(),
        scale.data_ptr(), offset.data_ptr(), g.data_ptr(), total.data_ptr(), centred.data_ptr(), NATIVE_ACTS[act],
    )  # fmt: skip
    return g, total, centred


def moments_grad(g: Tensor, x: Tensor, centre: Tensor, scale: Tensor, constant: Tensor, slope: Tensor) -> Tensor | None:
    """dx = scale * g + constant + slope * (x - centre); see ``tail_passes.moments_grad``."""
    rows = rows_if_usable(x)
    if rows is None or (maps := _same(x, rows, g)) is None or (loaded := library()) is None:
        return None
    centre, scale, constant, slope = _fit(x, centre, scale, constant, slope)
    dx = torch.empty_like(x)
    loaded.excite_moments_grad(
        *sizes(x, rows), _pointer(maps[0]), x.data_ptr(), centre.data_ptr(), scale.data_ptr(), constant.data_ptr(),
        slope.data_ptr(), dx.data_ptr(),
    )  # fmt: skip
    return dx


def _small(m: Tensor, *others: Tensor | None) -> list[Tensor | None] | None:
    """[N, C] and [C] tensors, dense; None where they are not all on the CPU in the one dtype."""
    given = [t for t in others if t is not None]
    if m.dtype not in (torch.float32, torch.float64) or any(t.dtype != m.dtype for t in given):
        return None
    if m.numel() == 0 or any(t.device.type != "cpu" for t in (m, *given)):
        return None
    return [None if t is None else t.contiguous() for t in (m, *others)]


def _numbers(m: Tensor, by_batch: bool = False, positions: int = 1) -> tuple[int, bool, int, int, int, int]:
    return native.DTYPES[m.dtype], by_batch, torch.get_num_threads(), m.shape[0], m.shape[1], positions


def statistics(
    m: Tensor, v: Tensor, weight: Tensor | None, bias: Tensor | None, mu: Tensor | None, var: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """mu, var, a and z; see ``tail_norm.statistics``."""
    if (read := _small(m, v, weight, bias, mu, var)) is None or (loaded := library()) is None:
        return None
    mu, var, a = (m.new_empty(m.shape[1]) for _ in range(3))
    z = m.new_empty(m.shape)
    loaded.excite_statistics(*_numbers(m), *map(_pointer, (*read, mu, var, a, z)), eps)
    return mu, var, a, z


def statistics_grad(
    m: Tensor,
    mu: Tensor,
    var: Tensor,
    a: Tensor,
    da: Tensor | None,
    dz: Tensor,
    dz_m: Tensor | None,
    eps: float,
    by_batch: bool,
    positions: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """dweight, dbias, dm / P and 2 dv / P; see ``tail_norm.statistics_grad``."""
    if (read := _small(m, mu, var, a, da, dz, dz_m)) is None or (loaded := library()) is None:
        return None
    dweight, dbias = m.new_empty(m.shape[1]), m.new_empty(m.shape[1])
    dm, dv = m.new_empty(m.shape), m.new_empty(m.shape)
    loaded.excite_statistics_grad(
        *_numbers(m, by_batch, positions), *map(_pointer, (*read, dweight, dbias, dm, dv)), eps
    )
    return dweight, dbias, dm, dv
