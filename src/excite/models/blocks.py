"""What residual families share: the tail, where the gate stands, and where else it may stand."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import UserError
from excite.gates.base import Gate
from excite.ops import choose_tail_impl, tail

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

    The reference calls the modules themselves, so their hooks run and any norm (SyncBatchNorm, say) works. The fused
    tail reads their parameters and calls ``gate.excite`` only.

    Args:
        norm: the last norm of the branch; the fused tail takes exactly ``nn.BatchNorm1d/2d/3d``.
        gate: a ``Gate``, another module on maps, or None.
        x: input of the norm [N, C, *S].
        shortcut: the other operand of the addition, or None.
        act: "relu", "silu" or "none".
        impl: see ``excite.ops.tail``.

    Raises:
        ValueError: ``impl="fused"`` with a norm or gate the fused tail does not have.
    """
    descriptors = gate.descriptors if isinstance(gate, Gate) else ()
    impl = choose_tail_impl(impl, descriptors)
    if impl == "reference":
        return _by_modules(norm, gate, x, shortcut, act)
    if type(norm) not in _BATCH_NORMS or not (gate is None or isinstance(gate, Gate)):
        culprit = norm if type(norm) not in _BATCH_NORMS else gate
        raise UserError(
            f"impl={impl!r} takes batch norm and gates of excite; {type(culprit).__name__} needs impl='auto'"
        )
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


def _by_modules(norm: nn.Module, gate: nn.Module | None, x: Tensor, shortcut: Tensor | None, act: str) -> Tensor:
    y: Tensor = norm(x)
    if gate is not None:
        y = gate(y)
    if shortcut is not None:
        y = y + shortcut
    if act == "relu":
        return F.relu(y)
    return F.silu(y) if act == "silu" else y
