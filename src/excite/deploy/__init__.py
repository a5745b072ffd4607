"""Networks made ready to run: the same function in fewer passes, and gates that do nothing taken out."""

from __future__ import annotations

from excite.deploy.folding import FoldedGate, fold_gates_
from excite.deploy.fuse import FusedNetwork, FuseReport, GateFate, fuse
from excite.deploy.proof import Proof
from excite.deploy.slim import SlimResult, slim
from excite.deploy.slim_report import SlimGate, SlimReport

__all__ = [
    "FoldedGate",
    "FuseReport",
    "FusedNetwork",
    "GateFate",
    "Proof",
    "SlimGate",
    "SlimReport",
    "SlimResult",
    "fold_gates_",
    "fuse",
    "slim",
]
