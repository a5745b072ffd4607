"""Gates replaced by constants, and the constants folded into the weights beside them.

A gate whose scale is a constant c [C] multiplies channel i of its map by c_i. Where the map comes from, or where it
goes, weights can take that in, and nothing is left to compute:

    behind   the norm or convolution that makes the map takes c into its weight and bias. ReLU, max-pools and the like
             lie no obstacle in between as long as no c_i is negative: relu(c x) = c relu(x). Nor do means, average
             pools, concatenations and additions, if all that they join can take its part.
    ahead    every layer that reads the map takes c into its input channels: convolutions (what they pad with is 0),
             linear layers, and batch norms by their running statistics, mean / c and (var + eps) / c^2 - eps.

Elsewhere (on a raw shortcut, say, that the addition and the next branch both read) c is left as one multiplication.
Weights are found by what a forward pass does with them, not by the classes of modules, and changed only where nothing
else reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from excite.deploy.factors import Stuck, Weights
from excite.errors import UserError, unknown
from excite.graph import View, as_inputs, record, unwrapped
from excite.graph.record import Call
from excite.graph.rewrite import forget_compiled
from excite.graph.rewrite import replace as replace_module
from excite.models.base import GatedBlock
from excite.surgery.constants import Slimmed, put_constant, take_out, write_slimmed
from excite.surgery.edit import check_kind
from excite.surgery.zoo_gates import read_gate

__all__ = ["FoldedGate", "by_reference", "fold_gates_"]


@dataclass(frozen=True)
class FoldedGate:
    """What became of a gate that was replaced by a constant.

    Args:
        name: its dotted name.
        gate: its text, or the name of its class where it is no gate of ``excite``.
        channels: of its maps.
        axes: spatial axes of its maps.
        folded: whether nothing is left of it; else one multiplication is.
        into: the modules whose weights took it in.
        reason: why a multiplication is left.
    """

    name: str
    gate: str
    channels: int
    axes: int
    folded: bool
    into: tuple[str, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-able."""
        return {**asdict(self), "into": list(self.into)}


def fold_gates_(model: nn.Module, constants: Mapping[str, Tensor], example: Tensor | Sequence[Any]) -> list[FoldedGate]:
    """Replace gates by constants, in place, and fold these into the weights beside them wherever that is exact.

    In eval mode the network then computes what it would with those constants for scales, up to rounding. In training
    mode too, unless a batch norm took one in by its statistics: then up to that norm's ``eps``.

    Args:
        model: any network with gates: of ``excite``, attached, timm's, torchvision's.
        constants: the scale [C] of each gate to replace, by the gate's dotted name.
        example: an input that the network takes, or a tuple of its positional inputs; only its shape matters.

    Returns:
        What became of each gate, in the order of execution. A gate that left nothing is gone from the network: ``None``
        in a block of ``excite``, detached where it was attached, ``nn.Identity`` elsewhere.

    Raises:
        ValueError: no constant; a name that is no gate of the network; a constant of another width, or one that is not
            finite. The network is as it was.
    """
    model = unwrapped(model)
    check_kind(model)
    inputs = as_inputs(example)
    with by_reference(model):
        view = View(record(model, inputs), model)
        shapes = {gate.module: view.values[gate.u].shape for gate in view.gates if gate.module}
        _check(model, constants, {name: shape[1] for name, shape in shapes.items()})
        gates = {name: view.modules[name] for name in shapes if name in constants}
        chosen = [
            FoldedGate(name, _text(gate, shapes[name][1]), shapes[name][1], len(shapes[name]) - 2, False)
            for name, gate in gates.items()
        ]
        for gate in chosen:
            put_constant(model, gate.name, constants[gate.name], gate.axes)
        try:
            recording = record(model, inputs)
        except BaseException:
            for name, module in gates.items():
                replace_module(model, name, module)
            raise
        weights = Weights(View(recording, model), model)
        done = [_folded(model, weights, gate, constants[gate.name]) for gate in chosen]
    write_slimmed(model, [Slimmed(gate.name, gate.channels, gate.axes, gate.folded) for gate in done])
    forget_compiled()
    return done


def _check(model: nn.Module, constants: Mapping[str, Tensor], widths: Mapping[str, int]) -> None:
    if not constants:
        raise UserError("constants is empty: give the scale [C] of at least one gate, by its dotted name")
    for name, constant in constants.items():
        if name not in widths:
            raise unknown(f"gate of this {type(model).__name__}", name, widths)
        if constant.numel() != widths[name]:
            raise UserError(
                f"the constant of {name} has {constant.numel()} numbers; its maps have {widths[name]} channels"
            )
        if not bool(constant.isfinite().all()):
            raise UserError(f"the constant of {name} is not finite")


def _text(gate: nn.Module, channels: int) -> str:
    known = read_gate(gate, channels)
    return type(gate).__name__ if known is None else str(known.config)


@torch.no_grad()
def _folded(model: nn.Module, weights: Weights, gate: FoldedGate, constant: Tensor) -> FoldedGate:
    """Fold one constant, which stands in the network as a multiplication by now."""
    calls = weights.view.recording.calls_of(gate.name)
    if len(calls) != 1:
        return replace(gate, reason=f"it is called {len(calls)} times in a forward pass")
    constant = constant.detach().cpu().double().flatten()
    u, y, product = _product(weights, calls[0])
    reasons = []
    for fold in (partial(weights.behind, u, product, constant), partial(weights.ahead, y, constant)):
        try:
            changes = fold()
        except Stuck as stuck:
            reasons.append(str(stuck))
            continue
        for change in changes:
            change.make()
        take_out(model, gate.name)
        return replace(gate, folded=True, into=tuple(dict.fromkeys(change.module for change in changes)))
    return replace(gate, reason="; ".join(dict.fromkeys(reasons)))


def _product(weights: Weights, call: Call) -> tuple[int, int, int]:
    """The map that a constant multiplies, the product, and the multiplication."""
    (u,), (y,) = call.inputs, call.outputs
    node = next(node for node in weights.view.nodes[call.start : call.end] if u in node.inputs)
    return u, y, node.index


@contextmanager
def by_reference(model: nn.Module) -> Iterator[None]:
    """Blocks that run module by module for a while, which is what a recording shows."""
    blocks = [(module, module.impl) for module in model.modules() if isinstance(module, GatedBlock)]
    for block, _ in blocks:
        block.impl = "reference"
    try:
        yield
    finally:
        for block, impl in blocks:
            block.impl = impl
