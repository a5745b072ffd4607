"""The [N, C] arithmetic of batch norm inside a fused tail, and its derivative, as two ops in ``torch.library``.

From m and v, mean and biased variance of each of a batch's N * C maps of P positions:

    mu = mean_n m        var = mean_n (v + (m - mu)^2)        a = weight / sqrt(var + eps)        z = a (m - mu) + bias

Backward, from gradients to a and to z, with d = m - mu, r = 1 / sqrt(var + eps), T = da + sum_n dz d:

    dweight = r T      dbias = sum_n dz      dvar = -a r^2 T / 2
    dm = a (dz_m - dbias / N) + 2 d dvar / N                        dv = dvar / N

dz_m is the part of dz in which z moves with m: what a gate reads. In the tail's own output m cancels, because the map
is centred at it. With running statistics mu and var are constants: dm = a dz_m, dv = 0.

Written out, this is a tenth of the calls that autograd makes of it: on a CPU they cost as much as a pass over a map.
Source: Batch Normalization (arXiv 1502.03167, Alg. 1 and Sec. 3).
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from excite.ops import tail_native

__all__ = ["NOW", "statistics", "statistics_grad"]


def statistics_now(
    m: Tensor, v: Tensor, weight: Tensor | None, bias: Tensor | None, mu: Tensor | None, var: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The batch's statistics, and the norm as scale and shift.

    Args:
        m: means [N, C].
        v: biased variances [N, C].
        weight: [C] in m's dtype, or None for 1.
        bias: [C] in m's dtype, or None for 0.
        mu: running mean [C] in m's dtype; None for the batch's.
        var: running variance likewise.
        eps: added to the variance.

    Returns:
        mu [C], var [C], a [C] and z [N, C]. No maps are moved.
    """
    if (done := tail_native.statistics(m, v, weight, bias, mu, var, eps)) is not None:
        return done
    mu, var = (m.mean(0), None) if mu is None else (mu.clone(), var)
    d = m - mu
    var = (v + d.square()).mean(0) if var is None else var.clone()
    a = torch.rsqrt(var + eps)
    a = a if weight is None else a * weight
    z = a * d
    return mu, var, a, z if bias is None else z.add_(bias)


statistics = torch.library.custom_op("excite::tail_statistics", statistics_now, mutates_args=())


@statistics.register_fake
def _(
    m: Tensor, v: Tensor, weight: Tensor | None, bias: Tensor | None, mu: Tensor | None, var: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mu, var, a = (m.new_empty(m.shape[1:]) for _ in range(3))
    return mu, var, a, torch.empty_like(m)


def statistics_grad_now(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dweight [C], dbias [C], dm / P [N, C] and 2 dv / P [N, C], from the gradients to a [C] and z [N, C].

    Args:
        m: means [N, C].
        mu: as ``statistics`` gave it; var and a likewise.
        var: see mu.
        a: see mu.
        da: gradient to a, or None.
        dz: gradient to z, all of it.
        dz_m: the part of dz that also goes to m, or None.
        eps: as in ``statistics``.
        by_batch: whether mu and var are the batch's.
        positions: P.
    """
    done = tail_native.statistics_grad(m, mu, var, a, da, dz, dz_m, eps, by_batch, positions)
    if done is not None:
        return done
    d, r = m - mu, torch.rsqrt(var + eps)
    total = (dz * d).sum(0)
    total = total if da is None else total + da
    dbias = dz.sum(0)
    dm = torch.zeros_like(m) if dz_m is None else a * dz_m
    dv = torch.zeros_like(m)
    if by_batch:
        dvar = a * r.square() * total / (-2 * max(m.shape[0], 1))
        dm = dm - a * dbias / max(m.shape[0], 1) + 2 * d * dvar
        dv = dv + dvar
    return r * total, dbias, dm / positions, dv * (2.0 / positions)


statistics_grad = torch.library.custom_op("excite::tail_statistics_grad", statistics_grad_now, mutates_args=())


@statistics_grad.register_fake
def _(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return mu.new_empty(mu.shape), mu.new_empty(mu.shape), torch.empty_like(m), torch.empty_like(m)


# As in ``tail_passes``.
NOW = SimpleNamespace(statistics=statistics_now, statistics_grad=statistics_grad_now)
