"""The scalar functions inside gates: hidden activations and gate functions, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from excite.gates.function_names import (
    GATE_FUNCTIONS,
    PIECEWISE_SLOPE,
    ActivationName,
    GateFunctionName,
    check_slope,
)

__all__ = [
    "ACTIVATIONS",
    "GATE_FUNCTIONS",
    "PIECEWISE_SLOPE",
    "ActivationName",
    "GateFunctionName",
    "check_slope",
    "gate_function",
    "zero_parameters",
]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "hard_swish": F.hardswish,
}


def gate_function(x: Tensor, name: str, slope: float = PIECEWISE_SLOPE, *, neutral: bool = False) -> Tensor:
    """The gate function called ``name``, elementwise.

    Args:
        x: any shape.
        name: "sigmoid", "hard_sigmoid" = min(max(slope * x + 1/2, 0), 1), "tanh" or "relu" (SE paper, Sec. 6.3).
        slope: of the hard sigmoid; 1/6 gives relu6(x + 3) / 6, and 0.2 the one of Keras 2 and Paddle's fluid.
        neutral: its neutral form, which is exactly 1 at x = 0, with a slope there: both sigmoids twice, 1 + tanh(x),
            relu(1 + x).
    """
    if neutral:
        if name in ("tanh", "relu"):
            return torch.tanh(x) + 1 if name == "tanh" else F.relu(x + 1)
        return 2 * gate_function(x, name, slope)
    if name == "sigmoid":
        return torch.sigmoid(x)
    if name == "hard_sigmoid":
        if x.dtype == torch.float64:  # torch's kernel holds its 1/6 in float32: 1e-8 off
            return (x * slope + 0.5).clamp(0, 1)
        # Stretching x keeps every slope on that one kernel.
        return F.hardsigmoid(x if slope == PIECEWISE_SLOPE else x * (slope / PIECEWISE_SLOPE))
    if name == "tanh":
        return torch.tanh(x)
    return F.relu(x)


def zero_parameters(layer: nn.Module) -> None:
    """Start a gate's last layer at zero, where its neutral form is exactly 1."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
