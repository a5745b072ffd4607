"""A network as a graph of its layers, which can be rewritten and is a module again: torch.fx, with gates as layers.

Gates that hang on modules become layers of their own, and gates of other libraries become those of ``excite``, so that
a graph shows each gate as one node. The network itself is copied first and left as it is.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import fx, nn

from excite.errors import UserError
from excite.gates import Gate, NoSqueeze
from excite.graph.record import unwrapped
from excite.graph.rewrite import HUNG_NAMES, hung, replace, take

__all__ = ["as_layers", "layered", "traced"]


def as_layers(model: nn.Module) -> nn.Module:
    """A copy of a network in which what hangs on a module stands beside it, in an ``nn.Sequential``."""
    twin = copy.deepcopy(unwrapped(model))
    for module in twin.modules():
        module._compiled_call_impl = None
    # Inner ones last: a module that is put into a Sequential keeps its own children's names until then.
    for item in sorted(hung(twin), key=lambda item: -item.anchor.module.count(".")):
        gate = take(item.module, item.anchor.side)
        pair = [("0", item.module), (HUNG_NAMES["out"], gate)]
        if item.anchor.side == "in":
            pair = [(HUNG_NAMES["in"], gate), ("0", item.module)]
        replace(twin, item.anchor.module, nn.Sequential(OrderedDict(pair)))
    return twin


class _Tracer(fx.Tracer):
    """Looks into every module but PyTorch's own layers, gates, and norms with something more in them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, Gate | NoSqueeze | nn.modules.batchnorm._BatchNorm):
            return True
        if m._forward_hooks or m._forward_pre_hooks:
            return True  # the user's own: they run with the module that they hang on
        return bool(super().is_leaf_module(m, module_qualified_name))


def traced(model: nn.Module) -> fx.GraphModule:
    """The graph of a network whose gates are layers already; its modules are the network's own.

    Raises:
        ValueError: the network's forward decides by the values of its tensors, or does what else cannot be traced.
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # whatever a forward does with what is no tensor
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{type(model).__name__} cannot be traced: {reason}") from error
    for node in graph.nodes:
        # Annotations that are text go into the code as they stand, and PyTorch 2.11 pickles no such code.
        node.type = None if isinstance(node.type, str) else node.type
    network = fx.GraphModule(model, graph, class_name=type(model).__name__)
    return network.eval()


def layered(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer that a node calls; None for nodes that call none."""
    if node.op != "call_module":
        return None
    target: Any = node.target
    module = network.get_submodule(target)
    assert isinstance(module, torch.nn.Module)
    return module
