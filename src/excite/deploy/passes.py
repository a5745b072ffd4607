"""The rewriting of ``fuse``: patterns in a graph of layers, each replaced by one layer."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from excite.deploy.activations import ACTIVATION_NONE, Activation, activation_of
from excite.deploy.layers import ConvOfGated, FusedConv, GatedConv, GateInPlace
from excite.gates import Gate
from excite.graph.functional import layered

__all__ = ["Fusion"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_ADDS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_ACTIVATIONS: dict[Any, Activation] = {
    F.relu: Activation("relu"), torch.relu: Activation("relu"), torch.relu_: Activation("relu"),
    "relu": Activation("relu"), "relu_": Activation("relu"), F.silu: Activation("silu"),
    F.hardswish: Activation("hard_swish"), F.hardsigmoid: Activation("hard_sigmoid"),
    F.relu6: Activation("clamp", (0.0, 6.0)), torch.sigmoid: Activation("sigmoid"), torch.tanh: Activation("tanh"),
}  # fmt: skip


class Fusion:
    """Rewrites a graph in place.

    Args:
        network: the graph of a network in eval mode, its gates layers of their own; its nodes say their shapes
            (``fx.passes.shape_prop``).

    Attributes:
        gates: name, text, fate and reason of each gate, in the order of execution.
        norms_folded, activations, additions: how many became part of something else.
        norms_left: names of the norms that did not, each with the reason.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        self.network = network
        self.graph = network.graph
        self.gates: list[tuple[str, str, str, str]] = []
        self.norms_left: list[tuple[str, str]] = []
        self.norms_folded = self.activations = self.additions = 0

    def run(self) -> None:
        """Every pattern, in the order in which they build on each other."""
        rewrites: tuple[Callable[[fx.Node], None], ...] = (
            self._drop_idle,
            self._split_norm,
            self._fold_norm,
            self._take_conv,
            self._take_activation,
            self._take_gate,
            self._take_addition,
            self._add_in_place,
            self._take_activation,
            self._write_over,
        )
        for rewrite in rewrites:
            for node in list(self.graph.nodes):
                if not node._erased:
                    rewrite(node)
        self.graph.lint()
        self.network.delete_all_unused_submodules()
        self.network.recompile()

    # --- one pattern each ---

    def _drop_idle(self, node: fx.Node) -> None:
        """What does nothing at inference."""
        idle = type(self._layer(node)) in _IDLE
        if node.op == "call_function" and getattr(node.target, "__name__", "") in ("dropout", "stochastic_depth"):
            training = node.kwargs.get("training", node.args[-1] if len(node.args) > 1 else True)
            idle = training is False
        if idle:
            self._replace(node, node.all_input_nodes[0])

    def _split_norm(self, node: fx.Node) -> None:
        """A norm with its activation inside becomes a norm and an activation."""
        layer = self._layer(node)
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm) or type(layer) in _NORMS:
            return
        parts = _norm_and_activation(layer, len(self._shape(node)) - 2)
        if parts is None:
            self.norms_left.append((str(node.target), f"{type(layer).__name__} is not batch norm and an activation"))
            return
        norm, act = parts
        with self.graph.inserting_before(node):
            new = self._call(node, norm, "norm", node.args[0])
            if act is not None:
                new = self._call(node, act, "act", new)
        self._replace(node, new)

    def _fold_norm(self, node: fx.Node) -> None:
        norm = self._layer(node)
        if type(norm) not in _NORMS:
            return
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        before = node.args[0]
        assert isinstance(before, fx.Node)
        conv = self._layer(before)
        if norm.running_mean is None or norm.running_var is None:
            self.norms_left.append((str(node.target), "it keeps no running statistics"))
        elif not _fusable(conv) or norm._forward_hooks:
            self.norms_left.append((str(node.target), "it does not follow a convolution"))
        elif len(before.users) > 1:
            self.norms_left.append((str(node.target), "the convolution before it is read by others too"))
        else:
            folded = _folded(conv, norm)
            with self.graph.inserting_before(node):
                new = self._call(before, folded, "", before.args[0])
            self._replace(node, new)
            self.graph.erase_node(before)
            self.norms_folded += 1

    def _take_conv(self, node: fx.Node) -> None:
        conv = self._layer(node)
        if _fusable(conv) and not node.kwargs:
            assert isinstance(conv, _CONVS)
            with self.graph.inserting_before(node):
                new = self._call(node, FusedConv(conv), "", node.args[0])
            self._replace(node, new)

    def _take_activation(self, node: fx.Node) -> None:
        """An activation becomes part of the convolution or tail that makes its map."""
        act = self._activation(node)
        before = node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None
        if act is None or before is None or len(before.users) > 1:
            return
        layer = self._layer(before)
        if isinstance(layer, FusedConv) and layer.act == ACTIVATION_NONE:
            layer.act = act
            self._replace(node, before)
            self.activations += 1

    def _take_gate(self, node: fx.Node) -> None:
        gate = self._layer(node)
        if not isinstance(gate, Gate):
            return
        before = node.args[0]
        assert isinstance(before, fx.Node)
        made_by = self._layer(before)
        said = (str(node.target), str(gate.config))
        if len(before.users) > 1:
            self.gates.append((*said, "left", "its map is read by others too"))
        elif type(made_by) is FusedConv and made_by.act == ACTIVATION_NONE and len(before.args) == 1:
            gated = GatedConv(made_by, gate)
            with self.graph.inserting_before(node):
                new = self._call(before, gated, "", before.args[0])
            self._replace(node, new)
            self.graph.erase_node(before)
            self.gates.append((*said, "squeeze ahead" if gated.ahead else "tail", ""))
        elif isinstance(made_by, FusedConv) and (reader := self._only_pointwise(node)) is not None:
            conv = self._layer(reader)
            assert isinstance(conv, FusedConv)
            with self.graph.inserting_before(reader):
                new = self._call(reader, ConvOfGated(conv, gate), "", before)
            self._replace(reader, new)
            self.graph.erase_node(node)
            self.gates.append((*said, "in the next convolution", ""))
        elif isinstance(made_by, FusedConv) or before.target in (torch.cat, torch.concat):
            with self.graph.inserting_before(node):
                new = self._call(node, GateInPlace(gate), "", before)
            self._replace(node, new)
            self.gates.append((*said, "in place", ""))
        else:
            self.gates.append((*said, "left", "its map is not made by a convolution"))

    def _only_pointwise(self, node: fx.Node) -> fx.Node | None:
        """The 1x1 convolution that alone reads a map, if one does."""
        readers = list(node.users)
        layer = self._layer(readers[0]) if len(readers) == 1 else None
        single = type(layer) is FusedConv and layer.pointwise and readers[0].args == (node,)
        return readers[0] if single else None

    def _take_addition(self, node: fx.Node) -> None:
        """A residual addition becomes part of the convolution or tail that makes the branch."""
        operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
        if node.target not in _ADDS or len(operands) != 2 or len(node.args) != 2 or node.kwargs:
            return
        if operands[0] is operands[1] or self._shape(operands[0]) != self._shape(operands[1]):
            return
        branch = self._branch(node, operands)
        if branch is None:
            return
        shortcut = operands[1] if branch is operands[0] else operands[0]
        if _writes(node) and branch is not operands[0] and len(shortcut.users) > 1:
            return  # others read what it wrote over
        with self.graph.inserting_before(node):
            new = self.graph.call_module(str(branch.target), (branch.args[0], shortcut))
            new.meta = dict(node.meta)
        self._replace(node, new)
        self.graph.erase_node(branch)
        self.additions += 1

    def _add_in_place(self, node: fx.Node) -> None:
        """An addition to what nobody else reads needs no memory of its own."""
        if node.target not in (operator.add, torch.add) or len(node.args) != 2 or node.kwargs:
            return
        own = [a for a in node.args if isinstance(a, fx.Node) and isinstance(self._layer(a), FusedConv)]
        own = [a for a in own if len(a.users) == 1 and self._shape(a) == self._shape(node)]
        if own:
            node.target = operator.iadd
            node.args = (own[0], next(a for a in node.args if a is not own[0]))

    def _branch(self, node: fx.Node, operands: list[fx.Node]) -> fx.Node | None:
        """The operand whose convolution can take the other one in: a gated one, else the later."""
        order = {n: i for i, n in enumerate(self.graph.nodes)}
        found = []
        for operand in operands:
            layer = self._layer(operand)
            if not isinstance(layer, FusedConv) or layer.act != ACTIVATION_NONE or len(operand.args) != 1:
                continue
            source = operand.args[0]
            assert isinstance(source, fx.Node)
            # The convolution moves to where the addition is: nobody may write its input meanwhile.
            written = any(
                _writes(user) and user.args[0] is source and order[operand] < order[user] < order[node]
                for user in source.users
            )
            if len(operand.users) == 1 and not written:
                found.append(operand)
        return max(found, key=lambda n: (isinstance(self._layer(n), GatedConv), order[n]), default=None)

    def _write_over(self, node: fx.Node) -> None:
        """The shortcut's memory takes the sum where nobody reads the shortcut afterwards."""
        layer = self._layer(node)
        if not isinstance(layer, FusedConv) or len(node.args) != 2:
            return
        shortcut = node.args[1]
        assert isinstance(shortcut, fx.Node)
        source = node.args[0]
        assert isinstance(source, fx.Node)
        # Both fresh from a convolution, and two: what is read while the sum is written may not lie in its memory.
        apart = source is not shortcut and all(isinstance(self._layer(n), FusedConv) for n in (source, shortcut))
        order = {n: i for i, n in enumerate(self.graph.nodes)}
        layer.in_place = apart and max(order[user] for user in shortcut.users) == order[node]

    # --- small things ---

    def _layer(self, node: fx.Node) -> nn.Module | None:
        return layered(self.network, node)

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        meta = node.meta.get("tensor_meta")
        return tuple(getattr(meta, "shape", ()))

    def _activation(self, node: fx.Node) -> Activation | None:
        layer = self._layer(node)
        if layer is not None:
            return activation_of(layer)
        if node.op not in ("call_function", "call_method") or len(node.args) != 1:
            return None
        if not set(node.kwargs) <= {"inplace"}:
            return None
        return _ACTIVATIONS.get(node.target)

    def _call(self, like: fx.Node, module: nn.Module, suffix: str, *args: Any) -> fx.Node:
        """A node that calls a new layer, named after the one whose place it takes."""
        name = str(like.target) + (f"_{suffix}" if suffix else "")
        if not suffix and sum(n.target == like.target for n in self.graph.nodes) > 1:
            name += f"_call{sum(n.target == like.target for n in self.graph.nodes)}"
        self.network.set_submodule(name, module.eval())
        node = self.graph.call_module(name, args)
        node.meta = dict(like.meta)
        return node

    def _replace(self, node: fx.Node, new: fx.Node) -> None:
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)


def _writes(node: fx.Node) -> bool:
    """Whether an operation writes over its first operand; layers say so themselves."""
    if node.target is operator.iadd or node.kwargs.get("inplace") is True:
        return True
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op == "call_module":
        layer = layered(node.graph.owning_module, node) if node.graph.owning_module is not None else None
        return bool(getattr(layer, "inplace", False))
    return False


def _fusable(module: nn.Module | None) -> bool:
    return (
        type(module) in _CONVS
        and isinstance(module, _CONVS)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


@torch.no_grad()
def _folded(conv: Any, norm: Any) -> nn.Module:
    """The convolution with the norm in it, worked out in float64."""
    dtype = conv.weight.dtype
    both = (copy.deepcopy(conv).double().eval(), copy.deepcopy(norm).double().eval())
    folded: nn.Module = fuse_conv_bn_eval(*both).to(dtype)
    return folded


@torch.no_grad()
def _norm_and_activation(
    layer: nn.modules.batchnorm._BatchNorm, axes: int
) -> tuple[nn.Module, nn.Module | None] | None:
    """A norm of another class as plain batch norm and what follows it, if that is all it does at inference."""
    like: Tensor | None = layer.running_mean
    if like is None or not 1 <= axes <= 3:
        return None
    norm = _NORMS[axes - 1](
        layer.num_features, eps=layer.eps, affine=layer.affine, device=like.device, dtype=like.dtype
    )
    own = norm.state_dict()
    norm.load_state_dict({key: value for key, value in layer.state_dict().items() if key in own})
    act = getattr(layer, "act", None)
    act = act if isinstance(act, nn.Module) and not isinstance(act, nn.Identity) else None
    x = torch.randn(2, layer.num_features, *(3,) * axes, generator=torch.Generator().manual_seed(0)).to(like)
    norm.eval()
    y = norm(x)
    same = torch.allclose(layer(x.clone()), y if act is None else act(y), rtol=1e-5, atol=1e-6)
    return (norm, act) if same else None
