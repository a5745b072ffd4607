"""Which ResNet a Keras model is: read from its layers' names, and each layer beside the module it stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from excite.errors import UserError
from excite_keras.gates import Gate
from excite_keras.graph import Graph
from excite_keras.resnet import PadShortcut, ResNetLayout

__all__ = ["Described", "describe", "keras_name"]

_BLOCK = re.compile(r"layer(\d+)_(\d+)_")
# keras.applications' ResNet50, 101 and 152 count stages from 2 and blocks from 1.
_THEIR_BLOCK = re.compile(r"conv(\d+)_block(\d+)_")
# Where gates stand that ``insert`` put in, by the ends of their names; behind norms and activations each has its own.
_EDGES = {"add_pre_gate": "pre", "out_gate": "post", "add_identity_gate": "identity"}


@dataclass(frozen=True)
class Described:
    """A Keras model, understood.

    Attributes:
        layout: what it is.
        name_of: the name of the layer that stands for a module, by the module's dotted name.
    """

    layout: ResNetLayout
    name_of: Callable[[str], str]


def keras_name(module: str) -> str:
    """The name of a module's layer in the networks of ``excite_keras``."""
    return module.replace(".", "_")


def describe(model: Any) -> Described:
    """What a Keras ResNet is.

    Args:
        model: of ``excite_keras.create_model``, or ``keras.applications``' ResNet50, 101 or 152, with gates that
            ``insert`` put in or without.

    Raises:
        ValueError: another model, or gates that differ from block to block.
    """
    names = {layer.name for layer in model.layers}
    if {"conv1", "bn1", "layer1_0_conv1"} <= names:
        return _own(model)
    if {"conv1_conv", "conv1_bn", "conv2_block1_1_conv", "conv2_block1_0_bn"} <= names:
        return _application(model)
    raise UserError(
        f"{model.name}: its layers are not those of a ResNet that create_model makes, nor of keras.applications' "
        "ResNet50, ResNet101 or ResNet152 (the V2 networks are pre-activation ones, which have no twin here)"
    )


def _own(model: Any) -> Described:
    layers = {layer.name: layer for layer in model.layers}
    bottleneck = "layer1_0_conv3" in layers
    last = 3 if bottleneck else 2
    places = {**_EDGES, f"bn{last}_gate": "standard", f"relu{last - 1}_gate": "inner", "gate": ""}
    gates, placement = _gates_of(model, _BLOCK, places)
    if placement == "":
        placement = _placement(model, bottleneck, next(iter(gates)))
    depths = _depths(_BLOCK, layers)
    pad = layers.get("maxpool_pad")
    layout = ResNetLayout(
        depths,
        bottleneck,
        **_gate_arguments(gates, depths, placement),
        **_common(model, layers, "conv1", "bn1", "fc"),
        stride_in="1x1" if bottleneck and layers["layer2_0_conv1"].strides[0] == 2 else "3x3",
        stem_pool="padded" if pad is None or pad.padding[0] == (1, 1) else "ceil",
        shortcut="A" if isinstance(layers.get("layer2_0_downsample"), PadShortcut) else "B",
    )
    inserted = {f"layer{stage}.{block}.gate": layer.name for (stage, block), layer in gates.items()}
    return Described(layout, lambda module: inserted.get(module) or keras_name(module))


def _application(model: Any) -> Described:
    layers = {layer.name: layer for layer in model.layers}
    places = {**_EDGES, "3_bn_gate": "standard", "2_relu_gate": "inner"}
    found, placement = _gates_of(model, _THEIR_BLOCK, places)
    gates = {(stage - 1, block - 1): layer for (stage, block), layer in found.items()}
    depths = _depths(_THEIR_BLOCK, layers)
    layout = ResNetLayout(
        depths,
        bottleneck=True,
        **_gate_arguments(gates, depths, placement),
        **_common(model, layers, "conv1_conv", "conv1_bn", "predictions"),
        stride_in="1x1" if layers["conv3_block1_1_conv"].strides[0] == 2 else "3x3",
    )
    inserted = {f"layer{stage}.{block}.gate": layer.name for (stage, block), layer in gates.items()}
    return Described(layout, lambda module: inserted.get(module) or _their_name(module))


def _their_name(module: str) -> str:
    """What keras.applications calls the layer of a module."""
    if module in ("conv1", "bn1", "fc"):
        return {"conv1": "conv1_conv", "bn1": "conv1_bn", "fc": "predictions"}[module]
    stage, block, part = module.removeprefix("layer").split(".", 2)
    prefix = f"conv{int(stage) + 1}_block{int(block) + 1}_"
    kind, which = ("conv", "0") if part == "downsample.0" else ("bn", "0")
    if not part.startswith("downsample"):
        kind, which = part[:-1], part[-1]
    return f"{prefix}{which}_{kind}"


# --- what both have ---


def _depths(pattern: re.Pattern[str], names: Any) -> tuple[int, ...]:
    """Blocks of each stage."""
    blocks = {(int(found[1]), int(found[2])) for name in names if (found := pattern.match(name))}
    stages = sorted({stage for stage, _ in blocks})
    return tuple(sum(stage == s for stage, _ in blocks) for s in stages)


def _common(model: Any, layers: dict[str, Any], conv: str, norm: str, head: str) -> dict[str, Any]:
    image = model.input_shape
    channels_last = layers[conv].data_format == "channels_last"
    return {
        "num_classes": layers[head].units if head in layers else 0,
        "in_channels": image[-1] if channels_last else image[1],
        "epsilon": layers[norm].epsilon,
        "momentum": layers[norm].momentum,
    }


def _gates_of(model: Any, block: re.Pattern[str], places: dict[str, str]) -> tuple[dict[tuple[int, int], Gate], str]:
    """The gates by the stage and block in their names, and the placement that their names say.

    Raises:
        ValueError: a gate elsewhere, or at several places.
    """
    gates, placements = {}, set()
    for layer in model.layers:
        if not isinstance(layer, Gate):
            continue
        found = block.match(layer.name)
        place = places.get(layer.name[found.end() :]) if found else None
        if found is None or place is None:
            raise UserError(f"{model.name}: the gate {layer.name!r} stands where no placement of a ResNet is")
        gates[int(found[1]), int(found[2])] = layer
        placements.add(place)
    if len(placements) > 1 or len(gates) != sum(isinstance(layer, Gate) for layer in model.layers):
        raise UserError(f"{model.name}: a ResNet has one gate a block, all at one place; here are several")
    return gates, placements.pop() if placements else "standard"


def _gate_arguments(gates: dict[tuple[int, int], Gate], depths: tuple[int, ...], placement: str) -> dict[str, Any]:
    """The gates' text, placement and stages.

    Raises:
        ValueError: no network of this kind has its gates so.
    """
    if not gates:
        return {}
    texts = {gate.text for gate in gates.values()}
    stages = sorted({stage for stage, _ in gates})
    if len(texts) > 1:
        raise UserError(f"gates differ from block to block: {', '.join(sorted(texts))}")
    if set(gates) != {(stage, block) for stage in stages for block in range(depths[stage - 1])}:
        raise UserError("some blocks of a stage have gates, some not: a ResNet has them in whole stages")
    everywhere = len(stages) == len(depths)
    return {"gate": texts.pop(), "placement": placement, "stages": None if everywhere else tuple(stages)}


def _placement(model: Any, bottleneck: bool, block: tuple[int, int]) -> str:
    """Where in its block the gate stands, by what it reads and who reads it."""
    graph, prefix = Graph(model), f"layer{block[0]}_{block[1]}_"
    node = next(n for n in graph.nodes if n.name == f"{prefix}gate")
    (read,) = node.inputs
    last = 3 if bottleneck else 2
    known = {f"{prefix}bn{last}": "standard", f"{prefix}relu{last - 1}": "inner", f"{prefix}out": "post"}
    source = graph.nodes[read].name
    if source in known:
        return known[source]
    readers = _names(graph, graph.consumers[node.index])
    return "identity" if f"{prefix}add" in readers else "pre"


def _names(graph: Graph, nodes: list[int]) -> Iterator[str]:
    return (graph.nodes[n].name for n in nodes)
