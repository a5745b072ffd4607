"""The scalar functions inside gates, by name, on any backend of Keras."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from keras import initializers, ops

from excite.gates.function_names import PIECEWISE_SLOPE

__all__ = ["ACTIVATIONS", "gate_function", "within"]

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": ops.relu,
    "silu": ops.silu,
    "gelu": partial(ops.gelu, approximate=False),
    "hard_swish": ops.hard_silu,
}


def gate_function(x: Any, name: str, slope: float = PIECEWISE_SLOPE, *, neutral: bool = False) -> Any:
    """The gate function called ``name``, elementwise; the same numbers as ``excite.gates.functions`` gives.

    Args:
        x: any shape.
        name: "sigmoid", "hard_sigmoid" = min(max(slope * x + 1/2, 0), 1), "tanh" or "relu" (SE paper, Sec. 6.3).
        slope: of the hard sigmoid.
        neutral: its neutral form, which is exactly 1 at x = 0: both sigmoids twice, 1 + tanh(x), relu(1 + x).
    """
    if neutral:
        if name in ("tanh", "relu"):
            return ops.tanh(x) + 1 if name == "tanh" else ops.relu(x + 1)
        return 2 * gate_function(x, name, slope)
    if name == "sigmoid":
        return ops.sigmoid(x)
    if name == "hard_sigmoid":
        return ops.clip(x * slope + 0.5, 0, 1)
    return ops.tanh(x) if name == "tanh" else ops.relu(x)


def within(bound: float, *, neutral: bool = False) -> initializers.Initializer:
    """Uniform within ``bound`` of zero, as ``torch.nn`` starts its layers; zeros for a neutral gate's last weights."""
    return initializers.Zeros() if neutral else initializers.RandomUniform(-bound, bound)
