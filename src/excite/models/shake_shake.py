"""Shake-Shake networks for CIFAR: 26 2x96d for CIFAR-10 and 29 2x4x64d for CIFAR-100.

In training ``shake_shake26_2x96d`` shakes both passes, ``shake_even29_2x4x64d`` the forward pass only; ``shake`` says
what that is, and where gates stand.

Source: Shake-Shake regularization (arXiv 1705.07485, Sec. 2.1.1 and 2.2) and the author's released code. The SE paper
(arXiv 1709.01507, Tables 4 and 5) has both, trained with Cutout (``excite.data.cutout``).

The CIFAR-10 network has its ReLUs first in each branch and none after the addition, as the author's code does; its
stem ends in a norm. pytorchcv's port has them after the addition instead (and after the stem's norm), with the same
parameter shapes: ``relu="post"``. The CIFAR-100 network is a ResNeXt with its ReLU after the addition.
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
from excite.models.resnet import projection
from excite.models.shake import (
    BasicBranch,
    ResNeXtBranch,
    ShakeBlock,
    ShiftShortcut,
    add_shake_stages,
    check_mixing,
)

__all__ = ["ShakeEvenResNeXt", "ShakeEvenResNeXtOptions", "ShakeShakeResNet", "ShakeShakeResNetOptions"]


@dataclass(frozen=True)
class ShakeShakeResNetOptions:
    """The named options of the CIFAR-10 networks.

    Args:
        mix_forward: how the branches are mixed in a training forward pass, "shake" or "even".
        mix_backward: how the gradient is shared among them, "shake", "even" or "keep" (as in the forward pass).
        relu: "pre", first in each branch, or "post", after the addition (see the head of this file).

    Raises:
        ValueError: an unknown value.
    """

    mix_forward: str = "shake"
    mix_backward: str = "shake"
    relu: str = "pre"

    def __post_init__(self) -> None:
        check_mixing(self.mix_forward, self.mix_backward)
        if self.relu not in ("pre", "post"):
            raise unknown("relu", self.relu, ("pre", "post"))


@dataclass(frozen=True)
class ShakeEvenResNeXtOptions:
    """The named options of the CIFAR-100 network.

    Args:
        mix_forward: how the branches are mixed in a training forward pass, "shake" or "even".
        mix_backward: how the gradient is shared among them, "shake", "even" or "keep" (as in the forward pass).

    Raises:
        ValueError: an unknown value.
    """

    mix_forward: str = "shake"
    mix_backward: str = "even"

    def __post_init__(self) -> None:
        check_mixing(self.mix_forward, self.mix_backward)


class ShakeShakeResNet(StagedClassifier):
    """Shake-Shake 26 2xWd: three stages ``layer1`` to ``layer3`` of W, 2W and 4W channels; 6n + 2 layers deep.

    Args:
        depth: blocks a stage, n.
        width: W.
        gate: config of the gates, or None for a plain network.
        placement: where in a block the gates stand, see ``ShakeBlock``.
        stages: which of stages 1 to 3 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: implementation of norm and gate at the branches' ends, see ``excite.ops.tail``.
        options: how branches are mixed, where ReLUs are.

    Shape:
        - input: [N, in_channels, H, W], any size; made for 32 x 32
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range.
    """

    Options: ClassVar[type[ShakeShakeResNetOptions]] = ShakeShakeResNetOptions
    VARIANTS: ClassVar[dict[str, ShakeShakeResNetOptions]] = {}

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 10,
        in_channels: int = 3,
        impl: str = "auto",
        options: ShakeShakeResNetOptions = ShakeShakeResNetOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(4 * width, in_channels, impl)
        if width % 2 or width < 2:
            raise UserError(f"width={width}: an even number of channels, at least 2; each shortcut has two halves")
        self.relu_first = options.relu == "pre"
        self.conv1 = conv(in_channels, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        plan = GatePlan(gate, placement, stages, 3)
        add_shake_stages(
            self,
            partial(BasicBranch, plan=plan, impl=impl),
            partial(
                ShakeBlock,
                mix_forward=options.mix_forward,
                mix_backward=options.mix_backward,
                relu_first=self.relu_first,
                plan=plan,
            ),
            depth,
            (width, 2 * width, 4 * width),
            in_channels=16,
            expansion=1,
            shortcut=ShiftShortcut,
        )
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=False)

    def stem(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> [N, 16, H, W]."""
        y: Tensor = self.bn1(self.conv1(x))
        return y if self.relu_first else F.relu(y)

    def finish(self, x: Tensor) -> Tensor:
        """The last stage's output, activated."""
        return F.relu(x) if self.relu_first else x


class ShakeEvenResNeXt(StagedClassifier):
    """Shake-Even 29 2x4x64d: three stages ``layer1`` to ``layer3`` of 256, 512 and 1024 channels; 9n + 2 layers deep.

    Args:
        depth: blocks a stage, n.
        groups: of the branches' 3x3 convolutions.
        gate: config of the gates, or None for a plain network.
        placement: where in a block the gates stand, see ``ShakeBlock``.
        stages: which of stages 1 to 3 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: implementation of norm and gate at the branches' ends, see ``excite.ops.tail``.
        options: how branches are mixed.

    Shape:
        - input: [N, in_channels, H, W], any size; made for 32 x 32
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range.
    """

    Options: ClassVar[type[ShakeEvenResNeXtOptions]] = ShakeEvenResNeXtOptions
    VARIANTS: ClassVar[dict[str, ShakeEvenResNeXtOptions]] = {}

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        depth: int,
        groups: int,
        *,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 100,
        in_channels: int = 3,
        impl: str = "auto",
        options: ShakeEvenResNeXtOptions = ShakeEvenResNeXtOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(1024, in_channels, impl)
        self.conv1 = conv(in_channels, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        plan = GatePlan(gate, placement, stages, 3)
        add_shake_stages(
            self,
            partial(ResNeXtBranch, plan=plan, impl=impl, groups=groups),
            partial(
                ShakeBlock,
                mix_forward=options.mix_forward,
                mix_backward=options.mix_backward,
                relu_first=False,
                plan=plan,
            ),
            depth,
            (64, 128, 256),
            in_channels=64,
            expansion=4,
            shortcut=projection,
        )
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=False)

    def stem(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> [N, 64, H, W]."""
        return F.relu(self.bn1(self.conv1(x)), inplace=True)
