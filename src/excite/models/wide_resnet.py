"""Wide ResNets for CIFAR, WRN-16-8 and WRN-28-10: pre-activation ResNets, shallow and many times as wide.

WRN-d-k has d = 6n + 4 layers with n blocks in each of three stages of 16k, 32k and 64k channels.

Source: Wide Residual Networks (arXiv 1605.07146, Table 1) and the authors' released code. The SE paper (arXiv
1709.01507, Tables 4 and 5) has WRN-16-8. Blocks and the place of the gates are those of ``cifar_preact``; every stage
begins with a 1x1 projection of its first activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from excite.errors import UserError
from excite.gates.base import GateConfig
from excite.models.base import GatePlan, check_dropout
from excite.models.cifar_preact import PreactBasicBlock, PreactClassifier, bare_projection

__all__ = ["WideResNet", "WideResNetOptions"]


@dataclass(frozen=True)
class WideResNetOptions:
    """The named options of the wide ResNets.

    Args:
        dropout: share of the input of each block's second convolution dropped in training; the authors' CIFAR results
            are without and, in a second set, with 0.3.

    Raises:
        ValueError: a dropout out of its range.
    """

    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_dropout(self.dropout)


class WideResNet(PreactClassifier):
    """WRN-(6n + 4)-k: three stages ``layer1`` to ``layer3`` of 16k, 32k and 64k channels.

    Args:
        depth: blocks a stage, n.
        widen: k.
        gate: config of the gates, or None for a plain network.
        placement: where in a block the gate stands, see ``cifar_preact.PreactBlock``.
        stages: which of stages 1 to 3 have gates; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: "auto" or "reference": there is no tail to fuse.
        options: dropout.

    Shape:
        - input: [N, in_channels, H, W], any size; made for 32 x 32
        - output: [N, num_classes]

    Raises:
        ValueError: an argument out of its range.
    """

    Options: ClassVar[type[WideResNetOptions]] = WideResNetOptions
    VARIANTS: ClassVar[dict[str, WideResNetOptions]] = {}

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(
        self,
        depth: int,
        widen: int,
        *,
        gate: GateConfig | None = None,
        placement: str = "standard",
        stages: tuple[int, ...] | None = None,
        num_classes: int = 10,
        in_channels: int = 3,
        impl: str = "auto",
        options: WideResNetOptions = WideResNetOptions(),  # noqa: B008 - frozen
    ) -> None:
        if widen < 1:
            raise UserError(f"widen={widen}: at least 1")
        super().__init__(64 * widen, in_channels, impl)
        plan = GatePlan(gate, placement, stages, 3)
        self.add_stages(
            partial(PreactBasicBlock, plan=plan, dropout=options.dropout),
            depth,
            (16 * widen, 32 * widen, 64 * widen),
            expansion=1,
            shortcut=bare_projection,
            first_activated=False,
        )
        self.reset_classifier(num_classes)
        self.init_weights(zero_init_last_norm=False)
