"""SE-GC: a block-diagonal matrix; every channel sees those of its group.

    s = sigma(W z)          W: C x C in G blocks of (C / G) x (C / G) on the diagonal

Source: ECA-Net (arXiv 1910.03151), Sec. 3.2.2, Table 2: G = 16 (SE-GC1), C / 16 (SE-GC2) and C / 8 (SE-GC3). The
first is ``groups=16``; the other two hold the size of a group instead of their number: ``group_size=16`` and
``group_size=8``. No code was published for it: no bias, as in the paper's parameter count of C^2 / G; the weights
start as those of the grouped 1x1 convolution of ``torch.nn``: uniform within sqrt(G / C).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from excite.gates.base import Gate, GateConfig
from excite.gates.functions import gate_function
from excite.gates.group_count import DEFAULT_GROUPS, check_groups, groups_for

__all__ = ["SEGC", "SEGCConfig"]


@dataclass(frozen=True)
class SEGCConfig(GateConfig):
    """SE-GC without its channel count; the options are those of ``SEGC``."""

    name: ClassVar[str] = "se_gc"

    groups: int = DEFAULT_GROUPS
    group_size: int | None = None
    neutral: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_groups(self.groups, self.group_size)

    def groups_for(self, channels: int) -> int:
        """G for maps with ``channels`` channels.

        Raises:
            ValueError: the groups do not divide the channels.
        """
        return groups_for(channels, self.groups, self.group_size)

    def build(self, channels: int) -> SEGC:
        """The gate for maps with ``channels`` channels."""
        return SEGC(channels, **self.options())


class SEGC(Gate):
    """Channel attention within groups of channels (arXiv 1910.03151, Sec. 3.2.2).

    Args:
        channels: C.
        groups: G, a divisor of C.
        group_size: C / G, in place of ``groups``.
        neutral: twice the sigmoid, and the weights zero at first: a fresh gate leaves the map exactly as it is.

    Shape:
        - input: [N, C, *S], S being 1 to 3 spatial axes
        - output: as the input

    Attributes:
        weight: [C, C / G]; row c over the channels of c's group: C^2 / G parameters.
        groups: G.

    Raises:
        ValueError: G does not divide C, with the nearest divisors; both options given.
    """

    def __init__(
        self,
        channels: int,
        groups: int = DEFAULT_GROUPS,
        *,
        group_size: int | None = None,
        neutral: bool = False,
    ) -> None:
        config = SEGCConfig(groups, group_size, neutral)
        super().__init__(channels, config)
        self.groups = config.groups_for(channels)
        self.neutral = config.neutral
        self.weight = nn.Parameter(torch.empty(channels, channels // self.groups))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: uniform within sqrt(G / C); zero for a neutral gate."""
        bound = 0.0 if self.neutral else self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def excite(self, z: Tensor) -> Tensor:
        """s [N, C] from z [N, C]."""
        size = self.channels // self.groups
        # One batched product over the groups; a grouped conv1d on maps of one position is several times slower.
        grouped = z.reshape(-1, self.groups, size).transpose(0, 1)
        blocks = self.weight.view(self.groups, size, size).transpose(1, 2)
        x = torch.bmm(grouped, blocks).transpose(0, 1)
        # Copied outright: flatten asks whether it must, and an exported graph that has the answer takes no batch of 1.
        x = x.clone(memory_format=torch.contiguous_format).flatten(1)
        return gate_function(x, "sigmoid", neutral=self.neutral)
