"""Pre-activation ResNet-110 and 164 for CIFAR: norm and ReLU before each convolution, nothing after the addition.

Source: Identity Mappings in Deep Residual Networks (arXiv 1603.05027, Fig. 4e and Appendix) and the authors' released
network definition. The SE paper (arXiv 1709.01507, Tables 4 and 5) takes its ResNet-110 and ResNet-164 from there.

Where a gate stands. The SE paper gates the output of the residual branch before the addition (Sec. 3.3, Fig. 3); a
pre-activation branch ends in a convolution, so the gate reads that convolution's output, with no norm between. The
tails are therefore plain: gate and addition, which no fused implementation is for.

What differs between published networks of the same name, each an option here; the defaults are He et al.'s:

    shortcut        where the shape changes: "A", parameter-free (their basic blocks), or "B", a 1x1 convolution without
                    norm (their bottlenecks; pytorchcv's basic blocks too)
    first_shortcut  what the first block's identity carries: "activated", the first norm and ReLU standing before the
                    two paths part (Appendix), or "raw", the stem's output (pytorchcv)
    stride_in       where a bottleneck strides: "1x1", the first convolution, or "3x3" (pytorchcv)

The first activation of a block that changes the shape stands before the two paths part, in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import UserError, unknown
from excite.gates.base import GateConfig
from excite.models.base import GatedBlock, GatePlan, StagedClassifier, conv
from excite.models.cifar import PadShortcut
from excite.ops import choose_tail_impl

__all__ = ["PreactBasicBlock", "PreactBottleneck", "PreactClassifier", "PreactResNet", "PreactResNetOptions"]

Shortcut = Callable[[int, int, int], nn.Module]


@dataclass(frozen=True)
class PreactResNetOptions:
    """The named options of the pre-activation ResNets; None is what He et al. have (see the head of this file).

    Args:
        shortcut: "A" or "B"; None is A for basic blocks and B for bottlenecks.
        first_shortcut: "activated" or "raw". A first block that changes the shape has no choice.
        stride_in: "1x1" or "3x3"; None is "1x1". Basic blocks have no choice.

    Raises:
        ValueError: an unknown value.
    """

    shortcut: str | None = None
    first_shortcut: str = "activated"
    stride_in: str | None = None

    def __post_init__(self) -> None:
        if self.shortcut not in (None, "A", "B"):
            raise unknown("shortcut", self.shortcut, ("A", "B"))
        if self.first_shortcut not in ("activated", "raw"):
            raise unknown("first_shortcut", self.first_shortcut, ("activated", "raw"))
        if self.stride_in not in (None, "1x1", "3x3"):
            raise unknown("stride_in", self.stride_in, ("1x1", "3x3"))


class PreactBlock(GatedBlock):
    """What both blocks share: the first activation, the two paths, the addition.

    A gate stands at

        standard    the end of the branch, before the addition
        pre         the branch's start: the block's input, or the activation the two paths share where they share it
        post        the block's output, after the addition
        identity    the shortcut, after its projection
        inner       after the norm and ReLU that follow the k x k convolution

    A subclass has the first norm ``bn1``, gives ``branch``, and sets ``gate`` last.

    Args:
        downsample: the shortcut's module where it is not the identity.
        activated_shortcut: whether the first norm and ReLU stand before the two paths part.
        placement: see ``GatePlan``.
    """

    bn1: nn.Module
    downsample: nn.Module | None

    def __init__(self, *, activated_shortcut: bool, placement: str) -> None:
        super().__init__(placement, "reference")
        self.activated_shortcut = activated_shortcut

    def branch(self, x: Tensor) -> Tensor:
        """The branch from its first convolution on."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        if self.activated_shortcut:
            x = F.relu(self.bn1(x), inplace=True)
            y = self.gate_at("pre", x)
        else:
            y = F.relu(self.bn1(self.gate_at("pre", x)), inplace=True)
        shortcut = self.gate_at("identity", x if self.downsample is None else self.downsample(x))
        y = self.gate_at("standard", self.branch(y))
        return self.gate_at("post", y + shortcut)


class PreactBasicBlock(PreactBlock):
    """Two 3x3 convolutions, each after norm and ReLU (arXiv 1603.05027, Fig. 4e).

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions and of the output.
        stride: of the first convolution.
        downsample: the shortcut's module where it is not the identity.
        activated_shortcut: whether the first norm and ReLU stand before the two paths part.
        plan: the network's gates.
        stage: the stage this block belongs to, from 1.
        dropout: share of the second convolution's input dropped in training (arXiv 1605.07146, Sec. 2.4).
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        downsample: nn.Module | None,
        *,
        activated_shortcut: bool,
        plan: GatePlan,
        stage: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(activated_shortcut=activated_shortcut, placement=plan.placement)
        self.dropout = dropout
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.downsample = downsample
        self.gate = plan.build(stage, in_channels if plan.placement == "pre" else width)

    def branch(self, x: Tensor) -> Tensor:
        """The branch from its first convolution on."""
        y = self.gate_at("inner", F.relu(self.bn2(self.conv1(x)), inplace=True))
        y = self.conv2(F.dropout(y, self.dropout, self.training))
        return y


class PreactBottleneck(PreactBlock):
    """1x1, 3x3 and widening 1x1 convolutions, each after norm and ReLU (arXiv 1603.05027, Appendix).

    Args:
        in_channels: channels of the input.
        width: channels of the first two convolutions; the output has four times as many.
        stride: of the convolution that ``stride_in`` names.
        downsample: the shortcut's module where it is not the identity.
        activated_shortcut: whether the first norm and ReLU stand before the two paths part.
        plan: the network's gates.
        stage: the stage this block belongs to, from 1.
        stride_in: "1x1" or "3x3".
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        downsample: nn.Module | None,
        *,
        activated_shortcut: bool,
        plan: GatePlan,
        stage: int,
        stride_in: str = "1x1",
    ) -> None:
        super().__init__(activated_shortcut=activated_shortcut, placement=plan.placement)
        out_channels = width * self.expansion
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, width, 1, stride if stride_in == "1x1" else 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride if stride_in == "3x3" else 1)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, out_channels, 1)
        self.downsample = downsample
        self.gate = plan.build(stage, {"pre": in_channels, "inner": width}.get(plan.placement, out_channels))

    def branch(self, x: Tensor) -> Tensor:
        """The branch from its first convolution on."""
        y = F.relu(self.bn2(self.conv1(x)), inplace=True)
        y = self.gate_at("inner", F.relu(self.bn3(self.conv2(y)), inplace=True))
        y = self.conv3(y)
        return y


class PreactClassifier(StagedClassifier):
    """A bare 3x3 convolution, three stages of pre-activation blocks at strides 1, 2 and 4, a last norm and ReLU.

    Args:
        num_features: channels of the last stage.
        in_channels: channels of the images.
        impl: "auto" or "reference".

    Raises:
        ValueError: ``impl="fused"``: the branches have no norm at their end.
    """

    def __init__(self, num_features: int, in_channels: int, impl: str) -> None:
        super().__init__(num_features, in_channels, impl)
        if choose_tail_impl(impl) != "reference":
            raise UserError(f"impl={impl!r} fuses a norm at a branch's end; pre-activation has none: leave impl='auto'")
        self.conv1 = conv(in_channels, 16, 3)

    def add_stages(
        self,
        build: Callable[..., PreactBlock],
        depth: int,
        widths: tuple[int, int, int],
        *,
        expansion: int,
        shortcut: Shortcut,
        first_activated: bool,
    ) -> None:
        """The stages and the norm after them.

        Args:
            build: makes a block of ``(in_channels, width, stride, downsample, activated_shortcut=..., stage=...)``.
            depth: blocks a stage.
            widths: of the blocks of each stage.
            expansion: the output of a block has as many times its width.
            shortcut: makes the shortcut where the shape changes, of ``(in_channels, out_channels, stride)``.
            first_activated: whether the network's first block shares its activation where its shape does not change.
        """
        if depth < 1:
            raise UserError(f"depth={depth}: a stage needs at least 1 block")
        channels = 16
        for stage, width in enumerate(widths, start=1):
            blocks = []
            for i in range(depth):
                stride, out_channels = 2 if stage > 1 and i == 0 else 1, width * expansion
                same = stride == 1 and channels == out_channels
                downsample = None if same else shortcut(channels, out_channels, stride)
                activated = not same or (stage == 1 and i == 0 and first_activated)
                blocks.append(build(channels, width, stride, downsample, activated_shortcut=activated, stage=stage))
                channels = out_channels
            self.add_stage(blocks, channels=channels, stride=2 ** (stage - 1))
        self.bn = nn.BatchNorm2d(channels)

    def stem(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> [N, 16, H, W]."""
        y: Tensor = self.conv1(x)
        return y

    def finish(self, x: Tensor) -> Tensor:
        """The last stage's output, normed and activated."""
        return F.relu(self.bn(x), inplace=True)


class PreactResNet(PreactClassifier):
    """A pre-activation ResNet of three stages ``layer1`` to ``layer3`` of 16, 32 and 64 (bottleneck: x 4) channels.

    Args:
        block: ``PreactBasicBlock`` (6n + 2 layers) or ``PreactBottleneck`` (9n + 2 layers).
        depth: blocks a stage, n.
        gate: config of the gates, or None for a plain network.
        placement: where in a block the gate stands, see ``PreactBlock``.
        stages: which of stages 1 to 3 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: "auto" or "reference": there is no tail to fuse.
        options: shortcuts and strides.

    Shape:
        - input: [N, in_channels, H, W], any size; made for 32 x 32
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range, or an option that the block does not have.
    """

    Options: ClassVar[type[PreactResNetOptions]] = PreactResNetOptions
    VARIANTS: ClassVar[dict[str, PreactResNetOptions]] = {}

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        block: type[PreactBasicBlock] | type[PreactBottleneck],
        depth: int,
        *,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 10,
        in_channels: int = 3,
        impl: str = "auto",
        options: PreactResNetOptions = PreactResNetOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(64 * block.expansion, in_channels, impl)
        basic = block is PreactBasicBlock
        if basic and options.stride_in is not None:
            raise UserError(
                f"stride_in={options.stride_in!r} needs a bottleneck, as in preresnet164; basic blocks stride in their "
                "first 3x3 convolution"
            )
        if not basic and options.first_shortcut == "raw":
            raise UserError(
                "first_shortcut='raw' needs a first block that keeps the shape, as in preresnet110; a bottleneck's "
                "first block widens it"
            )
        build: Callable[..., PreactBlock] = partial(block, plan=GatePlan(gate, placement, stages, 3))
        if not basic:
            build = partial(build, stride_in=options.stride_in or "1x1")
        self.add_stages(
            build,
            depth,
            (16, 32, 64),
            expansion=block.expansion,
            shortcut=PadShortcut if (options.shortcut or ("A" if basic else "B")) == "A" else bare_projection,
            first_activated=options.first_shortcut == "activated",
        )
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=False)


def bare_projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The shortcut of a block that changes shape: a 1x1 convolution on what is normed and activated already."""
    return conv(in_channels, out_channels, 1, stride)
