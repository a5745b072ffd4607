"""The block of Shake-Shake networks: two residual branches, mixed at random in training and evenly in eval.

    training, forward    alpha b1 + (1 - alpha) b2     alpha ~ U(0, 1), one an image and block; or 1/2 ("even")
    training, backward   beta dy, (1 - beta) dy        beta ~ U(0, 1) independent of alpha; or 1/2 ("even"), or alpha
                                                       ("keep")
    eval                 (b1 + b2) / 2

Source: Shake-Shake regularization (arXiv 1705.07485, Sec. 1.2 and 1.3) and the author's released code.

Where a gate stands. The SE paper (arXiv 1709.01507) gates a residual branch's output before the addition (Sec. 3.3,
Fig. 3), and says no more of these networks, where two branches are added. Here each branch has a gate of its own, after
its last norm and before the two are mixed: a gate that read the mixture would read the shaking too.

The draws come from torch's global generator of the images' device, so a seed fixes them. Both are made in the forward
pass, in float32, and neither gates nor options change how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import UserError, unknown
from excite.models.base import GatedBlock, GatePlan, StagedClassifier, conv
from excite.models.blocks import run_tail

__all__ = [
    "BasicBranch",
    "ResNeXtBranch",
    "ShakeBlock",
    "ShakeBranch",
    "ShiftShortcut",
    "add_shake_stages",
    "check_mixing",
    "mix",
]

FORWARD = ("shake", "even")
BACKWARD = ("shake", "even", "keep")


def check_mixing(forward: str, backward: str) -> None:
    """Refuse unknown ways of mixing."""
    if forward not in FORWARD:
        raise unknown("mix_forward", forward, FORWARD)
    if backward not in BACKWARD:
        raise unknown("mix_backward", backward, BACKWARD)


# --- the mixture ---


def mix(first: Tensor, second: Tensor, *, forward: str, backward: str) -> Tensor:
    """Two branches mixed as in training, each image with weights of its own (arXiv 1705.07485, Eq. 2).

    Args:
        first: [N, C, H, W].
        second: the same.
        forward: "shake" or "even".
        backward: "shake", "even" or "keep".

    Returns:
        [N, C, H, W]; its gradient is shared by weights of their own.
    """
    # One draw for both: a compiler that drops or moves an unused one would shift all that follow.
    alpha, beta = torch.rand((2, len(first), 1, 1, 1), dtype=torch.float32, device=first.device).to(first.dtype)
    if forward == "even":
        alpha = torch.full_like(alpha, 0.5)
    if backward != "shake":
        beta = alpha if backward == "keep" else torch.full_like(beta, 0.5)
    mixed: Tensor = _Mix.apply(first, second, alpha, beta)
    return mixed


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        ctx.save_for_backward(beta)
        return torch.lerp(second, first, alpha)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (beta,), (grad,) = ctx.saved_tensors, grads
        return beta * grad, (1 - beta) * grad, None, None


# --- blocks ---


class ShakeBranch(GatedBlock):
    """One residual branch, ending in a norm and, by standard placement, its gate.

    Subclasses say what it is made of. Of the placements, "standard", "pre" and "inner" are a branch's;
    the others are its block's.
    """

    PLACEMENTS: ClassVar[tuple[str, ...]] = ("standard", "pre", "inner")

    def __init__(self, plan: GatePlan, impl: str) -> None:
        super().__init__(plan.placement, impl)

    def build_gate(self, plan: GatePlan, stage: int, *, pre: int, inner: int, out: int) -> nn.Module | None:
        """The branch's gate, for as many channels as its place has."""
        if plan.placement not in self.PLACEMENTS:
            return None
        return plan.build(stage, {"pre": pre, "inner": inner}.get(plan.placement, out))


class BasicBranch(ShakeBranch):
    """Two 3x3 convolutions (arXiv 1705.07485, Sec. 2.1.1).

    Args:
        in_channels: channels of the input.
        width: channels of both convolutions and of the output.
        stride: of the first convolution.
        plan: the network's gates.
        stage: the stage this branch belongs to, from 1.
        impl: see ``excite.ops.tail``.
    """

    def __init__(self, in_channels: int, width: int, stride: int, *, plan: GatePlan, stage: int, impl: str) -> None:
        super().__init__(plan, impl)
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.gate = self.build_gate(plan, stage, pre=in_channels, inner=width, out=width)

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the addition."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, width, ceil(H / stride), ceil(W / stride)]."""
        y = self.gate_at("pre", x)
        y = self.gate_at("inner", F.relu(self.bn1(self.conv1(y)), inplace=True))
        return run_tail(self.bn2, self.tail_gate, self.conv2(y), act="none", impl=self.impl)


class ResNeXtBranch(ShakeBranch):
    """1x1, grouped 3x3 and widening 1x1 convolutions (arXiv 1705.07485, Sec. 2.2; arXiv 1611.05431, Fig. 3c).

    Args:
        in_channels: channels of the input.
        width: a quarter of the output's channels, and channels of a group.
        stride: of the 3x3 convolution.
        plan: the network's gates.
        stage: the stage this branch belongs to, from 1.
        impl: see ``excite.ops.tail``.
        groups: of the 3x3 convolution.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, *, plan: GatePlan, stage: int, impl: str, groups: int
    ) -> None:
        super().__init__(plan, impl)
        inner, out_channels = width * groups, width * 4
        self.conv1 = conv(in_channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv(inner, inner, 3, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv(inner, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.gate = self.build_gate(plan, stage, pre=in_channels, inner=inner, out=out_channels)

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the addition."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, 4 * width, ceil(H / stride), ceil(W / stride)]."""
        y = self.gate_at("pre", x)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = self.gate_at("inner", F.relu(self.bn2(self.conv2(y)), inplace=True))
        return run_tail(self.bn3, self.tail_gate, self.conv3(y), act="none", impl=self.impl)


class ShakeBlock(GatedBlock):
    """Two branches, mixed, and a shortcut.

    A gate stands at

        standard    the end of each branch, after its last norm
        pre         the start of each branch, after its ReLU where it begins with one
        inner       in each branch, after the k x k convolution's norm and ReLU (the first of two)
        post        the block's output
        identity    the shortcut, after its projection

    so the first three have two gates a block.

    Args:
        branch: makes a branch.
        downsample: the shortcut's module where it is not the identity.
        channels: of the output.
        mix_forward: see ``mix``.
        mix_backward: see ``mix``.
        relu_first: whether the ReLU stands before the branches (and the shortcut's projection) or after the addition.
        plan: the network's gates.
        stage: the stage this block belongs to, from 1.
    """

    def __init__(
        self,
        branch: Callable[[], ShakeBranch],
        downsample: nn.Module | None,
        channels: int,
        *,
        mix_forward: str,
        mix_backward: str,
        relu_first: bool,
        plan: GatePlan,
        stage: int,
    ) -> None:
        super().__init__(plan.placement, "reference")
        self.mix_forward = mix_forward
        self.mix_backward = mix_backward
        self.relu_first = relu_first
        self.branch1 = branch()
        self.branch2 = branch()
        self.downsample = downsample
        self.gate = None if plan.placement in ShakeBranch.PLACEMENTS else plan.build(stage, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, channels, ceil(H / stride), ceil(W / stride)]."""
        y = F.relu(x) if self.relu_first else x
        shortcut = self.gate_at("identity", x if self.downsample is None else self.downsample(y))
        first, second = self.branch1(y), self.branch2(y)
        if self.training:
            y = mix(first, second, forward=self.mix_forward, backward=self.mix_backward)
        else:
            y = 0.5 * (first + second)
        y = y + shortcut
        return self.gate_at("post", y if self.relu_first else F.relu(y))


class ShiftShortcut(nn.Module):
    """Half the channels from every ``stride``-th position, half from its neighbour up and left, and a norm.

    The second half sees what striding alone would leave out (arXiv 1705.07485, Sec. 2.1.1; the norm is in the author's
    code only).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, even.
        stride: distance of the positions.

    Shape:
        - input: [N, in_channels, H, W]
        - output: [N, out_channels, ceil(H / stride), ceil(W / stride)]
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels // 2, 1, stride)
        self.conv2 = conv(in_channels, out_channels // 2, 1, stride)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        shifted = F.pad(x, (1, -1, 1, -1))
        y: Tensor = self.bn(torch.cat([self.conv1(x), self.conv2(shifted)], dim=1))
        return y


def add_shake_stages(
    model: StagedClassifier,
    branch: Callable[..., ShakeBranch],
    block: Callable[..., ShakeBlock],
    depth: int,
    widths: tuple[int, int, int],
    *,
    in_channels: int,
    expansion: int,
    shortcut: Callable[[int, int, int], nn.Module],
) -> None:
    """Three stages at strides 1, 2 and 4, each beginning with a block that changes the shape.

    Args:
        model: the network that gets them.
        branch: makes a branch of ``(in_channels, width, stride, stage=...)``.
        block: makes a block of ``(branch, downsample, channels, stage=...)``, ``branch`` taking nothing more.
        depth: blocks a stage.
        widths: of the branches of each stage.
        in_channels: channels after the stem.
        expansion: the output of a branch has as many times its width.
        shortcut: makes the shortcut where the shape changes, of ``(in_channels, out_channels, stride)``.
    """
    if depth < 1:
        raise UserError(f"depth={depth}: a stage needs at least 1 block")
    for stage, width in enumerate(widths, start=1):
        channels, blocks = width * expansion, []
        for i in range(depth):
            stride = 2 if stage > 1 and i == 0 else 1
            same = stride == 1 and in_channels == channels
            downsample = None if same else shortcut(in_channels, channels, stride)
            make = partial(branch, in_channels, width, stride, stage=stage)
            blocks.append(block(make, downsample, channels, stage=stage))
            in_channels = channels
        model.add_stage(blocks, channels=channels, stride=2 ** (stage - 1))
