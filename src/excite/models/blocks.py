"""What residual families share: the tail, where the gate stands, and where else it may stand."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from excite.errors import UserError
from excite.gates.base import Gate
from excite.ops import choose_tail_impl, tail
from excite.ops.tail import worth_fusing

__all__ = ["PLACEMENTS", "run_tail"]

# SE paper, Fig. 5 and Table 14; "inner" is its SE_3x3.
PLACEMENTS = ("standard", "pre", "post", "identity", "inner")

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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
        norm: the last norm of the branch; the fused tail takes exactly ``nn.BatchNorm1d/2d/3d``.
        gate: a ``Gate``, another module on maps, or None.
        x: input of the norm [N, C, *S].
        shortcut: the other operand of the addition, or None.
        act: "relu", "silu" or "none".
        impl: see ``excite.ops.tail``.

    Raises:
        ValueError: ``impl="fused"`` or "triton" with a norm or gate the fused tail does not have.
    """
    descriptors = gate.descriptors if isinstance(gate, Gate) else ()
    fits = type(norm) in _BATCH_NORMS and (gate is None or isinstance(gate, Gate))
    by_modules = impl == "auto" and (not fits or _has_hooks(norm) or _has_hooks(gate))
    worth = not by_modules and worth_fusing(x, shortcut, training=norm.training, gated=gate is not None)
    impl = "reference" if by_modules else choose_tail_impl(impl, descriptors, x.device, worth=worth)
    if impl == "reference":
        return _by_modules(norm, gate, x, shortcut, act)
    if not fits:
        culprit = norm if type(norm) not in _BATCH_NORMS else gate
        raise UserError(
            f"impl={impl!r} takes batch norm and gates of excite; {type(culprit).__name__} needs impl='auto'"
        )
    assert gate is None or isinstance(gate, Gate)
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    return tail(
        x,
        shortcut,
        weight=norm.weight,
        bias=norm.bias,
        running_mean=norm.running_mean,
        running_var=norm.running_var,
        num_batches_tracked=norm.num_batches_tracked,
        training=norm.training,
        momentum=norm.momentum,
        eps=norm.eps,
        excite=None if gate is None else gate.excite,
        descriptors=descriptors or ("mean",),
        act=act,
        impl=impl,
    )


def _has_hooks(module: nn.Module | None) -> bool:
    """Whether somebody waits for this module to be called: a gate attached to it, say."""
    return module is not None and bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_any_global_hook()  # type: ignore[no-untyped-call]
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
