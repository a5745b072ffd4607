"""How a weight's axes lie in PyTorch and in Keras, and what each gate's weights are called in both."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["GATE_WEIGHTS", "Weight", "to_keras_axes", "to_torch_axes"]


class Weight(NamedTuple):
    """One weight.

    Args:
        theirs: its name in Keras, within its layer.
        kind: what it is, which says how its axes lie: "conv" [out, in, *S] and [*S, in, out], "dense"
            [out, in] and [in, out], "plain" alike in both.
    """

    theirs: str
    kind: str = "plain"


# By gate, the names in PyTorch.
GATE_WEIGHTS: dict[str, dict[str, Weight]] = {
    "se": {
        "fc1.weight": Weight("fc1_kernel", "dense"),
        "fc1.bias": Weight("fc1_bias"),
        "fc2.weight": Weight("fc2_kernel", "dense"),
        "fc2.bias": Weight("fc2_bias"),
    },
    "eca": {"conv.weight": Weight("kernel", "conv")},
    "ese": {"fc.weight": Weight("fc_kernel", "dense"), "fc.bias": Weight("fc_bias")},
    "eca_ns": {"weight": Weight("kernel")},
    "se_var1": {},
    "se_var2": {"weight": Weight("kernel")},
    "se_var3": {"fc.weight": Weight("fc_kernel", "dense")},
    "se_gc": {"weight": Weight("kernel")},
}


def to_keras_axes(array: Any, kind: str) -> Any:
    """A weight of PyTorch with its axes as Keras has them."""
    if kind == "dense":
        return array.T
    return np.transpose(array, (*range(2, array.ndim), 1, 0)) if kind == "conv" else array


def to_torch_axes(array: Any, kind: str) -> Any:
    """A weight of Keras with its axes as PyTorch has them."""
    if kind == "dense":
        return array.T
    return np.transpose(array, (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))) if kind == "conv" else array
