"""What a network is that no shape of its tensors tells: its options, read back from its modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from excite.models.base import Classifier, StagedClassifier
from excite.models.cifar_preact import PreactBasicBlock, PreactBottleneck, PreactResNet
from excite.models.inception_v3 import InceptionV3
from excite.models.mobilenet import MobileNetV1
from excite.models.resnet import Bottleneck, ResNet
from excite.models.resnext import ResNeXt
from excite.models.senet import SENet
from excite.models.shake_shake import ShakeShakeResNet

__all__ = ["hidden_options", "options_of"]


def options_of(model: Classifier) -> dict[str, Any]:
    """The options of ``create_model`` that change what a network computes but none of its shapes, with its values.

    Options that its blocks do not have are left out: a ResNet of basic blocks has no ``stride_in``.
    """
    readers = _READERS.get(type(model), {})
    values = {option: read(model) for option, read in readers.items()}
    return {option: value for option, value in values.items() if value is not None}


def hidden_options(family: type[Classifier]) -> set[str]:
    """The names of such options of a family; ``options_of`` leaves out those that a network of it does not have."""
    return set(_READERS.get(family, ()))


def _blocks(model: nn.Module, stage: int) -> Any:
    assert isinstance(model, StagedClassifier)
    return getattr(model, f"layer{stage}")


def _stride_in(model: nn.Module) -> str | None:
    first = _blocks(model, 2)[0]
    if not isinstance(first, Bottleneck | PreactBottleneck):
        return None
    return "3x3" if first.conv1.stride == (1, 1) else "1x1"


def _stem_pool(model: nn.Module) -> str:
    pool = model.maxpool
    assert isinstance(pool, nn.MaxPool2d)
    return "ceil" if pool.ceil_mode else "padded"


def _first_shortcut(model: nn.Module) -> str | None:
    first = _blocks(model, 1)[0]
    if not isinstance(first, PreactBasicBlock) or first.downsample is not None:
        return None
    return "activated" if first.activated_shortcut else "raw"


def _relu(model: nn.Module) -> str:
    return "pre" if model.relu_first else "post"


def _count_include_pad(model: nn.Module) -> bool:
    return all(pool.count_include_pad for pool in model.modules() if isinstance(pool, nn.AvgPool2d))


def _activation(model: nn.Module) -> str:
    return str(model.activation)


_READERS: dict[type[Classifier], dict[str, Callable[[nn.Module], Any]]] = {
    ResNet: {"stride_in": _stride_in, "stem_pool": _stem_pool},
    ResNeXt: {"stem_pool": _stem_pool},
    SENet: {"stem_pool": _stem_pool},
    PreactResNet: {"stride_in": _stride_in, "first_shortcut": _first_shortcut},
    ShakeShakeResNet: {"relu": _relu},
    InceptionV3: {"count_include_pad": _count_include_pad},
    MobileNetV1: {"activation": _activation},
}
