"""SENet-154 for images of about 224 x 224: the network that won ILSVRC 2017 with its gates, or with others, or none.

A ResNeXt-152 (64x4d) with a stem of three 3x3 convolutions of 64, 64 and 128 channels, the first 1x1 convolution of
every block at half the width of the second, 3x3 instead of 1x1 projections where the map shrinks, and dropout of 0.2
before the classifier.

Source: Squeeze-and-Excitation Networks (arXiv 1709.01507, Appendix) and the authors' released network definition.

The gate is part of what the name means, so ``create_model("senet154")`` has the authors' SE (r = 16, with biases);
``gate="none"`` is the network without gates and ``gate="eca"`` the one with ECA in their places.

The stem's 3x3/2 max-pool is in ceil mode without padding here, as the authors and most ports have it; pytorchcv's port
pads it by 1, which no parameter shape shows: ``stem_pool="padded"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import unknown
from excite.gates.base import GateConfig
from excite.models.base import GatePlan, StagedClassifier, check_dropout, conv
from excite.models.resnet import Bottleneck, add_stages, max_pool

__all__ = ["SENet", "SENetBottleneck", "SENetOptions"]


@dataclass(frozen=True)
class SENetOptions:
    """The named options of SENet-154.

    Args:
        dropout: share of the pooled features dropped in training.
        stem_pool: the stem's max-pool, "ceil" or "padded" (see the head of this file).
        zero_init_last_norm: start the last norm of every block at zero (arXiv 1706.02677, Sec. 5.1).

    Raises:
        ValueError: an unknown value, or a dropout out of its range.
    """

    dropout: float = 0.2
    stem_pool: str = "ceil"
    zero_init_last_norm: bool = False

    def __post_init__(self) -> None:
        check_dropout(self.dropout)
        if self.stem_pool not in ("ceil", "padded"):
            raise unknown("stem_pool", self.stem_pool, ("ceil", "padded"))


class SENetBottleneck(Bottleneck):
    """A bottleneck of twice, four times and four times ``width`` channels (arXiv 1709.01507, Appendix, a).

    Args:
        in_channels: channels of the input.
        width: a quarter of the output's channels.
        stride: of the 3x3 convolution.
        downsample: the shortcut's module where it is not the identity.
        plan: the network's gates.
        stage: the stage this block belongs to, from 1.
        impl: see ``excite.ops.tail``.
        groups: of the 3x3 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        downsample: nn.Module | None,
        *,
        plan: GatePlan,
        stage: int,
        impl: str,
        groups: int,
    ) -> None:
        super().__init__(
            in_channels,
            width,
            stride,
            downsample,
            plan=plan,
            stage=stage,
            impl=impl,
            inner=(2 * width, 4 * width),
            groups=groups,
        )


class SENet(StagedClassifier):
    """A network of four stages ``layer1`` to ``layer4`` with 256 to 2048 channels.

    Args:
        depths: number of blocks of each stage; (3, 8, 36, 3) is SENet-154.
        groups: of the blocks' 3x3 convolutions.
        gate: config of the gates, or None for a network without.
        placement: where in a block the gate stands, see ``GatePlan``.
        stages: which of stages 1 to 4 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: implementation of the tails, see ``excite.ops.tail``.
        options: dropout, stem pool, initialisation.

    Shape:
        - input: [N, in_channels, H, W]; the maps shrink 32-fold, so H and W of at least 33 keep them above 1 x 1
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range.
    """

    Options: ClassVar[type[SENetOptions]] = SENetOptions
    VARIANTS: ClassVar[dict[str, SENetOptions]] = {}

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        depths: Sequence[int],
        *,
        groups: int = 64,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        impl: str = "auto",
        options: SENetOptions = SENetOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(512 * SENetBottleneck.expansion, in_channels, impl)
        plan = GatePlan(gate, placement, stages, len(depths))
        self.dropout = options.dropout
        self.conv1 = conv(in_channels, 64, 3, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = conv(64, 64, 3)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = conv(64, 128, 3)
        self.bn3 = nn.BatchNorm2d(128)
        self.maxpool = max_pool(options.stem_pool)
        build = partial(SENetBottleneck, plan=plan, impl=impl, groups=groups)
        expansion = SENetBottleneck.expansion
        add_stages(self, build, depths, in_channels=128, expansion=expansion, project=projection)
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=options.zero_init_last_norm)

    def stem(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> [N, 128, ceil(H / 4), ceil(W / 4)]."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        y: Tensor = self.maxpool(x)
        return y

    def forward_head(self, features: Tensor) -> Tensor:
        """The last feature map [N, num_features, h, w] -> logits [N, num_classes]."""
        y: Tensor = self.fc(F.dropout(features.mean((2, 3)), self.dropout, self.training))
        return y


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The shortcut of a block that changes shape: 3x3 where the map shrinks, else 1x1 (Appendix, c), and norm."""
    kernel_size = 1 if stride == 1 else 3
    return nn.Sequential(conv(in_channels, out_channels, kernel_size, stride), nn.BatchNorm2d(out_channels))
