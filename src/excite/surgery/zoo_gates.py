"""Gates of other libraries as gates of ``excite``: the layers say what it may be, its outputs say what it is.

A module with two fully connected layers over channels may be Squeeze-and-Excitation with any activation and any gate
function. Each such gate is built with the module's weights and run beside it; the one with the same outputs is it. So
nothing hangs on a library's names, and a module that computes anything else is not taken for a gate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from excite.errors import UserError
from excite.gates import ECAConfig, EffectiveSEConfig, Gate, GateConfig, SEConfig, SEVar2Config, SEVar3Config
from excite.gates.functions import ACTIVATIONS, GATE_FUNCTIONS

__all__ = ["carried_over", "channels_of", "read_gate"]

# Layers over channels in the order in which a module has them, each as a matrix or filter and its bias.
_Layer = tuple[Tensor, Tensor | None]


def read_gate(module: nn.Module, channels: int) -> Gate | None:
    """The gate of ``excite`` that computes what a module does, with its weights; None where none does.

    Args:
        module: any module; it is left as it is.
        channels: C of the maps [N, C, H, W] that it takes.
    """
    if isinstance(module, Gate):
        return module
    layers = _layers(module)
    if layers is None or any(weight.is_meta for weight, _ in layers):
        return None
    # With other weights: of a fresh module's several functions may agree on all that it gives.
    twin = _drawn_anew(module)
    u = torch.randn(3, channels, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            expected = twin(2 * u)
    except Exception:  # whatever a module that takes no such map raises
        return None
    if not isinstance(expected, Tensor) or expected.shape != u.shape:
        return None
    drawn = _layers(twin)
    assert drawn is not None
    for config in _candidates(layers, channels):
        gate = _with_weights(config, channels, drawn)
        if gate is not None and torch.allclose(gate(2 * u), expected, rtol=1e-6, atol=1e-7):
            gate = _with_weights(config, channels, layers)
            assert gate is not None
            like = layers[0][0]
            return gate.to(device=like.device, dtype=like.dtype).train(module.training)
    return None


def _drawn_anew(module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module).to("cpu", torch.float64).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return twin


def channels_of(module: nn.Module) -> int | None:
    """The channels of the maps that a module's layers are for, where their shapes tell."""
    layers = _layers(module)
    if layers is None or layers[0][0].dim() != 2:
        return None
    return int(layers[0][0].shape[1])


def carried_over(old: Gate, new: Gate) -> bool:
    """Give ``new`` the weights of ``old`` where both compute the same from the same shapes; whether that was so."""
    shapes = [{key: value.shape for key, value in gate.state_dict().items()} for gate in (old, new)]
    if type(old) is not type(new) or shapes[0] != shapes[1] or old.descriptors != new.descriptors:
        return False
    if any(p.is_meta for p in old.parameters()):
        return False
    before = copy.deepcopy(new.state_dict())
    new.load_state_dict(old.state_dict())
    n_descriptors = len(old.descriptors)
    shape = (3, n_descriptors, old.channels) if n_descriptors > 1 else (3, old.channels)
    z = torch.linspace(-2, 3, math.prod(shape), dtype=torch.float64).reshape(shape)
    with torch.no_grad():
        one, other = (copy.deepcopy(gate).to("cpu", torch.float64).excite(z) for gate in (old, new))
    if torch.equal(one, other):
        return True
    new.load_state_dict(before)
    return False


def _layers(module: nn.Module) -> list[_Layer] | None:
    """A module's layers over channels; None where it has parameters of other kinds, none at all, or too many."""
    layers: list[_Layer] = []
    for child in module.modules():
        own = list(child.parameters(recurse=False))
        if isinstance(child, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            flat = child.weight.detach()
            if flat.dim() == 3 and flat.shape[:2] == (1, 1):
                layers.append((flat.flatten(), child.bias))  # a filter along the channels
            elif flat[0, 0].numel() == 1:
                layers.append((flat.reshape(flat.shape[:2]), child.bias))
            else:
                return None
        elif own:
            if len(own) > 1 or own[0].numel() != max(own[0].shape, default=0):
                return None
            layers.append((own[0].detach().flatten(), None))
    return layers if 1 <= len(layers) <= 2 else None


def _candidates(layers: list[_Layer], channels: int) -> Iterator[GateConfig]:
    first, bias = layers[0]
    if len(layers) == 2:
        if first.dim() == 2 and first.shape[1] == channels and layers[1][0].shape == (channels, first.shape[0]):
            se = SEConfig(reduced_channels=int(first.shape[0]), bias=bias is not None)
            for descriptor, function, activation in product(("mean", "max"), GATE_FUNCTIONS, ACTIVATIONS):
                options = {"descriptor": descriptor, "gate_function": function, "activation": activation}
                yield from _slopes(replace(se, **options))  # type: ignore[arg-type]
    elif first.shape == (channels, channels):
        if bias is None:
            yield SEVar3Config()
        else:
            yield from (EffectiveSEConfig(gate_function=f) for f in ("hard_sigmoid", "sigmoid"))
    elif first.dim() == 1 and bias is None:
        if first.numel() % 2:
            yield ECAConfig(int(first.numel()))
        if first.numel() == channels:
            yield SEVar2Config()


def _slopes(config: SEConfig) -> Iterator[SEConfig]:
    yield config
    if config.gate_function == "hard_sigmoid":
        yield replace(config, hard_sigmoid_slope=0.2)


def _with_weights(config: GateConfig, channels: int, layers: list[_Layer]) -> Gate | None:
    try:
        gate = config.build(channels).double()
    except UserError:
        return None
    values = [t.detach() for weight, bias in layers for t in (weight, bias) if t is not None]
    parameters = list(gate.parameters())
    if len(parameters) != len(values) or any(p.numel() != v.numel() for p, v in zip(parameters, values, strict=True)):
        return None
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value.reshape(parameter.shape))
    assert isinstance(gate, Gate)
    return gate
