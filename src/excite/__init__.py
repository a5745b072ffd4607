"""Channel attention for convolutional networks.

The public names, each loaded with its module when it is first used: gates, ops and models need torch alone, and
``import excite`` not even that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excite.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
    from excite.cost import ECA_COUNTER, SENET, SENET_ALL, Convention, Cost, count_cost
    from excite.data import DataSet, load_data
    from excite.deploy import FusedNetwork, FuseReport, fuse
    from excite.errors import UserError
    from excite.experiment import CompareConfig, Comparison, compare
    from excite.gates import (
        ECA,
        ECANS,
        SE,
        SEGC,
        ECAConfig,
        ECANSConfig,
        EffectiveSE,
        EffectiveSEConfig,
        Gate,
        GateConfig,
        NoSqueeze,
        NoSqueezeConfig,
        SEConfig,
        SEGCConfig,
        SEVar1,
        SEVar1Config,
        SEVar2,
        SEVar2Config,
        SEVar3,
        SEVar3Config,
        list_gates,
        parse_gate,
    )
    from excite.models import create_model, gate_parameters, list_models
    from excite.networks import NetworkSpec
    from excite.ops import rescale, squeeze, squeeze_ahead, tail
    from excite.surgery import (
        Attached,
        Refusal,
        Site,
        Survey,
        Swap,
        attach_,
        attach_at_,
        attached,
        detach_,
        find_sites,
        reattach_,
        survey,
        swap_,
        verify,
    )
    from excite.timing import Latency, Timing, compare_latency, measure_latency, sweep_latency, time_in_turns
    from excite.training import RunResult, TrainConfig, evaluate, train
    from excite.weights import LoadReport, load_weights

__version__ = "0.1.0"

__all__ = [
    "ECA",
    "ECANS",
    "ECA_COUNTER",
    "SE",
    "SEGC",
    "SENET",
    "SENET_ALL",
    "Attached",
    "Checkpoint",
    "CompareConfig",
    "Comparison",
    "Convention",
    "Cost",
    "DataSet",
    "ECAConfig",
    "ECANSConfig",
    "EffectiveSE",
    "EffectiveSEConfig",
    "FuseReport",
    "FusedNetwork",
    "Gate",
    "GateConfig",
    "Latency",
    "LoadReport",
    "NetworkSpec",
    "NoSqueeze",
    "NoSqueezeConfig",
    "Refusal",
    "RunResult",
    "SEConfig",
    "SEGCConfig",
    "SEVar1",
    "SEVar1Config",
    "SEVar2",
    "SEVar2Config",
    "SEVar3",
    "SEVar3Config",
    "Site",
    "Survey",
    "Swap",
    "Timing",
    "TrainConfig",
    "UserError",
    "attach_",
    "attach_at_",
    "attached",
    "compare",
    "compare_latency",
    "count_cost",
    "create_model",
    "detach_",
    "evaluate",
    "find_sites",
    "fuse",
    "gate_parameters",
    "list_gates",
    "list_models",
    "load_data",
    "load_weights",
    "measure_latency",
    "parse_gate",
    "read_checkpoint",
    "reattach_",
    "rescale",
    "save_checkpoint",
    "squeeze",
    "squeeze_ahead",
    "survey",
    "swap_",
    "sweep_latency",
    "tail",
    "time_in_turns",
    "train",
    "verify",
]

_HOMES = {
    "Attached": "excite.surgery",
    "Checkpoint": "excite.checkpoint",
    "CompareConfig": "excite.experiment",
    "Comparison": "excite.experiment",
    "Convention": "excite.cost",
    "Cost": "excite.cost",
    "DataSet": "excite.data",
    "ECA": "excite.gates",
    "ECAConfig": "excite.gates",
    "ECANS": "excite.gates",
    "ECANSConfig": "excite.gates",
    "ECA_COUNTER": "excite.cost",
    "EffectiveSE": "excite.gates",
    "EffectiveSEConfig": "excite.gates",
    "FuseReport": "excite.deploy",
    "FusedNetwork": "excite.deploy",
    "Gate": "excite.gates",
    "GateConfig": "excite.gates",
    "Latency": "excite.timing",
    "LoadReport": "excite.weights",
    "NetworkSpec": "excite.networks",
    "NoSqueeze": "excite.gates",
    "NoSqueezeConfig": "excite.gates",
    "Refusal": "excite.surgery",
    "RunResult": "excite.training",
    "SE": "excite.gates",
    "SEConfig": "excite.gates",
    "SEGC": "excite.gates",
    "SEGCConfig": "excite.gates",
    "SENET": "excite.cost",
    "SENET_ALL": "excite.cost",
    "SEVar1": "excite.gates",
    "SEVar1Config": "excite.gates",
    "SEVar2": "excite.gates",
    "SEVar2Config": "excite.gates",
    "SEVar3": "excite.gates",
    "SEVar3Config": "excite.gates",
    "Site": "excite.surgery",
    "Survey": "excite.surgery",
    "Swap": "excite.surgery",
    "Timing": "excite.timing",
    "TrainConfig": "excite.training",
    "UserError": "excite.errors",
    "attach_": "excite.surgery",
    "attach_at_": "excite.surgery",
    "attached": "excite.surgery",
    "compare": "excite.experiment",
    "compare_latency": "excite.timing",
    "count_cost": "excite.cost",
    "create_model": "excite.models",
    "detach_": "excite.surgery",
    "evaluate": "excite.training",
    "find_sites": "excite.surgery",
    "fuse": "excite.deploy",
    "gate_parameters": "excite.models",
    "list_gates": "excite.gates",
    "list_models": "excite.models",
    "load_data": "excite.data",
    "load_weights": "excite.weights",
    "measure_latency": "excite.timing",
    "parse_gate": "excite.gates",
    "read_checkpoint": "excite.checkpoint",
    "reattach_": "excite.surgery",
    "rescale": "excite.ops",
    "save_checkpoint": "excite.checkpoint",
    "squeeze": "excite.ops",
    "squeeze_ahead": "excite.ops",
    "survey": "excite.surgery",
    "swap_": "excite.surgery",
    "sweep_latency": "excite.timing",
    "tail": "excite.ops",
    "time_in_turns": "excite.timing",
    "train": "excite.training",
    "verify": "excite.surgery",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'excite' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
