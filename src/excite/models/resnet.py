"""ResNet-18 to 152 for images of about 224 x 224, plain or with gates.

Source: Deep Residual Learning (arXiv 1512.03385, Table 1); gates, Squeeze-and-Excitation Networks (arXiv 1709.01507).

Two details differ between published networks of the same name and parameter shapes, and each is an option here:

    stride_in   where a bottleneck strides: "3x3" (torchvision and most libraries) or "1x1" (He et al., SE authors)
    stem_pool   the 3x3/2 max-pool: "padded" by 1 (torchvision) or "ceil" (no padding, ceil mode; Caffe, SE authors)

The defaults are torchvision's, whose state dicts load unchanged. ``variant="official"`` is the SE authors' pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import UserError, unknown
from excite.gates.base import GateConfig
from excite.models.base import GatedBlock, GatePlan, StagedClassifier, conv
from excite.models.blocks import run_tail

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "ResNetOptions"]


@dataclass(frozen=True)
class ResNetOptions:
    """The named options of the ImageNet ResNets.

    Args:
        stride_in: which convolution of a bottleneck strides, "3x3" or "1x1" (the first). Basic blocks stride in
            their first 3x3 and have no choice.
        stem_pool: the stem's max-pool, "padded" or "ceil" (see the head of this file).
        zero_init_last_norm: start the last norm of every block at zero (arXiv 1706.02677, Sec. 5.1).

    Raises:
        ValueError: an unknown value.
    """

    stride_in: str = "3x3"
    stem_pool: str = "padded"
    zero_init_last_norm: bool = False

    def __post_init__(self) -> None:
        if self.stride_in not in ("3x3", "1x1"):
            raise unknown("stride_in", self.stride_in, ("3x3", "1x1"))
        if self.stem_pool not in ("padded", "ceil"):
            raise unknown("stem_pool", self.stem_pool, ("padded", "ceil"))


class BasicBlock(GatedBlock):
    """Two 3x3 convolutions (arXiv 1512.03385, Fig. 5, left). An inner gate stands between them.

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions and of the output.
        stride: of the first convolution.
        downsample: the shortcut's module where it is not the identity.
        plan: the network's gates.
        stage: the stage this block belongs to, from 1.
        impl: see ``excite.ops.tail``.
    """

    expansion: ClassVar[int] = 1

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
    ) -> None:
        super().__init__(plan.placement, impl)
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample
        self.gate = plan.build(stage, in_channels if plan.placement == "pre" else width)

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the addition."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, width, ceil(H / stride), ceil(W / stride)]."""
        shortcut = self.gate_at("identity", x if self.downsample is None else self.downsample(x))
        y = self.gate_at("pre", x)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = self.gate_at("inner", y)
        y = run_tail(self.bn2, self.tail_gate, self.conv2(y), shortcut, act="relu", impl=self.impl)
        return self.gate_at("post", y)


class Bottleneck(GatedBlock):
    """1x1, 3x3 and widening 1x1 convolutions (arXiv 1512.03385, Fig. 5, right). An inner gate follows the 3x3.

    Args:
        in_channels: channels of the input.
        width: a quarter of the output's channels.
        stride: of the convolution that ``stride_in`` names.
        downsample: the shortcut's module where it is not the identity.
        plan: the network's gates.
        stage: the stage this block belongs to, from 1.
        impl: see ``excite.ops.tail``.
        stride_in: "3x3" or "1x1".
        inner: channels of the first and the second convolution; ``width`` both by default.
        groups: of the 3x3 convolution.
    """

    expansion: ClassVar[int] = 4

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
        stride_in: str = "3x3",
        inner: tuple[int, int] | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__(plan.placement, impl)
        first, second = inner or (width, width)
        out_channels = width * self.expansion
        self.conv1 = conv(in_channels, first, 1, stride if stride_in == "1x1" else 1)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = conv(first, second, 3, stride if stride_in == "3x3" else 1, groups)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3 = conv(second, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = downsample
        self.gate = plan.build(stage, {"pre": in_channels, "inner": second}.get(plan.placement, out_channels))

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the addition."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, 4 * width, ceil(H / stride), ceil(W / stride)]."""
        shortcut = self.gate_at("identity", x if self.downsample is None else self.downsample(x))
        y = self.gate_at("pre", x)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.gate_at("inner", y)
        y = run_tail(self.bn3, self.tail_gate, self.conv3(y), shortcut, act="relu", impl=self.impl)
        return self.gate_at("post", y)


class ResNet(StagedClassifier):
    """A ResNet of four stages ``layer1`` to ``layer4`` with 64 to 512 (times the block's expansion) channels.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        depths: number of blocks of each stage.
        gate: config of the gates, or None for a plain network.
        placement: where in a block the gate stands, see ``GatePlan``.
        stages: which of stages 1 to 4 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: implementation of the tails, see ``excite.ops.tail``.
        options: stride, stem pool, initialisation.

    Shape:
        - input: [N, in_channels, H, W]; the maps shrink 32-fold, so H and W of at least 33 keep them above 1 x 1
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range, or ``stride_in="1x1"`` with basic blocks.
    """

    Options: ClassVar[type[ResNetOptions]] = ResNetOptions
    VARIANTS: ClassVar[dict[str, ResNetOptions]] = {"official": ResNetOptions(stride_in="1x1", stem_pool="ceil")}

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        impl: str = "auto",
        options: ResNetOptions = ResNetOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(512 * block.expansion, in_channels, impl)
        if block is BasicBlock and options.stride_in == "1x1":
            raise UserError(
                "stride_in='1x1' (also set by variant='official') needs a bottleneck, as in resnet50, resnet101 and "
                "resnet152; basic blocks have no 1x1 convolution: leave stride_in at '3x3'"
            )
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = max_pool(options.stem_pool)
        build: Callable[..., GatedBlock] = partial(
            block, plan=GatePlan(gate, placement, stages, len(depths)), impl=impl
        )
        if block is Bottleneck:
            build = partial(build, stride_in=options.stride_in)
        add_stages(self, build, depths, in_channels=64, expansion=block.expansion)
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=options.zero_init_last_norm)

    def stem(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> [N, 64, ceil(H / 4), ceil(W / 4)]."""
        y: Tensor = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return y


def max_pool(kind: str) -> nn.MaxPool2d:
    """The stem's 3x3/2 max-pool: "padded" by 1, or "ceil", without padding and in ceil mode."""
    padded = kind == "padded"
    return nn.MaxPool2d(3, stride=2, padding=1 if padded else 0, ceil_mode=not padded)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The shortcut of a block that changes shape: 1x1 convolution and norm (arXiv 1512.03385, option B)."""
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


def add_stages(
    model: StagedClassifier,
    build: Callable[..., GatedBlock],
    depths: Sequence[int],
    *,
    in_channels: int,
    expansion: int,
    project: Callable[[int, int, int], nn.Module] = projection,
) -> None:
    """Four stages of 64 to 512 times ``expansion`` channels at strides 4 to 32 (arXiv 1512.03385, Table 1).

    Args:
        model: the network that gets them.
        build: makes a block of ``(in_channels, width, stride, downsample, stage=...)``.
        depths: number of blocks of each stage.
        in_channels: channels after the stem.
        expansion: the output of a block has as many times its width.
        project: makes the shortcut where the shape changes, of ``(in_channels, out_channels, stride)``.
    """
    for i, depth in enumerate(depths):
        width, out_channels = 64 * 2**i, 64 * 2**i * expansion
        blocks = []
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            same = stride == 1 and in_channels == out_channels
            downsample = None if same else project(in_channels, out_channels, stride)
            blocks.append(build(in_channels, width, stride, downsample, stage=i + 1))
            in_channels = out_channels
        model.add_stage(blocks, channels=out_channels, stride=4 * 2**i)
