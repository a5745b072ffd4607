"""The channel scale in fused networks: one compiled call where the gate is layers, or windows, on the mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.gates import ECA, SE, EffectiveSE, Gate, SEVar1, SEVar3
from excite.gates.functions import ACTIVATIONS, gate_function
from excite.ops import squeeze
from excite.ops.scale import FUNCTIONS, Layer, ScaleOp

__all__ = ["ordinary", "scale_of"]

# The names that compiled passes have for what may stand between a gate's layers.
_ACTS = {"relu": "relu", "silu": "silu", "hard_swish": "hardswish"}


def ordinary(*tensors: Tensor | None) -> bool:
    """Whether PyTorch's ordinary operations are to be taken: a compiler looks on, or a gradient is asked for."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def scale_of(gate: Gate, x: Tensor, *, ahead: Layer | None = None, first: nn.Linear | None = None) -> Tensor:
    """s [N, C] of a gate's map, from the map itself or from the input of the 1x1 convolution that makes it.

    Args:
        gate: the gate.
        x: its map, or that input.
        ahead: the convolution's weight [C, C_in] and bias, if x is its input.
        first: in place of ``ahead``, for SE: that layer and the gate's own first one as one.
    """
    # Whoever put another excite on the gate wants it called.
    op = None if "excite" in gate.__dict__ else _compiled(gate, ahead, first)
    if op is not None and not ordinary(x, *op.tensors) and (s := op(x)) is not None:
        return s
    z = squeeze(x, gate.descriptors)
    if first is not None:
        assert isinstance(gate, SE)
        hidden = ACTIVATIONS[gate.activation](first(z))
        return gate_function(gate.fc2(hidden), gate.gate_function, gate.hard_sigmoid_slope, neutral=gate.neutral)
    return gate.excite(z if ahead is None else F.linear(z, *ahead))


def _compiled(gate: Gate, ahead: Layer | None, first: nn.Linear | None) -> ScaleOp | None:
    """The same as one call, with the parameters as they are now; None for gates that are something else."""
    kind = type(gate)
    if gate.descriptors != ("mean",) or getattr(gate, "gate_function", "sigmoid") not in FUNCTIONS:
        return None
    if isinstance(gate, SE):
        if kind is not SE or gate.activation not in _ACTS or ahead is not None:
            return None
        return ScaleOp(
            _layer(gate.fc1 if first is None else first),
            _layer(gate.fc2),
            act=_ACTS[gate.activation],
            function=gate.gate_function,
            slope=gate.hard_sigmoid_slope,
            factor=1.0 + gate.neutral,
        )
    if isinstance(gate, ECA) and kind is ECA:
        return ScaleOp(second=ahead, taps=gate.conv.weight.flatten(), factor=1.0 + gate.neutral)
    if isinstance(gate, EffectiveSE) and kind is EffectiveSE:
        return ScaleOp(
            ahead,
            _layer(gate.fc),
            function=gate.gate_function,
            slope=gate.hard_sigmoid_slope,
            factor=1.0 + gate.neutral,
        )
    if isinstance(gate, SEVar3) and kind is SEVar3:
        return ScaleOp(ahead, _layer(gate.fc), factor=1.0 + gate.neutral)
    return ScaleOp(second=ahead) if kind is SEVar1 else None


def _layer(linear: nn.Linear) -> Layer:
    return linear.weight, linear.bias
