"""NoSqueeze: SE without the squeeze; each position is gated by itself. An ablation, and no channel gate.

    y = u * sigma(W2 delta(W1 u + b1) + b2)          1x1 convolutions, the scale being as large as the map

Source: Squeeze-and-Excitation Networks (arXiv 1709.01507), Sec. 7.1: the block that asks whether the gain comes from
the pooled descriptor or from the added parameters. It has SE's parameters to the last one, and is worse and dearer:
ResNet-50 22.93 % error at 4.27 GMACs against 22.28 % at 3.87. No code was published for it.

There is no [N, C] scale, so it is no ``Gate``: nothing that rests on ``excite`` (the fused tail, squeeze ahead,
recording) applies. Its config builds a plain module and goes wherever a gate's config goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from excite.errors import UserError
from excite.gates.base import GateConfig, check_channels, check_map
from excite.gates.functions import gate_function, zero_parameters
from excite.gates.reduction import Reduction

__all__ = ["NoSqueeze", "NoSqueezeConfig"]

_CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@dataclass(frozen=True)
class NoSqueezeConfig(GateConfig):
    """NoSqueeze without its channel count; the options are those of ``NoSqueeze``."""

    name: ClassVar[str] = "no_squeeze"

    reduction: int = 16
    reduced_channels: int | None = None
    bias: bool = True
    neutral: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.width.check(self.name)

    @property
    def width(self) -> Reduction:
        """The rule that gives the hidden width."""
        return Reduction(self.reduction, self.reduced_channels)

    def build(self, channels: int) -> NoSqueeze:
        """The module for maps with ``channels`` channels; it is no ``Gate``."""
        return NoSqueeze(channels, **self.options())


class NoSqueeze(nn.Module):
    """SE's two layers as 1x1 convolutions on the map, without pooling (arXiv 1709.01507, Sec. 7.1).

    Args:
        channels: C.
        reduction: r; the hidden width is max(C // r, 1).
        reduced_channels: the hidden width itself, in place of ``reduction``.
        bias: whether the two layers have biases.
        neutral: twice the sigmoid, and ``fc2`` zero at first: a fresh module leaves the map exactly as it is.

    Shape:
        - input: [N, C, *S], S being 1 to 3 spatial axes
        - output: as the input

    Attributes:
        fc1, fc2: ``nn.Linear`` from C to ``reduced_channels`` and back, named and shaped as SE's: the two load each
            other's weights.
        reduced_channels: the hidden width.

    Raises:
        ValueError: an option out of range, or both of reduction and reduced_channels; a map of another width.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 16,
        *,
        reduced_channels: int | None = None,
        bias: bool = True,
        neutral: bool = False,
    ) -> None:
        super().__init__()
        self.config = NoSqueezeConfig(reduction, reduced_channels, bias, neutral)
        self.channels = check_channels(channels)
        self.reduced_channels = self.config.width.of(channels)
        self.fc1 = nn.Linear(channels, self.reduced_channels, bias=bias)
        self.fc2 = nn.Linear(self.reduced_channels, channels, bias=bias)
        self.neutral = neutral
        if neutral:
            zero_parameters(self.fc2)

    def forward(self, u: Tensor) -> Tensor:
        """The map gated position by position, y [N, C, *S]."""
        check_map(u, self.channels)
        if u.dim() not in _CONVOLUTIONS:
            raise UserError(f"this module takes maps with 1 to 3 spatial axes; got shape {tuple(u.shape)}")
        scale = _pointwise(F.relu(_pointwise(u, self.fc1)), self.fc2)
        return u * gate_function(scale, "sigmoid", neutral=self.neutral).to(u.dtype)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows: channels and the config's string."""
        return f"{self.channels}, {self.config}"


def _pointwise(u: Tensor, layer: nn.Linear) -> Tensor:
    """A fully connected layer at every position."""
    kernel = layer.weight.reshape(*layer.weight.shape, *(1,) * (u.dim() - 2))
    return _CONVOLUTIONS[u.dim()](u, kernel, layer.bias)
