"""ResNeXt-50 and 101 (32x4d) for images of about 224 x 224, plain or with gates.

A ResNet whose 3x3 convolutions are grouped: 32 groups of 4 channels in the first stage, 8, 16 and 32 in the others.

Source: Aggregated Residual Transformations (arXiv 1611.05431, Table 1, form c of Fig. 3); gates, Squeeze-and-Excitation
Networks (arXiv 1709.01507, Table 1, right).

The stride is in the 3x3 convolution everywhere, the SE authors' networks included (their ResNets stride in the first
1x1). What differs is the stem's 3x3/2 max-pool, and no parameter shape shows it: padded by 1 (torchvision, whose state
dicts load unchanged, and timm's ``seresnext*``) or in ceil mode without padding (the SE authors, Cadene, timm's
``legacy_seresnext*``). The default is torchvision's; ``variant="official"`` is the SE authors'.
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
from excite.models.base import GatePlan, StagedClassifier
from excite.models.resnet import Bottleneck, add_stages, max_pool

__all__ = ["ResNeXt", "ResNeXtBottleneck", "ResNeXtOptions"]


@dataclass(frozen=True)
class ResNeXtOptions:
    """The named options of the ResNeXts.

    Args:
        stem_pool: the stem's max-pool, "padded" or "ceil" (see the head of this file).
        zero_init_last_norm: start the last norm of every block at zero (arXiv 1706.02677, Sec. 5.1).

    Raises:
        ValueError: an unknown value.
    """

    stem_pool: str = "padded"
    zero_init_last_norm: bool = False

    def __post_init__(self) -> None:
        if self.stem_pool not in ("padded", "ceil"):
            raise unknown("stem_pool", self.stem_pool, ("padded", "ceil"))


class ResNeXtBottleneck(Bottleneck):
    """A bottleneck whose 3x3 convolution has groups, and strides (arXiv 1611.05431, Fig. 3c).

    Args:
        in_channels: channels of the input.
        width: a quarter of the output's channels.
        stride: of the 3x3 convolution.
        downsample: the shortcut's module where it is not the identity.
        plan: the network's gates.
        stage: the stage this block belongs to, from 1.
        impl: see ``excite.ops.tail``.
        groups: of the 3x3 convolution, the cardinality C.
        base_width: channels a group where ``width`` is 64, d.
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
        base_width: int,
    ) -> None:
        inner = width * base_width // 64 * groups
        super().__init__(
            in_channels,
            width,
            stride,
            downsample,
            plan=plan,
            stage=stage,
            impl=impl,
            inner=(inner, inner),
            groups=groups,
        )


class ResNeXt(StagedClassifier):
    """A ResNeXt of four stages ``layer1`` to ``layer4`` with 256 to 2048 channels.

    Args:
        depths: number of blocks of each stage.
        groups: cardinality C of the blocks.
        base_width: channels a group in the first stage, d.
        gate: config of the gates, or None for a plain network.
        placement: where in a block the gate stands, see ``GatePlan``.
        stages: which of stages 1 to 4 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: implementation of the tails, see ``excite.ops.tail``.
        options: stem pool, initialisation.

    Shape:
        - input: [N, in_channels, H, W]; the maps shrink 32-fold, so H and W of at least 33 keep them above 1 x 1
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range.
    """

    Options: ClassVar[type[ResNeXtOptions]] = ResNeXtOptions
    VARIANTS: ClassVar[dict[str, ResNeXtOptions]] = {"official": ResNeXtOptions(stem_pool="ceil")}

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        depths: Sequence[int],
        *,
        groups: int = 32,
        base_width: int = 4,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        impl: str = "auto",
        options: ResNeXtOptions = ResNeXtOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(512 * ResNeXtBottleneck.expansion, in_channels, impl)
        plan = GatePlan(gate, placement, stages, len(depths))
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = max_pool(options.stem_pool)
        build = partial(ResNeXtBottleneck, plan=plan, impl=impl, groups=groups, base_width=base_width)
        add_stages(self, build, depths, in_channels=64, expansion=ResNeXtBottleneck.expansion)
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=options.zero_init_last_norm)

    def stem(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> [N, 64, ceil(H / 4), ceil(W / 4)]."""
        y: Tensor = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return y
