"""MobileNet v1 (width 1.0) for images of about 224 x 224: depthwise separable convolutions, no shortcuts.

Source: MobileNets (arXiv 1704.04861, Table 1); with gates, Squeeze-and-Excitation Networks (arXiv 1709.01507, Table 3).

Where published code and papers part:

- The activation. ReLU in the paper and in pytorchcv, ReLU6 in TensorFlow's release and so in timm. No shape tells them
  apart, so it is an option.
- The last depthwise convolution has "s2" in Table 1, beside an output of the same size; every code strides by 1.
- TensorFlow pads strided convolutions at the right and bottom only; the padding here is 1 all round.
- Where SE stands is not in its paper, whose rule for networks without shortcuts is: after the non-linearity of a
  convolution (Sec. 3.3). After the pointwise convolutions, with r = 16, the gates make the 4.7 million parameters of
  its Table 3; after the depthwise ones they would make 4.6 million, after both 5.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import unknown
from excite.gates.base import GateConfig
from excite.models.base import GatedBlock, GatePlan, StagedClassifier, conv

__all__ = ["MobileNetV1", "MobileNetV1Options", "SeparableUnit"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "relu6": F.relu6}

# Output channels of each unit, by stage. The map halves at the second unit of the first stage, elsewhere at the first:
# stages end at strides 4, 8, 16 and 32, as those of a ResNet do.
_STAGES: tuple[tuple[int, ...], ...] = ((64, 128, 128), (256, 256), (512,) * 6, (1024, 1024))


@dataclass(frozen=True)
class MobileNetV1Options:
    """The named options of MobileNet v1.

    Args:
        activation: "relu" (the paper) or "relu6" (TensorFlow's and timm's weights).

    Raises:
        ValueError: an unknown activation.
    """

    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.activation not in _ACTIVATIONS:
            raise unknown("activation", self.activation, _ACTIVATIONS)


class SeparableUnit(GatedBlock):
    """A depthwise 3x3 and a pointwise convolution, each with norm and activation; the gate last.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the depthwise convolution.
        plan: the network's gates.
        stage: the stage this unit belongs to, from 1.
        impl: see ``excite.ops.tail``; a unit without a shortcut has no such tail.
        activation: "relu" or "relu6".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        plan: GatePlan,
        stage: int,
        impl: str,
        activation: str,
    ) -> None:
        super().__init__(plan.placement, impl)
        self.conv1 = conv(in_channels, in_channels, 3, stride, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = conv(in_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.activation = activation
        self.gate = plan.build(stage, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        act = _ACTIVATIONS[self.activation]
        x = act(self.bn1(self.conv1(x)))
        x = act(self.bn2(self.conv2(x)))
        return self.gate_at("standard", x)


class MobileNetV1(StagedClassifier):
    """MobileNet v1: a strided convolution and 13 units in four stages ``layer1`` to ``layer4``.

    Args:
        gate: config of the gates, or None for a plain network.
        placement: "standard", after the pointwise convolution's activation: without shortcuts there is no other.
        stages: which of stages 1 to 4 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: checked as for every network; this one has no tail that it could change.
        options: the activation.

    Shape:
        - input: [N, in_channels, H, W]; the maps shrink 32-fold, so H and W of at least 33 keep them above 1 x 1
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range.
    """

    Options: ClassVar[type[MobileNetV1Options]] = MobileNetV1Options
    VARIANTS: ClassVar[dict[str, MobileNetV1Options]] = {}

    def __init__(
        self,
        *,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        impl: str = "auto",
        options: MobileNetV1Options = MobileNetV1Options(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(1024, in_channels, impl)
        self.activation = options.activation
        self.conv1 = conv(in_channels, 32, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(32)
        plan = GatePlan(gate, placement, stages, len(_STAGES), placements=("standard",))
        build = partial(SeparableUnit, plan=plan, impl=impl, activation=options.activation)
        channels = 32
        for i, widths in enumerate(_STAGES):
            strided = 1 if i == 0 else 0
            units = []
            for j, width in enumerate(widths):
                units.append(build(channels, width, 2 if j == strided else 1, stage=i + 1))
                channels = width
            self.add_stage(units, channels=channels, stride=4 * 2**i)
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=False)

    def stem(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> [N, 32, ceil(H / 2), ceil(W / 2)]."""
        return _ACTIVATIONS[self.activation](self.bn1(self.conv1(x)))
