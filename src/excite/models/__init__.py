"""Networks of the papers by name: ``create_model("resnet50", gate="se(reduction=8)", stages=(2, 3))``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from excite.errors import UserError, unknown
from excite.gates import parse_gate
from excite.gates.base import GateConfig
from excite.models.base import Classifier, gate_parameters
from excite.models.blocks import PLACEMENTS
from excite.models.bn_inception import BNInception
from excite.models.cifar import CifarResNet
from excite.models.cifar_preact import PreactBasicBlock, PreactBottleneck, PreactResNet
from excite.models.inception_resnet_v2 import InceptionResNetV2
from excite.models.inception_v3 import InceptionV3
from excite.models.mobilenet import MobileNetV1
from excite.models.mobilenetv2 import MobileNetV2
from excite.models.resnet import BasicBlock, Bottleneck, ResNet
from excite.models.resnext import ResNeXt
from excite.models.senet import SENet
from excite.models.shake_shake import ShakeEvenResNeXt, ShakeShakeResNet
from excite.models.shufflenet import ShuffleNetV1
from excite.models.vgg import VGG
from excite.models.wide_resnet import WideResNet

__all__ = [
    "ALIASES",
    "MODELS",
    "PLACEMENTS",
    "Architecture",
    "create_model",
    "gate_parameters",
    "list_models",
    "split_alias",
]


@dataclass(frozen=True)
class Architecture:
    """One entry of ``MODELS``.

    Args:
        family: the class of the network; its ``Options`` are the named options, its ``VARIANTS`` sets of them.
        layout: the family's own arguments that make it this network.
        image_size: side of the images its paper trains and counts it on.
        gate: the gate that belongs to the network itself, where its name alone says one.
    """

    family: type[Classifier]
    layout: Mapping[str, Any]
    image_size: int = 224
    gate: str | None = None


MODELS: dict[str, Architecture] = {
    "resnet18": Architecture(ResNet, {"block": BasicBlock, "depths": (2, 2, 2, 2)}),
    "resnet34": Architecture(ResNet, {"block": BasicBlock, "depths": (3, 4, 6, 3)}),
    "resnet50": Architecture(ResNet, {"block": Bottleneck, "depths": (3, 4, 6, 3)}),
    "resnet101": Architecture(ResNet, {"block": Bottleneck, "depths": (3, 4, 23, 3)}),
    "resnet152": Architecture(ResNet, {"block": Bottleneck, "depths": (3, 8, 36, 3)}),
    "resnext50_32x4d": Architecture(ResNeXt, {"depths": (3, 4, 6, 3), "groups": 32, "base_width": 4}),
    "resnext101_32x4d": Architecture(ResNeXt, {"depths": (3, 4, 23, 3), "groups": 32, "base_width": 4}),
    "senet154": Architecture(SENet, {"depths": (3, 8, 36, 3)}, gate="se"),
    "resnet20": Architecture(CifarResNet, {"depth": 3}, 32),
    "resnet32": Architecture(CifarResNet, {"depth": 5}, 32),
    "resnet44": Architecture(CifarResNet, {"depth": 7}, 32),
    "resnet56": Architecture(CifarResNet, {"depth": 9}, 32),
    "resnet110": Architecture(CifarResNet, {"depth": 18}, 32),
    "preresnet110": Architecture(PreactResNet, {"block": PreactBasicBlock, "depth": 18}, 32),
    "preresnet164": Architecture(PreactResNet, {"block": PreactBottleneck, "depth": 18}, 32),
    "wrn16_8": Architecture(WideResNet, {"depth": 2, "widen": 8}, 32),
    "wrn28_10": Architecture(WideResNet, {"depth": 4, "widen": 10}, 32),
    "shake_shake26_2x96d": Architecture(ShakeShakeResNet, {"depth": 4, "width": 96}, 32),
    "shake_even29_2x4x64d": Architecture(ShakeEvenResNeXt, {"depth": 3, "groups": 4}, 32),
    "vgg11_bn": Architecture(VGG, {"depths": (1, 1, 2, 2, 2)}),
    "vgg13_bn": Architecture(VGG, {"depths": (2, 2, 2, 2, 2)}),
    "vgg16_bn": Architecture(VGG, {"depths": (2, 2, 3, 3, 3)}),
    "vgg19_bn": Architecture(VGG, {"depths": (2, 2, 4, 4, 4)}),
    "bn_inception": Architecture(BNInception, {}),
    "inception_v3": Architecture(InceptionV3, {}, 299),
    "inception_resnet_v2": Architecture(InceptionResNetV2, {"depths": (10, 20, 10)}, 299),
    "mobilenetv1": Architecture(MobileNetV1, {}),
    "mobilenetv2": Architecture(MobileNetV2, {}),
    "shufflenetv1": Architecture(ShuffleNetV1, {}),
}

# Prefixes that name a network with its paper's own gate: SE with r = 16 and biases, ECA with adaptive k.
ALIASES: dict[str, str] = {"se_": "se", "eca_": "eca"}


def create_model(
    name: str,
    *,
    gate: str | GateConfig | None = None,
    placement: str = "standard",
    stages: tuple[int, ...] | None = None,
    variant: str | None = None,
    num_classes: int = 1000,
    in_channels: int = 3,
    impl: str = "auto",
    **options: Any,
) -> Classifier:
    """A network with fresh weights.

    Args:
        name: one of ``list_models()``. "se_resnet50" is "resnet50" with the SE paper's gate, "eca_resnet50" with ECA's.
        gate: a gate's config or string; "none" for a plain network; None for what the name says, which is no gate but
            for an alias and for "senet154", whose own is SE.
        placement: "standard", "pre", "post", "identity" or "inner" (SE paper, Fig. 5; inner is its SE_3x3).
        stages: stages that have gates, counted from 1 as in ``layer1``; None for all.
        variant: a named set of options: "official" is the SE authors' networks (the stride in the first 1x1, the stem
            pool in ceil mode). Options given beside it override it.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        impl: implementation of the tails, see ``excite.ops.tail``.
        options: the family's own, such as ``stride_in`` and ``stem_pool`` of ResNets: the fields of the family's
            ``Options`` (``MODELS[name].family.Options``), listed in the error for one that is unknown.

    Returns:
        The network, in training mode, float32: images [N, in_channels, H, W] -> logits [N, num_classes].

    Raises:
        ValueError: an unknown name or option (with the nearest ones), a value out of range, or an alias with a gate.
    """
    name, gate = split_alias(name, gate)
    if name not in MODELS:
        raise unknown("model", name, list_models(), hint="`excite models` lists all")
    architecture = MODELS[name]
    build: Callable[..., Classifier] = architecture.family
    return build(
        **architecture.layout,
        gate=parse_gate(gate),
        placement=placement,
        stages=tuple(stages) if isinstance(stages, list) else stages,
        num_classes=num_classes,
        in_channels=in_channels,
        impl=impl,
        options=_options(name, variant, options),
    )


def split_alias(name: str, gate: str | GateConfig | None = None) -> tuple[str, str | GateConfig | None]:
    """The plain name and the gate that ``name`` and ``gate`` stand for: ("se_resnet50", None) is ("resnet50", "se").

    A name with a gate of its own gives it where ``gate`` is None: ("senet154", None) is ("senet154", "se").

    Raises:
        ValueError: an alias together with a gate, even with "none": which of the two is meant cannot be told.
    """
    for prefix, own_gate in ALIASES.items():
        plain = name.removeprefix(prefix)
        if plain != name and plain in MODELS:
            if gate is not None:
                raise UserError(
                    f"{name!r} already says gate {own_gate!r}; for gate={str(gate)!r} name {plain!r} instead"
                )
            return plain, own_gate
    if gate is None and name in MODELS:
        gate = MODELS[name].gate
    return name, gate


def list_models(pattern: str = "*") -> list[str]:
    """Names that ``create_model`` takes, in natural order.

    Args:
        pattern: shell-style, such as "resnet*" or "se_*".
    """
    names = [*MODELS, *(prefix + name for prefix in ALIASES for name in MODELS)]
    return sorted((n for n in names if fnmatchcase(n, pattern)), key=_natural)


def _natural(name: str) -> list[tuple[str, int]]:
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D+)(\d*)", name)]


def _options(name: str, variant: str | None, given: dict[str, Any]) -> Any:
    family = MODELS[name].family
    known = [f.name for f in dataclasses.fields(family.Options)]
    for option in given:
        if option not in known:
            raise unknown(f"option of model {name!r}", option, known)
    if variant is None:
        return family.Options(**given)
    if variant not in family.VARIANTS:
        if not family.VARIANTS:
            raise UserError(f"model {name!r} has no variants; got variant={variant!r}. Its options: {', '.join(known)}")
        raise unknown(f"variant of model {name!r}", variant, family.VARIANTS)
    return dataclasses.replace(family.VARIANTS[variant], **given)
