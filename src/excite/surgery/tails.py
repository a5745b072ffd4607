"""The tail of a block of another library, computed by ``excite.ops.tail`` with the modules that the block has.

Each call looks at its modules as they are then: with hooks, with a norm of another kind, on maps too small to be worth
it, they are called one by one. A gate of another library lends its parameters; an attached gate is found where it
hangs; stochastic depth is one more factor of a channel's scale.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.gates import Gate
from excite.gates.base import hung_gate, is_watched
from excite.models.blocks import BATCH_NORMS, normed_tail
from excite.ops import choose_tail_impl
from excite.ops.tail import worth_fusing
from excite.surgery.zoo_gates import read_gate

__all__ = ["ACTS", "ACT_MODULES", "ADDS", "Step", "Tail", "is_own_norm", "step_of"]

ADDS: dict[Any, bool] = {
    operator.add: False, torch.add: False, "add": False, operator.iadd: True, "add_": True,
}  # fmt: skip
ACTS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", "relu": "relu", "relu_": "relu", F.silu: "silu",
}  # fmt: skip
ACT_MODULES: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.SiLU: "silu"}
# Stochastic depth of timm and of torchvision: a factor for each image.
_DROP_PATHS = ("DropPath", "StochasticDepth")

Excite = Callable[[Tensor], Tensor]
Middle = tuple[Excite | None, tuple[str, ...]]  # and the descriptors that it reads


class _Borrowed:
    """The middle of another library's gate: the arithmetic of ``excite``'s, with the parameters that the other has.

    Args:
        module: the other library's gate.
        gate: what it computes, see ``read_gate``.
    """

    def __init__(self, module: nn.Module, gate: Gate) -> None:
        self.parameters = [attrgetter(name) for name, _ in module.named_parameters()]
        self.gate, self.descriptors = gate.to("meta"), gate.descriptors

    def bound(self, module: nn.Module) -> Excite:
        """The middle with the parameters of this module."""
        given = iter([parameter(module) for parameter in self.parameters])
        return _lent(self.gate, given).excite


def _lent(module: Any, given: Iterator[Tensor]) -> Any:
    """A module like this one with these tensors as its parameters; nothing is written to the one there is."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    own = module._parameters.items()
    twin.__dict__["_parameters"] = {k: None if p is None else next(given).reshape(p.shape) for k, p in own}
    twin.__dict__["_modules"] = {k: _lent(child, given) for k, child in module._modules.items()}
    return twin


@dataclass(frozen=True)
class Step:
    """A module between norm and addition: its class, and how it goes into a tail.

    ``role`` is "idle", "drop", or what is borrowed from a gate; a gate of ``excite`` is its own.
    """

    kind: type[nn.Module]
    role: str | _Borrowed | None


class Tail:
    """One tail of a block, called with the modules that the block has at that time.

    Attributes:
        norm: name of its norm.
        act: "relu", "silu" or "none".
        forced: fuse whatever the size of the map, to check it.
        shape: of the map that it was last called with while forced.
    """

    __name__ = "tail"  # what the generated code calls it

    def __init__(self, norm: str, steps: tuple[Step, ...], act: str, adds_in_place: bool) -> None:
        self.norm, self.steps, self.act, self.adds_in_place = norm, steps, act, adds_in_place
        self.forced = False
        self.shape: tuple[int, ...] = ()

    def __call__(
        self, norm: nn.Module, steps: list[nn.Module], act: nn.Module | None, x: Tensor, shortcut: Tensor | None
    ) -> Tensor:
        """``act(steps(norm(x)) + shortcut)``."""
        if self.forced:
            self.shape = tuple(x.shape)
        middle = self._middle(norm, steps, x, shortcut)
        if middle is None or (act is not None and (ACT_MODULES.get(type(act)) != self.act or is_watched(act))):
            return self._by_modules(norm, steps, act, x, shortcut)
        excite, descriptors = middle
        worth = self.forced or worth_fusing(x, shortcut, training=norm.training, gated=excite is not None)
        impl = choose_tail_impl("auto", descriptors, x.device, worth=worth)
        if impl == "reference":
            return self._by_modules(norm, steps, act, x, shortcut)
        return normed_tail(norm, x, shortcut, excite, descriptors, self.act, impl)

    def _middle(self, norm: nn.Module, steps: list[nn.Module], x: Tensor, shortcut: Tensor | None) -> Middle | None:
        """What scales channels and images between norm and addition, and what it reads; None where no tail has it."""
        if not is_own_norm(norm) or is_watched(norm, gate_aside=True):
            return None
        if not 3 <= x.dim() <= 5 or (shortcut is not None and shortcut.shape != x.shape):
            return None
        hung = hung_gate(norm)
        gates = [] if hung is None else [hung]
        borrowed, drops = None, []
        for module, step in zip(steps, self.steps, strict=True):
            if type(module) is not step.kind or is_watched(module, gate_aside=True):
                return None
            if step.role == "drop":
                drops.append(module)
            elif isinstance(step.role, _Borrowed):
                borrowed = step.role
            here = (None if isinstance(step.role, str) else module, hung_gate(module))
            gates += [gate for gate in here if gate is not None]
            if drops and here != (None, None):
                return None  # a gate sees what was dropped
        if len(gates) > 1:
            return None
        middle = _middle_of(gates[0], borrowed) if gates else (None, ("mean",))
        if middle is None or not drops:
            return middle
        return _dropped(middle[0], drops), middle[1]

    def _by_modules(
        self, norm: nn.Module, steps: list[nn.Module], act: nn.Module | None, x: Tensor, shortcut: Tensor | None
    ) -> Tensor:
        y: Tensor = norm(x)
        for module in steps:
            y = module(y)
        if shortcut is not None:
            y = y.add_(shortcut) if self.adds_in_place else y + shortcut
        if act is not None:
            y = act(y)
        elif self.act != "none":
            y = F.relu(y) if self.act == "relu" else F.silu(y)
        return y


def _middle_of(gate: nn.Module, borrowed: _Borrowed | None) -> Middle | None:
    """A gate's middle; None where somebody waits for a part of it that would not be called, or it has none."""
    if borrowed is not None:
        return None if any(map(is_watched, gate.modules())) else (borrowed.bound(gate), borrowed.descriptors)
    return (gate.excite, gate.descriptors) if isinstance(gate, Gate) and not is_watched(gate) else None


def _dropped(excite: Excite | None, drops: list[nn.Module]) -> Excite:
    """A scale that is dropped for whole images: what is scaled by it is."""

    def middle(z: Tensor) -> Tensor:
        s = z.new_ones(z.shape) if excite is None else excite(z)
        for drop in drops:
            s = drop(s)
        return s

    return middle


def is_own_norm(norm: nn.Module) -> bool:
    """Whether a module is batch norm and nothing else; timm's norms have an activation in them, or nothing there."""
    if type(norm) in BATCH_NORMS:
        return True
    inside = ("act", "drop")
    return type(norm).__name__ == "BatchNormAct2d" and all(type(getattr(norm, i, None)) is nn.Identity for i in inside)


def step_of(module: nn.Module, channels: int) -> Step | None:
    """How a module between norm and addition goes into a tail; None if it does not."""
    if type(module) is nn.Identity:
        return Step(type(module), "idle")
    if type(module).__name__ in _DROP_PATHS and getattr(module, "mode", "row") == "row":
        return Step(type(module), "drop")
    if isinstance(module, Gate):
        return Step(type(module), None)
    if any(True for _ in module.buffers()) or _drops(module):
        return None  # what is read are weights, and what a gate does in eval mode
    gate = read_gate(_unheard(module), channels)
    return None if gate is None else Step(type(module), _Borrowed(module, gate))


def _unheard(module: nn.Module) -> nn.Module:
    """A copy that may be run without anybody's hooks."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    return twin


def _drops(module: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.dropout._DropoutNd) for m in module.modules())
