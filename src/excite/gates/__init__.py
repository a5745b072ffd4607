"""Gates: what turns a map's channel descriptors into channel scales. One gate a file, all of them listed in ``GATES``.

The names are loaded with their files when they are first used, so that what a gate's options mean, which is plain
numbers and text (``grammar``, ``reduction``, ``kernel_sizes``, ``function_names``), can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excite.gates.base import Gate, GateConfig
    from excite.gates.eca import ECA, ECAConfig
    from excite.gates.eca_ns import ECANS, ECANSConfig
    from excite.gates.effective_se import EffectiveSE, EffectiveSEConfig
    from excite.gates.named import GATES, list_gates, parse_gate, split_gates
    from excite.gates.no_squeeze import NoSqueeze, NoSqueezeConfig
    from excite.gates.se import SE, SEConfig
    from excite.gates.se_gc import SEGC, SEGCConfig
    from excite.gates.se_var1 import SEVar1, SEVar1Config
    from excite.gates.se_var2 import SEVar2, SEVar2Config
    from excite.gates.se_var3 import SEVar3, SEVar3Config

__all__ = [
    "ECA",
    "ECANS",
    "GATES",
    "SE",
    "SEGC",
    "ECAConfig",
    "ECANSConfig",
    "EffectiveSE",
    "EffectiveSEConfig",
    "Gate",
    "GateConfig",
    "NoSqueeze",
    "NoSqueezeConfig",
    "SEConfig",
    "SEGCConfig",
    "SEVar1",
    "SEVar1Config",
    "SEVar2",
    "SEVar2Config",
    "SEVar3",
    "SEVar3Config",
    "list_gates",
    "parse_gate",
    "split_gates",
]

_HOMES = {
    "ECA": "excite.gates.eca",
    "ECANS": "excite.gates.eca_ns",
    "GATES": "excite.gates.named",
    "SE": "excite.gates.se",
    "SEGC": "excite.gates.se_gc",
    "ECAConfig": "excite.gates.eca",
    "ECANSConfig": "excite.gates.eca_ns",
    "EffectiveSE": "excite.gates.effective_se",
    "EffectiveSEConfig": "excite.gates.effective_se",
    "Gate": "excite.gates.base",
    "GateConfig": "excite.gates.base",
    "NoSqueeze": "excite.gates.no_squeeze",
    "NoSqueezeConfig": "excite.gates.no_squeeze",
    "SEConfig": "excite.gates.se",
    "SEGCConfig": "excite.gates.se_gc",
    "SEVar1": "excite.gates.se_var1",
    "SEVar1Config": "excite.gates.se_var1",
    "SEVar2": "excite.gates.se_var2",
    "SEVar2Config": "excite.gates.se_var2",
    "SEVar3": "excite.gates.se_var3",
    "SEVar3Config": "excite.gates.se_var3",
    "list_gates": "excite.gates.named",
    "parse_gate": "excite.gates.named",
    "split_gates": "excite.gates.named",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'excite.gates' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
