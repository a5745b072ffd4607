"""MobileNetV2 (width 1.0) for images of about 224 x 224: inverted residuals with linear ends.

Source: MobileNetV2 (arXiv 1801.04381, Table 2); with gates, ECA-Net (arXiv 1910.03151, Table 3).

Keys, shapes and order of a plain network's state dict are torchvision's, so its blocks are ``features.1`` to
``features.17`` and the classifier is ``classifier.1``. Stages 1 to 4 are the blocks at strides up to 4, 8, 16 and 32:

    stage 1   features.1 to 3     16, 24, 24 channels           stage 3   features.7 to 13    64 (4), 96 (3)
    stage 2   features.4 to 6     32, 32, 32                    stage 4   features.14 to 17   160 (3), 320

Where published code and papers part:

- The ECA authors' gates stand at the end of every block's branch, before the addition where the block has one: this
  network's "standard". So do their SE gates, whose 3.40 million (of 2^20) parameters come out with r = 8, no biases and
  gates in all 17 blocks; r = 16 would print 3.37, gates in the 10 blocks with shortcuts 3.36.
- MobileNetV3 put its gates after the depthwise convolution: "inner".
- Dropout before the classifier: 0.2 in torchvision, 0.25 in the ECA authors' code, an option here.
- pytorchcv's ``mobilenetv2_w1`` keeps a 1x1 convolution in the first block, which the paper's has not (its
  ``mobilenetv2b_w1`` is this network), and its classifier has no bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from excite.gates.base import GateConfig
from excite.models.base import Classifier, GatedBlock, GatePlan, check_dropout, conv
from excite.models.blocks import run_tail

__all__ = ["InvertedResidual", "MobileNetV2", "MobileNetV2Options"]

# The rows of Table 2 by stage: expansion, channels, number of blocks, stride of the first.
_STAGES: tuple[tuple[tuple[int, int, int, int], ...], ...] = (
    ((1, 16, 1, 1), (6, 24, 2, 2)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


@dataclass(frozen=True)
class MobileNetV2Options:
    """The named options of MobileNetV2.

    Args:
        dropout: share of the pooled features dropped before the classifier in training.
        zero_init_last_norm: start the last norm of every block that has a shortcut at zero (arXiv 1706.02677,
            Sec. 5.1).

    Raises:
        ValueError: a dropout outside 0 to 1.
    """

    dropout: float = 0.2
    zero_init_last_norm: bool = False

    def __post_init__(self) -> None:
        check_dropout(self.dropout)


def _conv_norm_act(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Module:
    return nn.Sequential(
        conv(in_channels, out_channels, kernel_size, stride, groups), nn.BatchNorm2d(out_channels), nn.ReLU6()
    )


class InvertedResidual(GatedBlock):
    """Widening 1x1, depthwise 3x3 and narrowing 1x1 convolutions; the last is linear (arXiv 1801.04381, Table 1).

    The shortcut is the input, where the block keeps its shape; other blocks have none. There the gate at "post" has the
    place of "standard", and there is none at "identity".

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the depthwise convolution.
        expansion: width of the depthwise convolution over ``in_channels``; 1 leaves the first convolution out.
        plan: the network's gates.
        stage: the stage this block belongs to, from 1.
        impl: see ``excite.ops.tail``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: int, *, plan: GatePlan, stage: int, impl: str
    ) -> None:
        super().__init__(plan.placement, impl)
        width = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == out_channels
        layers = [_conv_norm_act(in_channels, width, 1)] if expansion != 1 else []
        layers += [_conv_norm_act(width, width, 3, stride, groups=width)]
        layers += [conv(width, out_channels, 1), nn.BatchNorm2d(out_channels)]
        self.conv = nn.Sequential(*layers)
        gated = self.has_shortcut or plan.placement != "identity"
        channels = {"pre": in_channels, "inner": width}.get(plan.placement, out_channels)
        self.gate = plan.build(stage, channels) if gated else None

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the addition."""
        return self.conv[-1]

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        *widen, project, norm = self.conv
        shortcut = self.gate_at("identity", x) if self.has_shortcut else None
        y = self.gate_at("pre", x)
        for layer in widen:
            y = layer(y)
        y = self.gate_at("inner", y)
        y = run_tail(norm, self.tail_gate, project(y), shortcut, act="none", impl=self.impl)
        return self.gate_at("post", y)


class MobileNetV2(Classifier):
    """MobileNetV2: a strided convolution, 17 blocks in four stages, a 1x1 convolution to 1,280 channels.

    Args:
        gate: config of the gates, or None for a plain network.
        placement: where in a block the gate stands, see ``GatePlan`` and ``InvertedResidual``.
        stages: which of stages 1 to 4 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: implementation of the tails, see ``excite.ops.tail``.
        options: dropout, initialisation.

    Shape:
        - input: [N, in_channels, H, W]; the maps shrink 32-fold, so H and W of at least 33 keep them above 1 x 1
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range.
    """

    Options: ClassVar[type[MobileNetV2Options]] = MobileNetV2Options
    VARIANTS: ClassVar[dict[str, MobileNetV2Options]] = {}

    classifier: nn.Module

    def __init__(
        self,
        *,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        impl: str = "auto",
        options: MobileNetV2Options = MobileNetV2Options(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(1280, in_channels, impl)
        self.dropout = options.dropout
        plan = GatePlan(gate, placement, stages, len(_STAGES), stage_names="the blocks up to strides 4, 8, 16 and 32")
        layers = [_conv_norm_act(in_channels, 32, 3, stride=2)]
        # By stride, how many layers lead to its last map, and the channels it has.
        self._pyramid: dict[int, tuple[int, int]] = {}
        channels = 32
        for i, rows in enumerate(_STAGES):
            for expansion, width, depth, stride in rows:
                for j in range(depth):
                    first = stride if j == 0 else 1
                    layers.append(
                        InvertedResidual(channels, width, first, expansion, plan=plan, stage=i + 1, impl=impl)
                    )
                    channels = width
            self._pyramid[4 * 2**i] = (len(layers), channels)
        layers.append(_conv_norm_act(channels, self.num_features, 1))
        self._pyramid[32] = (len(layers), self.num_features)
        self.features = nn.Sequential(*layers)
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=options.zero_init_last_norm)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> [N, 1280, ceil(H / 32), ceil(W / 32)]."""
        y: Tensor = self.features(x)
        return y

    def stage_of(self, name: str) -> int | None:
        """The stage that the block of this dotted name belongs to; None for the first and the last convolution."""
        parts = name.split(".")
        if parts[0] != "features" or len(parts) == 1 or not isinstance(self.features[int(parts[1])], InvertedResidual):
            return None
        return 1 + sum(int(parts[1]) >= end for end, _ in self._pyramid.values())

    def forward_pyramid(self, x: Tensor) -> dict[int, Tensor]:
        """Images [N, in_channels, H, W] -> the last map of strides 4, 8, 16 and 32; the last has the 1,280 channels."""
        stride_after = {end: stride for stride, (end, _) in self._pyramid.items()}
        maps = {}
        for i, layer in enumerate(self.features, start=1):
            x = layer(x)
            if i in stride_after:
                maps[stride_after[i]] = x
        return maps

    @property
    def pyramid_channels(self) -> dict[int, int]:
        """Channels of each map of ``forward_pyramid``, by its stride."""
        return {stride: channels for stride, (_, channels) in self._pyramid.items()}

    def forward_head(self, features: Tensor) -> Tensor:
        """The last feature map [N, 1280, h, w] -> logits [N, num_classes]."""
        y: Tensor = self.classifier(features.mean((2, 3)))
        return y

    def reset_classifier(self, num_classes: int) -> None:
        """Put dropout and a fresh linear layer in place of ``classifier`` (its dtype and device); 0 removes both."""
        layer = self.fresh_classifier(num_classes)
        self.classifier = layer if num_classes == 0 else nn.Sequential(nn.Dropout(self.dropout), layer)
