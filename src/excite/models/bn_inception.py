"""BN-Inception: ten Inception units in which two 3x3 convolutions stand for a 5x5, and batch norm everywhere.

Sources: Batch Normalization (arXiv 1502.03167, Appendix, Fig. 5); the SE authors' network of that name for the widths
and for the gates, which stand on the concatenation of all ten units, the two that halve the map included (arXiv
1709.01507, Fig. 2).

What differs between published code:

    conv_bias   the SE authors' convolutions have no bias; Cadene's, pytorchcv's and the Caffe file they come from have
                one, which the norm takes away again
    widths      behind the pools of units 4c and 4d the paper's figure (and TensorFlow's inception_v2) has 96 channels;
                all of the above have 128, and so does this network

Max-pools are unpadded and in ceil mode, as in Caffe; the last unit's pool is a maximum where all others average. Such a
pool beside a padded convolution halves odd sizes differently, so images must be multiples of 32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, fx, nn

from excite.errors import UserError
from excite.gates.base import GateConfig
from excite.models.base import GatePlan
from excite.models.inception import Branch, Conv, ConvNorm, InceptionNetwork, InceptionUnit

__all__ = ["BNInception", "BNInceptionOptions"]

_EPS = 1e-5

_halving_pool = partial(nn.MaxPool2d, 3, stride=2, ceil_mode=True)
_average_pool = partial(nn.AvgPool2d, 3, stride=1, padding=1)
_max_pool = partial(nn.MaxPool2d, 3, stride=1, padding=1)


@dataclass(frozen=True)
class _Widths:
    """Channels of a unit: of the 1x1; of the 1x1 and 3x3; of the 1x1 and both 3x3; of the 1x1 behind the pool.

    A unit that halves the map has no branch of a single 1x1, and gives its pool's output as it is: there, 0.
    """

    single: int
    reduce: int
    triple: int
    double_reduce: int
    double: int
    pooled: int
    pool: Callable[[], nn.Module] = _average_pool

    def branches(self) -> tuple[Branch, ...]:
        stride = 1 if self.pooled else 2
        once = Branch((Conv(self.reduce), Conv(self.triple, 3, stride)))
        twice = Branch((Conv(self.double_reduce), Conv(self.double, 3), Conv(self.double, 3, stride)))
        if not self.pooled:
            return once, twice, Branch(pool=_halving_pool)
        return Branch((Conv(self.single),)), once, twice, Branch((Conv(self.pooled),), pool=self.pool)


# Units 3a to 3b, 3c to 4d, 4e to 5b.
_STAGES = (
    (_Widths(64, 64, 64, 64, 96, 32), _Widths(64, 64, 96, 64, 96, 64)),
    (
        _Widths(0, 128, 160, 64, 96, 0),
        _Widths(224, 64, 96, 96, 128, 128),
        _Widths(192, 96, 128, 96, 128, 128),
        _Widths(160, 128, 160, 128, 160, 128),
        _Widths(96, 128, 192, 160, 192, 128),
    ),
    (
        _Widths(0, 128, 192, 192, 256, 0),
        _Widths(352, 192, 320, 160, 224, 128),
        _Widths(352, 192, 320, 192, 224, 128, _max_pool),
    ),
)


@dataclass(frozen=True)
class BNInceptionOptions:
    """The named options of BN-Inception.

    Args:
        conv_bias: whether convolutions have a bias, see the head of this file.
    """

    conv_bias: bool = False


class BNInception(InceptionNetwork):
    """BN-Inception: stages ``layer1`` to ``layer3`` of 2, 5 and 3 units at strides 8, 16 and 32.

    Args:
        gate: config of the gates, or None for a plain network.
        placement: "standard" (on the concatenation); there are no shortcuts to place a gate by.
        stages: which of stages 1 to 3 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: checked, but of no effect: there is no tail to fuse.
        options: bias of the convolutions.

    Shape:
        - input: [N, in_channels, H, W], H and W multiples of 32; made for 224 x 224
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range; images of another size.
    """

    Options: ClassVar[type[BNInceptionOptions]] = BNInceptionOptions
    VARIANTS: ClassVar[dict[str, BNInceptionOptions]] = {}

    def __init__(
        self,
        *,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        impl: str = "auto",
        options: BNInceptionOptions = BNInceptionOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(
            {4: 192, 8: 320, 16: 608, 32: 1024},
            {4: ("conv1", "pool1", "conv2", "conv3"), 8: ("pool2", "layer1"), 16: ("layer2",), 32: ("layer3",)},
            in_channels=in_channels,
            impl=impl,
            dropout=0.0,
        )
        plan = GatePlan(gate, placement, stages, len(_STAGES), placements=("standard",))
        layer = partial(ConvNorm, eps=_EPS, bias=options.conv_bias)
        self.conv1 = layer(in_channels, Conv(64, 7, stride=2))
        self.pool1 = _halving_pool()
        self.conv2 = layer(64, Conv(64))
        self.conv3 = layer(64, Conv(192, 3))
        self.pool2 = _halving_pool()
        channels = 192
        build = partial(InceptionUnit, eps=_EPS, bias=options.conv_bias, plan=plan)
        for stage, table in enumerate(_STAGES, start=1):
            units = []
            for widths in table:
                units.append(build(channels, widths.branches(), stage=stage))
                channels = units[-1].out_channels
            self.add_module(f"layer{stage}", nn.Sequential(*units))
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=False)

    def prepare(self, x: Tensor) -> Tensor:
        """The images as they are, if the units can halve them.

        Raises:
            ValueError: a side that is no multiple of 32.
        """
        _check_sides(x)
        return x


@fx.wrap  # a graph of the network takes any size: it has this check as one step
def _check_sides(x: Tensor) -> None:
    height, width = x.shape[-2:]
    if height % 32 or width % 32:
        raise UserError(f"BN-Inception takes images whose sides are multiples of 32; got {height} x {width}")
