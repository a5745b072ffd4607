"""What the Inception networks share: branches side by side on one map, and a gate on what they give together.

Two kinds of unit, with the gate where the SE paper (arXiv 1709.01507, Sec. 3.3, Figs. 2 and 3) puts it:

    InceptionUnit            y = gate(concat(branches(x)))
    ResidualInceptionUnit    y = act(x + scale * gate(project(concat(branches(x)))))

In the second the gate takes the branch before ``scale``, the constant of 0.1 to 0.2 that belongs to the addition. A
constant commutes with the gate's rescaling but not with its squeeze: behind it the gate would see descriptors 5 to 10
times smaller and hardly leave s = 0.5. The paper says that squeeze and excitation both act before the summation, and
no more; its authors released no such network.

A projection with a bias stands there instead of a norm, so there is no tail to fuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.models.base import Classifier, GatedBlock, GatePlan

__all__ = ["Branch", "Conv", "ConvNorm", "InceptionNetwork", "InceptionUnit", "ResidualInceptionUnit"]


@dataclass(frozen=True)
class Conv:
    """A convolution, followed by norm and ReLU.

    Args:
        channels: of the output.
        kernel_size: one side, or (height, width).
        stride: of both axes.
        padded: by half the kernel, which keeps the size at stride 1; otherwise not at all.
        name: of its module; "" for one made from its position.
    """

    channels: int
    kernel_size: int | tuple[int, int] = 1
    stride: int = 1
    padded: bool = True
    name: str = ""


@dataclass(frozen=True)
class Branch:
    """One way through a unit: a pool if any, then convolutions, then convolutions side by side.

    Args:
        convs: one after another.
        fork: each on the output of the last of ``convs``, their outputs concatenated; named.
        pool: makes the module that comes first, or None.
    """

    convs: tuple[Conv, ...] = ()
    fork: tuple[Conv, ...] = ()
    pool: Callable[[], nn.Module] | None = None

    def out_channels(self, in_channels: int) -> int:
        """Channels it gives for a map of ``in_channels`` channels."""
        if self.fork:
            return sum(conv.channels for conv in self.fork)
        return self.convs[-1].channels if self.convs else in_channels


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU.

    Args:
        in_channels: channels of the input.
        conv: the convolution.
        eps: of the norm.
        bias: whether the convolution has one, which the norm takes away again.

    Shape:
        - input: [N, in_channels, H, W]
        - output: [N, conv.channels, ceil(H / stride), ceil(W / stride)], or fewer positions where it is not padded
    """

    def __init__(self, in_channels: int, conv: Conv, *, eps: float, bias: bool = False) -> None:
        super().__init__()
        size = conv.kernel_size
        height, width = (size, size) if isinstance(size, int) else size
        padding = (height // 2, width // 2) if conv.padded else 0
        self.conv = nn.Conv2d(in_channels, conv.channels, (height, width), conv.stride, padding, bias=bias)
        self.bn = nn.BatchNorm2d(conv.channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class InceptionUnit(GatedBlock):
    """Branches, their concatenation, and the gate on it.

    Args:
        in_channels: channels of the input.
        branches: what stands side by side, in the order of the output's channels.
        eps: of the norms.
        bias: whether convolutions have one.
        plan: the network's gates; None for a unit that never has one.
        stage: the stage this unit belongs to, from 1.

    Shape:
        - input: [N, in_channels, H, W]
        - output: [N, out_channels, h, w]
    """

    def __init__(
        self,
        in_channels: int,
        branches: Sequence[Branch],
        *,
        eps: float,
        bias: bool = False,
        plan: GatePlan | None = None,
        stage: int = 1,
    ) -> None:
        super().__init__("standard", "reference")
        self.out_channels = sum(branch.out_channels(in_channels) for branch in branches)
        # Of each branch the names of what runs in sequence, and of what runs side by side behind it.
        self._ways: list[tuple[list[str], list[str]]] = []
        for i, branch in enumerate(branches):
            parts: dict[str, nn.Module] = {} if branch.pool is None else {f"pool{i}": branch.pool()}
            channels = in_channels
            for j, conv in enumerate(branch.convs):
                parts[conv.name or f"branch{i}_{j}"] = ConvNorm(channels, conv, eps=eps, bias=bias)
                channels = conv.channels
            fork = {conv.name: ConvNorm(channels, conv, eps=eps, bias=bias) for conv in branch.fork}
            for name, module in (parts | fork).items():
                self.add_module(name, module)
            self._ways.append((list(parts), list(fork)))
        self.gate = None if plan is None else plan.build(stage, self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        maps: list[Tensor] = []
        for sequence, fork in self._ways:
            y = x
            for name in sequence:
                y = getattr(self, name)(y)
            maps += [getattr(self, name)(y) for name in fork] or [y]
        return self.gate_at("standard", torch.cat(maps, 1))


class ResidualInceptionUnit(GatedBlock):
    """Branches whose concatenation, projected to the input's width, is added to it (arXiv 1602.07261, Figs. 16 to 19).

    Placements are those of ``GatePlan``; "inner" is the concatenation, before its projection.

    Args:
        channels: channels of the input and of the output.
        branches: what stands side by side.
        scale: factor of the projection in the addition.
        activate: whether a ReLU follows the addition.
        eps: of the norms.
        plan: the network's gates.
        stage: the stage this unit belongs to, from 1.

    Shape:
        - input: [N, channels, H, W]
        - output: the same
    """

    def __init__(
        self,
        channels: int,
        branches: Sequence[Branch],
        *,
        scale: float,
        activate: bool = True,
        eps: float,
        plan: GatePlan,
        stage: int,
    ) -> None:
        super().__init__(plan.placement, "reference")
        self.scale = scale
        self.activate = activate
        self.branches = InceptionUnit(channels, branches, eps=eps)
        self.project = nn.Conv2d(self.branches.out_channels, channels, 1)
        self.gate = plan.build(stage, self.branches.out_channels if plan.placement == "inner" else channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        shortcut = self.gate_at("identity", x)
        y = self.branches(self.gate_at("pre", x))
        y = self.project(self.gate_at("inner", y))
        y = shortcut + self.scale * self.gate_at("standard", y)
        return self.gate_at("post", F.relu(y) if self.activate else y)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"scale={self.scale}, activate={self.activate}"


class InceptionNetwork(Classifier):
    """A classifier whose children run one after another, with dropout before its linear layer ``fc``.

    A family adds the children that ``trunk`` names. Its stages 1, 2 and 3 are the units whose output has stride 8, 16
    and 32: a unit that halves the map begins a stage.

    Args:
        channels: of the last map at strides 4, 8, 16 and 32.
        trunk: names of the children in order, by the stride of their output.
        in_channels: channels of the images.
        impl: checked, but of no effect: these networks have no tail to fuse.
        dropout: share of the pooled features dropped in training.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        trunk: Mapping[int, Sequence[str]],
        *,
        in_channels: int,
        impl: str,
        dropout: float,
    ) -> None:
        super().__init__(channels[32], in_channels, impl)
        self._channels = dict(channels)
        self._trunk = {stride: tuple(names) for stride, names in trunk.items()}
        self.dropout = nn.Dropout(dropout)

    def prepare(self, x: Tensor) -> Tensor:
        """What happens to the images first: nothing, unless a family says otherwise."""
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> the last feature map [N, num_features, h, w]."""
        x = self.prepare(x)
        for stride in self._trunk:
            x = self.run_to(stride, x)
        return x

    def forward_pyramid(self, x: Tensor) -> dict[int, Tensor]:
        """Images [N, in_channels, H, W] -> the last map at each of the strides 4, 8, 16 and 32.

        Where convolutions are not padded, maps are a little smaller than H / stride.
        """
        x = self.prepare(x)
        return {stride: (x := self.run_to(stride, x)) for stride in self._trunk}

    def run_to(self, stride: int, x: Tensor) -> Tensor:
        """The last map of the stride before, or the prepared images -> the last map at ``stride``."""
        for name in self._trunk[stride]:
            x = getattr(self, name)(x)
        return x

    @property
    def pyramid_channels(self) -> dict[int, int]:
        """Channels of each map of ``forward_pyramid``, by its stride."""
        return dict(self._channels)

    def forward_head(self, features: Tensor) -> Tensor:
        """The last feature map [N, num_features, h, w] -> logits [N, num_classes]."""
        y: Tensor = self.fc(self.dropout(features.mean((2, 3))))
        return y
