"""CIFAR ResNet-20, 32, 44, 56 and 110: small images, three stages of 16, 32 and 64 channels.

Source: Deep Residual Learning (arXiv 1512.03385, Sec. 4.2), whose networks have 0.27, 0.46, 0.66, 0.85 and 1.7 million
parameters. SE paper (arXiv 1709.01507, Table 4) adds gates to the deepest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import UserError, unknown
from excite.gates.base import GateConfig
from excite.models.base import GatePlan, StagedClassifier, conv
from excite.models.resnet import BasicBlock, projection

__all__ = ["CifarResNet", "CifarResNetOptions", "PadShortcut"]


@dataclass(frozen=True)
class CifarResNetOptions:
    """The named options of the CIFAR ResNets.

    Args:
        shortcut: where the shape changes, "A" (every second position, zero channels appended: no parameters) or "B"
            (1x1 convolution and norm). A is the default because He et al. use it for all their CIFAR networks;
            several libraries have B, which adds 2,752 parameters.
        zero_init_last_norm: start the last norm of every block at zero (arXiv 1706.02677, Sec. 5.1).

    Raises:
        ValueError: an unknown shortcut.
    """

    shortcut: str = "A"
    zero_init_last_norm: bool = False

    def __post_init__(self) -> None:
        if self.shortcut not in ("A", "B"):
            raise unknown("shortcut", self.shortcut, ("A", "B"))


class PadShortcut(nn.Module):
    """Every ``stride``-th position, and zero channels behind the others (arXiv 1512.03385, option A).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, no fewer.
        stride: distance of the positions kept.

    Shape:
        - input: [N, in_channels, H, W]
        - output: [N, out_channels, ceil(H / stride), ceil(W / stride)]
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.added_channels = out_channels - in_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        # The copy keeps the memory format, which padding a strided view would lose.
        kept = x[:, :, :: self.stride, :: self.stride].clone()
        return F.pad(kept, (0, 0, 0, 0, 0, self.added_channels))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"stride={self.stride}, added_channels={self.added_channels}"


class CifarResNet(StagedClassifier):
    """A ResNet of three stages ``layer1`` to ``layer3`` of basic blocks; 6n + 2 layers for n blocks a stage.

    Args:
        depth: blocks a stage, n.
        gate: config of the gates, or None for a plain network.
        placement: where in a block the gate stands, see ``GatePlan``.
        stages: which of stages 1 to 3 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images (1 for Fashion-MNIST).
        impl: implementation of the tails, see ``excite.ops.tail``.
        options: shortcut, initialisation.

    Shape:
        - input: [N, in_channels, H, W], any size; made for 32 x 32 and 28 x 28
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range.
    """

    Options: ClassVar[type[CifarResNetOptions]] = CifarResNetOptions
    VARIANTS: ClassVar[dict[str, CifarResNetOptions]] = {}

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        depth: int,
        *,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 10,
        in_channels: int = 3,
        impl: str = "auto",
        options: CifarResNetOptions = CifarResNetOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(64, in_channels, impl)
        if depth < 1:
            raise UserError(f"depth={depth}: a stage needs at least 1 block")
        self.conv1 = conv(in_channels, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        shortcut = PadShortcut if options.shortcut == "A" else projection
        build = partial(BasicBlock, plan=GatePlan(gate, placement, stages, 3), impl=impl)
        channels = 16
        for stage, width in ((1, 16), (2, 32), (3, 64)):
            stride = 1 if width == channels else 2
            downsample = None if width == channels else shortcut(channels, width, stride)
            first = build(channels, width, stride, downsample, stage=stage)
            rest = [build(width, width, 1, None, stage=stage) for _ in range(depth - 1)]
            self.add_stage([first, *rest], channels=width, stride=width // 16)
            channels = width
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=options.zero_init_last_norm)

    def stem(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> [N, 16, H, W]."""
        return F.relu(self.bn1(self.conv1(x)), inplace=True)
