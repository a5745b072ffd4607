"""Networks by name: ``create_model("resnet50", gate="se(reduction=8)")``, as ``excite.create_model`` has them."""

from __future__ import annotations

import dataclasses
from fnmatch import fnmatchcase
from typing import Any

from excite.errors import UserError, unknown
from excite_keras.gates import Gate, parse_gate
from excite_keras.resnet import ResNetLayout, build

__all__ = ["MODELS", "ECAResNet50", "SEResNet50", "create_model", "list_models"]

MODELS: dict[str, ResNetLayout] = {
    "resnet18": ResNetLayout((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNetLayout((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNetLayout((3, 4, 6, 3), bottleneck=True),
    "resnet101": ResNetLayout((3, 4, 23, 3), bottleneck=True),
    "resnet152": ResNetLayout((3, 8, 36, 3), bottleneck=True),
    "resnet20": ResNetLayout((3, 3, 3), bottleneck=False, shortcut="A"),
    "resnet32": ResNetLayout((5, 5, 5), bottleneck=False, shortcut="A"),
    "resnet44": ResNetLayout((7, 7, 7), bottleneck=False, shortcut="A"),
    "resnet56": ResNetLayout((9, 9, 9), bottleneck=False, shortcut="A"),
    "resnet110": ResNetLayout((18, 18, 18), bottleneck=False, shortcut="A"),
}

# Prefixes that name a network with its paper's own gate.
ALIASES: dict[str, str] = {"se_": "se", "eca_": "eca"}

# Of the network for small images alone, or of the others alone.
_SMALL, _LARGE = ("shortcut",), ("stride_in", "stem_pool")
_OWN = ("stride_in", "stem_pool", "shortcut", "zero_init_last_norm", "epsilon", "momentum")


def create_model(
    name: str,
    *,
    gate: str | Gate | None = None,
    placement: str = "standard",
    stages: tuple[int, ...] | None = None,
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int | None = None,
    data_format: str | None = None,
    classifier_activation: str | None = None,
    **options: Any,
) -> Any:
    """A network with fresh weights, as a functional model.

    Args:
        name: one of ``list_models()``. "se_resnet50" is "resnet50" with the SE paper's gate, "eca_resnet50" with ECA's.
        gate: a gate's text or layer; None for what the name says.
        placement: "standard", "pre", "post", "identity" or "inner" (SE paper, Fig. 5; inner is its SE_3x3).
        stages: stages that have gates, counted from 1; None for all.
        num_classes: size of the output; 0 for pooled features.
        in_channels: channels of the images.
        image_size: height and width in pixels; None leaves them open.
        data_format: "channels_last" or "channels_first"; None is Keras' setting.
        classifier_activation: of the output, as "softmax"; None gives logits.
        options: ``stride_in``, ``stem_pool``, ``shortcut``, ``zero_init_last_norm``, ``epsilon``, ``momentum``: see
            ``ResNetLayout``.

    Returns:
        images [N, H, W, in_channels] (or channels first) -> logits [N, num_classes].

    Raises:
        ValueError: an unknown name or option, with the nearest ones; a value out of range; an alias with a gate.
    """
    plain, own_gate = _split_alias(name)
    if plain not in MODELS:
        raise unknown("model", name, list_models())
    if own_gate and gate is not None:
        raise UserError(f"{name!r} already says gate {own_gate!r}; name {plain!r} to give another one")
    layout = MODELS[plain]
    known = [option for option in _OWN if option not in (_LARGE if layout.small else _SMALL)]
    for option in options:
        if option not in known:
            raise unknown(f"option of model {name!r}", option, known)
    layer = parse_gate(own_gate or gate)
    layout = dataclasses.replace(
        layout,
        gate="none" if layer is None else layer.text,
        placement=placement,
        stages=None if stages is None else tuple(stages),
        num_classes=num_classes,
        in_channels=in_channels,
        **options,
    )
    return build(
        layout,
        name=name,
        image_size=image_size,
        data_format=data_format,
        classifier_activation=classifier_activation,
    )


def SEResNet50(**options: Any) -> Any:
    """SE-ResNet-50 (arXiv 1709.01507, Table 2): ``create_model("se_resnet50", **options)``."""
    return create_model("se_resnet50", **options)


def ECAResNet50(**options: Any) -> Any:
    """ECA-Net-50 (arXiv 1910.03151, Table 3): ``create_model("eca_resnet50", **options)``."""
    return create_model("eca_resnet50", **options)


def list_models(pattern: str = "*") -> list[str]:
    """Names that ``create_model`` takes.

    Args:
        pattern: shell-style, such as "se_*".
    """
    names = [*MODELS, *(prefix + name for prefix in ALIASES for name in MODELS)]
    return [name for name in names if fnmatchcase(name, pattern)]


def _split_alias(name: str) -> tuple[str, str | None]:
    for prefix, gate in ALIASES.items():
        if name.removeprefix(prefix) in MODELS and name.startswith(prefix):
            return name.removeprefix(prefix), gate
    return name, None
