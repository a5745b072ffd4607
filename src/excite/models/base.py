"""What the families share: where gates stand, a block that has one, and a network that ends in a classifier."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

from torch import Tensor, nn

from excite.errors import UserError, unknown
from excite.gates.base import ATTACHED, Gate, GateConfig
from excite.models.blocks import PLACEMENTS
from excite.ops import choose_tail_impl

__all__ = [
    "Classifier",
    "GatePlan",
    "GatedBlock",
    "StagedClassifier",
    "check_dropout",
    "conv",
    "gate_modules",
    "gate_parameters",
]


@dataclass(frozen=True)
class GatePlan:
    """Which gate, at which place of a block, in which stages.

    Args:
        gate: the gate's config, or None for a plain network.
        placement: "standard" (after the last norm, before the addition), "pre" (first thing in the branch),
            "post" (after the addition and its activation), "identity" (on the shortcut, after its projection) or
            "inner" (after the k x k convolution's norm and activation). SE paper, Fig. 5 and Sec. 6.5.
        stages: the stages that have gates, counted from 1 as in ``layer1``; None for all.
        n_stages: how many stages the network has.
        placements: the placements this family has; without shortcuts only "standard".
        stage_names: what its stages are called in messages; ``layer1`` and so on where it is left out.

    Raises:
        ValueError: a placement that is unknown or not the family's; stages that are empty, repeated or out of range.
    """

    gate: GateConfig | None
    placement: str
    stages: tuple[int, ...] | None
    n_stages: int
    placements: tuple[str, ...] = PLACEMENTS
    stage_names: str = ""

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise unknown("placement", self.placement, PLACEMENTS)
        if self.placement not in self.placements:
            raise UserError(
                f"placement={self.placement!r} has no meaning in this network; it has {', '.join(self.placements)}"
            )
        if self.stages is None:
            return
        valid = range(1, self.n_stages + 1)
        if self.stages == ():
            raise UserError(f"stages=() puts no gate anywhere: give some of {_listed(valid)}, or gate='none'")
        if (
            not isinstance(self.stages, tuple)
            or any(isinstance(s, bool) or s not in valid for s in self.stages)
            or len(set(self.stages)) < len(self.stages)
        ):
            raise UserError(
                f"stages={self.stages!r}: give a tuple of some of {_listed(valid)} "
                f"({self.stage_names or f'layer1 to layer{self.n_stages}'}), each once"
            )

    def build(self, stage: int, channels: int) -> nn.Module | None:
        """The gate of a block in ``stage`` for maps of ``channels`` channels, or None."""
        if self.gate is None or (self.stages is not None and stage not in self.stages):
            return None
        return self.gate.build(channels)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


class GatedBlock(nn.Module):
    """A block, residual or not, with at most one gate, its child ``gate``.

    A subclass sets ``gate`` as its last child: every other parameter keeps its place in ``parameters()``.

    Args:
        placement: where ``forward`` applies the gate, see ``GatePlan``.
        impl: which implementation the tail takes, see ``excite.ops.tail``.

    Attributes:
        has_shortcut: whether its input is added to what the branch makes of it.
    """

    has_shortcut: bool = True
    gate: nn.Module | None

    def __init__(self, placement: str, impl: str) -> None:
        super().__init__()
        self.placement = placement
        self.impl = impl

    def gate_at(self, placement: str, x: Tensor) -> Tensor:
        """``gate(x)`` if the gate stands at ``placement``, else ``x`` itself."""
        if self.gate is None or self.placement != placement:
            return x
        y: Tensor = self.gate(x)
        return y

    @property
    def tail_gate(self) -> nn.Module | None:
        """The gate, where it belongs to the tail (placement "standard")."""
        return self.gate if self.placement == "standard" else None

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the addition."""
        raise NotImplementedError


class Classifier(nn.Module):
    """Feature maps, their mean over positions, and one linear layer ``fc``.

    A family gives ``forward_features``, ``forward_pyramid`` and ``pyramid_channels``, and sets ``fc`` by
    ``reset_classifier``. Residual families have the first three from ``StagedClassifier``.

    Shape:
        - input: images [N, in_channels, H, W]
        - output: logits [N, num_classes], or pooled features [N, num_features] with ``num_classes=0``

    Attributes:
        Options: the frozen dataclass of the family's own named options.
        VARIANTS: named sets of these options.
    """

    Options: ClassVar[type[Any]]
    VARIANTS: ClassVar[Mapping[str, Any]]

    fc: nn.Module

    def __init__(self, num_features: int, in_channels: int, impl: str) -> None:
        super().__init__()
        if not _is_whole(in_channels) or in_channels < 1:
            raise UserError(f"in_channels={in_channels!r}: a whole number, at least 1 (3 for colour, 1 for grey)")
        choose_tail_impl(impl)
        self.num_features = num_features
        self.in_channels = in_channels

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> the last feature map [N, num_features, h, w]; of VGG, 512 channels."""
        raise NotImplementedError

    def forward_pyramid(self, x: Tensor) -> dict[int, Tensor]:
        """Images [N, in_channels, H, W] -> the last map of each stride, finest first, for heads of detectors and such.

        Strides are 4, 8, 16 and 32, as far as the network has them; networks for small images, whose stages lie at
        strides 1, 2 and 4, give these. The last map is that of ``forward_features``.

        Returns:
            stride -> map [N, pyramid_channels[stride], H / stride, W / stride], where odd sizes are rounded as the
            network rounds them.
        """
        raise NotImplementedError

    @property
    def pyramid_channels(self) -> dict[int, int]:
        """Channels of each map of ``forward_pyramid``, by its stride."""
        raise NotImplementedError

    def stage_of(self, name: str) -> int | None:
        """The stage, from 1, that the module of this dotted name belongs to; None for the stem, the head and all."""
        layer = re.match(r"layer(\d+)(\.|$)", name)
        return int(layer[1]) if layer else None

    def forward_head(self, features: Tensor) -> Tensor:
        """The last feature map [N, num_features, h, w] -> logits [N, num_classes]."""
        y: Tensor = self.fc(features.mean((2, 3)))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh linear layer for ``num_classes`` in place of ``fc`` (its dtype and device); 0 removes it."""
        self.fc = self.fresh_classifier(num_classes)

    def fresh_classifier(self, num_classes: int) -> nn.Module:
        """A linear layer from ``num_features`` to ``num_classes`` in the network's dtype and device; identity for 0."""
        if not _is_whole(num_classes) or num_classes < 0:
            raise UserError(
                f"num_classes={num_classes!r}: a whole number, at least 1, or 0 for one that gives pooled features"
            )
        self.num_classes = num_classes
        if num_classes == 0:
            return nn.Identity()
        like = next(self.parameters())
        return nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)

    def init_weights(self, *, zero_init_last_norm: bool) -> None:
        """He's normal initialisation of the convolutions (fan-out, gain of ReLU), biases 0; gates keep their own.

        Args:
            zero_init_last_norm: start every block that has a shortcut as this shortcut, by a zero weight in its last
                norm. A gate that reads that norm's output then starts from z = 0.

        Source: arXiv 1502.01852, Sec. 2.2; the zeros, arXiv 1706.02677, Sec. 5.1.
        """
        for module in _outside_gates(self):
            if isinstance(module, nn.Conv2d):
                # A depthwise filter's channel goes to one channel only, which torch's fan-out does not see.
                depthwise = module.groups == module.in_channels > 1
                nn.init.kaiming_normal_(module.weight, mode="fan_in" if depthwise else "fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if zero_init_last_norm and isinstance(module, GatedBlock) and module.has_shortcut:
                assert isinstance(module.last_norm, nn.BatchNorm2d)
                nn.init.zeros_(module.last_norm.weight)


class StagedClassifier(Classifier):
    """A classifier made of a stem and of stages ``layer1``, ``layer2``, ... of blocks, each at a stride of its own.

    A family gives ``stem``, adds its stages by ``add_stage``, and overrides ``finish`` if anything follows the last.
    """

    def __init__(self, num_features: int, in_channels: int, impl: str) -> None:
        super().__init__(num_features, in_channels, impl)
        self._pyramid: dict[int, int] = {}

    def add_stage(self, blocks: Sequence[nn.Module], *, channels: int, stride: int) -> None:
        """Append a stage.

        Args:
            blocks: its blocks in order.
            channels: of its output.
            stride: of its output, counted from the image; larger than the stage's before.
        """
        assert stride > max(self._pyramid, default=0)
        self._pyramid[stride] = channels
        self.add_module(f"layer{len(self._pyramid)}", nn.Sequential(*blocks))

    def stem(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> the input of the first stage."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """The output of the last stage -> the last feature map, of the same shape."""
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> the last feature map [N, num_features, h, w]."""
        x = self.stem(x)
        for i in range(len(self._pyramid)):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.finish(x)

    def forward_pyramid(self, x: Tensor) -> dict[int, Tensor]:
        """Images [N, in_channels, H, W] -> the output of each stage, by its stride; the last one finished."""
        x = self.stem(x)
        maps = {}
        for i, stride in enumerate(self._pyramid):
            x = maps[stride] = getattr(self, f"layer{i + 1}")(x)
        maps[stride] = self.finish(x)
        return maps

    @property
    def pyramid_channels(self) -> dict[int, int]:
        """Channels of each map of ``forward_pyramid``, by its stride."""
        return dict(self._pyramid)


def _outside_gates(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    gate = module.gate if isinstance(module, GatedBlock) else None
    for child in module.children():
        if child is not gate:
            yield from _outside_gates(child)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_dropout(dropout: float) -> None:
    """Refuse an option ``dropout`` that is no share: no number, everything dropped, or less than nothing."""
    if not isinstance(dropout, Real) or not 0 <= dropout < 1:
        raise UserError(f"dropout={dropout!r}: the share of features dropped in training, at least 0 and below 1")


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution before a norm: no bias, padded to keep the size at stride 1."""
    padding = kernel_size // 2
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=padding, groups=groups, bias=False)


def gate_modules(model: nn.Module) -> dict[str, nn.Module]:
    """A network's gates by their dotted names: every ``Gate``, and whatever else stands in the place of one.

    That is the ``gate`` of a block of ``excite.models``, and what was attached.
    """
    in_blocks = {id(m.gate) for m in model.modules() if isinstance(m, GatedBlock) and m.gate is not None}
    return {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, Gate) or id(m) in in_blocks or name.rpartition(".")[2].startswith(ATTACHED)
    }


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network's gates, each once, in the order of ``model.parameters()``.

    For an optimizer group of their own. Empty for a plain network and for gates without parameters.

    Args:
        model: any module; see ``gate_modules`` for what counts as a gate.
    """
    own = {id(p) for gate in gate_modules(model).values() for p in gate.parameters()}
    return [p for p in model.parameters() if id(p) in own]
