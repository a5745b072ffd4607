"""``fuse``: a network for inference that computes the same with fewer passes over its feature maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils._pytree import tree_leaves

from excite.deploy.passes import Fusion
from excite.errors import UserError
from excite.graph import as_inputs
from excite.graph.functional import as_layers, traced
from excite.models.base import GatedBlock
from excite.surgery.swap import own_gates_

__all__ = ["FuseReport", "FusedNetwork", "GateFate", "fuse", "output_difference"]

# Folding a norm into a convolution rounds anew, once a layer.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


@dataclass(frozen=True)
class GateFate:
    """What became of a gate.

    Args:
        name: of the gate, or of the module it hung on.
        gate: the gate's text, or the name of its class.
        how: "squeeze ahead" (in one with the convolution before it, whose input it squeezes), "tail" (in one with that
            convolution, squeezing its output), "in the next convolution" (its scale goes into the weights of the 1x1
            convolution that reads its map), "in place" (it writes over its map), or "left".
        reason: why it was left.
    """

    name: str
    gate: str
    how: str
    reason: str = ""


@dataclass(frozen=True)
class FuseReport:
    """What ``fuse`` rewrote and what it left.

    Args:
        gates: every gate, in the order of execution.
        norms_folded: batch norms that went into the convolution before them.
        norms_left: batch norms that did not, by name with the reason.
        activations: activations that became part of a convolution or a tail.
        additions: residual additions that became part of a convolution or a tail.
        difference: largest difference of the outputs on the example, as a share of the largest output.
    """

    gates: tuple[GateFate, ...]
    norms_folded: int
    norms_left: tuple[tuple[str, str], ...]
    activations: int
    additions: int
    difference: float

    def __str__(self) -> str:
        """A few lines: what was rewritten, then what was left and why."""
        fates = Counter(gate.how for gate in self.gates)
        said = ", ".join(f"{count} {how}" for how, count in fates.items()) or "none"
        lines = [
            f"gates: {said}",
            f"norms folded: {self.norms_folded}, left: {len(self.norms_left)}",
            f"activations taken in: {self.activations}, additions: {self.additions}",
            f"largest difference of the outputs: {self.difference:.1e} of the largest output",
        ]
        lines += [f"  left: {gate.name} ({gate.gate}): {gate.reason}" for gate in self.gates if gate.how == "left"]
        lines += [f"  left: {name}: {reason}" for name, reason in self.norms_left]
        return "\n".join(lines)


class FusedNetwork(nn.Module):
    """What ``fuse`` gives: for inference only.

    Attributes:
        network: the rewritten graph.
        report: what was rewritten and what was left.
    """

    def __init__(self, network: fx.GraphModule, report: FuseReport) -> None:
        super().__init__()
        self.network = network
        self.report = report
        super().train(False)

    def forward(self, *inputs: Any) -> Any:
        """What the network gave, for the same inputs."""
        return self.network(*inputs)

    def train(self, mode: bool = True) -> FusedNetwork:
        """Only ``train(False)`` is possible.

        Raises:
            ValueError: training mode.
        """
        if mode:
            raise UserError(
                "a fused network is for inference: its norms are folded into its convolutions. Train the original"
            )
        return super().train(False)


def fuse(model: nn.Module, example: Tensor | Sequence[Any]) -> FusedNetwork:
    """The same function in fewer passes, for inference; the model itself is left as it is.

    Norms are folded into convolutions; convolution, addition of the shortcut and activation become one pass. A gate
    squeezes the input of the 1x1 convolution before it, its first layer taken into that, or else its output; its
    rescaling, the addition and the activation are one pass in place. That goes for networks of ``excite``, attached
    ones, timm's, torchvision's, and any other that ``torch.fx`` traces. Batch and image size stay free.

    Args:
        model: a network in eval mode.
        example: an input it takes, or a tuple of its positional inputs, with data: outputs are compared on it.

    Returns:
        A module with the same inputs and outputs, and a ``report``.

    Raises:
        ValueError: a model in training mode; one that cannot be traced; an example that it does not take, or on another
            device.
    """
    if model.training:
        raise UserError(
            "fuse takes a network in eval mode: its norms are folded as they stand. Call model.eval() first"
        )
    inputs = as_inputs(example)
    _check_devices(model, inputs)
    with torch.no_grad():
        try:
            expected = model(*inputs)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{type(model).__name__} does not take the example: {error}") from error
        network, unknown = _prepared(model, inputs)
        fusion = Fusion(network)
        fusion.run()
        difference = output_difference(network(*inputs), expected)
    fates = [GateFate(*gate) for gate in fusion.gates]
    fates += [GateFate(name, kind, "left", "it computes what no gate of excite does") for name, kind in unknown]
    report = FuseReport(
        gates=tuple(fates),
        norms_folded=fusion.norms_folded,
        norms_left=tuple(fusion.norms_left),
        activations=fusion.activations,
        additions=fusion.additions,
        difference=difference,
    )
    return FusedNetwork(network, report)


def _check_devices(model: nn.Module, inputs: Sequence[Any]) -> None:
    tensors = [t for t in inputs if isinstance(t, Tensor)]
    where = {p.device for p in model.parameters()}
    if any(t.is_meta for t in tensors) or torch.device("meta") in where:
        raise UserError("fuse compares outputs, so it needs a model and an example with data (not on the meta device)")
    if len(where) == 1 and any(t.device not in where for t in tensors):
        raise UserError(f"the model is on {where.pop()}, the example on {tensors[0].device}: move one of them")


def _prepared(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[fx.GraphModule, list[tuple[str, str]]]:
    """The graph of a copy whose gates are those of ``excite``, shapes on its nodes; and the gates that cannot be."""
    twin = as_layers(model)
    for module in twin.modules():
        if isinstance(module, GatedBlock):
            module.impl = "reference"  # module by module, which is what a graph shows
    unknown = own_gates_(twin, inputs)
    network = traced(twin)
    ShapeProp(network).propagate(*inputs)
    return network, unknown


def output_difference(got: Any, expected: Any) -> float:
    """Largest difference between two outputs of what should be one function, as a share of the largest number.

    Raises:
        AssertionError: more than rounding.
    """
    pairs = list(zip(tree_leaves(got), tree_leaves(expected), strict=True))
    worst = 0.0
    for one, other in pairs:
        if not isinstance(other, Tensor) or not other.is_floating_point() or other.numel() == 0:
            continue
        apart = float((one - other).abs().max() / other.abs().max().clamp_min(torch.finfo(other.dtype).tiny))
        assert apart <= _TOLERANCE[other.dtype], f"rewriting changed an output by {apart:.1e} of the largest number"
        worst = max(worst, apart)
    return worst
