"""ShuffleNet v1 (width 1.0) for images of about 224 x 224: grouped 1x1 convolutions, their channels shuffled between.

Source: ShuffleNet (arXiv 1707.01083, Fig. 2 and Table 1); with gates and 3 groups, Squeeze-and-Excitation Networks
(arXiv 1709.01507, Table 3).

Where published code and papers part:

- The concatenation in strided units. The paper does not say in which order, and no shape shows it: here, as in
  pytorchcv, the branch comes first.
- The shuffle: between the first two convolutions, the channels read as ``groups`` rows and written column by column
  (Fig. 2, Sec. 3.1). The authors' later code shuffles after the second convolution and in the other direction, and its
  concatenation has the shortcut first; its weights need their channels put in order.
- Where SE stands is not in its paper. On the branch of all 16 units, after the last norm, r = 16 adds 0.61 million
  parameters, which is what Table 3's 1.8 and 2.4 million allow; on the output of the units it would add 0.72.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import UserError
from excite.gates.base import GateConfig
from excite.models.base import GatedBlock, GatePlan, StagedClassifier, conv
from excite.models.blocks import run_tail

__all__ = ["ShuffleNetV1", "ShuffleNetV1Options", "ShuffleUnit"]

# Output channels of the first stage by the number of groups, doubled in each later one (Table 1).
_WIDTHS: dict[int, int] = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
_DEPTHS = (4, 8, 4)


@dataclass(frozen=True)
class ShuffleNetV1Options:
    """The named options of ShuffleNet v1.

    Args:
        groups: groups of the 1x1 convolutions, 1, 2, 3, 4 or 8; with more of them the network is wider, at about the
            same number of multiply-adds (Table 1). 3 is the network of the SE paper.
        zero_init_last_norm: start the last norm of every unit that adds its input at zero (arXiv 1706.02677,
            Sec. 5.1).

    Raises:
        ValueError: groups that the paper has no widths for.
    """

    groups: int = 3
    zero_init_last_norm: bool = False

    def __post_init__(self) -> None:
        if self.groups not in _WIDTHS:
            raise UserError(f"groups={self.groups!r}: ShuffleNet has {', '.join(map(str, _WIDTHS))}")


class ShuffleUnit(GatedBlock):
    """Grouped 1x1, shuffle, depthwise 3x3 and grouped 1x1 convolutions (arXiv 1707.01083, Fig. 2b and 2c).

    At stride 1 the input is added to the branch. At stride 2 the input, average-pooled, is set behind it, so that the
    branch has ``out_channels - in_channels`` channels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; the depthwise convolution has a quarter.
        stride: 1 or 2.
        groups: of the 1x1 convolutions and of the shuffle.
        first_groups: of the first 1x1 convolution.
        plan: the network's gates.
        stage: the stage this unit belongs to, from 1.
        impl: see ``excite.ops.tail``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        groups: int,
        first_groups: int,
        plan: GatePlan,
        stage: int,
        impl: str,
    ) -> None:
        super().__init__(plan.placement, impl)
        width = out_channels // 4
        branch = out_channels if stride == 1 else out_channels - in_channels
        self.has_shortcut = stride == 1
        self.groups = groups
        self.conv1 = conv(in_channels, width, 1, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, branch, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(branch)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        places = {"standard": branch, "pre": in_channels, "identity": in_channels, "inner": width}
        self.gate = plan.build(stage, places.get(plan.placement, out_channels))

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the addition or concatenation."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        shortcut = self.gate_at("identity", x if self.pool is None else self.pool(x))
        y = self.gate_at("pre", x)
        y = F.channel_shuffle(F.relu(self.bn1(self.conv1(y)), inplace=True), self.groups)
        y = self.gate_at("inner", self.bn2(self.conv2(y)))
        added = shortcut if self.has_shortcut else None
        y = run_tail(self.bn3, self.tail_gate, self.conv3(y), added, act="relu", impl=self.impl)
        if not self.has_shortcut:
            y = torch.cat([y, F.relu(shortcut)], dim=1)
        return self.gate_at("post", y)


class ShuffleNetV1(StagedClassifier):
    """ShuffleNet v1: a strided convolution, a max-pool, and 16 units in three stages ``layer1`` to ``layer3``.

    They are the paper's stages 2 to 4, at strides 8, 16 and 32.

    Args:
        gate: config of the gates, or None for a plain network.
        placement: where in a unit the gate stands, see ``GatePlan``: "standard" is before the addition or, in strided
            units, the concatenation; "inner" after the depthwise convolution's norm, which no activation follows.
        stages: which of stages 1 to 3 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: implementation of the tails, see ``excite.ops.tail``.
        options: groups, initialisation.

    Shape:
        - input: [N, in_channels, H, W]; the maps shrink 32-fold, so H and W of at least 33 keep them above 1 x 1
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range.
    """

    Options: ClassVar[type[ShuffleNetV1Options]] = ShuffleNetV1Options
    VARIANTS: ClassVar[dict[str, ShuffleNetV1Options]] = {}

    def __init__(
        self,
        *,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        impl: str = "auto",
        options: ShuffleNetV1Options = ShuffleNetV1Options(),  # noqa: B008 - frozen
    ) -> None:
        width = _WIDTHS[options.groups]
        super().__init__(width * 2 ** (len(_DEPTHS) - 1), in_channels, impl)
        self.conv1 = conv(in_channels, 24, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(24)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        plan = GatePlan(gate, placement, stages, len(_DEPTHS))
        build = partial(ShuffleUnit, groups=options.groups, plan=plan, impl=impl)
        channels = 24
        for i, depth in enumerate(_DEPTHS):
            out_channels = width * 2**i
            # The stem's 24 channels are too few to be parted (Sec. 3.3).
            first = build(channels, out_channels, 2, first_groups=1 if i == 0 else options.groups, stage=i + 1)
            rest = [
                build(out_channels, out_channels, 1, first_groups=options.groups, stage=i + 1) for _ in range(depth - 1)
            ]
            self.add_stage([first, *rest], channels=out_channels, stride=8 * 2**i)
            channels = out_channels
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=options.zero_init_last_norm)

    def stem(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> [N, 24, ceil(H / 4), ceil(W / 4)]."""
        y: Tensor = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return y

    def forward_pyramid(self, x: Tensor) -> dict[int, Tensor]:
        """Images [N, in_channels, H, W] -> the stem's map, of stride 4, and the stages' of strides 8, 16 and 32."""
        maps = {4: self.stem(x)}
        for i, stride in enumerate((8, 16, 32), start=1):
            maps[stride] = getattr(self, f"layer{i}")(maps[stride // 2])
        return maps

    @property
    def pyramid_channels(self) -> dict[int, int]:
        """Channels of each map of ``forward_pyramid``, by its stride."""
        return {4: 24, **super().pyramid_channels}
