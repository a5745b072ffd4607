"""Channel attention for Keras 3, on TensorFlow, JAX or PyTorch: the gates of ``excite`` as layers, and their places.

Importing it registers the layers, so that Keras loads files that hold them, and needs no torch. What moves weights
between Keras and PyTorch is loaded with torch when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from excite.errors import UserError

try:
    import keras
except ModuleNotFoundError as error:
    if error.name not in ("keras", "tensorflow", "jax"):
        raise
    raise UserError(
        f"excite_keras needs Keras 3 and a backend, and {error.name!r} is not installed: pip install 'excite[keras]', "
        "then tensorflow, jax or torch, which KERAS_BACKEND names"
    ) from None
if int(keras.__version__.partition(".")[0]) < 3:
    raise UserError(f"excite_keras needs Keras 3; Keras {keras.__version__} is installed: pip install -U keras")

from excite_keras.gates import (  # noqa: E402
    ECANS,
    SEGC,
    EffectiveSqueezeExcite,
    EfficientChannelAttention,
    Gate,
    SEVar1,
    SEVar2,
    SEVar3,
    SqueezeExcite,
    list_gates,
    parse_gate,
)

if TYPE_CHECKING:
    from excite_keras.models import ECAResNet50, SEResNet50, create_model, list_models
    from excite_keras.surgery import Site, find_sites, insert
    from excite_keras.weights import from_keras, load_gate, to_keras

__all__ = [
    "ECANS",
    "SEGC",
    "ECAResNet50",
    "EffectiveSqueezeExcite",
    "EfficientChannelAttention",
    "Gate",
    "SEResNet50",
    "SEVar1",
    "SEVar2",
    "SEVar3",
    "Site",
    "SqueezeExcite",
    "create_model",
    "find_sites",
    "from_keras",
    "insert",
    "list_gates",
    "list_models",
    "load_gate",
    "parse_gate",
    "to_keras",
]

_HOMES = {
    "ECAResNet50": "excite_keras.models",
    "SEResNet50": "excite_keras.models",
    "Site": "excite_keras.surgery",
    "create_model": "excite_keras.models",
    "find_sites": "excite_keras.surgery",
    "from_keras": "excite_keras.weights",
    "insert": "excite_keras.surgery",
    "list_models": "excite_keras.models",
    "load_gate": "excite_keras.weights",
    "to_keras": "excite_keras.weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'excite_keras' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
