"""Which weights a factor on the channels of a map can go into, by following the map through a recorded forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from excite.graph import View
from excite.graph.record import Node
from excite.surgery.constants import ChannelScale

__all__ = ["Change", "Stuck", "Weights"]

_CONVS = frozenset({"convolution", "_convolution"})
_BATCH_NORMS = frozenset(
    """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm""".split()
)
_NORMS = _BATCH_NORMS | {"native_group_norm"}
# f(c x) = c f(x), channel by channel, for any c.
_LINEAR = frozenset(
    """alias clone mean sum avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d reflection_pad1d
    reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d
    upsample_trilinear3d""".split()
)
# The same for c >= 0.
_HOMOGENEOUS = frozenset(
    """relu leaky_relu _prelu_kernel amax adaptive_max_pool2d max_pool2d_with_indices max_pool3d_with_indices""".split()
)
_SHAPES = frozenset({"view", "_unsafe_view", "squeeze", "unsqueeze"})
_PRODUCTS = frozenset({"mul", "div"})
_SUMS = frozenset({"add", "sub"})
_LAYERS = frozenset({"mm", "addmm"})


class Stuck(Exception):
    """A factor cannot go on from where it came to; the message says why."""


@dataclass(frozen=True)
class Change:
    """A change of a tensor that was found, not made yet.

    Args:
        module: dotted name of the module whose it is.
        make: makes it.
    """

    module: str
    make: Callable[[], object]


class Weights:
    """The weights of a network by what its recorded forward pass does with them.

    Args:
        view: of a recording of the network as it is.
        model: the network.
    """

    def __init__(self, view: View, model: nn.Module) -> None:
        self.view = view
        # A recording counts parameters and buffers first, in this order.
        self._own = [*model.named_parameters(), *model.named_buffers()]
        modules = dict(model.named_modules())
        self._constants = {
            i for i, (name, _) in enumerate(self._own) if isinstance(modules[name.rpartition(".")[0]], ChannelScale)
        }
        self._returned = {value for call in view.recording.calls_of("") for value in call.outputs}

    # --- behind: what makes a map ---

    def behind(self, value: int, reader: int, c: Tensor) -> list[Change]:
        """What makes a value c times as large.

        Args:
            value: a map [N, C, *S].
            reader: the one operation that may read it.
            c: float64 [C].

        Raises:
            Stuck: no weights can, or something else reads the map.
        """
        node = self.view.node_of(value)
        if node is None or node.output != value:
            raise Stuck("nothing is behind it" if node is None else f"{_said(node)} behind it makes several maps")
        if self.view.values[value].consumers != [reader] or value in self._returned:
            raise Stuck(f"what {_said(node)} gives is read by others too")
        if node.op in _CONVS:
            return self._outputs_of_conv(node, c)
        if node.op in _NORMS:
            return self._outputs_of_norm(node, c)
        if node.op == "cat":
            return self._parts(node, c)
        if node.op in _SUMS:
            return self._terms(node, c)
        if node.op in _PRODUCTS:
            return self._own_factor(node, c) or self.behind(self._flowing(node), node.index, c)
        if self._passes(node, c):
            return self.behind(self._flowing(node), node.index, c)
        raise Stuck(f"no factor goes back through {_said(node)}")

    def _outputs_of_conv(self, node: Node, c: Tensor) -> list[Change]:
        weight = self._tensor(node.inputs[1], node)
        groups, out = node.groups, c.numel()
        if node.transposed:
            factor = c.reshape(groups, 1, out // groups).expand(-1, weight.shape[0] // groups, -1).flatten(0, 1)
        else:
            factor = c[:, None]
        changes = [self._scaled(node.inputs[1], node, factor.reshape(*factor.shape, *(1,) * len(node.kernel)))]
        return changes + [self._scaled(bias, node, c) for bias in node.inputs[2:]]

    def _outputs_of_norm(self, node: Node, c: Tensor) -> list[Change]:
        affine = [v for v in node.inputs[1:3] if v < len(self._own) and isinstance(self._own[v][1], nn.Parameter)]
        if len(affine) != 2:
            raise Stuck(f"{node.module or 'the norm'} has no weight and bias")
        return [self._scaled(v, node, c) for v in affine]

    def _parts(self, node: Node, c: Tensor) -> list[Change]:
        """Each part of a concatenation takes its own channels' factors."""
        changes, start = [], 0
        self._check_channels_joined(node)
        for part in node.inputs:
            channels = self.view.values[part].shape[1]
            changes += self.behind(part, node.index, c[start : start + channels])
            start += channels
        return changes

    def _terms(self, node: Node, c: Tensor) -> list[Change]:
        if len(node.inputs) != 2:
            raise Stuck(f"{_said(node)} behind it is of a number")
        changes = []
        for term in node.inputs:
            if not self.view.values[term].weight:
                changes += self.behind(term, node.index, c)
            else:
                changes.append(self._scaled(term, node, self._along_channels(term, node, c)))
        return changes

    # --- ahead: what reads a map ---

    def ahead(self, value: int, c: Tensor) -> list[Change]:
        """What makes every reader of a value compute from it what it would from c times it.

        Args:
            value: [N, C, *S].
            c: float64 [C].

        Raises:
            Stuck: a reader cannot.
        """
        readers = self.view.values[value].consumers
        if value in self._returned or not readers:
            raise Stuck("the network returns it" if readers or value in self._returned else "nothing reads it")
        return [change for index in dict.fromkeys(readers) for change in self._read(self.view.nodes[index], value, c)]

    def _read(self, node: Node, value: int, c: Tensor) -> list[Change]:
        once = node.inputs.count(value) == 1
        if node.op in _CONVS and once and node.inputs[0] == value:
            return self._inputs_of_conv(node, c)
        if node.op in _BATCH_NORMS and once and node.inputs[0] == value:
            return self._inputs_of_norm(node, c)
        if node.op in _LAYERS and once and value in node.inputs[-2:-1]:
            return self._inputs_of_layer(node, c)
        if node.op == "cat":
            self._check_channels_joined(node)
            others = [(v, self.view.values[v].shape[1]) for v in node.inputs]
            return self.ahead(node.output, torch.cat([c if v == value else c.new_ones(n) for v, n in others]))
        if node.op in _PRODUCTS and once and self._flowing(node) == value:
            return self._own_factor(node, c) or self.ahead(node.output, c)
        if node.op in _SHAPES and once:
            return self.ahead(node.output, self._reshaped(node, c))
        if once and self._passes(node, c):
            return self.ahead(node.output, c)
        raise Stuck(f"{_said(node)} reads it, and can take no factor in")

    def _inputs_of_conv(self, node: Node, c: Tensor) -> list[Change]:
        weight = self._tensor(node.inputs[1], node)
        if node.transposed:
            factor = c[:, None]
        else:
            # Row i of the weight reads the channels of its group.
            rows = torch.arange(len(weight)) // (len(weight) // node.groups)
            factor = c.reshape(node.groups, -1)[rows]
        return [self._scaled(node.inputs[1], node, factor.reshape(*factor.shape, *(1,) * len(node.kernel)))]

    def _inputs_of_layer(self, node: Node, c: Tensor) -> list[Change]:
        """x W^T of a linear layer: W is a parameter, [out, in]."""
        turned = self.view.node_of(node.inputs[-1])
        if turned is None or turned.op not in ("t", "transpose", "permute"):
            raise Stuck(f"{_said(node)} has no weight of its own")
        if len(self.view.values[turned.output].consumers) != 1:
            raise Stuck(f"the weight of {_said(node)} is read by others too")
        return [self._scaled(turned.inputs[0], turned, c[None, :])]

    def _inputs_of_norm(self, node: Node, c: Tensor) -> list[Change]:
        norm = self.view.modules.get(node.module)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            raise Stuck(f"{_said(node)} has no running statistics")
        assert norm.running_var is not None
        if len(self.view.recording.calls_of(node.module)) != 1:
            raise Stuck(f"{node.module} is called several times")
        mean, var, c = norm.running_mean, norm.running_var, c.cpu()
        if not bool((c > 0).all()):
            raise Stuck(f"{_said(node)} takes in positive factors only")
        new_var = (var.cpu().double() + norm.eps) / c.square() - norm.eps
        if not bool((new_var >= 0).all()):
            raise Stuck(f"{_said(node)} would need a negative variance")
        new_mean = mean.cpu().double() / c
        return [Change(node.module, partial(mean.copy_, new_mean)), Change(node.module, partial(var.copy_, new_var))]

    def _reshaped(self, node: Node, c: Tensor) -> Tensor:
        """c for what is left of a map after its axes were put together."""
        before, after = self.view.values[node.inputs[0]].shape, self.view.values[node.output].shape
        if before[:2] == after[:2]:
            return c
        if len(after) == 2 and after[0] == before[0] and after[1] == math.prod(before[1:]):
            return c.repeat_interleave(after[1] // before[1])
        raise Stuck("its channels are put together with other axes")

    # --- both ways ---

    def _passes(self, node: Node, c: Tensor) -> bool:
        """Whether a factor goes through an operation on each channel by itself."""
        shapes = [self.view.values[v].shape for v in (node.inputs[0], node.output)]
        if len(shapes[1]) < 2 or shapes[0][:2] != shapes[1][:2]:
            return False
        return node.op in _LINEAR or node.op in _HOMOGENEOUS and bool((c >= 0).all())

    def _flowing(self, node: Node) -> int:
        """The one operand that is no weight; of a division, the first."""
        flowing = [v for v in node.inputs if not self.view.values[v].weight]
        if len(flowing) != 1:
            raise Stuck(f"{_said(node)} is of two maps")
        if node.op == "div" and flowing[0] != node.inputs[0]:
            raise Stuck(f"{_said(node)} divides by it")
        if self.view.values[flowing[0]].shape != self.view.values[node.output].shape and node.op in _PRODUCTS:
            raise Stuck(f"{_said(node)} changes the shape")
        return flowing[0]

    def _own_factor(self, node: Node, c: Tensor) -> list[Change]:
        """A product with a weight that has one number a channel: that takes the factor in. Else nothing."""
        weights = [v for v in node.inputs if self.view.values[v].weight]
        if node.op != "mul" or len(weights) != 1:
            return []
        try:
            return [self._scaled(weights[0], node, self._along_channels(weights[0], node, c))]
        except Stuck:
            return []

    def _along_channels(self, value: int, node: Node, c: Tensor) -> Tensor:
        """c in the shape of a weight that is spread over a map."""
        shape, dims = self.view.values[value].shape, len(self.view.values[node.output].shape)
        padded = (1,) * (dims - len(shape)) + tuple(shape)
        if padded[1] != c.numel() or math.prod(padded) != c.numel():
            raise Stuck(f"{_said(node)} is with other than one number a channel")
        return c.reshape(shape)

    def _check_channels_joined(self, node: Node) -> None:
        shapes = [self.view.values[v].shape for v in (*node.inputs, node.output)]
        *parts, whole = shapes
        if sum(shape[1] for shape in parts) != whole[1] or any(s[:1] + s[2:] != whole[:1] + whole[2:] for s in parts):
            raise Stuck(f"{_said(node)} joins other axes than channels")

    def _tensor(self, value: int, node: Node) -> Tensor:
        """The parameter or buffer that a value is, if this operation alone reads it."""
        if value >= len(self._own):
            raise Stuck(f"the weight of {_said(node)} is computed anew in every pass")
        if value in self._constants:
            raise Stuck(f"{_said(node)} is a gate's constant, which may be gone by now")
        if self.view.values[value].consumers != [node.index]:
            raise Stuck(f"the weight of {_said(node)} is read by others too")
        return self._own[value][1]

    def _scaled(self, value: int, node: Node, factor: Tensor) -> Change:
        tensor = self._tensor(value, node)
        module = self._own[value][0].rpartition(".")[0]
        return Change(module, partial(_multiply, tensor, factor))


def _multiply(tensor: Tensor, factor: Tensor) -> None:
    # In float64, which not every device has.
    tensor.copy_(tensor.cpu().double() * factor.cpu())


_NAMES = {
    **dict.fromkeys(_CONVS, "the convolution"), **dict.fromkeys(_NORMS, "the norm"), "cat": "the concatenation",
    "add": "the addition", "sub": "the subtraction", "mul": "the product", "div": "the quotient", "relu": "ReLU",
    "silu": "SiLU", "gelu": "GELU", "hardswish": "hard swish", "hardtanh": "the clamp", "clamp": "the clamp",
    "mm": "the linear layer", "addmm": "the linear layer", "constant_pad_nd": "the padding", "mean": "the mean",
    "native_layer_norm": "the layer norm", "max_pool2d_with_indices": "the max-pool", "avg_pool2d": "the average pool",
    "permute": "the permutation of axes", "channel_shuffle": "the channel shuffle",
}  # fmt: skip


def _said(node: Node) -> str:
    what = _NAMES.get(node.op, node.op)
    return f"{what} in {node.module}" if node.module else what
