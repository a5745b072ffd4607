"""What residual families share: the tail, where the gate stands, and where else it may stand."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import UserError
from excite.gates.base import Gate, hung_gate, is_watched
from excite.ops import choose_tail_impl, tail
from excite.ops.tail import worth_fusing

__all__ = ["BATCH_NORMS", "PLACEMENTS", "normed_tail", "run_tail"]

# SE paper, Fig. 5 and Table 14; "inner" is its SE_3x3.
PLACEMENTS = ("standard", "pre", "post", "identity", "inner")

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def run_tail(
    norm: nn.Module,
    gate: nn.Module | None,
    x: Tensor,
    shortcut: Tensor | None = None,
    *,
    act: str = "relu",
    impl: str = "auto",
) -> Tensor:
    """``act(gate(norm(x)) + shortcut)`` from the modules that hold its parameters.

    The reference calls the modules themselves, so their hooks run and any norm (SyncBatchNorm, say) works. A fused
    tail reads their parameters and calls ``gate.excite`` only; "auto" leaves to the reference what such a tail cannot
    do.

    Args:
        norm: the last norm of the branch; the fused tail takes exactly ``nn.BatchNorm1d/2d/3d``, and the gate that was
            attached to it, if there is no other.
        gate: a ``Gate``, another module on maps, or None.
        x: input of the norm [N, C, *S].
        shortcut: the other operand of the addition, or None.
        act: "relu", "silu" or "none".
        impl: see ``excite.ops.tail``.

    Raises:
        ValueError: ``impl="fused"`` or "triton" with a norm or gate the fused tail does not have.
    """
    attached = hung_gate(norm)
    both = gate is not None and attached is not None
    inner = attached if gate is None else gate
    descriptors = inner.descriptors if isinstance(inner, Gate) else ()
    fits = type(norm) in BATCH_NORMS and (inner is None or isinstance(inner, Gate)) and not both
    watched = is_watched(norm, gate_aside=True) or (inner is not None and is_watched(inner))
    by_modules = impl == "auto" and (not fits or watched)
    worth = (
        impl == "auto" and not by_modules and worth_fusing(x, shortcut, training=norm.training, gated=inner is not None)
    )
    impl = "reference" if by_modules else choose_tail_impl(impl, descriptors, x.device, worth=worth)
    if impl == "reference":
        return _by_modules(norm, gate, x, shortcut, act)
    if not fits:
        culprit = norm if type(norm) not in BATCH_NORMS or both else inner
        raise UserError(
            f"impl={impl!r} takes batch norm and one gate of excite; {type(culprit).__name__} needs impl='auto'"
        )
    assert inner is None or isinstance(inner, Gate)
    return normed_tail(norm, x, shortcut, None if inner is None else inner.excite, descriptors, act, impl)


def normed_tail(
    norm: nn.Module,
    x: Tensor,
    shortcut: Tensor | None,
    excite: Callable[[Tensor], Tensor] | None,
    descriptors: tuple[str, ...],
    act: str,
    impl: str,
) -> Tensor:
    """``excite.ops.tail`` with the parameters and statistics of a batch norm."""
    assert isinstance(norm, BATCH_NORMS)
    keeps = norm.track_running_stats or not norm.training
    return tail(
        x,
        shortcut,
        weight=norm.weight,
        bias=norm.bias,
        running_mean=norm.running_mean if keeps else None,
        running_var=norm.running_var if keeps else None,
        num_batches_tracked=norm.num_batches_tracked if keeps else None,
        training=norm.training,
        momentum=norm.momentum,
        eps=norm.eps,
        excite=excite,
        descriptors=descriptors or ("mean",),
        act=act,
        impl=impl,
    )


def _by_modules(norm: nn.Module, gate: nn.Module | None, x: Tensor, shortcut: Tensor | None, act: str) -> Tensor:
    y: Tensor = norm(x)
    if gate is not None:
        y = gate(y)
    if shortcut is not None:
        y = y + shortcut
    if act == "relu":
        return F.relu(y)
    return F.silu(y) if act == "silu" else y
