"""Inception-v3: eleven Inception units, large kernels taken apart into a row and a column.

Source: Rethinking the Inception Architecture (arXiv 1512.00567, Sec. 6, Figs. 5 to 7 and 10). Keys, shapes and order of
the state dict are torchvision's, which timm has too. The SE paper does not train this network; its gates stand where it
puts them in other Inception networks (arXiv 1709.01507, Fig. 2): on the concatenation of every unit, the two that halve
the map included.

What differs between published code, each an option:

    aux_head           torchvision's weights come with the auxiliary classifier on the maps of stride 16 (``AuxLogits``)
    transform_input    those weights take images normalised to [-1, 1]; torchvision turns ImageNet's normalisation into
                       that inside the network
    count_include_pad  whether the zeros around the map count in the average pools: in torchvision and timm they do, in
                       TensorFlow and Keras they do not

Keras' network also has no scale in its norms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from excite.errors import UserError
from excite.gates.base import GateConfig
from excite.models.base import GatePlan, check_dropout
from excite.models.inception import Branch, Conv, ConvNorm, InceptionNetwork, InceptionUnit

__all__ = ["AuxiliaryHead", "InceptionV3", "InceptionV3Options"]

_EPS = 1e-3

_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3")

# By channel what turns an image normalised with ImageNet's mean and deviation into one of [-1, 1].
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InceptionV3Options:
    """The named options of Inception-v3.

    Args:
        aux_head: whether it has the auxiliary classifier, see ``InceptionV3.forward_with_aux``.
        transform_input: take images normalised with ImageNet's mean and deviation and bring them to [-1, 1].
        count_include_pad: whether the zeros around a map count in its average pools.
        dropout: share of the pooled features dropped in training.

    Raises:
        ValueError: a dropout out of range.
    """

    aux_head: bool = False
    transform_input: bool = False
    count_include_pad: bool = True
    dropout: float = 0.5

    def __post_init__(self) -> None:
        check_dropout(self.dropout)


def _conv(name: str, channels: int, kernel_size: int | tuple[int, int] = 1, stride: int = 1) -> Conv:
    """A convolution of a unit: padded to keep the size, unpadded to halve it."""
    return Conv(channels, kernel_size, stride, padded=stride == 1, name=name)


Pool = Callable[[], nn.Module]
_halving_pool = partial(nn.MaxPool2d, 3, stride=2)


def _unit_5x5(pooled: int, pool: Pool) -> tuple[Branch, ...]:
    """Paper's Fig. 5, with one 5x5 kept; ``pooled`` channels behind the pool."""
    return (
        Branch((_conv("branch1x1", 64),)),
        Branch((_conv("branch5x5_1", 48), _conv("branch5x5_2", 64, 5))),
        Branch((_conv("branch3x3dbl_1", 64), _conv("branch3x3dbl_2", 96, 3), _conv("branch3x3dbl_3", 96, 3))),
        Branch((_conv("branch_pool", pooled),), pool=pool),
    )


def _unit_7x7(inner: int, pool: Pool) -> tuple[Branch, ...]:
    """Paper's Fig. 6 with n = 7; ``inner`` channels between its rows and columns."""
    row, column = (1, 7), (7, 1)
    return (
        Branch((_conv("branch1x1", 192),)),
        Branch((_conv("branch7x7_1", inner), _conv("branch7x7_2", inner, row), _conv("branch7x7_3", 192, column))),
        Branch(
            (
                _conv("branch7x7dbl_1", inner),
                _conv("branch7x7dbl_2", inner, column),
                _conv("branch7x7dbl_3", inner, row),
                _conv("branch7x7dbl_4", inner, column),
                _conv("branch7x7dbl_5", 192, row),
            )
        ),
        Branch((_conv("branch_pool", 192),), pool=pool),
    )


def _unit_wide(pool: Pool) -> tuple[Branch, ...]:
    """Paper's Fig. 7: a row and a column side by side."""
    row, column = (1, 3), (3, 1)
    return (
        Branch((_conv("branch1x1", 320),)),
        Branch(
            (_conv("branch3x3_1", 384),),
            fork=(_conv("branch3x3_2a", 384, row), _conv("branch3x3_2b", 384, column)),
        ),
        Branch(
            (_conv("branch3x3dbl_1", 448), _conv("branch3x3dbl_2", 384, 3)),
            fork=(_conv("branch3x3dbl_3a", 384, row), _conv("branch3x3dbl_3b", 384, column)),
        ),
        Branch((_conv("branch_pool", 192),), pool=pool),
    )


# Paper's Fig. 10, to stride 16 and to stride 32.
_TO_16 = (
    Branch((_conv("branch3x3", 384, 3, 2),)),
    Branch((_conv("branch3x3dbl_1", 64), _conv("branch3x3dbl_2", 96, 3), _conv("branch3x3dbl_3", 96, 3, 2))),
    Branch(pool=_halving_pool),
)
_TO_32 = (
    Branch((_conv("branch3x3_1", 192), _conv("branch3x3_2", 320, 3, 2))),
    Branch(
        (
            _conv("branch7x7x3_1", 192),
            _conv("branch7x7x3_2", 192, (1, 7)),
            _conv("branch7x7x3_3", 192, (7, 1)),
            _conv("branch7x7x3_4", 192, 3, 2),
        )
    ),
    Branch(pool=_halving_pool),
)


def _stage_of_unit(name: str) -> int:
    """1 for ``Mixed_5b``: the names count the stem's convolutions 1 to 4 too."""
    return int(name[len("Mixed_")]) - 4


class AuxiliaryHead(nn.Module):
    """The auxiliary classifier on the last maps of stride 16 (arXiv 1512.00567, Fig. 8).

    Shape:
        - input: [N, 768, H, W], H and W at least 17, as images of 299 x 299 give
        - output: [N, num_classes]
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = ConvNorm(768, Conv(128), eps=_EPS)
        self.conv1 = ConvNorm(128, Conv(768, 5, padded=False), eps=_EPS)
        self.fc: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.conv1(self.conv0(F.avg_pool2d(x, 5, stride=3)))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


class InceptionV3(InceptionNetwork):
    """Inception-v3: stages 1 (``Mixed_5b`` to ``5d``), 2 (``6a`` to ``6e``) and 3 (``7a`` to ``7c``).

    The stages' maps have strides 8, 16 and 32. The stem's convolutions, and those that halve a map, are not padded.

    Args:
        gate: config of the gates, or None for a plain network.
        placement: "standard" (on the concatenation); there are no shortcuts to place a gate by.
        stages: which of stages 1 to 3 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: checked, but of no effect: there is no tail to fuse.
        options: auxiliary head, input range, average pools, dropout.

    Shape:
        - input: [N, in_channels, H, W], H and W at least 75; made for 299 x 299, which gives last maps of 8 x 8
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range, or ``transform_input`` for other than 3 channels.
    """

    Options: ClassVar[type[InceptionV3Options]] = InceptionV3Options
    VARIANTS: ClassVar[dict[str, InceptionV3Options]] = {}

    AuxLogits: AuxiliaryHead | None

    def __init__(
        self,
        *,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        impl: str = "auto",
        options: InceptionV3Options = InceptionV3Options(),  # noqa: B008 - frozen
    ) -> None:
        pool = partial(nn.AvgPool2d, 3, stride=1, padding=1, count_include_pad=options.count_include_pad)
        units: dict[str, tuple[Branch, ...]] = {
            "Mixed_5b": _unit_5x5(32, pool),
            "Mixed_5c": _unit_5x5(64, pool),
            "Mixed_5d": _unit_5x5(64, pool),
            "Mixed_6a": _TO_16,
            "Mixed_6b": _unit_7x7(128, pool),
            "Mixed_6c": _unit_7x7(160, pool),
            "Mixed_6d": _unit_7x7(160, pool),
            "Mixed_6e": _unit_7x7(192, pool),
            "Mixed_7a": _TO_32,
            "Mixed_7b": _unit_wide(pool),
            "Mixed_7c": _unit_wide(pool),
        }
        names = tuple(units)
        trunk = {4: _STEM, 8: ("maxpool2", *names[:3]), 16: names[3:8], 32: names[8:]}
        channels = {4: 192, 8: 288, 16: 768, 32: 2048}
        super().__init__(channels, trunk, in_channels=in_channels, impl=impl, dropout=options.dropout)
        if options.transform_input and in_channels != 3:
            raise UserError(f"transform_input=True is for colour images; got in_channels={in_channels}")
        self.transform_input = options.transform_input
        plan = GatePlan(gate, placement, stages, 3, ("standard",), "Mixed_5b to 5d, 6a to 6e, 7a to 7c")
        self._add_stem(in_channels)
        width = channels[4]
        for name, branches in units.items():
            if name == "Mixed_7a":  # where torchvision's state dict has it
                self.AuxLogits = AuxiliaryHead() if options.aux_head else None
            unit = InceptionUnit(width, branches, eps=_EPS, plan=plan, stage=_stage_of_unit(name))
            self.add_module(name, unit)
            width = unit.out_channels
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=False)

    def _add_stem(self, in_channels: int) -> None:
        unpadded = partial(Conv, padded=False)
        self.Conv2d_1a_3x3 = ConvNorm(in_channels, unpadded(32, 3, stride=2), eps=_EPS)
        self.Conv2d_2a_3x3 = ConvNorm(32, unpadded(32, 3), eps=_EPS)
        self.Conv2d_2b_3x3 = ConvNorm(32, Conv(64, 3), eps=_EPS)
        self.maxpool1 = _halving_pool()
        self.Conv2d_3b_1x1 = ConvNorm(64, Conv(80), eps=_EPS)
        self.Conv2d_4a_3x3 = ConvNorm(80, unpadded(192, 3), eps=_EPS)
        self.maxpool2 = _halving_pool()

    def stage_of(self, name: str) -> int | None:
        """The stage that the module of this dotted name belongs to; None outside the units."""
        return _stage_of_unit(name) if name.startswith("Mixed_") else None

    def prepare(self, x: Tensor) -> Tensor:
        """The images, brought from ImageNet's normalisation to [-1, 1] where ``transform_input`` says so."""
        if not self.transform_input:
            return x
        channels = zip(x.unbind(1), _IMAGENET_MEAN, _IMAGENET_STD, strict=True)
        return torch.stack([channel * (2 * std) + (2 * mean - 1) for channel, mean, std in channels], 1)

    def forward_with_aux(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, in_channels, H, W] -> logits, and the auxiliary head's logits, both [N, num_classes].

        The second are for training only; TensorFlow's recipe adds their loss at a weight of 0.4.

        Raises:
            ValueError: the network has no auxiliary head.
        """
        if self.AuxLogits is None:
            raise UserError("this network has no auxiliary head: build it with aux_head=True")
        maps = self.forward_pyramid(x)
        return self.forward_head(maps[32]), self.AuxLogits(maps[16])

    def reset_classifier(self, num_classes: int) -> None:
        """Put fresh linear layers for ``num_classes`` in place of ``fc`` and the auxiliary head's; 0 removes both."""
        super().reset_classifier(num_classes)
        if self.AuxLogits is not None:
            like = next(self.parameters())
            fresh = nn.Linear(768, num_classes, device=like.device, dtype=like.dtype) if num_classes else nn.Identity()
            self.AuxLogits.fc = fresh
