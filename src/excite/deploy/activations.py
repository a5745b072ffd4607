"""Activations of fused layers, and how each of the passes that can apply them is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.ops.pointwise import ACTS as POINTWISE_ACTS

__all__ = ["ACTIVATION_NONE", "Activation", "activation_of"]


@dataclass(frozen=True)
class Activation:
    """An activation: its name, its numbers, and for GELU which form.

    Args:
        name: "none", "relu", "silu", "hard_swish", "hard_sigmoid", "sigmoid", "tanh", "clamp" (numbers: least, most),
            "leaky_relu" (its slope) or "gelu".
        numbers: see above.
        form: "none" or "tanh" for GELU.
    """

    name: str
    numbers: tuple[float, ...] = ()
    form: str = ""

    def __call__(self, x: Tensor, *, inplace: bool = False) -> Tensor:
        """The activation of x; ``inplace`` allows writing over it."""
        if self.name == "none":
            return x
        if self.name == "clamp":
            return F.hardtanh(x, self.numbers[0], self.numbers[1], inplace=inplace)
        if self.name == "leaky_relu":
            return F.leaky_relu(x, self.numbers[0], inplace=inplace)
        if self.name == "gelu":
            return F.gelu(x, approximate=self.form)
        if self.name in ("sigmoid", "tanh"):
            function = torch.sigmoid if self.name == "sigmoid" else torch.tanh
            return function(x, out=x) if inplace else function(x)
        return _WITH_INPLACE[self.name](x, inplace=inplace)

    @property
    def onednn(self) -> tuple[str, list[float], str]:
        """How oneDNN's operation is told."""
        return _ONEDNN[self.name], list(self.numbers), self.form

    @property
    def pointwise(self) -> tuple[int, float, float] | None:
        """How the compiled 1x1 convolution is told; None if it cannot do it."""
        if self.name == "clamp":
            return (1, *self.numbers[:2])  # type: ignore[return-value]
        return POINTWISE_ACTS.get("hardswish" if self.name == "hard_swish" else self.name)


_WITH_INPLACE: dict[str, Any] = {
    "relu": F.relu, "silu": F.silu, "hard_swish": F.hardswish, "hard_sigmoid": F.hardsigmoid,
}  # fmt: skip
_ONEDNN = {
    "none": "none", "relu": "relu", "silu": "swish", "hard_swish": "hardswish", "hard_sigmoid": "hardsigmoid",
    "sigmoid": "sigmoid", "tanh": "tanh", "clamp": "hardtanh", "leaky_relu": "leaky_relu", "gelu": "gelu",
}  # fmt: skip

ACTIVATION_NONE = Activation("none")


def activation_of(module: nn.Module) -> Activation | None:
    """The activation that a layer of PyTorch's is; None if it is none that fuses."""
    if type(module) in _PLAIN:
        return Activation(_PLAIN[type(module)])
    if type(module) is nn.ReLU6:
        return Activation("clamp", (0.0, 6.0))
    if type(module) is nn.Hardtanh:
        return Activation("clamp", (module.min_val, module.max_val))
    if type(module) is nn.LeakyReLU:
        return Activation("leaky_relu", (module.negative_slope,))
    if type(module) is nn.GELU:
        return Activation("gelu", (), module.approximate)
    return None


_PLAIN: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.SiLU: "silu", nn.Hardswish: "hard_swish", nn.Hardsigmoid: "hard_sigmoid",
    nn.Sigmoid: "sigmoid", nn.Tanh: "tanh",
}  # fmt: skip
