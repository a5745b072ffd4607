"""VGG-11, 13, 16 and 19 with batch norm, with a gate after each convolution's non-linearity.

Sources: Very Deep Convolutional Networks (arXiv 1409.1556, Table 1: configurations A, B, D and E); batch norm after
every convolution as in the SE paper, which inserts its gates after each non-linearity (arXiv 1709.01507, Sec. 4.1).

Keys, shapes and order of a plain network's state dict are those of torchvision's ``vgg*_bn``. There ``features`` counts
convolutions, norms, ReLUs and pools in one sequence; ReLUs have no keys, so a gate lives in the place of its ReLU
(``features.2.gate.fc1.weight``) and no index moves.

Published networks differ in the bias of the convolutions, which a norm takes away again: torchvision and this file keep
it. The three linear layers hold 124 of VGG-16's 138 million parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import UserError
from excite.gates.base import GateConfig
from excite.models.base import Classifier, GatedBlock, GatePlan, check_dropout

__all__ = ["VGG", "GatedReLU", "VGGOptions"]

_WIDTHS = (64, 128, 256, 512, 512)
# Side of the map the first linear layer takes; other sizes are averaged to it.
_HEAD_SIZE = 7


@dataclass(frozen=True)
class VGGOptions:
    """The named options of the VGG networks.

    Args:
        hidden_features: width of the classifier's two hidden layers; 4096 in the paper. Small images and few classes
            need fewer.
        dropout: share of hidden features dropped in training, after each hidden layer.

    Raises:
        ValueError: a value out of range.
    """

    hidden_features: int = 4096
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.hidden_features < 1:
            raise UserError(f"hidden_features={self.hidden_features}: at least 1")
        check_dropout(self.dropout)


class GatedReLU(GatedBlock):
    """A ReLU, and the gate that follows it.

    Args:
        channels: channels of the map.
        plan: the network's gates.
        stage: the stage this ReLU belongs to, from 1.

    Shape:
        - input: [N, channels, H, W]
        - output: the same
    """

    def __init__(self, channels: int, *, plan: GatePlan, stage: int) -> None:
        super().__init__(plan.placement, "reference")
        self.gate = plan.build(stage, channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.gate_at("standard", F.relu(x))


class VGG(Classifier):
    """Five stages of 3x3 convolutions with a 2x2 max-pool after each, and three linear layers.

    Stage k, from 1 to 5, is the convolutions between two pools; its maps have stride 2^(k - 1).

    Args:
        depths: number of convolutions of each stage.
        gate: config of the gates, or None for a plain network.
        placement: "standard" (after the ReLU); there are no shortcuts to place a gate by.
        stages: which of stages 1 to 5 have gates; None for all.
        num_classes: size of the output; 0 for the features of the last hidden layer.
        in_channels: channels of the images.
        impl: checked, but of no effect: with the gate behind the ReLU there is no tail to fuse.
        options: width and dropout of the hidden layers.

    Shape:
        - input: [N, in_channels, H, W], H and W at least 32; made for 224 x 224
        - output: [N, num_classes], or [N, hidden_features] with ``num_classes=0``

    ``num_features`` is what the last linear layer takes, ``hidden_features``. The last feature map has 512 channels.

    Raises:
        ValueError: an argument out of its range.
    """

    Options: ClassVar[type[VGGOptions]] = VGGOptions
    VARIANTS: ClassVar[dict[str, VGGOptions]] = {}

    features: nn.Sequential
    classifier: nn.Sequential

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
        options: VGGOptions = VGGOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(options.hidden_features, in_channels, impl)
        plan = GatePlan(
            gate,
            placement,
            stages,
            len(_WIDTHS),
            placements=("standard",),
            stage_names="the convolutions between pools",
        )
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, (width, depth) in enumerate(zip(_WIDTHS, depths, strict=True), start=1):
            for _ in range(depth):
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                layers.append(nn.BatchNorm2d(width))
                layers.append(GatedReLU(width, plan=plan, stage=stage))
                channels = width
            layers.append(nn.MaxPool2d(2, stride=2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(_HEAD_SIZE)
        hidden = options.hidden_features
        self.classifier = nn.Sequential(
            nn.Linear(channels * _HEAD_SIZE**2, hidden),
            nn.ReLU(),
            nn.Dropout(options.dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(options.dropout),
            nn.Identity(),
        )
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=False)

    @property
    def pyramid_channels(self) -> dict[int, int]:
        """Channels of the maps of ``forward_pyramid``, by stride."""
        return {4: _WIDTHS[2], 8: _WIDTHS[3], 16: _WIDTHS[4], 32: _WIDTHS[4]}

    def stage_of(self, name: str) -> int | None:
        """The stage that the module of this dotted name belongs to, its pool included; None in the head."""
        parts = name.split(".")
        if parts[0] != "features" or len(parts) == 1:
            return None
        return 1 + sum(isinstance(layer, nn.MaxPool2d) for layer in self.features[: int(parts[1])])

    def forward_pyramid(self, x: Tensor) -> dict[int, Tensor]:
        """Images [N, in_channels, H, W] -> the last map of each stride, 4 to 32; that of 32 is the last pool's."""
        maps: dict[int, Tensor] = {}
        stride = 1
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps[stride] = x
                stride *= 2
            x = layer(x)
        maps[stride] = x
        return {stride: maps[stride] for stride in self.pyramid_channels}

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> the last feature map [N, 512, H // 32, W // 32]."""
        y: Tensor = self.features(x)
        return y

    def forward_head(self, features: Tensor) -> Tensor:
        """The last feature map [N, 512, h, w] -> logits [N, num_classes]."""
        y: Tensor = self.classifier(torch.flatten(self.avgpool(features), 1))
        return y

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh last linear layer in (its dtype and device); the hidden ones stay. 0 leaves it out."""
        self.classifier[-1] = self.fresh_classifier(num_classes)
