"""What a recorded network is made of: residual joins with their branch and shortcut, gates, convolutions, and anchors.

A *join* is a residual addition: one operand, the *branch*, has been through more convolutions since the two parted
than the other, the *shortcut*, which is the earlier map itself or a projection of it. Additions of other kinds (of
pyramids, of parallel convolutions, of positions) are no joins.

An *anchor* is a place where a module's input or output is one given value and nothing else: what is hung there sees
this value and replaces it for all who read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from excite.graph.layout import channel_axes
from excite.graph.record import Call, Node, Recording

__all__ = ["Anchor", "FoundGate", "Join", "View"]

# Layers that mix channels: where a branch's last one stands, its map is made.
CONVS = frozenset({"convolution", "_convolution", "mm", "addmm", "bmm", "baddbmm"})
NORMS = frozenset(
    """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
    native_layer_norm native_group_norm""".split()
)
ACTIVATIONS = frozenset(
    """relu silu gelu sigmoid hardsigmoid hardswish tanh hardtanh leaky_relu elu mish clamp clamp_min clamp_max
    softplus _prelu_kernel""".split()
)
# Take a map's positions together.
POOLS = frozenset("mean sum amax amin max var std _adaptive_avg_pool2d avg_pool2d linalg_vector_norm".split())
# Multiply a map by a number or a parameter, or hand it on.
SCALES = frozenset({"mul", "div", "alias"})
_ADDS = frozenset({"add", "addcmul"})

# Run their children one after the other, or hand them out: a child more would be one layer more.
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# A projection is one convolution; a few networks pool, norm or have two.
_MOST_SHORTCUT_CONVS = 2


@dataclass(frozen=True)
class Anchor:
    """The input ("in") or the output ("out") of a module that is called once."""

    module: str
    side: str


@dataclass(frozen=True)
class Join:
    """A residual addition.

    Attributes:
        node: the addition.
        branch, shortcut: its operands, values.
        fork: the last value that both are computed from.
        module: the module whose own forward adds.
        shape: of the sum.
    """

    node: int
    branch: int
    shortcut: int
    fork: int
    module: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FoundGate:
    """A channel gate that the network has: u times a scale [N, C, 1, ...] that is computed from u's positions.

    Attributes:
        module: the module that takes u and returns the product; "" where no module does.
        u, y: the values before and after.
    """

    module: str
    u: int
    y: int


class View:
    """A recording, read.

    Args:
        recording: of the network.
        model: the network, for what its modules are.
    """

    def __init__(self, recording: Recording, model: nn.Module) -> None:
        self.recording = recording
        self.values, self.nodes, self.calls = recording.values, recording.nodes, recording.calls
        self.modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._conv_bits = self._bits(CONVS)

    # --- joins ---

    @cached_property
    def joins(self) -> list[Join]:
        """The residual additions, in the order of execution."""
        return [join for node in self.nodes if node.op in _ADDS and (join := self._join(node)) is not None]

    def _join(self, node: Node) -> Join | None:
        maps = [v for v in node.inputs if not self.values[v].weight and self.is_map(v)]
        if len(maps) != 2 or maps[0] == maps[1]:
            return None
        a, b = maps
        if self.values[a].shape != self.values[b].shape:
            return None
        common = self._made(a) & self._made(b)
        if not common:
            return None
        fork = common.bit_length() - 1
        since = ~self.values[fork].ancestors
        convs = [(self.values[v].ancestors & since & self._conv_bits).bit_count() for v in maps]
        if convs[0] == convs[1]:
            return None
        branch, shortcut = (a, b) if convs[0] > convs[1] else (b, a)
        if min(convs) > _MOST_SHORTCUT_CONVS or not self._is_private(branch, fork):
            return None
        return Join(node.index, branch, shortcut, fork, node.module, self.values[node.output].shape)

    def _made(self, value: int) -> int:
        """A value's ancestors that depend on the network's input."""
        return self.values[value].ancestors & self._flowing

    @cached_property
    def _flowing(self) -> int:
        return self._set(v.index for v in self.values if not v.weight)

    def _is_private(self, value: int, fork: int) -> bool:
        """Whether, back to the last convolution or norm, nobody else reads what the addition reads."""
        for current in self.walk_back(value):
            if current == fork:
                return False
            if not self._read_once(current):
                return False
        return True

    def _read_once(self, value: int) -> bool:
        return len(self.values[value].consumers) == 1 or value in self._squeezed

    @cached_property
    def _squeezed(self) -> set[int]:
        """Values that only a gate reads: to squeeze them, and to scale them."""
        return {gate.u for gate in self.gates}

    def walk_back(self, value: int, *, through: frozenset[str] | None = None) -> Iterator[int]:
        """The value and those before it, through one operand each, up to a convolution's, norm's or pool's output.

        Gates are walked through, from what they return to what they take.

        Args:
            value: where to begin.
            through: walk through gates and these operations only; None for all that read one value that is no weight.
        """
        while True:
            yield value
            node, gate = self.node_of(value), self.gate_of.get(value)
            if node is None or node.op in CONVS or node.op in NORMS or node.op in POOLS:
                return
            operands = [gate.u] if gate is not None else [v for v in node.inputs if not self.values[v].weight]
            # sum() begins with 0 + its first.
            passes = (
                gate is not None or through is None or node.op in through or (node.op == "add" and not node.inputs[1:])
            )
            if len(operands) != 1 or not passes:
                return
            value = operands[0]

    # --- gates ---

    @cached_property
    def gates(self) -> list[FoundGate]:
        """The channel gates, of whatever library, in the order of execution."""
        return [gate for node in self.nodes if node.op == "mul" and (gate := self._gate(node)) is not None]

    @cached_property
    def gate_of(self) -> dict[int, FoundGate]:
        """The gates by what they return."""
        return {gate.y: gate for gate in self.gates}

    def _gate(self, node: Node) -> FoundGate | None:
        if len(node.inputs) != 2:
            return None
        for u, s in (node.inputs, node.inputs[::-1]):
            if not self.is_map(u) or self.values[s].weight or not self._is_scale(s, self.values[u].shape):
                continue
            since = self.values[s].ancestors & ~self.values[u].ancestors
            if self.values[s].ancestors >> u & 1 and since & self._pool_bits and not since & self._wide_conv_bits:
                return FoundGate(self._gate_module(u, node), u, node.output)
        return None

    def _is_scale(self, s: int, shape: tuple[int, ...]) -> bool:
        node = self.node_of(s)
        other = self.values[node.inputs[0] if node is not None and node.op == "expand" else s].shape
        return len(other) == len(shape) and other[:2] == shape[:2] and math.prod(other[2:]) == 1

    @cached_property
    def _pool_bits(self) -> int:
        return self._bits(POOLS)

    @cached_property
    def _wide_conv_bits(self) -> int:
        """Convolutions over positions: a gate has none after its squeeze. ECA's runs over channels, and gives one."""
        shapes = ((n.output, self.values[n.output].shape) for n in self.nodes if n.op in CONVS)
        return self._set(value for value, shape in shapes if math.prod(shape[2:]) > 1 and shape[1] > 1)

    def _gate_module(self, u: int, node: Node) -> str:
        """The innermost module that was given u, and ran the product as the last of its operations."""
        best, depth = "", -1
        for call in self.calls:
            if call.inputs == (u,) and call.outputs == (node.output,) and call.depth > depth:
                best, depth = call.module, call.depth
        return best

    # --- convolutions and what follows them ---

    def activated(self, conv: Node) -> list[int]:
        """The value after a convolution, its norm and its activation, then that times each scale that follows; or none.

        Norms and activations are followed as long as nobody else reads what lies between.
        """
        value = conv.output
        while True:
            readers = [self.nodes[i] for i in self.values[value].consumers]
            if len(readers) != 1:
                product = self._own_activation(readers)
                return [] if product is None else [product]
            if readers[0].op not in ACTIVATIONS | NORMS | {"alias"}:
                return []
            value = readers[0].output
            if readers[0].op in ACTIVATIONS:
                return [value, *self._scaled(value)]

    def _own_activation(self, readers: list[Node]) -> int | None:
        """x * sigmoid(x) from the two that read x, as some write out an activation."""
        if len(readers) == 2 and readers[1].op == "mul" and readers[0].op in ACTIVATIONS:
            return readers[1].output if readers[0].output in readers[1].inputs else None
        return None

    def _scaled(self, value: int) -> Iterator[int]:
        while len(self.values[value].consumers) == 1:
            reader = self.nodes[self.values[value].consumers[0]]
            if reader.op not in SCALES or any(v != value and not self.values[v].weight for v in reader.inputs):
                return
            value = reader.output
            yield value

    @cached_property
    def convs(self) -> list[Node]:
        """Convolutions proper: with a kernel, over a map."""
        return [n for n in self.nodes if n.kernel and self.is_map(n.output) and self.is_map_shape(n.output)]

    # --- anchors ---

    def anchor(self, *values: int) -> Anchor | None:
        """Where a gate can hang for the first of these values for which it can.

        It hangs on a module that returns the value, of several on the outermost, so that norms inside it may be
        replaced; else on the one module that takes it. Values that differ only by modules that do nothing are one.
        """
        for run in self._runs(values):
            made = [c for value in run for c in self._makers(value) if self.why_not(c, "out") is None]
            if made:
                return Anchor(min(made, key=lambda c: c.depth).module, "out")
            for value in run:
                for call in self._taking.get(value, ()):
                    if self.why_not(call, "in") is None and self._is_only_reader(call, value):
                        return Anchor(call.module, "in")
        return None

    def _runs(self, values: tuple[int, ...]) -> list[list[int]]:
        """The values in runs, each value of a run being the one before it, out of an ``nn.Identity``."""
        runs: list[list[int]] = []
        for value in values:
            node = self.node_of(value)
            idle = node is not None and node.op == "alias" and type(self.modules.get(node.module)) is nn.Identity
            if runs and idle and node is not None and node.inputs[0] == runs[-1][-1]:
                runs[-1].append(value)
            else:
                runs.append([value])
        return runs

    def _makers(self, value: int) -> list[Call]:
        node = self.values[value].node
        calls = self._returning.get(value, ())
        return [] if node is None else [call for call in calls if call.start <= node < call.end]

    def _is_only_reader(self, call: Call, value: int) -> bool:
        return all(call.start <= node < call.end for node in self.values[value].consumers)

    @cached_property
    def _returning(self) -> dict[int, list[Call]]:
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            if len(call.outputs) == 1:
                found.setdefault(call.outputs[0], []).append(call)
        return found

    @cached_property
    def _taking(self) -> dict[int, list[Call]]:
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            if len(call.inputs) == 1:
                found.setdefault(call.inputs[0], []).append(call)
        return found

    def why_not(self, call: Call, side: str) -> str | None:
        """Why no gate can hang on this side of the module of this call, or None if one can."""
        module = self.modules.get(call.module)
        if call.module == "" or module is None:
            return "it is the network itself"
        if side == "out" and not call.returns_one:
            return "it returns something else than one tensor"
        if side == "in" and not call.takes_one:
            return "it takes something else than one tensor"
        if self._counts[call.module] > 1:
            return f"it is called {self._counts[call.module]} times in a forward pass"
        if isinstance(module, CONTAINERS):
            return "it is a container, and would run the gate as one more of its layers"
        if type(module).__module__.startswith(("torch.ao.", "torch.jit")):
            return "it is quantised or scripted"
        return None

    def obstacle(self, *values: int) -> str | None:
        """Why no gate can hang on the innermost module that returns one of these values, with the module's name."""
        for call in (call for value in values for call in reversed(self._makers(value)) if call.module):
            return f"{call.module}: {self.why_not(call, 'out')}"
        return None

    def called_as(self, name: str) -> str:
        """The name by which calls of the module of this dotted name are listed, where it has several."""
        return self._first_names[id(self.modules[name])]

    @cached_property
    def _first_names(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for name, module in self.modules.items():
            names.setdefault(id(module), name)
        return names

    @cached_property
    def _counts(self) -> dict[str, int]:
        """Calls of each module object, under each of its names."""
        calls: dict[int, int] = {}
        for call in self.calls:
            key = id(self.modules.get(call.module))
            calls[key] = calls.get(key, 0) + 1
        return {name: calls.get(id(module), 0) for name, module in self.modules.items()}

    # --- small things ---

    def node_of(self, value: int) -> Node | None:
        """The operation that made a value."""
        index = self.values[value].node
        return None if index is None else self.nodes[index]

    def is_map(self, value: int) -> bool:
        """Whether a value has the shape [N, C, *S] of a feature map, with 1 to 3 spatial axes."""
        return 3 <= len(self.values[value].shape) <= 5

    def is_map_shape(self, value: int) -> bool:
        """Whether a map has more than one position."""
        return math.prod(self.values[value].shape[2:]) > 1

    def has_channels_last(self, value: int) -> bool:
        """Whether a value is known to have its channels elsewhere than in axis 1, as transformers' [N, *S, C]."""
        return self._channel_axes[value] not in (None, 1)

    @cached_property
    def _channel_axes(self) -> list[int | None]:
        return channel_axes(self.recording)

    def _bits(self, ops: frozenset[str]) -> int:
        return self._set(node.output for node in self.nodes if node.op in ops)

    @staticmethod
    def _set(indices: Iterator[int] | list[int]) -> int:
        bits = 0
        for index in indices:
            bits |= 1 << index
        return bits
