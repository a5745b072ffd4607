"""The scalar functions that gates have, by name; what computes them stands with each framework."""

from __future__ import annotations

from typing import Literal, get_args

from excite.errors import UserError

__all__ = ["GATE_FUNCTIONS", "PIECEWISE_SLOPE", "ActivationName", "GateFunctionName", "check_slope"]

ActivationName = Literal["relu", "silu", "gelu", "hard_swish"]
GateFunctionName = Literal["sigmoid", "hard_sigmoid", "tanh", "relu"]

GATE_FUNCTIONS: tuple[str, ...] = get_args(GateFunctionName)

# relu6(x + 3) / 6, the hard sigmoid of PyTorch, Keras 3 and Paddle 2.
PIECEWISE_SLOPE = 1 / 6


def check_slope(gate: str, function: str, slope: float) -> None:
    """Refuse a slope that is not positive, or that the chosen gate function would not use."""
    if slope <= 0:
        raise UserError(f"gate {gate!r}: hard_sigmoid_slope={slope} must be above 0 (1/6 and 0.2 are in use)")
    if slope != PIECEWISE_SLOPE and function != "hard_sigmoid":
        raise UserError(
            f"gate {gate!r}: hard_sigmoid_slope={slope} has no effect with gate_function={function!r}; "
            "give gate_function='hard_sigmoid' or leave the slope out"
        )
