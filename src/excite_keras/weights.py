"""Weights between PyTorch and Keras: the same network in the other framework, with the same numbers.

What differs and is settled here: the axes of kernels; biases of convolutions before a norm, which keras.applications
has and ``excite`` has not, and which go into the norm's running mean; the norms' epsilon and momentum, taken over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from keras import ops
from torch import nn

from excite.errors import UserError
from excite.gates import Gate as TorchGate
from excite.gates import parse_gate
from excite.models.cifar import CifarResNet, CifarResNetOptions, PadShortcut
from excite.models.resnet import BasicBlock, Bottleneck, ResNet, ResNetOptions
from excite_keras.axes import GATE_WEIGHTS, Weight, to_keras_axes, to_torch_axes
from excite_keras.describe import describe, keras_name
from excite_keras.gates import Gate
from excite_keras.resnet import ResNetLayout, build

__all__ = ["from_keras", "load_gate", "to_keras"]

_NORM = {
    "weight": Weight("gamma"),
    "bias": Weight("beta"),
    "running_mean": Weight("moving_mean"),
    "running_var": Weight("moving_variance"),
}


def to_keras(
    model: nn.Module,
    *,
    image_size: int | None = None,
    data_format: str | None = None,
    classifier_activation: str | None = None,
) -> Any:
    """A ResNet of ``excite`` as a functional Keras model with the same weights.

    Args:
        model: a ResNet or a CIFAR ResNet of ``excite.create_model``, plain or with gates; its weights are copied.
        image_size: as in ``create_model``.
        data_format: as in ``create_model``.
        classifier_activation: as in ``create_model``; None gives logits, as the network does.

    Raises:
        ValueError: another network; weights that have no place, as those of gates that were attached.
    """
    layout = _layout(model)
    plain = f"resnet{_count(layout)}"
    twin = build(
        layout,
        name=plain if layout.gate == "none" else f"{layout.gate.partition('(')[0]}_{plain}",
        image_size=image_size,
        data_format=data_format,
        classifier_activation=classifier_activation,
    )
    moved, places = set(), {layer.name for layer in twin.layers}
    for module_name, key, weight in _weights(model):
        if keras_name(module_name) not in places:
            continue
        variable = getattr(twin.get_layer(keras_name(module_name)), weight.theirs)
        array = model.get_submodule(module_name).state_dict()[key].detach().cpu().numpy()
        variable.assign(to_keras_axes(array, weight.kind))
        moved.add(f"{module_name}.{key}")
    left = [key for key in model.state_dict() if key not in moved and not key.endswith("num_batches_tracked")]
    if left:
        raise UserError(f"{type(model).__name__}: {left[0]!r} has no place in a Keras ResNet; {len(left)} such weights")
    return twin


def from_keras(model: Any) -> nn.Module:
    """A Keras ResNet as a network of ``excite`` with the same weights, in eval mode.

    Args:
        model: of ``excite_keras.create_model`` or ``to_keras``, or ``keras.applications``' ResNet50, ResNet101 or
            ResNet152, plain or with gates that ``insert`` put in; its weights are copied.

    Returns:
        images [N, C, H, W] -> logits, whatever activation the Keras model ends with. Norms have the model's epsilon.

    Raises:
        ValueError: another model, or gates as no ResNet of ``excite`` has them.
    """
    described = describe(model)
    network = _network(described.layout)
    state = network.state_dict()
    for module_name, key, weight in _weights(network):
        layer = model.get_layer(described.name_of(module_name))
        array = _array(layer, weight)
        if key == "running_mean" and (bias := _bias_before(model, described.name_of, module_name)) is not None:
            array = array - bias
        tensor = torch.from_numpy(np.ascontiguousarray(to_torch_axes(array, weight.kind)))
        assert tensor.shape == state[f"{module_name}.{key}"].shape
        state[f"{module_name}.{key}"] = tensor
    network.load_state_dict(state)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = described.layout.epsilon, _rest(described.layout.momentum)
    return network.eval()


def load_gate(layer: Gate, gate: nn.Module) -> None:
    """Give a Keras gate the weights of the same gate of ``excite``.

    Args:
        layer: built or not.
        gate: of the same options.

    Raises:
        ValueError: another gate, or one of other options.
    """
    text = str(gate.config) if isinstance(gate, TorchGate) else type(gate).__name__
    if not isinstance(gate, TorchGate) or text != layer.text:
        raise UserError(f"{layer.name} is the gate {layer.text!r}, the other is {text!r}: give one of the same options")
    if not layer.built:
        channels_last = layer.data_format == "channels_last"
        layer.build((None, None, gate.channels) if channels_last else (None, gate.channels, None))
    for key, value in gate.state_dict().items():
        weight = GATE_WEIGHTS[layer.GATE][key]
        getattr(layer, weight.theirs).assign(to_keras_axes(value.cpu().numpy(), weight.kind))


def _weights(model: nn.Module) -> Iterator[tuple[str, str, Weight]]:
    """Module, name within it, and what it is in Keras, of every weight that has a place there."""
    inside = ""
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, TorchGate):
            inside = f"{name}."
            for key in module.state_dict():
                yield name, key, GATE_WEIGHTS[module.config.name][key]
        elif isinstance(module, nn.Conv2d):
            yield name, "weight", Weight("kernel", "conv")
        elif isinstance(module, nn.BatchNorm2d):
            yield from ((name, key, weight) for key, weight in _NORM.items())
        elif isinstance(module, nn.Linear):
            yield name, "weight", Weight("kernel", "dense")
            yield name, "bias", Weight("bias")


def _array(layer: Any, weight: Weight) -> Any:
    return np.asarray(ops.convert_to_numpy(getattr(layer, weight.theirs)), dtype=np.float32)


def _bias_before(model: Any, name_of: Any, norm: str) -> Any:
    """The bias of the convolution before a norm, or None."""
    parent, _, own = norm.rpartition(".")
    conv = "0" if own == "1" else own.replace("bn", "conv")
    layer = model.get_layer(name_of(f"{parent}.{conv}" if parent else conv))
    return _array(layer, Weight("bias")) if getattr(layer, "bias", None) is not None else None


# --- layouts ---


def _rest(share: float) -> float:
    """1 less a share, as a reader would write it: of the new in PyTorch, of the old in Keras."""
    return round(1 - share, 12)


def _count(layout: ResNetLayout) -> int:
    """Layers as the names of ResNets count them."""
    return (3 if layout.bottleneck else 2) * sum(layout.depths) + 2


def _layout(model: nn.Module) -> ResNetLayout:
    if not isinstance(model, ResNet | CifarResNet):
        raise UserError(
            f"{type(model).__name__} has no twin in Keras: to_keras takes ResNets and CIFAR ResNets of excite "
            "(load_weights brings other libraries' weights into one)"
        )
    stages = [stage for name, stage in model.named_children() if name.startswith("layer")]
    blocks = [list(stage.children()) for stage in stages]
    first: Any = blocks[0][0]
    gates = {i + 1: {_text(block) for block in stage} - {""} for i, stage in enumerate(blocks)}
    texts = set().union(*gates.values())
    with_gates = tuple(stage for stage, found in gates.items() if found)
    if len(texts) > 1:
        raise UserError(f"gates differ from block to block: {', '.join(sorted(texts))}")
    bottleneck = isinstance(first, Bottleneck)
    second: Any = blocks[1][0]
    ceil = isinstance(model, ResNet) and model.maxpool.ceil_mode
    norm: Any = model.bn1
    return ResNetLayout(
        depths=tuple(len(stage) for stage in blocks),
        bottleneck=bottleneck,
        gate=texts.pop() if texts else "none",
        placement=first.placement,
        stages=None if len(with_gates) in (0, len(stages)) else with_gates,
        num_classes=model.num_classes,
        in_channels=model.in_channels,
        stride_in="1x1" if bottleneck and second.conv1.stride[0] == 2 else "3x3",
        stem_pool="ceil" if ceil else "padded",
        shortcut="A" if isinstance(second.downsample, PadShortcut) else "B",
        epsilon=norm.eps,
        momentum=_rest(norm.momentum),
    )


def _text(block: Any) -> str:
    """The text of a block's gate; "" for none."""
    return "" if block.gate is None else str(block.gate.config)


def _network(layout: ResNetLayout) -> nn.Module:
    common: dict[str, Any] = {
        "gate": parse_gate(layout.gate),
        "placement": layout.placement,
        "stages": layout.stages,
        "num_classes": layout.num_classes,
        "in_channels": layout.in_channels,
    }
    if layout.small:
        cifar = CifarResNetOptions(shortcut=layout.shortcut)
        return CifarResNet(layout.depths[0], options=cifar, **common)
    block = Bottleneck if layout.bottleneck else BasicBlock
    options = ResNetOptions(stride_in=layout.stride_in, stem_pool=layout.stem_pool)
    return ResNet(block, layout.depths, options=options, **common)
