"""A functional model read as a graph: which operation reads what, residual joins, and gates that stand there already.

The graph is the one that Keras writes into a model's config. A *join* is a residual addition: one operand, the
*branch*, has been through more convolutions since the two parted than the other, the *shortcut*, which is the earlier
map itself or a projection of it (as in ``excite.graph``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras

from excite.errors import UserError
from excite_keras.gates import Gate

__all__ = ["ACTIVATIONS", "NORMS", "PASSING", "Graph", "Join", "Node", "is_a"]

# Classes by name, for those of ``keras.ops`` have no public place. Layers that mix channels:
CONVS = frozenset(
    """Conv1D Conv2D Conv3D DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D Conv1DTranspose
    Conv2DTranspose Conv3DTranspose Dense EinsumDense Conv DepthwiseConv SeparableConv ConvTranspose Matmul
    Einsum""".split()
)
NORMS = frozenset("BatchNormalization LayerNormalization GroupNormalization RMSNormalization UnitNormalization".split())
ACTIVATIONS = frozenset(
    """Activation ReLU LeakyReLU PReLU ELU Relu Relu6 Silu Gelu Sigmoid HardSigmoid HardSilu Tanh LeakyRelu Elu Selu
    Celu Softplus Clip""".split()
)
POOLS = frozenset(
    """GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D
    GlobalMaxPooling3D AveragePooling1D AveragePooling2D AveragePooling3D Mean Max Amax Sum""".split()
)
# Hand a map on, scaled by a parameter or by chance; the last two are those of keras.applications' ConvNeXt.
PASSING = frozenset(
    """Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianDropout AlphaDropout Identity Rescaling
    ActivityRegularization LayerScale StochasticDepth""".split()
)
# The last is keras.applications' Inception-ResNet's: shortcut + scale * branch.
_ADDS = frozenset({"Add", "CustomScaleLayer"})
_PRODUCTS = frozenset({"Multiply"})

# A projection is one convolution; a few networks pool, norm or have two.
_MOST_SHORTCUT_CONVS = 2


@dataclass(frozen=True)
class Node:
    """One call of an operation.

    Attributes:
        index: its place in the order of execution; the value it makes has the same number.
        operation: the layer, or the operation of ``keras.ops``.
        inputs: the values it reads, in the order of its arguments.
        shape: of the value it makes, with the batch; None where that is no single tensor.
        calls: how many times the model calls the operation.
    """

    index: int
    operation: Any
    inputs: tuple[int, ...]
    shape: tuple[int | None, ...] | None
    calls: int

    @property
    def name(self) -> str:
        """The operation's name."""
        return str(self.operation.name)


@dataclass(frozen=True)
class Join:
    """A residual addition.

    Attributes:
        node: the addition.
        branch, shortcut: its operands, values.
        fork: the last value that both are computed from.
    """

    node: int
    branch: int
    shortcut: int
    fork: int


def is_a(node: Node, kinds: frozenset[str]) -> bool:
    """Whether an operation is of one of these classes, or of one made of them."""
    return any(kind.__name__ in kinds for kind in type(node.operation).__mro__)


class Graph:
    """What a functional model computes, call by call.

    Args:
        model: a functional model.
    """

    def __init__(self, model: Any) -> None:
        self.nodes = list(_nodes(model))
        self.consumers: list[list[int]] = [[] for _ in self.nodes]
        self.ancestors: list[int] = []
        for node in self.nodes:
            bits = 1 << node.index
            for value in node.inputs:
                self.consumers[value].append(node.index)
                bits |= self.ancestors[value]
            self.ancestors.append(bits)
        self._conv_bits = sum(1 << node.index for node in self.nodes if is_a(node, CONVS))

    @cached_property
    def data_format(self) -> str:
        """Where the channels are, as the model's layers say; Keras' setting where none does.

        Raises:
            ValueError: some layers say so, some otherwise.
        """
        said = {str(f) for node in self.nodes if (f := getattr(node.operation, "data_format", None)) is not None}
        if len(said) > 1:
            raise UserError(f"some layers are channels_first, some channels_last; gates need one of {sorted(said)}")
        return said.pop() if said else str(keras.config.image_data_format())

    def channels(self, value: int) -> int | None:
        """How many channels a value has; None where it is no map."""
        shape = self.nodes[value].shape
        if shape is None or not 3 <= len(shape) <= 5:
            return None
        return shape[-1] if self.data_format == "channels_last" else shape[1]

    def size(self, value: int) -> tuple[int | None, ...]:
        """The spatial axes of a map."""
        shape = self.nodes[value].shape
        assert shape is not None
        return shape[1:-1] if self.data_format == "channels_last" else shape[2:]

    def positions(self, value: int) -> int | None:
        """How many positions a map has; None where the model leaves that open."""
        size = self.size(value)
        return None if None in size else math.prod(side for side in size if side is not None)

    @cached_property
    def convs(self) -> list[Node]:
        """Convolutions proper: with a kernel, over a map."""
        return [n for n in self.nodes if hasattr(n.operation, "kernel_size") and self.channels(n.index) is not None]

    # --- joins ---

    @cached_property
    def joins(self) -> list[Join]:
        """The residual additions, in the order of execution."""
        return [join for node in self.nodes if is_a(node, _ADDS) and (join := self._join(node)) is not None]

    def _join(self, node: Node) -> Join | None:
        if len(node.inputs) != 2 or node.inputs[0] == node.inputs[1] or self.channels(node.index) is None:
            return None
        a, b = node.inputs
        common = self.ancestors[a] & self.ancestors[b]
        if self.nodes[a].shape != self.nodes[b].shape or not common:
            return None
        fork = common.bit_length() - 1
        since = ~self.ancestors[fork]
        convs = [(self.ancestors[v] & since & self._conv_bits).bit_count() for v in (a, b)]
        if convs[0] == convs[1] or min(convs) > _MOST_SHORTCUT_CONVS:
            return None
        branch, shortcut = (a, b) if convs[0] > convs[1] else (b, a)
        return Join(node.index, branch, shortcut, fork) if self._is_private(branch, fork) else None

    def _is_private(self, value: int, fork: int) -> bool:
        """Whether, back to the last convolution or norm, nobody else reads what the addition reads."""
        for current in self.walk_back(value):
            if current == fork or (len(self.consumers[current]) != 1 and current not in self._squeezed):
                return False
        return True

    def walk_back(self, value: int, *, through: frozenset[str] | None = None) -> Iterator[int]:
        """The value and those before it, through one operand each, up to a convolution's, norm's or pool's output.

        Gates are walked through, from what they return to what they take.

        Args:
            value: where to begin.
            through: walk through gates and these operations only; None for all that read one value.
        """
        while True:
            yield value
            node = self.nodes[value]
            if value in self.gates:
                value = self.gates[value]
            elif len(node.inputs) != 1 or is_a(node, CONVS | NORMS | POOLS):
                return
            elif through is not None and not is_a(node, through) and not _is_linear(node):
                return
            else:
                value = node.inputs[0]

    # --- gates that the model has ---

    @cached_property
    def gates(self) -> dict[int, int]:
        """What channel gates give, with what they take: ours, and products of a map with a scale pooled from it."""
        found = {}
        for node in self.nodes:
            if isinstance(node.operation, Gate):
                found[node.index] = node.inputs[0]
            elif is_a(node, _PRODUCTS) and len(node.inputs) == 2:
                for u, s in (node.inputs, node.inputs[::-1]):
                    if self._is_scale(s, u):
                        found[node.index] = u
        return found

    @cached_property
    def _squeezed(self) -> set[int]:
        return set(self.gates.values())

    def _is_scale(self, s: int, u: int) -> bool:
        """Whether s is computed from u through a pool, and has no positions."""
        if self.channels(u) is None or not self.ancestors[s] >> u & 1:
            return False
        pooled = self.nodes[s].shape is not None and len(self.nodes[s].shape or ()) == 2
        flat = pooled or (self.channels(s) is not None and set(self.size(s)) <= {1})
        between = self.ancestors[s] & ~self.ancestors[u]
        return flat and any(is_a(n, POOLS) for n in self.nodes if between >> n.index & 1)


def _is_linear(node: Node) -> bool:
    """Whether it is an activation that does nothing, as keras.applications writes where others drop paths."""
    own = getattr(node.operation, "activation", None)
    return is_a(node, frozenset({"Activation"})) and getattr(own, "__name__", "") == "linear"


# --- reading a config ---

Key = tuple[str, int]


def _nodes(model: Any) -> Iterator[Node]:
    """The calls in an order in which they can be made."""
    config = model.get_config()
    operations = {operation.name: operation for operation in model.operations}
    shapes: dict[Key, Any] = {}
    waiting: list[tuple[Key, list[Key]]] = []
    for layer in config["layers"]:
        calls = [[_read(tensor, shapes) for tensor in _tensors(call)] for call in layer["inbound_nodes"]]
        waiting += [((layer["name"], i), read) for i, read in enumerate(calls or [[]])]
    for (name, call, which), tensor in zip(_histories(config["output_layers"]), model.outputs, strict=True):
        # Here alone Keras counts the calls of a model within the model from 1, its first node being its own.
        _note(shapes, (name, call - isinstance(operations[name], keras.Function)), which, tensor.shape)
    counts = Counter(name for (name, _), _ in waiting)
    places: dict[Key, int] = {}
    while waiting:
        # In the config's order as far as it goes: a shared layer's later calls wait for what they read.
        at = next(i for i, (_, read) in enumerate(waiting) if all(key in places for key in read))
        key, read = waiting.pop(at)
        places[key] = len(places)
        inputs = tuple(places[k] for k in read)
        yield Node(places[key], operations[key[0]], inputs, shapes.get(key), counts[key[0]])


def _tensors(data: Any) -> Iterator[dict[str, Any]]:
    """The tensors in a call's arguments, as Keras writes them, in the order in which it flattens them."""
    if isinstance(data, dict):
        if data.get("class_name") == "__keras_tensor__":
            yield data["config"]
        else:
            for key in sorted(data):
                yield from _tensors(data[key])
    elif isinstance(data, list | tuple):
        for item in data:
            yield from _tensors(item)


def _read(tensor: dict[str, Any], shapes: dict[Key, Any]) -> Key:
    name, call, which = tensor["keras_history"]
    _note(shapes, (name, call), which, tensor["shape"])
    return name, call


def _note(shapes: dict[Key, Any], key: Key, which: int, shape: Any) -> None:
    # Of several outputs none is the value.
    shapes[key] = None if which or (key in shapes and shapes[key] is None) else tuple(shape)


def _histories(data: Any) -> Iterator[tuple[str, int, int]]:
    if isinstance(data, list | tuple) and len(data) == 3 and isinstance(data[0], str):
        yield data[0], data[1], data[2]
    elif isinstance(data, dict):
        for key in sorted(data):
            yield from _histories(data[key])
    else:
        for item in data:
            yield from _histories(item)
