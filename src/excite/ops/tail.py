"""The tail of a residual branch, ``act(gate(norm(x)) + shortcut)``, at the memory traffic of one without a gate.

Batch norm needs sums of x over (N, *S). Kept per sample they give the squeeze as well: with per-(n, c) mean m and
variance v over the P positions,

    mu  = mean_n m              var = mean_n (v + (m - mu)^2)         a = weight / sqrt(var + eps)
    z   = a (m - mu) + bias     s   = excite(z)                       all [N, C]
    y   = act((s a) (x - m) + s z + shortcut)

so the forward reads x twice and writes y once, with a gate or without. Backward, with g = dy act'(.):

    d(s a) = sum g (x - m)      d(s z) = sum g                        one pass over x, dy, y that also writes g
    dx  = (s a) g + dm / P + (2 dv / P) (x - m)                       one pass over x, g

where dm and dv come out of the ordinary autograd of the [N, C] lines above. A gate adds no pass, forward or backward.

The middle stays plain PyTorch: any gate, any parameters, hooks, autocast and ``torch.compile(fullgraph=True)`` work as
everywhere else. How autograd is told stands in ``tail_functions``.

Source: the sums are those of Batch Normalization (arXiv 1502.03167, Alg. 1); the gate SE (arXiv 1709.01507, Eq. 2-4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from excite.errors import UserError, unknown
from excite.ops import tail_passes
from excite.ops.native import library, rows_if_usable
from excite.ops.rescale import rescale
from excite.ops.squeeze import squeeze
from excite.ops.tail_functions import AffineAct, Norm, PlainTail, is_transformed

__all__ = ["ACTS", "FUSED_DESCRIPTORS", "TAIL_IMPLS", "choose_tail_impl", "tail", "worth_fusing"]

ACTS = ("relu", "silu", "none")
TAIL_IMPLS = ("auto", "reference", "fused", "triton")
# Descriptors that follow from the mean and variance of x, so that the fused tail gets them for nothing.
FUSED_DESCRIPTORS = frozenset({"mean", "std", "l2"})

Excite = Callable[[Tensor], Tensor]


# From how many values on a fused tail beats the reference on a CPU, with a gate and without: below, calls cost more
# than memory (measured, benchmarks/tail_training.py).
_WORTH = {True: 1 << 17, False: 1 << 19}


def worth_fusing(x: Tensor, shortcut: Tensor | None, *, training: bool, gated: bool) -> bool:
    """Whether "auto" fuses this tail: on a CPU in training, on maps large enough, by compiled passes.

    Anything that transforms calls (torch.func, forward-mode derivatives) gets the reference, which it can look into; on
    a CPU torch.compile and dispatch modes as well.
    """
    if x.device.type == "cuda":
        same = shortcut is None or shortcut.dtype == x.dtype
        # A dispatch mode sees the GPU's passes as operations.
        return same and (torch.compiler.is_compiling() or not is_transformed(modes=False))
    if torch.compiler.is_compiling() or not (training and torch.is_grad_enabled()):
        return False
    maps = [x] if shortcut is None else [x, shortcut]
    if x.device.type != "cpu" or x.numel() < _WORTH[gated] or any(type(t) is not Tensor for t in maps):
        return False
    if any(t.dtype != x.dtype for t in maps) or is_transformed():
        return False
    return rows_if_usable(x) is not None and library() is not None


def choose_tail_impl(
    impl: str,
    descriptors: Sequence[str] = ("mean",),
    device: torch.device | None = None,
    *,
    worth: bool | None = None,
) -> str:
    """The implementation ``impl`` stands for on a device: "reference", "fused" or "triton".

    For the descriptors that they have, "auto" is "triton" on a GPU that has it, and "fused" on others, where that is
    ``worth`` it, see ``worth_fusing``; else the reference. ``worth=None`` is for tensors that are not known: a GPU's
    are. Without a device only what holds on every one is checked, and "auto" is the reference.

    Raises:
        ValueError: an unknown ``impl``, one with a descriptor that needs a pass of its own ("max"), or "triton" where
            Triton is not installed or does not run.
    """
    if impl not in TAIL_IMPLS:
        raise unknown("impl", impl, TAIL_IMPLS)
    other = set(descriptors) - FUSED_DESCRIPTORS
    if impl == "auto":
        on_gpu = device is not None and device.type == "cuda"
        if on_gpu and worth is not False and not other and not _why_no_triton("cuda"):
            return "triton"
        return "fused" if worth and not other else "reference"
    if impl != "reference" and other:
        raise UserError(f"impl={impl!r} has descriptors {sorted(FUSED_DESCRIPTORS)}; {sorted(other)} needs impl='auto'")
    if impl == "triton" and (reason := _why_no_triton(device.type if device is not None else "cuda")):
        raise UserError(f"impl='triton' {reason}")
    return impl


# Looked for once, here: torch.compile cannot trace the search. Its own mark for constants would load the whole compiler
# and with it Triton, which no process survives that has loaded TensorFlow.
_TRITON_INSTALLED = find_spec("triton") is not None


def _why_no_triton(device_type: str) -> str:
    """Why Triton cannot run on such devices, as the end of a sentence; nothing if it can."""
    if not _TRITON_INSTALLED:
        return "needs the package triton, which is not installed: install it, or give impl='auto'"
    if device_type == "cuda":
        return ""
    from excite.ops import tail_triton

    if device_type == "cpu" and tail_triton.INTERPRETED:
        return ""
    return f"takes tensors on a GPU, these are on {device_type!r}: move them, or give impl='auto'"


def tail(
    x: Tensor,
    shortcut: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    excite: Excite | None = None,
    descriptors: Sequence[str] = ("mean",),
    act: str = "relu",
    impl: str = "auto",
) -> Tensor:
    """``act(gate(norm(x)) + shortcut)``, norm being batch norm exactly as ``nn.BatchNorm2d`` keeps it.

    Args:
        x: input of the norm [N, C, *S] with 1 to 3 spatial axes; float64, float32, float16 or bfloat16.
        shortcut: the other operand of the addition, of x's shape, or None.
        weight: the norm's scale gamma [C], or None (``affine=False``).
        bias: the norm's shift beta [C], or None.
        running_mean: [C], updated in place in training; None for a norm that keeps no statistics.
        running_var: [C], the unbiased variance, updated in place in training.
        num_batches_tracked: counter, raised by one in training; needed for ``momentum=None``.
        training: batch statistics (True) or running statistics (False). Without running statistics batch
            statistics are used in either case.
        momentum: weight of the newest batch in the running statistics; None is the cumulative average.
        eps: added to the variance.
        excite: the gate's middle, z -> s: takes [N, C] (or [N, K, C] for K descriptors) in x's dtype and gives [N, C].
            None is the plain tail.
        descriptors: what z holds, see ``squeeze``.
        act: "relu", "silu" or "none".
        impl: "reference" (plain PyTorch), "fused" (two passes forward, two backward), "triton" (the same on a GPU) or
            "auto", see ``choose_tail_impl``.

    Returns:
        y [N, C, *S] in the dtype x and shortcut promote to.

    Maps moved, forward: fused reads x twice and shortcut once, writes y; the reference, at least 5 more with a gate.

    Raises:
        ValueError: shapes, act or impl that do not fit; one value a channel in training, as ``BatchNorm2d`` does.
    """
    _check(x, shortcut, act, descriptors)
    worth = worth_fusing(x, shortcut, training=training, gated=excite is not None)
    impl = choose_tail_impl(impl, descriptors if excite is not None else (), x.device, worth=worth)
    by_batch = training or running_mean is None or running_var is None
    if by_batch and x.numel() == x.shape[1]:
        raise UserError(f"training needs more than 1 value per channel; got shape {tuple(x.shape)}")
    factor: float | Tensor = 0.0 if momentum is None else momentum
    if training and num_batches_tracked is not None:
        num_batches_tracked.add_(1)
        if momentum is None:
            # A tensor, so that the fused tail compiles whole; torch's own batch norm (the reference) wants a number.
            factor = num_batches_tracked.to(x.dtype if running_mean is None else running_mean.dtype).reciprocal()
    stats = (running_mean, running_var)
    # A batch without samples moves no statistics and has no sums to share: torch's own rules for it apply.
    if impl == "reference" or x.shape[0] == 0:
        return _reference(x, shortcut, weight, bias, stats, by_batch, float(factor), eps, excite, descriptors, act)
    return _fused(x, shortcut, weight, bias, stats, by_batch, factor, eps, excite, descriptors, act, impl)


def _check(x: Tensor, shortcut: Tensor | None, act: str, descriptors: Sequence[str]) -> None:
    if not 3 <= x.dim() <= 5:
        raise UserError(f"tail takes a map [N, C, *S] with 1 to 3 spatial axes; got shape {tuple(x.shape)}")
    if shortcut is not None and shortcut.shape != x.shape:
        raise UserError(f"shortcut must have the shape of x {tuple(x.shape)}; got {tuple(shortcut.shape)}")
    if act not in ACTS:
        raise unknown("act", act, ACTS)
    if isinstance(descriptors, str):
        raise UserError(f"descriptors={descriptors!r}: give a tuple such as ('mean',)")


_Stats = tuple[Tensor | None, Tensor | None]


def _reference(
    x: Tensor,
    shortcut: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: _Stats,
    by_batch: bool,
    factor: float,
    eps: float,
    excite: Excite | None,
    descriptors: Sequence[str],
    act: str,
) -> Tensor:
    """The definition, step by step."""
    u = F.batch_norm(x, *stats, weight, bias, by_batch, factor, eps)
    y = u if excite is None else rescale(u, excite(squeeze(u, descriptors)))
    if shortcut is not None:
        y = y + shortcut
    if act == "relu":
        return F.relu(y)
    return F.silu(y) if act == "silu" else y


def _fused(
    x: Tensor,
    shortcut: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: _Stats,
    by_batch: bool,
    factor: float | Tensor,
    eps: float,
    excite: Excite | None,
    descriptors: Sequence[str],
    act: str,
    impl: str,
) -> Tensor:
    """The formulas at the head of this file: [N, C] work between two passes over the maps."""
    dtype = tail_passes.sum_dtype(x.dtype)
    mean, variance = (None, None) if by_batch else (t if t is None else t.to(dtype) for t in stats)
    affine = [t if t is None else t.to(dtype) for t in (weight, bias)]
    if excite is None:
        y, mu, var = PlainTail.apply(x, shortcut, *affine, mean, variance, eps, act, impl)
    else:
        m, v, mu, var, a, offset, z, map_token, scale_token = Norm.apply(x, *affine, mean, variance, eps, impl)
        z = _descriptor(z, a, v, x.numel() // max(m.numel(), 1), descriptors)
        s = excite(z.to(x.dtype)).to(dtype)
        if s.shape != m.shape:
            raise UserError(f"excite must give s of shape {tuple(m.shape)}; got {tuple(s.shape)}")
        y = AffineAct.apply(x.detach(), map_token, scale_token, shortcut, m, s * a, s * offset, act, impl)
    if by_batch:
        _update_running(stats, mu, var, x.numel() // x.shape[1], factor)
    return y


def _descriptor(mean: Tensor, a: Tensor, v: Tensor, positions: int, descriptors: Sequence[str]) -> Tensor:
    """z of the normed map from its mean [N, C] and x's variance v: norm is affine, so std = |a| sqrt(v)."""
    parts = []
    for d in descriptors:
        if d == "mean":
            parts.append(mean)
        elif d == "std":
            parts.append((a.square() * v).clamp_min(torch.finfo(v.dtype).tiny).sqrt())
        else:
            l2 = positions * (mean.square() + a.square() * v)
            parts.append(l2.clamp_min(torch.finfo(v.dtype).tiny).sqrt())
    return parts[0] if len(parts) == 1 else torch.stack(parts, dim=1)


def _update_running(stats: _Stats, mu: Tensor, var: Tensor, values: int, factor: float | Tensor) -> None:
    running_mean, running_var = stats
    if running_mean is None or running_var is None:
        return
    with torch.no_grad():
        unbiased = var.detach() * (values / (values - 1))
        # PyTorch's own batch norm saves them and moves them unseen: a pass before this one may still need its backward.
        if not torch.compiler.is_compiling():
            running_mean, running_var = running_mean.data, running_var.data
        running_mean.lerp_(mu.detach().to(running_mean.dtype), factor)
        running_var.lerp_(unbiased.to(running_var.dtype), factor)
