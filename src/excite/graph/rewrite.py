"""The engine that changes networks: hang a gate on a module, take it off, put one module in another's place.

A gate that hangs is a child of its module under a reserved name, and a hook, a plain function of this file, calls it.
So no module changes its class or its name, every old key stays, and copies, pickles and exports carry both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from excite.gates.base import ATTACHED, gate_output
from excite.graph.view import Anchor

__all__ = [
    "HUNG_NAMES",
    "Hung",
    "forget_compiled",
    "hang",
    "hung",
    "is_called",
    "parent_of",
    "rehang",
    "replace",
    "take",
]

HUNG_NAMES: dict[str, str] = {"out": ATTACHED, "in": f"{ATTACHED}_in"}
"""By side, the name under which a module has the gate that hangs on it."""


# The other hook stands beside the gates, which blocks ask for theirs.
def _gate_input(module: Any, args: Any) -> Any:
    return (module.excite_gate_in(args[0]), *args[1:])


@dataclass(frozen=True)
class Hung:
    """A gate that hangs on a module.

    Attributes:
        anchor: the module's dotted name, and on which side.
        module: the module itself.
        gate: the gate.
    """

    anchor: Anchor
    module: nn.Module
    gate: nn.Module

    @property
    def name(self) -> str:
        """The gate's own dotted name."""
        own = HUNG_NAMES[self.anchor.side]
        return f"{self.anchor.module}.{own}" if self.anchor.module else own


def hang(module: nn.Module, side: str, gate: nn.Module) -> None:
    """Put a gate on one side of a module, where nothing hangs yet."""
    name = HUNG_NAMES[side]
    assert name not in module._modules
    module.add_module(name, gate)
    rehang(module, side)


def rehang(module: nn.Module, side: str) -> None:
    """Have the gate that hangs on a module called by it."""
    if side == "out":
        module.register_forward_hook(gate_output)
    else:
        module.register_forward_pre_hook(_gate_input)


def take(module: nn.Module, side: str) -> nn.Module:
    """Take off the gate that hangs on a module, with the hook that called it."""
    hooks, function = _hooks(module, side)
    for key in [key for key, hook in hooks.items() if hook is function]:
        del hooks[key]
    gate = module._modules.pop(HUNG_NAMES[side])
    assert gate is not None
    return gate


def is_called(module: nn.Module, side: str) -> bool:
    """Whether a module calls the gate that hangs on it: conversions may copy the gate and leave the hook."""
    hooks, function = _hooks(module, side)
    return any(hook is function for hook in hooks.values())


def _hooks(module: nn.Module, side: str) -> tuple[dict[int, Any], Callable[..., Any]]:
    return (module._forward_hooks, gate_output) if side == "out" else (module._forward_pre_hooks, _gate_input)


def hung(model: nn.Module, *, every_name: bool = False) -> Iterator[Hung]:
    """The gates that hang in a network, called or not, in the order of its modules.

    Args:
        model: the network.
        every_name: list gates on a module that has several names under each of them, as ``state_dict`` does.
    """
    for name, module in model.named_modules(remove_duplicate=not every_name):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for side, own in HUNG_NAMES.items():
            gate = module._modules.get(own)
            if gate is not None:
                yield Hung(Anchor(name, side), module, gate)


def parent_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has the module of this dotted name as its child, and under which name."""
    parent, _, own = name.rpartition(".")
    return model.get_submodule(parent), own


def replace(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put another module in the place of the one with this dotted name, which is returned; order and names stay."""
    parent, own = parent_of(model, name)
    old = parent._modules[own]
    assert old is not None
    parent._modules[own] = new
    return old


def forget_compiled() -> None:
    """Have compiled networks compiled anew: they do not look for hooks that came after."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
