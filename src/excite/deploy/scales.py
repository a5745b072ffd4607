"""The channel scale in fused networks: one compiled call where the gate is layers, or windows, on the mean."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.gates import ECA, SE, EffectiveSE, Gate, SEVar1, SEVar3
from excite.gates.base import is_watched
from excite.ops import squeeze
from excite.ops.scale import FUNCTIONS, Layer, ScaleOp
from excite.ops.tail_functions import is_transformed

__all__ = ["ChannelScale", "ordinary"]

# The names that compiled passes have for what may stand between a gate's layers.
_ACTS = {"relu": "relu", "silu": "silu", "hard_swish": "hardswish"}


def ordinary(*tensors: Tensor | None) -> bool:
    """Whether PyTorch's ordinary operations are to be taken: somebody looks on, or a gradient is asked for."""
    return torch.compiler.is_compiling() or is_transformed() or _wants_gradient(tensors)


def _wants_gradient(tensors: Iterable[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class ChannelScale:
    """s [N, C] of a gate's map, from the map itself or from the input of the 1x1 convolution that makes it.

    Holds the compiled call for as long as the gate, its settings and its parameters are the ones that it was made of.
    """

    def __init__(self) -> None:
        self._made: _Made | None = None

    def __call__(self, gate: Gate, x: Tensor, ahead: Layer | None = None, first: nn.Linear | None = None) -> Tensor:
        """s.

        Args:
            gate: the gate.
            x: its map, or that input.
            ahead: the convolution's weight [C, C_in, 1, ...] and bias, if x is its input.
            first: in place of ``ahead``, for SE: that convolution and the gate's own first layer as one.
        """
        op = None if ordinary(x) else self._op(gate, ahead or (None, None), first)
        if op is not None and not _wants_gradient(op.tensors) and (s := op(x)) is not None:
            return s
        z = squeeze(x, gate.descriptors)
        if first is not None:
            assert isinstance(gate, SE)
            return gate.from_hidden(first(z))
        return gate.excite(z if ahead is None else F.linear(z, ahead[0].flatten(1), ahead[1]))

    def _op(self, gate: Gate, ahead: tuple[Tensor | None, Tensor | None], first: nn.Linear | None) -> ScaleOp | None:
        """The compiled call with the parameters that there are now; None where there is none, or somebody looks on."""
        if "excite" in gate.__dict__:
            return None  # whoever put it there wants it called
        given = (gate, first, *ahead)
        if self._made is None or not self._made.stays(given):
            self._made = _Made.of(given)
        return self._made.op

    def __getstate__(self) -> dict[str, Any]:
        # Addresses are this process' own.
        return {"_made": None}


class _Made(NamedTuple):
    """A compiled call, and all that it was made of.

    Attributes:
        given: the gate, its first layer if that is another, weight and bias of a convolution.
        layers: the modules that the call does the work of.
        held: parameters, modules and settings where they were found, and where a parameter's values lay.
        op: the call; None where there is none.
    """

    given: tuple[Any, ...]
    layers: list[nn.Module]
    held: list[tuple[dict[str, Any], str, Any, int]]
    op: ScaleOp | None

    @classmethod
    def of(cls, given: tuple[Any, ...]) -> _Made:
        gate, first, weight, bias = given
        layers = [*gate.children(), *(() if first is None else (first,))]
        found = [(gate.__dict__, name, gate.__dict__[name]) for name in _SETTINGS if name in gate.__dict__]
        for module in (gate, *layers):
            for kind in (module._modules, module._parameters):
                found += [(kind, name, what) for name, what in kind.items()]
        ahead = {"weight": weight, "bias": bias}
        found += [(ahead, name, what) for name, what in ahead.items()]
        held = [(where, name, what, what.data_ptr() if isinstance(what, Tensor) else 0) for where, name, what in found]
        op = None
        if all(map(_is_plain, layers)):
            op = _compiled(gate, None if weight is None else (weight.flatten(1), bias), first)
        return cls(given, layers, held, op if op is not None and op.usable else None)

    def stays(self, given: tuple[Any, ...]) -> bool:
        """Whether all that is as it was."""
        if not all(map(operator.is_, given, self.given)):
            return False
        for layer in self.layers:
            if layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__:
                return False
        for where, name, what, address in self.held:
            if where.get(name) is not what or (isinstance(what, Tensor) and what.data_ptr() != address):
                return False
        return True


_SETTINGS = ("activation", "gate_function", "hard_sigmoid_slope", "neutral", "descriptors")


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer does what its class does with its weights, and nobody waits for it to be called."""
    return type(layer) in (nn.Linear, nn.Conv1d) and "weight" in layer._parameters and not is_watched(layer)


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
