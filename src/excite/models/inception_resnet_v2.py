"""Inception-ResNet-v2: Inception units as the branches of residual additions.

Source: Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning (arXiv 1602.07261). The
network that everybody has, and this one, is the one its authors released (TensorFlow's slim library), from which timm,
Cadene, pytorchcv, Keras and two Caffe files come. It differs from the paper's figures:

                        released, and here            paper (Figs. 3, 7, 15 to 19)
    stem                that of Inception-v3          that of Inception-v4
    units a stage       10, 20, 10                    5, 10, 5
    widths              320, 1088, 2080               384, 1152, 2144 (printed 1154, 2048)
    behind the units    a 1x1 convolution to 1536     nothing
    last unit           scale 1, no ReLU              like the others

Keras' norms also have no scale, and Caffe counts the padding in the stem's average pool where the others leave it out.

The SE paper gives neither an architecture nor a file for its SE-Inception-ResNet-v2. By its rules for residual networks
(arXiv 1709.01507, Sec. 3.3) the gates stand in the 40 residual units, on the branch before the addition; see
``excite.models.inception`` for where exactly. The three units without a shortcut (at the stem's end, and where the map
is halved) have none.

The paper prints 11.75 and 11.76 GMACs for images of 299 x 299, where the released network takes 13.17 and 13.19, and
that of the figures 9.27. The released one meets them at 298 x 298: 299 is the least size whose stages keep 35, 17 and 8
positions a side rather than 34, 16 and 7, so one position lost in the stem makes the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from excite.errors import UserError
from excite.gates.base import GateConfig
from excite.models.base import GatePlan, check_dropout
from excite.models.inception import Branch, Conv, ConvNorm, InceptionNetwork, InceptionUnit, ResidualInceptionUnit

__all__ = ["InceptionResNetV2", "InceptionResNetV2Options"]

_EPS = 1e-3

_halving_conv = partial(Conv, kernel_size=3, stride=2, padded=False)
_halving_pool = partial(nn.MaxPool2d, 3, stride=2)

# What begins each stage.
_BEGINNINGS = (
    (
        Branch((Conv(96),)),
        Branch((Conv(48), Conv(64, 5))),
        Branch((Conv(64), Conv(96, 3), Conv(96, 3))),
        Branch((Conv(64),), pool=partial(nn.AvgPool2d, 3, stride=1, padding=1, count_include_pad=False)),
    ),
    (
        Branch((_halving_conv(384),)),
        Branch((Conv(256), Conv(256, 3), _halving_conv(384))),
        Branch(pool=_halving_pool),
    ),
    (
        Branch((Conv(256), _halving_conv(384))),
        Branch((Conv(256), _halving_conv(288))),
        Branch((Conv(256), Conv(288, 3), _halving_conv(320))),
        Branch(pool=_halving_pool),
    ),
)

# The residual units' branches in each stage, and the factor of their output.
_UNITS = (
    (
        (
            Branch((Conv(32),)),
            Branch((Conv(32), Conv(32, 3))),
            Branch((Conv(32), Conv(48, 3), Conv(64, 3))),
        ),
        0.17,
    ),
    ((Branch((Conv(192),)), Branch((Conv(128), Conv(160, (1, 7)), Conv(192, (7, 1))))), 0.10),
    ((Branch((Conv(192),)), Branch((Conv(192), Conv(224, (1, 3)), Conv(256, (3, 1))))), 0.20),
)


@dataclass(frozen=True)
class InceptionResNetV2Options:
    """The named options of Inception-ResNet-v2.

    Args:
        dropout: share of the pooled features dropped in training.

    Raises:
        ValueError: a dropout out of range.
    """

    dropout: float = 0.2

    def __post_init__(self) -> None:
        check_dropout(self.dropout)


class InceptionResNetV2(InceptionNetwork):
    """Stages ``layer1`` to ``layer3`` at strides 8, 16 and 32: a unit without a shortcut, then residual ones.

    Args:
        depths: number of residual units of each stage.
        gate: config of the gates, or None for a plain network.
        placement: where in a residual unit the gate stands, see ``GatePlan``; "inner" is before the projection.
        stages: which of stages 1 to 3 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: checked, but of no effect: there is no norm before the addition, so no tail to fuse.
        options: dropout.

    Shape:
        - input: [N, in_channels, H, W], H and W at least 75; made for 299 x 299, which gives last maps of 8 x 8
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range.
    """

    Options: ClassVar[type[InceptionResNetV2Options]] = InceptionResNetV2Options
    VARIANTS: ClassVar[dict[str, InceptionResNetV2Options]] = {}

    def __init__(
        self,
        depths: Sequence[int],
        *,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        impl: str = "auto",
        options: InceptionResNetV2Options = InceptionResNetV2Options(),  # noqa: B008 - frozen
    ) -> None:
        stem = ("conv1", "conv2", "conv3", "pool1", "conv4", "conv5")
        super().__init__(
            {4: 192, 8: 320, 16: 1088, 32: 1536},
            {4: stem, 8: ("pool2", "layer1"), 16: ("layer2",), 32: ("layer3", "conv6")},
            in_channels=in_channels,
            impl=impl,
            dropout=options.dropout,
        )
        plan = GatePlan(gate, placement, stages, len(_UNITS))
        layer = partial(ConvNorm, eps=_EPS)
        self.conv1 = layer(in_channels, _halving_conv(32))
        self.conv2 = layer(32, Conv(32, 3, padded=False))
        self.conv3 = layer(32, Conv(64, 3))
        self.pool1 = _halving_pool()
        self.conv4 = layer(64, Conv(80))
        self.conv5 = layer(80, Conv(192, 3, padded=False))
        self.pool2 = _halving_pool()
        channels = 192
        for i, (beginning, (branches, scale), depth) in enumerate(zip(_BEGINNINGS, _UNITS, depths, strict=True)):
            if depth < 1:
                raise UserError(f"depths={tuple(depths)}: a stage needs at least 1 residual unit")
            first = InceptionUnit(channels, beginning, eps=_EPS)
            channels = first.out_channels
            unit = partial(ResidualInceptionUnit, channels, branches, eps=_EPS, plan=plan, stage=i + 1)
            last = unit(scale=1.0, activate=False) if i + 1 == len(_UNITS) else unit(scale=scale)
            rest = [unit(scale=scale) for _ in range(depth - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *rest, last))
        self.conv6 = layer(channels, Conv(1536))
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=False)
