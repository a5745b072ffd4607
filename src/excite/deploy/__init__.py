"""Networks made ready to run: the same function in fewer passes over the feature maps."""

from __future__ import annotations

from excite.deploy.folding import FoldedGate, fold_gates_
from excite.deploy.fuse import FusedNetwork, FuseReport, GateFate, fuse

__all__ = ["FoldedGate", "FuseReport", "FusedNetwork", "GateFate", "fold_gates_", "fuse"]
